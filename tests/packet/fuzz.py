# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of every kind that the data plane knows, then bent in ways nobody thought of."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from tests.packet import network as net
from tests.packet.frames import CLIENT
from tests.packet.reference import ICMP, ICMPV6, PROTOCOLS, TCP, UDP, word_sum

VIPS = ["203.0.113.10", "203.0.113.11", "203.0.113.12"]
VIPS6 = ["2001:db8:1::10", "2001:db8:1::11", "2001:db8:1::12"]
# Name, VIP, protocol, port, other keys. The same over IPv6, with names that end in 6.
SERVICES_BY_FAMILY = [
    ("web", 0, "tcp", 80, {}),
    ("web-udp", 0, "udp", 80, {}),
    ("dns", 0, "udp", 53, {"scheduler": "hash"}),
    ("game", 1, "udp", "27000-27015", {}),
    ("sip", 1, "udp", 5060, {"scheduler": "round_robin"}),
    ("direct", 2, "tcp", "443-445", {"forwarding": "dsr"}),
    ("media", 2, "udp", 6000, {"forwarding": "dsr", "scheduler": "round_robin"}),
    ("tunnel", 1, "tcp", 80, {"forwarding": "ipip", "source": "10.0.0.254"}),
    ("tunnel-udp", 1, "udp", 80, {"forwarding": "ipip", "source": "10.99.0.0/16", "scheduler": "hash"}),
    ("gue", 1, "tcp", 81, {"forwarding": "gue", "source": "10.0.0.254"}),
    ("gue-udp", 1, "udp", 81, {"forwarding": "gue", "source": "10.99.0.0/16", "tunnel_port": 7000}),
    ("nat", 2, "udp", 53, {"forwarding": "full_nat", "source": "10.0.0.250"}),
    ("nat-tcp", 2, "tcp", 80, {"forwarding": "full_nat", "source": "10.0.0.250"}),
    ("sticky", 0, "tcp", 22, {"flow_table": True, "scheduler": "round_robin"}),
    ("sticky-udp", 1, "udp", 22, {"flow_table": True}),
    ("sticky-tunnel", 2, "tcp", 22, {"flow_table": True, "forwarding": "ipip", "source": "10.0.0.254"}),
    ("moved", 0, "udp", 7000, {"forwarding": "redirect", "scheduler": "round_robin"}),
    ("moved-tcp", 1, "tcp", 7000, {"forwarding": "redirect"}),
    ("rest", 2, "udp", "any", {}),
    ("rest-direct", 1, "tcp", "any", {"forwarding": "dsr"}),
    ("empty", 2, "tcp", 9, {}),
]
# Service, number of the host (100 and more: behind the other interface), other keys.
BACKENDS_BY_FAMILY: list[tuple[str, int, dict[str, Any]]] = [
    *(("web", host, {"port": 8080, "weight": host}) for host in (1, 2, 3)),
    ("web", 4, {"port": 8080, "state": "drained"}),
    ("web", 105, {"port": 8080, "weight": 2}),
    ("web", 230, {"port": 8080}),
    ("web-udp", 1, {"port": 8080, "mac": "52:54:00:00:00:01"}),
    ("web-udp", 105, {"weight": 3, "port": 81}),
    ("dns", 1, {}),
    ("dns", 2, {"port": 5353, "weight": 3}),
    ("game", 7, {}),
    ("game", 8, {"mac": "52:54:00:00:00:08", "weight": 2}),
    ("sip", 9, {"port": 5070}),
    ("sip", 10, {"port": 5070, "weight": 2}),
    ("sip", 230, {"port": 5070, "weight": 4}),
    ("direct", 11, {}),
    ("direct", 112, {}),
    ("direct", 230, {}),
    ("media", 13, {"weight": 3}),
    ("media", 14, {"mac": "52:54:00:00:00:0e", "weight": 5}),
    ("tunnel", 15, {}),
    ("tunnel", 116, {}),
    ("tunnel", 230, {}),
    ("tunnel-udp", 17, {"weight": 3}),
    ("tunnel-udp", 18, {"mac": "52:54:00:00:00:12"}),
    ("gue", 33, {}),
    ("gue", 134, {}),
    ("gue-udp", 35, {"weight": 3}),
    ("gue-udp", 36, {"mac": "52:54:00:00:00:24"}),
    ("nat", 19, {}),
    ("nat", 120, {"port": 5300}),
    ("nat-tcp", 19, {"port": 8081}),
    ("nat-tcp", 121, {}),
    ("nat-tcp", 230, {}),
    ("sticky", 22, {"port": 2222}),
    ("sticky", 23, {"port": 2222}),
    ("sticky-udp", 24, {}),
    ("sticky-udp", 125, {"port": 23}),
    ("sticky-tunnel", 26, {}),
    ("sticky-tunnel", 127, {}),
    ("rest", 28, {}),
    ("rest", 129, {}),
    ("rest-direct", 30, {}),
]
FILTERS = [
    {"prefix": "192.0.2.0/24", "action": "drop"},
    {"prefix": "192.0.2.64/26", "action": "pass"},
    {"prefix": "192.0.2.65", "action": "drop", "protocol": "udp"},
    {"prefix": "8.0.0.0/8", "action": "drop", "protocol": "icmp"},
    {"prefix": "8.8.0.0/16", "action": "drop", "protocol": "tcp"},
    {"prefix": "2001:db8:66::/48", "action": "drop"},
    {"prefix": "2001:db8:66:1::/64", "action": "pass", "protocol": "tcp"},
    {"prefix": "2001:db8:66:1::7", "action": "drop", "protocol": "tcp"},
]
CLIENTS = [
    *(
        CLIENT,
        "192.0.2.1",
        "192.0.2.65",
        "192.0.2.99",
        "8.8.8.8",
        "8.9.9.9",
        "10.0.0.100",
        "10.0.1.100",
        net.UNRESOLVED,
    ),
    *(net.UNRESOLVED_BACK, net.FRONT_ADDRESS, net.BACK_ADDRESS, net.ROUTER, net.PROHIBITED, net.UNREACHABLE),
    *("127.0.0.1", "0.0.0.0", "10.0.0.255", "224.0.0.1", "255.255.255.255", net.NARROW, net.NARROW),
    *("169.254.7.7", "192.0.0.5", "192.0.0.8", VIPS[0]),
]
CLIENTS6 = [
    *("2001:db8:7::7", "2001:db8:66::1", "2001:db8:66:1::7", "2001:db8:66:1::8", "fd00::64", "fd00:0:0:1::64"),
    *(net.UNRESOLVED6, net.UNRESOLVED_BACK6, net.FRONT_ADDRESS6, net.ROUTER6, net.PROHIBITED6, net.NARROW6),
    *("::1", "::", "ff02::1", "::ffff:8.8.8.8", VIPS6[0]),
]
CLIENT_PORTS = [0, 1024, 33333, 40000, 40001, 50000, 65535]


def _of_family(family: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    suffix, vips = ("", VIPS) if family == 4 else ("6", VIPS6)
    sources = {"10.0.0.254": "fd00::fe", "10.99.0.0/16": "fd99::/64", "10.0.0.250": "fd00::fa"}

    def keys(extra: dict[str, Any]) -> dict[str, Any]:
        return {name: sources[value] if name == "source" and family == 6 else value for name, value in extra.items()}

    def address(host: int) -> str:
        back, host = (1, host) if 100 <= host < 200 else (0, host)
        return f"10.0.{back}.{host}" if family == 4 else str(ipaddress.ip_address(f"{net.PREFIXES6[back]}{host:x}"))

    services = [
        {"name": name + suffix, "address": vips[vip], "protocol": protocol, "port": port, **keys(extra)}
        for name, vip, protocol, port, extra in SERVICES_BY_FAMILY
    ]
    backends = [
        {"service": service + suffix, "address": address(host), **extra} for service, host, extra in BACKENDS_BY_FAMILY
    ]
    for service in ("moved", "moved-tcp"):
        backends += [{"service": service + suffix, "interface": name} for name in (net.FRONT, net.BACK)]
    return services, backends


SERVICES4, BACKENDS4 = _of_family(4)
SERVICES6, BACKENDS6 = _of_family(6)
# IPv4 over IPv6, and routes that refuse.
SERVICES4.append(
    {
        "name": "four-in-six",
        "address": VIPS[0],
        "protocol": "udp",
        "port": 90,
        "forwarding": "ipip",
        "source": "fd99::/96",
    }
)
# IPv6 over IPv4.
SERVICES6.append(
    {
        "name": "six-in-four",
        "address": VIPS6[0],
        "protocol": "udp",
        "port": 90,
        "forwarding": "ipip",
        "source": "10.99.0.0/16",
    }
)
SERVICES6.append({**SERVICES6[-1], "name": "six-in-gue", "port": 91, "forwarding": "gue"})
BACKENDS4 += [
    {"service": "gue", "address": net.NARROW},
    {"service": "web", "address": net.NARROW, "port": 8080, "weight": 6},
    {"service": "dns", "address": net.NARROW, "weight": 4},
    {"service": "media", "address": net.NARROW, "weight": 2},
    {"service": "nat", "address": net.NARROW},
    {"service": "nat-tcp", "address": net.NARROW},
    {"service": "four-in-six", "address": "fd00::1f"},
    {"service": "four-in-six", "address": "fd00:0:0:1::20", "weight": 2},
    {"service": "four-in-six", "address": net.NARROW6},
    {"service": "web", "address": net.PROHIBITED, "port": 8080},
    {"service": "direct", "address": net.BLACKHOLE},
    {"service": "tunnel", "address": net.NARROW},
]
BACKENDS6 += [
    {"service": "six-in-gue", "address": "10.0.1.32"},
    {"service": "six-in-gue", "address": net.NARROW},
    {"service": "gue6", "address": net.NARROW6},
    {"service": "six-in-four", "address": "10.0.0.31"},
    {"service": "six-in-four", "address": "10.0.1.32", "weight": 2},
    {"service": "six-in-four", "address": net.NARROW},
    {"service": "web6", "address": net.NARROW6, "port": 8080, "weight": 6},
    {"service": "dns6", "address": net.NARROW6},
    {"service": "direct6", "address": net.NARROW6},
    {"service": "nat6", "address": net.NARROW6},
    {"service": "nat-tcp6", "address": net.NARROW6},
    {"service": "sticky-tunnel6", "address": net.TIGHT6},
    {"service": "web6", "address": net.PROHIBITED6, "port": 8080},
    {"service": "direct6", "address": net.BLACKHOLE6},
    {"service": "tunnel6", "address": net.NARROW6},
]
SERVICES, BACKENDS = SERVICES4 + SERVICES6, BACKENDS4 + BACKENDS6
ON_TC = [service for service in SERVICES if service.get("forwarding") != "redirect"]
ON_TC_BACKENDS = [backend for backend in BACKENDS if "interface" not in backend]


@lru_cache(maxsize=65536)
def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def words(*numbers: int) -> list[bytes]:
    return [number.to_bytes(2, "big") for number in numbers]


def octets(*numbers: int) -> list[bytes]:
    return [bytes((number,)) for number in numbers]


class Frames:
    """Good frames and bent ones, always the same for a seed, but for the identifications of fragments and live ports.

    Those go on counting: one that came again after about 2 s, when program and model forget it by two clocks, would
    be forgotten by one of them only.
    """

    fragments = 0

    def __init__(
        self,
        seed: int,
        services: list[dict[str, Any]] = SERVICES,
        backends: list = BACKENDS,
        ports_in_use: Callable[[bytes], Collection[int]] = lambda _address: (),
    ) -> None:
        self.random, self.ports_in_use = random.Random(seed), ports_in_use
        self.by_family = {
            4: ([item for item in services if "." in item["address"]], CLIENTS, VIPS),
            6: ([item for item in services if ":" in item["address"]], CLIENTS6, VIPS6),
        }
        self.backends = backends
        self.by_name = {service["name"]: service for service in services}

    # --- parts

    def payload(self) -> bytes:
        # Few that do not fit everywhere: the program answers no more than a hundred of those a second.
        kind = self.random.random()
        if kind < 0.02:
            return self.random.randbytes(self.random.choice((1380, 1420, 1431, 1452, 1460)))
        if kind < 0.2:
            # As long as the narrow route takes with some headers, or a byte longer.
            return self.random.randbytes(
                net.NARROW_MTU - self.random.choice((28, 40, 48, 60)) + self.random.randrange(2)
            )
        return self.random.randbytes(self.random.choice((0, 1, 2, 3, 18, 64, 513, 1200)))

    def transport(self, protocol: int, source_port: int, port: int, payload: bytes, pseudo: bytes) -> bytes:
        ports = struct.pack(">HH", source_port, port)
        if protocol == TCP:
            flags = self.random.choice((0x02, 0x02, 0x10, 0x10, 0x10, 0x12, 0x18, 0x11, 0x04, 0x14))
            data, place = ports + struct.pack(">IIBBHHH", 7, 9, 0x50, flags, 512, 0, 0) + payload, 16
        else:
            data, place = ports + struct.pack(">HH", 8 + len(payload), 0) + payload, 6
            if self.random.random() < 0.05:
                return data
        return self.with_checksum(data, place, protocol, pseudo)

    @staticmethod
    def with_checksum(data: bytes, place: int, protocol: int, pseudo: bytes) -> bytes:
        total = word_sum(pseudo + data) + (protocol + len(data) if pseudo else 0)
        value = -total % 0xFFFF or (0xFFFF if protocol == UDP else 0)
        return data[:place] + struct.pack(">H", value) + data[place + 2 :]

    def ip(self, family: int, source: str, destination: str, protocol: int, data: bytes, plain: bool = False) -> bytes:
        """The packet; now and then with options, extension headers, or as a fragment."""
        unusual = 0.0 if plain else 0.12
        ttl = 64 if plain else self.random.choice((64, 64, 64, 255, 2, 1, 0))
        fragment = self.random.random() < unusual
        if family == 4:
            return self._ip4(packed(source), packed(destination), protocol, data, ttl, fragment, unusual)
        return self._ip6(packed(source), packed(destination), protocol, data, ttl, fragment, unusual)

    def _fragment(self) -> tuple[int, int]:
        """Identification and offset in 8 bytes, 0 for a first one; often of a packet that was begun lately."""
        if self.random.random() < 0.5:
            Frames.fragments += 1
            return self.fragments, 0
        return max(0, self.fragments - self.random.randrange(4)), self.random.choice((1, 8, 100))

    def _ip4(
        self, source: bytes, destination: bytes, protocol: int, data: bytes, ttl: int, fragment: bool, unusual: float
    ) -> bytes:
        options = b""
        if self.random.random() < unusual:
            options = self.random.choice((b"\x94\x04\0\0", b"\x01" * 8, b"\x07\x27\x04" + bytes(37)))
        identification, offset, more = self.random.randrange(65536), 0, 0
        if fragment:
            identification, offset = self._fragment()
            more = 0x2000 if offset == 0 or self.random.random() < 0.5 else 0
        flags = more | offset if fragment else self.random.choice((0, 0x4000))
        header = struct.pack(
            ">BBHHHBBH4s4s",
            0x45 + len(options) // 4,
            self.random.choice((0, 0, 0x10, 0xB8)),
            20 + len(options) + len(data),
            identification & 0xFFFF,
            flags,
            ttl,
            protocol,
            0,
            source,
            destination,
        )
        header += options
        return header[:10] + struct.pack(">H", -word_sum(header) % 0xFFFF) + header[12:] + data

    def _ip6(
        self, source: bytes, destination: bytes, protocol: int, data: bytes, ttl: int, fragment: bool, unusual: float
    ) -> bytes:
        headers: list[tuple[int, bytes]] = []
        if self.random.random() < unusual:
            for _header in range(self.random.choice((1, 1, 2, 5, 6, 7))):
                kind = self.random.choice((0, 60, 60, 43))
                size = self.random.randrange(3)
                body = bytes((0, size, 4, self.random.choice((0, 0, 0, 1)) if kind == 43 else 0)) + bytes(4 + 8 * size)
                headers.append((kind, body))
        if fragment:
            identification, offset = self._fragment()
            more = int(offset == 0 or self.random.random() < 0.5)
            headers.append((44, struct.pack(">BBHI", 0, 0, offset << 3 | more, identification)))
        chain, following = b"", protocol
        for kind, body in reversed(headers):
            chain, following = bytes((following,)) + body[1:] + chain, kind
        first = 6 << 28 | self.random.choice((0, 0x10, 0xB8)) << 20 | self.random.choice((0, 0x12345))
        return (
            struct.pack(">IHBB16s16s", first, len(chain) + len(data), following, ttl, source, destination)
            + chain
            + data
        )

    def frame(self, family: int, packet: bytes) -> bytes:
        tags = b""
        if self.random.random() < 0.1:
            tags = b"\x81\x00\x00\x07"
            if self.random.random() < 0.5:
                tags = b"\x88\xa8\x00\x05" + tags
        kind = b"\x08\x00" if family == 4 else b"\x86\xdd"
        head = net.mac(net.FRONT_MAC) + net.mac(net.ROUTER_MAC) + tags + kind
        return (head + packet).ljust(60 if self.random.random() < 0.5 else 0, b"\xa5")

    # --- whole frames

    def port_of(self, service: dict[str, Any]) -> int:
        if service["port"] == "any":
            return self.random.choice((9, 80, 123, 7777))
        return int(str(service["port"]).partition("-")[0]) + self.random.choice((0, 0, 0, 1))

    def request(self, family: int) -> bytes:
        services, clients, _vips = self.by_family[family]
        service = self.random.choice(services)
        return self.flow(family, self.random.choice(clients), self.random.choice(CLIENT_PORTS), service)

    def flow(self, family: int, client: str, client_port: int, service: dict[str, Any]) -> bytes:
        return self.segment(family, client, client_port, service["address"], self.port_of(service), service["protocol"])

    def segment(self, family: int, source: str, source_port: int, destination: str, port: int, protocol: str) -> bytes:
        number = PROTOCOLS[protocol]
        data = self.transport(number, source_port, port, self.payload(), packed(source) + packed(destination))
        return self.frame(family, self.ip(family, source, destination, number, data))

    def answer(self, family: int) -> tuple[str, str, int, str, int] | None:
        """Protocol, backend, its port, client or source address of ours, and port of that."""
        services, clients, _vips = self.by_family[family]
        names = {service["name"] for service in services}
        backend = self.random.choice([item for item in self.backends if item["service"] in names and "address" in item])
        if (":" in backend["address"]) != (family == 6):
            return None
        service = self.by_name[backend["service"]]
        port = backend.get("port") or self.port_of(service)
        nat = service if service.get("forwarding") == "full_nat" else self.by_name["nat" if family == 4 else "nat6"]
        if nat is service or self.random.random() < 0.05:
            ports = sorted(self.ports_in_use(packed(nat["source"]))) or [10000]
            to, to_port = nat["source"], self.random.choice(ports) + (self.random.random() < 0.1)
        else:
            to, to_port = self.random.choice(clients), self.random.choice(CLIENT_PORTS)
        return service["protocol"], backend["address"], port, to, to_port

    def reply(self, family: int) -> bytes:
        answer = self.answer(family)
        if answer is None:
            return self.request(family)
        protocol, *ends = answer
        return self.segment(family, *ends, protocol)

    def echo(self, family: int) -> bytes:
        _services, clients, vips = self.by_family[family]
        client, vip = self.random.choice(clients), self.random.choice(vips)
        kind, protocol = (8, ICMP) if family == 4 else (128, ICMPV6)
        pseudo = b"" if family == 4 else packed(client) + packed(vip)
        data = struct.pack(">BBHHH", kind, 0, 0, 0x1234, 7) + self.payload()
        return self.frame(family, self.ip(family, client, vip, protocol, self.with_checksum(data, 2, protocol, pseudo)))

    def error(self, family: int) -> bytes:
        """About a packet that a backend has sent in the VIP's name."""
        services, clients, _vips = self.by_family[family]
        service = self.random.choice(services)
        ends = service["address"], self.port_of(service), self.random.choice(clients), self.random.choice(CLIENT_PORTS)
        return self.error_about(family, service["protocol"], *ends, self.random.choice(clients))

    def error_from_behind(self, family: int) -> bytes:
        """About a packet that went to a backend; the answer to it would be a reply."""
        answer = self.answer(family)
        if answer is None:
            return self.error(family)
        protocol, backend, port, to, to_port = answer
        sender = backend if self.random.random() < 0.5 else self.random.choice(self.by_family[family][1])
        return self.error_about(family, protocol, to, to_port, backend, port, sender)

    def error_about(
        self, family: int, protocol: str, source: str, source_port: int, destination: str, port: int, sender: str
    ) -> bytes:
        number, pseudo = PROTOCOLS[protocol], packed(source) + packed(destination)
        inner = self.transport(number, source_port, port, self.payload(), pseudo)
        quote = self.ip(family, source, destination, number, inner, plain=self.random.random() < 0.6)
        quote = quote[: len(quote) - len(inner) + self.random.choice((8, 8, 8, 7, 20, 64, 500, -3))]
        kinds = (
            ((3, 4), (3, 1), (11, 0), (12, 0), (4, 0)) if family == 4 else ((1, 0), (2, 0), (3, 0), (4, 1), (137, 0))
        )
        kind, code = self.random.choice(kinds)
        # Now and then to somebody else than who has sent the packet.
        to = source if self.random.random() < 0.95 else self.random.choice(self.by_family[family][1])
        data = struct.pack(">BBHI", kind, code, 0, 1400) + quote
        icmp, pseudo = (ICMP, b"") if family == 4 else (ICMPV6, packed(sender) + packed(to))
        return self.frame(family, self.ip(family, sender, to, icmp, self.with_checksum(data, 2, icmp, pseudo)))

    def good(self) -> bytes:
        family = self.random.choice((4, 6))
        kinds = self.request, self.reply, self.echo, self.error, self.error_from_behind
        return self.random.choices(kinds, weights=(10, 5, 1, 3, 3))[0](family)

    # --- bending

    def bent(self) -> bytes:
        frame = self.good()
        for _mutation in range(self.random.choice((0, 1, 1, 1, 2, 3))):
            frame = self.bend(frame)
        return frame

    def bend(self, frame: bytes) -> bytes:
        kind = self.random.randrange(8)
        if kind == 0:
            return frame[: self.random.randrange(14, max(15, len(frame)))]
        if kind == 1:
            return frame + self.random.randbytes(self.random.randrange(1, 40))
        link = 14
        while link < 22 and frame[link - 2 : link] in (b"\x81\x00", b"\x88\xa8"):
            link += 4
        is_ip6 = frame[link - 2 : link] == b"\x86\xdd"
        addresses = range(link + 8, link + 40) if is_ip6 else range(link + 12, link + 20)
        if kind == 2:
            place = link + (4 if is_ip6 else 2)
            value = max(0, len(frame) - link - (40 if is_ip6 else 0) + self.random.randrange(-2, 2)).to_bytes(2, "big")
        elif kind == 3:
            place, value = link, self.random.choice(octets(0x40, 0x44, 0x45, 0x46, 0x4F, 0x55, 0x60, 0x65, 0x6F))
        elif kind == 4:
            place, value = (
                link + 6,
                self.random.choice(words(1, 0x1FFF, 0x2000, 0x3FFF, 0x4000, 0x8000, 0x3A40, 0x2C40)),
            )
        elif kind == 5:
            place = addresses.stop + self.random.choice((0, 2))
            value = self.random.choice(words(0, 9, 53, 80, 443, 5060, 5070, 5353, 6000, 7000, 8080, 27000, 65535))
        else:
            place = self.random.randrange(12, max(13, min(len(frame), link + 120)))
            value = self.random.choice((b"\0", b"\1", b"\2", b"\x7f", b"\xff", self.random.randbytes(1)))
        # Addresses stay known ones, since the model must know what the kernel says of them; so do the ends' own.
        if place < 12 or any(place + index in addresses for index in range(len(value))):
            return frame
        return (frame[:place] + value + frame[place + len(value) :])[: len(frame)]
