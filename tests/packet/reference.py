# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the balancer should do with a frame, written a second time, from docs/data-plane.md and on purpose differently.

Nothing of the engine is imported. Checksums are summed up afresh over the whole packet, endpoints are plain
dictionaries, rings follow the rule as the collection documents it. Inventory entries are taken as they are written.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Any

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
ICMP, IPIP, TCP, UDP, IPV6, FRAGMENT_HEADER, ICMPV6 = 1, 4, 6, 17, 41, 44, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
PROTOCOLS = {"tcp": TCP, "udp": UDP}
RING, HASH_RING = 65537, 512
MASK = 0xFFFFFFFFFFFFFFFF
LEAST = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 8}
TAGS = (b"\x81\x00", b"\x88\xa8")
EXTENSION_HEADERS = {0: "hop-by-hop", 43: "routing", 44: "fragment", 60: "destination"}
TICK = 2**30
DEFAULT_IDLE_TIMEOUTS = {"tcp": 900, "udp": 300}
ALL_FEATURES = frozenset(
    "dnat full_nat dsr ipip gue redirect ipv6 round_robin flow_table any_port filters multi_buffer latency "
    "affinity".split()
)
TOO_BIG_A_TICK = 100
# While filters are in use, packets that the parser rejects are dropped for these reasons.
UNPARSABLE_DROPS = {"malformed": "malformed", "third_tag": "malformed", "extension_headers": "extension_headers"}
# The least MTU of a link, which no sender goes below.
LEAST_MTU = {4: 68, 6: 1280}


# --- checksums


def word_sum(data: bytes) -> int:
    """The sum of all 16-bit words modulo 0xffff; zero means that a checksum over them is right."""
    data += bytes(len(data) % 2)
    return sum(struct.unpack(f">{len(data) // 2}H", data)) % 0xFFFF


def pack_checksum(total: int) -> bytes:
    """The checksum of what has this sum without it."""
    return struct.pack(">H", -total % 0xFFFF)


# --- which backend


def maglev(weights: dict[str, int], slots: int = RING) -> list[str]:
    """Rounds in the order of the names; until round r a backend had 1 + floor((r - 1) * weight / largest weight) turns.

    In a turn it takes the first free place of its permutation: offset, offset + skip, offset + 2 * skip, ...
    """

    def preferences(name: str) -> Iterator[int]:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        first, second = struct.unpack("<QQ", digest)
        offset, skip = first % slots, 1 + second % (slots - 1)
        return ((offset + step * skip) % slots for step in range(slots))

    ring: dict[int, str] = {}
    largest = max(weights.values())
    permutations = {name: preferences(name) for name in sorted(weights)}
    round_number = 0
    while True:
        round_number += 1
        for name, permutation in permutations.items():
            weight = weights[name]
            earlier, now = (round_number - 2) * weight // largest, (round_number - 1) * weight // largest
            if round_number > 1 and earlier == now:
                continue
            ring[next(place for place in permutation if place not in ring)] = name
            if len(ring) == slots:
                return [ring[place] for place in range(slots)]


def round_robin(weights: list[int]) -> list[int]:
    """Occurrence k of a backend belongs at (k + 1/2) / weight of the cycle; of equals, the first."""
    weights = [weight // gcd(*weights) for weight in weights]
    return [
        position
        for _place, position in sorted(
            (Fraction(2 * occurrence + 1, 2 * weight), position)
            for position, weight in enumerate(weights)
            for occurrence in range(weight)
        )
    ]


def flow_hash(client: bytes, client_port: bytes, port: bytes, seed: int = 0) -> int:
    """64 bits of client address and both ports, which no one can tell without the seed if there is one."""
    ports = int.from_bytes(client_port, "little") << 16 | int.from_bytes(port, "little")
    if len(client) == 4:
        value = (int.from_bytes(client, "little") << 32 | ports) ^ seed
    else:
        first, second = struct.unpack("<QQ", client)
        if seed:
            first ^= ports ^ seed
        else:
            second ^= ports
        value = ((first ^ first >> 33) * 0xFF51AFD7ED558CCD & MASK) ^ second
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor & MASK
    return value


# --- the network around the balancer


@dataclass(frozen=True)
class Hop:
    """Where the kernel's tables send packets for an address."""

    interface: int
    destination: bytes
    source: bytes
    mtu: int = 1500


# What the kernel's tables say about an address that has no hop.
UNRESOLVED = "route, but no neighbour"
NOT_FORWARDED = "an address of this host, or no route"
REFUSED = "a route that refuses"

Resolve = Callable[[str], "Hop | str"]
# Picks a source port from those possible and those in use, or None. The program picks at random.
PickPort = Callable[[bytes, range, "set[int]"], "int | None"]


# The identification of an outer IPv4 header that may be fragmented. The program picks at random.
PickIdentification = Callable[[], int]


def unknown(_address: str) -> str:
    return NOT_FORWARDED


def lowest_free(_address: bytes, ports: range, in_use: set[int]) -> int | None:
    return next((port for port in ports if port not in in_use), None)


# Parsing the same few texts again and again would take more time than all the rest.
network_of = lru_cache(maxsize=65536)(ipaddress.ip_network)


@lru_cache(maxsize=65536)
def pack_address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@lru_cache(maxsize=65536)
def text_of(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


# --- packets


class Unparsable(Exception):
    """The frame is not for the balancer; why."""


@dataclass
class Packet:
    """A frame taken apart. `transport` is what follows the IP header with its options or extension headers."""

    link: bytes  # Ethernet header with tags, without the protocol
    family: int
    header: bytearray  # IP, with options or extension headers
    transport: bytearray
    padding: bytes
    protocol: int
    fragment: str = ""  # "first", "later" or none
    identification: bytes = b""

    @property
    def tagged(self) -> bool:
        return len(self.link) > 12

    @property
    def source(self) -> bytes:
        return bytes(self.header[12:16] if self.family == 4 else self.header[8:24])

    @source.setter
    def source(self, value: bytes) -> None:
        start = 12 if self.family == 4 else 8
        self.header[start : start + len(value)] = value

    @property
    def destination(self) -> bytes:
        return bytes(self.header[16:20] if self.family == 4 else self.header[24:40])

    @destination.setter
    def destination(self, value: bytes) -> None:
        start = 16 if self.family == 4 else 24
        self.header[start : start + len(value)] = value

    @property
    def ttl(self) -> int:
        return self.header[8] if self.family == 4 else self.header[7]

    @ttl.setter
    def ttl(self, value: int) -> None:
        self.header[8 if self.family == 4 else 7] = value

    @property
    def tos(self) -> int:
        return self.header[1] if self.family == 4 else (self.header[0] << 4 & 0xF0) | self.header[1] >> 4

    @property
    def size(self) -> int:
        """Of the IP packet, without the padding of the frame."""
        return len(self.header) + len(self.transport)

    @property
    def dont_fragment(self) -> bool:
        """Routers do not fragment IPv6."""
        return self.family == 6 or bool(self.header[6] & 0x40)

    @property
    def is_icmp(self) -> bool:
        return self.protocol == (ICMP if self.family == 4 else ICMPV6)

    @property
    def ports(self) -> tuple[bytes, bytes]:
        return bytes(self.transport[:2]), bytes(self.transport[2:4])

    def has_flag(self, mask: int) -> bool:
        return self.protocol == TCP and len(self.transport) > 13 and bool(self.transport[13] & mask)

    def has_data(self) -> bool:
        """Of TCP."""
        return (
            self.protocol == TCP and len(self.transport) >= 20 and len(self.transport) > (self.transport[12] >> 4) * 4
        )

    def frame(self) -> bytes:
        kind = b"\x08\x00" if self.family == 4 else b"\x86\xdd"
        return self.link + kind + bytes(self.header) + bytes(self.transport) + self.padding

    def header_sum(self) -> int:
        return word_sum(bytes(self.header)) if self.family == 4 else 0

    def transport_sum(self) -> int:
        """With the pseudo header; the length is the same before and after, so it does not matter which."""
        pseudo = b"" if self.protocol == ICMP else self.source + self.destination
        return word_sum(pseudo + bytes(self.transport))

    def checksum_place(self) -> int | None:
        place = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}.get(self.protocol)
        if self.fragment == "later" or place is None or place + 2 > len(self.transport):
            return None
        if self.protocol == UDP and self.transport[6:8] == bytes(2):
            return None
        return place

    def change(self, act: Callable[[], None]) -> None:
        """Do something to it and leave its checksums as right or as wrong as they were."""
        place = self.checksum_place()
        header, transport = self.header_sum(), self.transport_sum()
        act()
        if self.family == 4:
            self.header[10:12] = bytes(2)
            self.header[10:12] = struct.pack(">H", (header - self.header_sum()) % 0xFFFF)
        if place is not None:
            self.transport[place : place + 2] = bytes(2)
            value = (transport - self.transport_sum()) % 0xFFFF
            if self.protocol == UDP and value == 0:
                value = 0xFFFF
            self.transport[place : place + 2] = struct.pack(">H", value)


def take_apart(frame: bytes, features: frozenset[str]) -> Packet:
    """Raises Unparsable with the reason to pass it; the packet, as far as it is known, is the second argument."""
    at = 12
    for _tag in range(2):
        if frame[at : at + 2] in TAGS:
            at += 4
    kind, at = frame[at : at + 2], at + 2
    link = frame[: at - 2]
    # Shorter than an IPv4 header behind an untagged Ethernet header: nobody looks at what it is.
    if len(frame) < 34:
        raise Unparsable("not_ip", None)
    if kind == b"\x08\x00":
        return _take_apart4(link, frame[at:])
    if kind == b"\x86\xdd" and "ipv6" in features:
        return _take_apart6(link, frame[at:])
    raise Unparsable("third_tag" if kind in TAGS else "not_ip", None)


def _take_apart4(link: bytes, data: bytes) -> Packet:
    if len(data) < 20 or data[0] >> 4 != 4:
        raise Unparsable("malformed", None)
    size, total = (data[0] & 15) * 4, struct.unpack_from(">H", data, 2)[0]
    protocol, fragment = data[9], struct.unpack_from(">H", data, 6)[0]
    if not 20 <= size <= total <= len(data):
        raise Unparsable("malformed", Packet(link, 4, bytearray(data[:20]), bytearray(), b"", protocol))
    packet = Packet(link, 4, bytearray(data[:size]), bytearray(data[size:total]), data[total:], protocol)
    if fragment & 0x3FFF:
        packet.fragment = "later" if fragment & 0x1FFF else "first"
        packet.identification = data[4:6]
    if packet.fragment != "later" and protocol not in (TCP, UDP, ICMP):
        raise Unparsable("not_ours", packet)
    return _with_transport(packet)


def _with_transport(packet: Packet) -> Packet:
    if packet.fragment != "later" and len(packet.transport) < LEAST[packet.protocol]:
        raise Unparsable("malformed", packet)
    return packet


def _take_apart6(link: bytes, data: bytes) -> Packet:
    if len(data) < 40 or data[0] >> 4 != 6:
        raise Unparsable("malformed", None)
    total = 40 + struct.unpack_from(">H", data, 4)[0]
    packet = Packet(link, 6, bytearray(data[:40]), bytearray(), data[total:], data[6])
    if total > len(data):
        raise Unparsable("malformed", packet)
    at = _walk6(packet, data)
    if packet.fragment != "later" and packet.protocol not in (TCP, UDP, ICMPV6):
        raise Unparsable("not_ours", packet)
    packet.header, packet.transport = bytearray(data[:at]), bytearray(data[at:total])
    return _with_transport(packet)


def _walk6(packet: Packet, data: bytes) -> int:
    """Where the headers end that the data begin with; the packet gets what they say."""
    at, walked = 40, 0
    while packet.protocol in EXTENSION_HEADERS:
        if walked == 6:
            raise Unparsable("extension_headers", packet)
        if at + 8 > len(data):
            raise Unparsable("malformed", packet)
        if packet.protocol == 43 and data[at + 3]:
            raise Unparsable("extension_headers", packet)
        size, is_fragment = 8 + data[at + 1] * 8, packet.protocol == FRAGMENT_HEADER
        if is_fragment:
            size, offset = 8, struct.unpack_from(">H", data, at + 2)[0]
            packet.identification = data[at + 4 : at + 8]
            if offset & 1:
                packet.fragment = "first"
            if offset & 0xFFF8:
                packet.fragment = "later"
        packet.protocol, at, walked = data[at], at + size, walked + 1
        if packet.fragment == "later":
            break
    return at


def quote_of(error: Packet) -> Packet | None:
    """The packet that an ICMP error quotes, as far as it does; None without ports of TCP or UDP."""
    data = bytes(error.transport[8:])
    if error.transport[0] not in ((3, 11, 12) if error.family == 4 else (1, 2, 3, 4)):
        return None
    if len(data) < (20 if error.family == 4 else 40) or data[0] >> 4 != error.family:
        return None
    quote = Packet(b"", error.family, bytearray(), bytearray(), b"", data[9] if error.family == 4 else data[6])
    if error.family == 4:
        at = (data[0] & 15) * 4
        if at < 20 or data[6] & 0x1F or data[7]:
            return None
    else:
        try:
            at = _walk6(quote, data)
        except Unparsable:
            return None
    quote.header, quote.transport = bytearray(data[:at]), bytearray(data[at:])
    if quote.fragment == "later" or quote.protocol not in (TCP, UDP) or len(quote.transport) < 8:
        return None
    return quote


# --- the balancer


@dataclass
class Service:
    name: str
    declared: dict[str, Any]
    vip: bytes
    backends: list[Backend] = field(default_factory=list)
    ring: list[Backend] = field(default_factory=list)
    turns: int = 0

    @property
    def forwarding(self) -> str:
        return self.declared.get("forwarding", "dnat")

    @property
    def in_turn(self) -> bool:
        return self.declared.get("scheduler") == "round_robin"

    @property
    def remembers(self) -> bool:
        return bool(self.declared.get("flow_table")) or self.forwarding == "full_nat"

    def key(self, flow: tuple) -> tuple:
        """What a backend is chosen by, as flow_hash() takes it: client, its port and the service's."""
        _service, _protocol, client, client_port, port = flow
        if self.declared.get("affinity") != "client":
            return client, client_port, port
        network = ipaddress.ip_network((client, self.declared.get("affinity_prefix", 8 * len(client))), strict=False)
        return network.network_address.packed, bytes(2), bytes(2)

    def remembered(self, flow: tuple) -> tuple:
        """What the flow table knows it by: with round robin and affinity the client, else the flow."""
        return (self.name, *self.key(flow)) if self.remembers_clients else flow

    @property
    def remembers_clients(self) -> bool:
        return self.in_turn and self.declared.get("affinity") == "client"

    def name_of(self, target: str, port: int | None) -> str:
        """The name of a backend in a Maglev table."""
        return target if self.declared.get("affinity_group") else f"{target}:{port or self.declared['port']}"

    @property
    def idle_ticks(self) -> int:
        seconds = self.declared.get("idle_timeout", DEFAULT_IDLE_TIMEOUTS[self.declared["protocol"]])
        return -(-seconds * 10**9 // TICK)

    @property
    def first_port(self) -> bytes:
        return struct.pack(">H", port_range(self.declared["port"])[0])

    @property
    def source(self) -> Any:
        return network_of(self.declared["source"])

    @property
    def source_ports(self) -> range:
        return port_range(self.declared.get("source_ports", "10000-32767"))


@dataclass
class Backend:
    service: Service
    target: str
    port: int | None
    mac: bytes | None

    @property
    def key(self) -> tuple[str, str, int | None]:
        return self.service.name, self.target, self.port

    @property
    def address(self) -> bytes:
        return pack_address(self.target)

    @property
    def packed_port(self) -> bytes:
        return struct.pack(">H", self.port or 0)

    def place_in_order(self) -> tuple[str | int, ...]:
        if self.service.forwarding == "redirect":
            return (self.target,)
        address = ipaddress.ip_address(self.target)
        return address.version, int(address), self.port or 0


@dataclass
class Session:
    backend: Backend
    flow: tuple
    port: int
    seen: int
    state: str = "new"  # "answered", "established" or "closing"

    def note(self, packet: Packet, is_request: bool, tick: int) -> None:
        """A packet that is no later fragment. What one side alone has sent establishes nothing, and ends nothing."""
        self.seen = tick
        if packet.has_flag(FIN | RST):
            if self.state == "established":
                self.state = "closing"
        elif is_request and packet.has_flag(SYN):
            if self.state == "closing":
                self.state = "new"
        elif (self.state == "closing" and packet.has_data()) or (is_request and self.state == "answered"):
            self.state = "established"
        elif not is_request and self.state == "new":
            self.state = "answered"

    def lifetime(self) -> int:
        """Ticks without a packet after which it is no more."""
        idle = self.backend.service.idle_ticks
        return {"established": idle, "closing": min(idle, 112)}.get(self.state, min(idle, 28))


def port_range(port: Any) -> range:
    if port == "any":
        return range(0, 1)
    first, _separator, last = str(port).partition("-")
    return range(int(first), int(last or first) + 1)


def networks(*prefixes: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(prefix) for prefix in prefixes]


INVALID_SOURCES = networks("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/96", "::ffff:0:0/96", "ff00::/8")
UNFORWARDABLE = networks("169.254.0.0/16", "192.0.0.0/24", "2001:10::/28", "fe80::/10")
EXCEPTIONS = networks("192.0.0.0/29", "192.0.0.9/32", "192.0.0.10/32")


@lru_cache(maxsize=65536)
def is_unusable(packed: bytes, is_error: bool) -> bool:
    source = ipaddress.ip_address(packed)
    # A router without another address may send errors from those.
    bad = INVALID_SOURCES if is_error else INVALID_SOURCES + UNFORWARDABLE
    return any(source in network for network in bad) and not any(source in network for network in EXCEPTIONS)


class Balancer:
    """One balancer on one CPU; counters grow with every frame."""

    def __init__(
        self,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        resolve: Resolve = unknown,
        interface: int = 1,
        features: frozenset[str] = ALL_FEATURES,
        filters: list[dict[str, Any]] | None = None,
        mtu: int = 1500,
        cpu: int = 0,
        cpus: int = 1,
        clock: Callable[[], int] = lambda: 0,
        link_is_up: Callable[[str], bool] = lambda _name: True,
        max_new_flows: int = 100000,
        pick_port: PickPort | None = None,
        hash_seed: int = 0,
        own_macs: Collection[bytes] = (),
        pick_identification: PickIdentification = lambda: 0,
    ) -> None:
        """Without any of its own, every unicast Ethernet address is the host's."""
        self.resolve, self.interface, self.features, self.mtu = resolve, interface, features, mtu
        self.cpu, self.cpus, self.clock, self.link_is_up = cpu, cpus, clock, link_is_up
        self.max_new_flows, self.pick_port = max_new_flows, pick_port or lowest_free
        self.pick_identification = pick_identification
        self.filters, self.hash_seed, self.own_macs = filters or [], hash_seed, own_macs
        self.services: dict[tuple[bytes, int, int], Service] = {}
        self.replies: dict[tuple[bytes, int, int], Backend] = {}
        self.flows: dict[tuple, tuple[Backend, int, str]] = {}
        self.sessions: dict[tuple[bytes, int], Session] = {}
        self.fragments: dict[tuple, tuple[str, Any, int]] = {}
        self.new_flows: Counter[tuple[int, str]] = Counter()
        self.errors: Counter[int] = Counter()
        self.errors_to_clients: Counter[str] = Counter()  # by service; counted as replies, too
        self.reasons: Counter[tuple[str, str]] = Counter()
        # packets, bytes, reply packets, reply bytes, new flows
        self.service_counters: dict[str, list[int]] = {}
        self.backend_counters: dict[tuple[str, str, int | None], list[int]] = {}
        self.filter_counters: Counter[tuple[str, str]] = Counter()
        self.last_reason: tuple[str, str] | None = None
        for service in services:
            self._add(service, [backend for backend in backends if backend["service"] == service["name"]])

    def _add(self, declared: dict[str, Any], backends: list[dict[str, Any]]) -> None:
        protocol = PROTOCOLS[declared["protocol"]]
        service = Service(declared["name"], declared, pack_address(declared["address"]))
        self.service_counters[service.name] = [0] * 5
        for port in port_range(declared["port"]):
            self.services[service.vip, protocol, port] = service
        weights: dict[str, int] = {}
        by_name: dict[str, Backend] = {}
        for item in backends:
            mac = bytes.fromhex(item["mac"].replace(":", "")) if item.get("mac") else None
            target = item.get("interface") or text_of(pack_address(item["address"]))
            backend = Backend(service, target, item.get("port"), mac)
            service.backends.append(backend)
            self.backend_counters[backend.key] = [0] * 5
            if service.forwarding == "dnat":
                for port in [backend.port] if backend.port else port_range(declared["port"]):
                    self.replies[backend.address, protocol, port] = backend
            weight = item.get("weight", 1) if item.get("state", "enabled") == "enabled" else 0
            if weight:
                name = service.name_of(target, backend.port)
                weights[name], by_name[name] = weight, backend
        in_order = sorted(by_name.values(), key=Backend.place_in_order)
        in_cycle = [weights[service.name_of(entry.target, entry.port)] for entry in in_order]
        if not weights:
            return
        if service.in_turn:
            service.ring = [in_order[position] for position in round_robin(in_cycle)]
        elif declared.get("scheduler") == "hash":
            cycle = round_robin(in_cycle)
            service.ring = [in_order[cycle[slot % len(cycle)]] for slot in range(HASH_RING)]
        else:
            service.ring = [by_name[name] for name in maglev(weights, declared.get("table_size", RING))]

    @property
    def tick(self) -> int:
        return self.clock() // TICK

    def process(self, frame: bytes) -> tuple[int, bytes]:
        """Verdict and the frame afterwards."""
        self.last_reason = None
        try:
            packet = take_apart(frame, self.features)
        except Unparsable as problem:
            reason, packet = problem.args
            if packet is not None and self._is_filtered(packet):
                return DROP, frame
            if "filters" in self.features and reason in UNPARSABLE_DROPS:
                return self._because(DROP, UNPARSABLE_DROPS[reason], frame)
            if packet is not None and self._is_for_host(packet):
                return self._leave(packet, frame, reason)
            return self._because(PASS, "not_ip" if reason == "third_tag" else reason, frame)
        if self._is_filtered(packet):
            return DROP, frame
        if not self._is_for_host(packet):
            return self._because(PASS, "other_mac", frame)
        if packet.is_icmp and packet.fragment and (packet.family == 4 or packet.fragment == "first"):
            return self._leave(packet, frame)
        if packet.fragment == "later":
            return self._follow_fragment(packet, frame)
        if packet.is_icmp:
            return self._icmp(packet, frame)
        return self._flow(packet, frame)

    def _is_for_host(self, packet: Packet) -> bool:
        destination = packet.link[:6]
        return destination in self.own_macs if self.own_macs else not destination[0] & 1

    def _because(self, verdict: int, reason: str, frame: bytes) -> tuple[int, bytes]:
        self.last_reason = (reason, {PASS: "pass", DROP: "drop", TX: "tx"}[verdict])
        self.reasons[self.last_reason] += 1
        return verdict, frame

    # --- filters

    def _is_filtered(self, packet: Packet) -> bool:
        if "filters" not in self.features:
            return False
        kind = {TCP: "tcp", UDP: "udp"}.get(packet.protocol, "icmp" if packet.is_icmp else "other")
        source = ipaddress.ip_address(packet.source)
        best = None
        for item in self.filters:
            prefix, protocol = network_of(item["prefix"]), item.get("protocol", "any")
            if prefix.version == source.version and source in prefix and protocol in ("any", kind):
                rank = (prefix.prefixlen, protocol != "any")
                best = max(best, (rank, item), key=lambda found: found[0]) if best else (rank, item)
        if best is None:
            return False
        item = best[1]
        key = (item["prefix"], item.get("protocol", "any"))
        self.filter_counters[key] += 1
        if item["action"] == "drop":
            self._because(DROP, "filtered", b"")
            return True
        return False

    def _leave(self, packet: Packet, frame: bytes, reason: str = "not_ours") -> tuple[int, bytes]:
        """To the kernel, unless that would send back what came for a VIP."""
        of_the_link = (
            packet.family == 6
            and packet.is_icmp
            and not packet.fragment
            and packet.ttl == 255
            and packet.transport[0] in range(133, 138)
        )
        hop = self.resolve(text_of(packet.destination))
        is_forwarded = isinstance(hop, Hop) or hop == UNRESOLVED
        if (
            "unserved_pass" in self.features
            or of_the_link
            or not is_forwarded
            or not self._is_vip_or_source(packet.destination)
        ):
            return self._because(PASS, reason, frame)
        return self._because(DROP, "fragment" if packet.fragment == "later" else "vip_unserved", frame)

    # --- what a packet is

    def _service(self, address: bytes, protocol: int, port: bytes) -> Service | None:
        number = int.from_bytes(port, "big")
        found = self.services.get((address, protocol, number))
        if found is None and "any_port" in self.features:
            found = self.services.get((address, protocol, 0))
        return found

    def _backend_of(self, address: bytes, protocol: int, port: bytes) -> Backend | None:
        """The dnat backend at this address and port."""
        found = self.replies.get((address, protocol, int.from_bytes(port, "big")))
        if found is None and "any_port" in self.features:
            found = self.replies.get((address, protocol, 0))
        return found if found and "dnat" in self.features else None

    def _is_vip(self, address: bytes) -> bool:
        return any(vip == address for vip, _protocol, _port in self.services)

    def _is_martian(self, packet: Packet, is_error: bool = False) -> bool:
        """Packets from what is balanced could go round for ever."""
        return (
            is_unusable(packet.source, is_error)
            or packet.source == packet.destination
            or self._is_vip_or_source(packet.source)
        )

    def _is_vip_or_source(self, address: bytes) -> bool:
        return self._is_vip(address) or ("full_nat" in self.features and self._is_source(address))

    def _is_source(self, address: bytes) -> bool:
        nats = (service for service in self.services.values() if service.forwarding == "full_nat")
        return any(service.source.network_address.packed == address for service in nats)

    def _flow(self, packet: Packet, frame: bytes) -> tuple[int, bytes]:
        service = self._service(packet.destination, packet.protocol, packet.ports[1])
        if service:
            return self._to_service(packet, frame, service)
        session = self._session_of(packet.destination, packet.ports[1], packet.source, packet.ports[0], packet.protocol)
        if session:
            self._remember_fragment(packet, "session", session)
            return self._session_reply(packet, frame, session)
        backend = self._backend_of(packet.source, packet.protocol, packet.ports[0])
        if backend:
            self._remember_fragment(packet, "backend", backend)
            return self._reply(packet, frame, backend)
        return self._leave(packet, frame)

    def _to_service(self, packet: Packet, frame: bytes, service: Service) -> tuple[int, bytes]:
        flow = (service.name, packet.protocol, packet.source, *packet.ports)
        if self._is_martian(packet):
            return self._because(DROP, "martian", frame)
        if not service.ring and not (service.remembers and service.backends):
            return self._because(DROP, "no_backend", frame)
        if packet.ttl <= 1 and service.forwarding not in ("dsr", "redirect"):
            return self._because(PASS, "ttl_expired", frame)
        backend, session, problem = self._choose(packet, service, flow)
        if problem:
            return self._because(DROP, problem, frame)
        self._remember_fragment(packet, *(("session", session) if session else ("backend", backend)))
        return self._forward(packet, frame, backend, session, flow)

    # --- choosing

    def _choose(self, packet: Packet, service: Service, flow: tuple, learn: bool = True) -> tuple:
        """Backend, session, and the reason if there is none."""
        if not service.remembers:
            backend = self._scheduled(service, flow) if learn else self._hashed(service, flow)
            return backend, None, None if backend else "no_backend"
        if service.forwarding == "full_nat":
            return self._choose_session(packet, service, flow, learn)
        flow = service.remembered(flow)
        known, seen, state = self.flows.get(flow, (None, 0, ""))
        again = learn and packet.has_flag(SYN) and not packet.has_flag(ACK) and state == "closing"
        if known and not again and self.tick - seen <= service.idle_ticks:
            if learn:
                # A client outlives its connections.
                following = "established" if service.remembers_clients else self._next_state(packet, state)
                self.flows[flow] = known, self.tick, following
            return known, None, None
        if not learn:
            backend = self._hashed(service, flow)
            return backend, None, None if backend else "no_backend"
        backend = self._scheduled(service, flow)
        if not backend:
            return None, None, "no_backend"
        if not self._may_learn(service):
            self.reasons["flow_limit", "forward"] += 1
            return backend, None, None
        ends = packet.has_flag(FIN | RST) and not service.remembers_clients
        self.flows[flow] = backend, self.tick, "closing" if ends else "new"
        self._count_new(backend)
        return backend, None, None

    @staticmethod
    def _next_state(packet: Packet, state: str) -> str:
        if packet.has_flag(FIN | RST):
            return "closing"
        if packet.has_flag(SYN) and not packet.has_flag(ACK):
            return state
        return state if state == "closing" and not packet.has_data() else "established"

    def _may_learn(self, service: Service) -> bool:
        """Each service has its own limit."""
        allowed = self.new_flows[self.tick, service.name] < self.max_new_flows
        self.new_flows[self.tick, service.name] += allowed
        return allowed

    def _count_new(self, backend: Backend) -> None:
        for counters in (self.service_counters[backend.service.name], self.backend_counters[backend.key]):
            counters[4] += 1

    def _scheduled(self, service: Service, flow: tuple) -> Backend | None:
        if not service.ring:
            return None
        if service.in_turn:
            service.turns += 1
            return service.ring[(service.turns - 1) % len(service.ring)]
        return self._hashed(service, flow)

    def _hashed(self, service: Service, flow: tuple) -> Backend | None:
        ring = service.ring
        seed = 0 if service.remembers_clients else self.hash_seed
        return ring[(flow_hash(*service.key(flow), seed) >> 32) * len(ring) >> 32] if ring else None

    def _is_alive(self, session: Session) -> bool:
        return self.tick - session.seen <= session.lifetime()

    def _choose_session(self, packet: Packet, service: Service, flow: tuple, learn: bool) -> tuple:
        for session in self.sessions.values():
            if session.flow == flow and self._is_alive(session):
                return session.backend, session, None
        if not learn:
            return None, None, "no_backend"
        backend = self._scheduled(service, flow)
        if not backend:
            return None, None, "no_backend"
        address = service.source.network_address.packed
        size = len(service.source_ports) // self.cpus
        first = service.source_ports[0] + self.cpu * size
        if not self._may_learn(service):
            return None, None, "no_port"
        port = self.pick_port(address, range(first, first + size), self.ports_in_use(address))
        if port is None:
            return None, None, "no_port"
        session = Session(backend, flow, port, self.tick)
        self.sessions[address, port] = session
        self._count_new(backend)
        return backend, session, None

    def ports_in_use(self, address: bytes) -> set[int]:
        """The source ports of live sessions."""
        return {port for (pool, port), session in self.sessions.items() if pool == address and self._is_alive(session)}

    def _session_of(
        self, source: bytes, source_port: bytes, target: bytes, target_port: bytes, protocol: int
    ) -> Session | None:
        """The live session of what went from this source address and port of ours to that backend."""
        session = self.sessions.get((source, int.from_bytes(source_port, "big")))
        if session is None or "full_nat" not in self.features or not self._is_alive(session):
            return None
        backend, flow = session.backend, session.flow
        expected = backend.packed_port if backend.port else flow[4]
        return session if (target, protocol, target_port) == (backend.address, flow[1], expected) else None

    # --- fragments

    @staticmethod
    def _fragment_key(packet: Packet) -> tuple:
        protocol = packet.protocol if packet.family == 4 else None
        return packet.source, packet.destination, packet.identification, protocol

    def _remember_fragment(self, packet: Packet, kind: str, what: Any) -> None:
        if packet.fragment:
            self.fragments[self._fragment_key(packet)] = kind, what, self.tick

    def _follow_fragment(self, packet: Packet, frame: bytes) -> tuple[int, bytes]:
        kind, what, seen = self.fragments.get(self._fragment_key(packet), ("", None, 0))
        if not kind or self.tick - seen > 2:
            return self._leave(packet, frame)
        self._remember_fragment(packet, kind, what)
        session = what if kind == "session" else None
        backend = session.backend if session else what
        if packet.destination != backend.service.vip:
            return self._session_reply(packet, frame, session) if session else self._reply(packet, frame, backend)
        if packet.ttl <= 1 and backend.service.forwarding not in ("dsr", "redirect"):
            return self._because(PASS, "ttl_expired", frame)
        return self._forward(packet, frame, backend, session, None)

    # --- ICMP

    def _icmp(self, packet: Packet, frame: bytes) -> tuple[int, bytes]:
        request = b"\x08\x00" if packet.family == 4 else b"\x80\x00"
        if packet.transport[:2] == request and self._is_vip(packet.destination):
            return self._because(DROP, "martian", frame) if self._is_martian(packet) else self._echo(packet)
        quote = quote_of(packet)
        if quote is None or quote.source != packet.destination:
            return self._leave(packet, frame)
        service = self._service(quote.source, quote.protocol, quote.ports[0])
        if service is None:
            return self._error_to_client(packet, frame, quote)
        flow = (service.name, quote.protocol, quote.destination, *quote.ports[::-1])
        if self._is_martian(packet, is_error=True):
            return self._because(DROP, "martian", frame)
        if not service.ring and not (service.remembers and service.backends):
            return self._because(DROP, "no_backend", frame)
        if packet.ttl <= 1 and service.forwarding not in ("dsr", "redirect"):
            return self._because(PASS, "ttl_expired", frame)
        backend, session, problem = self._choose(packet, service, flow, learn=False)
        if problem:
            return self._because(DROP, problem, frame)
        if service.forwarding not in ("dnat", "full_nat"):
            return self._forward(packet, frame, backend, session, flow)
        return self._translated_error(packet, frame, backend, session, quote)

    def _echo(self, packet: Packet) -> tuple[int, bytes]:
        def answer() -> None:
            packet.source, packet.destination = packet.destination, packet.source
            packet.ttl = 64
            packet.transport[0] = 0 if packet.family == 4 else 129

        packet.change(answer)
        packet.link = packet.link[6:12] + packet.link[:6] + packet.link[12:]
        return self._because(TX, "echo", packet.frame())

    def _translated_error(
        self, packet: Packet, frame: bytes, backend: Backend, session: Session | None, quote: Packet
    ) -> tuple[int, bytes]:
        hop = self._hop(backend, packet)
        if hop != UNRESOLVED and not isinstance(hop, Hop):
            return self._because(DROP, "no_route", frame)
        if isinstance(hop, Hop) and self._is_too_long(packet, hop, backend):
            return self._too_big(packet, frame, hop.mtu)

        def rename() -> None:
            quote.source = backend.address
            if backend.port:
                quote.transport[:2] = backend.packed_port
            if session:
                quote.destination = backend.service.source.network_address.packed
                quote.transport[2:4] = struct.pack(">H", session.port)

        def translate() -> None:
            packet.destination = backend.address
            packet.ttl -= isinstance(hop, Hop)
            self._translate_quote(packet, quote, rename)

        packet.change(translate)
        if not isinstance(hop, Hop):
            return self._because(PASS, "no_neighbour", packet.frame())
        self._count(backend, 0, len(frame))
        return self._send(packet, hop)

    def _error_to_client(self, packet: Packet, frame: bytes, quote: Packet) -> tuple[int, bytes]:
        """About a packet that has been forwarded, from its backend or from a router on the way to that."""
        session = self._session_of(quote.source, quote.ports[0], quote.destination, quote.ports[1], quote.protocol)
        backend = session.backend if session else self._backend_of(quote.destination, quote.protocol, quote.ports[1])
        if backend is None:
            return self._leave(packet, frame)
        if self._is_martian(packet, is_error=True):
            return self._because(DROP, "martian", frame)
        client = session.flow[2] if session else packet.destination
        vip = backend.service.vip

        def rename() -> None:
            quote.destination = vip
            if session:
                quote.source = client
                quote.transport[:4] = session.flow[3] + session.flow[4]
            elif backend.port:
                quote.transport[2:4] = backend.service.first_port

        def restore() -> None:
            packet.source, packet.destination = vip, client
            self._translate_quote(packet, quote, rename)

        verdict, output = self._send_reply(packet, frame, backend, client, restore)
        if verdict in (TX, REDIRECT):
            self.errors_to_clients[backend.service.name] += 1
        return verdict, output

    @staticmethod
    def _translate_quote(packet: Packet, quote: Packet, rename: Callable[[], None]) -> None:
        """Translates the quote. A checksum beyond the end of the quote is not updated."""
        quote.change(rename)
        packet.transport[8:] = quote.header + quote.transport

    # --- forwarding

    def _hop(self, backend: Backend, packet: Packet) -> Hop | str:
        if backend.mac:
            return Hop(self.interface, backend.mac, packet.link[:6], self.mtu)
        return self.resolve(backend.target)

    def _forward(
        self, packet: Packet, frame: bytes, backend: Backend, session: Session | None, flow: tuple | None
    ) -> tuple[int, bytes]:
        mode = backend.service.forwarding
        if mode not in self.features:
            return self._because(DROP, "no_backend", frame)
        if mode == "redirect":
            return self._redirect(frame, backend, flow)
        hop = self._hop(backend, packet)
        if mode in ("dsr", "ipip", "gue"):
            if hop == UNRESOLVED:
                return self._because(DROP, "no_neighbour", frame)
            if not isinstance(hop, Hop):
                return self._because(DROP, "no_route", frame)
            if mode in ("ipip", "gue"):
                return self._encapsulate(packet, frame, backend, hop, flow)
            if self._is_too_long(packet, hop, backend):
                return self._too_big(packet, frame, hop.mtu)
            self._count(backend, 0, len(frame))
            return self._send(packet, hop)
        if session and packet.fragment != "later":
            session.note(packet, True, self.tick)
        if hop != UNRESOLVED and not isinstance(hop, Hop):
            return self._because(DROP, "no_route", frame)
        if session and not isinstance(hop, Hop):
            return self._because(DROP, "no_neighbour", frame)
        to_kernel = "no_neighbour" if hop == UNRESOLVED else ""
        if isinstance(hop, Hop) and self._is_too_long(packet, hop, backend):
            if session or packet.dont_fragment:
                return self._too_big(packet, frame, hop.mtu)
            to_kernel = "too_big"

        def translate() -> None:
            packet.destination = backend.address
            packet.ttl -= not to_kernel
            if session:
                packet.source = backend.service.source.network_address.packed
            if packet.fragment == "later":
                return
            if session:
                packet.transport[:2] = struct.pack(">H", session.port)
            if backend.port:
                packet.transport[2:4] = backend.packed_port

        packet.change(translate)
        if to_kernel or not isinstance(hop, Hop):
            return self._because(PASS, to_kernel, packet.frame())
        self._count(backend, 0, len(frame))
        return self._send(packet, hop)

    def _redirect(self, frame: bytes, backend: Backend, flow: tuple | None) -> tuple[int, bytes]:
        service = backend.service
        if not self.link_is_up(backend.target):
            up = any(self.link_is_up(other.target) for other in service.ring)
            if flow is None or not up:
                return self._because(DROP, "link_down", frame)
            backend = self._stand_in(service, flow)
        self._count(backend, 0, len(frame))
        return REDIRECT, frame

    def _stand_in(self, service: Service, flow: tuple) -> Backend:
        by_flow = service.declared.get("affinity") != "client"
        unseeded = service.remembers if by_flow else service.remembers_clients
        value = flow_hash(*service.key(flow), 0 if unseeded else self.hash_seed)
        while True:
            value = value * 0x9E3779B97F4A7C15 + 1 & MASK
            backend = service.ring[(value >> 32) * len(service.ring) >> 32]
            if self.link_is_up(backend.target):
                return backend

    def _encapsulate(
        self, packet: Packet, frame: bytes, backend: Backend, hop: Hop, flow: tuple | None
    ) -> tuple[int, bytes]:
        inner = bytes(packet.header) + bytes(packet.transport)
        outer_size = 20 if len(backend.address) == 4 else 40
        gue_size = 12 if backend.service.forwarding == "gue" else 0
        if len(inner) + gue_size + outer_size > hop.mtu:
            return self._too_big(packet, frame, hop.mtu - outer_size - gue_size)
        source = backend.service.source
        mixed = 0
        if flow is not None:
            value = flow_hash(*flow[2:], 0 if backend.service.remembers else self.hash_seed)
            mixed = int.from_bytes((value >> 32).to_bytes(4, "little"), "big")
        number = int(source.network_address) | mixed & int(source.hostmask) & 0xFFFFFFFF
        protocol = IPIP if packet.family == 4 else IPV6
        if gue_size:
            # Variant 0, no control flag, no options (draft-ietf-intarea-gue-09, section 3); no UDP checksum.
            source_port = 0xC000 | (flow_hash(*flow[2:]) & 0x3FFF if flow is not None else 0)
            port = backend.service.declared.get("tunnel_port", 6080)
            inner = struct.pack(">4HBBH", source_port, port, 8 + 4 + len(inner), 0, 0, protocol, 0) + inner
            protocol = UDP
        if outer_size == 20:
            # IPv6 inside must get through with 1280 bytes, so the outer packet may be fragmented (RFC 4213, 3.2).
            flags = packet.header[6:7] if packet.family == 4 else b"\0"
            identification = 0 if packet.family == 4 else self.pick_identification()
            header = struct.pack(
                ">BBHHBBBBH4s4s",
                0x45,
                packet.tos,
                20 + len(inner),
                identification,
                flags[0] & 0x40,
                0,
                64,
                protocol,
                0,
                number.to_bytes(4, "big"),
                backend.address,
            )
            header = header[:10] + pack_checksum(word_sum(header)) + header[12:]
            kind = b"\x08\x00"
        else:
            first = 6 << 28 | packet.tos << 20
            header = struct.pack(
                ">IHBB16s16s", first, len(inner), protocol, 64, number.to_bytes(16, "big"), backend.address
            )
            kind = b"\x86\xdd"
        self._count(backend, 0, len(frame))
        verdict, link = self._out(packet, hop)
        return verdict, link + kind + header + inner + packet.padding

    @staticmethod
    def _is_too_long(packet: Packet, hop: Hop, backend: Backend | None = None) -> bool:
        """A next hop with a configured mac has no MTU, except for tunnels."""
        return not (backend and backend.mac) and packet.size > hop.mtu

    def _too_big(self, packet: Packet, frame: bytes, mtu: int) -> tuple[int, bytes]:
        inner = bytes(packet.header + packet.transport)
        mtu = max(mtu, LEAST_MTU[packet.family])
        unanswered = packet.is_icmp or (packet.family == 4 and packet.fragment == "later") or len(inner) <= mtu
        if unanswered or self.errors[self.tick] == TOO_BIG_A_TICK:
            return self._because(DROP, "too_big", frame)
        self.errors[self.tick] += 1
        link = packet.link[6:12] + packet.link[:6] + packet.link[12:]
        client, vip = packet.source, packet.destination
        if packet.family == 4:
            message = b"\x03\x04\0\0" + struct.pack(">I", mtu) + inner[:68]
            message = message[:2] + pack_checksum(word_sum(message)) + message[4:]
            header = struct.pack(">BBHIBBH4s4s", 0x45, 0, 20 + len(message), 0, 64, ICMP, 0, vip, client)
            header = header[:10] + pack_checksum(word_sum(header)) + header[12:]
            answer = link + b"\x08\x00" + header + message
        else:
            message = b"\x02\0\0\0" + struct.pack(">I", mtu) + inner[:504]
            pseudo = vip + client + struct.pack(">II", len(message), ICMPV6)
            message = message[:2] + pack_checksum(word_sum(pseudo + message)) + message[4:]
            answer = link + b"\x86\xdd" + struct.pack(">IHBB16s16s", 6 << 28, len(message), ICMPV6, 64, vip, client)
            answer += message
        return self._because(TX, "too_big", answer)

    # --- replies

    def _reply(self, packet: Packet, frame: bytes, backend: Backend) -> tuple[int, bytes]:
        def restore() -> None:
            packet.source = backend.service.vip
            if backend.port and packet.fragment != "later":
                packet.transport[:2] = backend.service.first_port

        return self._send_reply(packet, frame, backend, packet.destination, restore)

    def _session_reply(self, packet: Packet, frame: bytes, session: Session) -> tuple[int, bytes]:
        _service, _protocol, client, client_port, port = session.flow
        if packet.fragment != "later":
            session.note(packet, False, self.tick)

        def restore() -> None:
            packet.source, packet.destination = session.backend.service.vip, client
            if packet.fragment != "later":
                packet.transport[:4] = port + client_port

        return self._send_reply(packet, frame, session.backend, client, restore)

    def _send_reply(
        self, packet: Packet, frame: bytes, backend: Backend, client: bytes, restore: Callable[[], None]
    ) -> tuple[int, bytes]:
        if packet.ttl <= 1:
            return self._because(PASS, "ttl_expired", frame)
        hop = self.resolve(text_of(client))
        if hop == NOT_FORWARDED:
            return self._because(PASS, "local_reply", frame)
        if hop == REFUSED:
            return self._because(DROP, "no_route", frame)
        to_kernel = "no_neighbour" if hop == UNRESOLVED else ""
        if isinstance(hop, Hop) and self._is_too_long(packet, hop):
            if packet.dont_fragment or packet.is_icmp:
                return self._too_big(packet, frame, hop.mtu)
            to_kernel = "too_big"

        def act() -> None:
            restore()
            packet.ttl -= not to_kernel

        packet.change(act)
        if to_kernel or not isinstance(hop, Hop):
            return self._because(PASS, to_kernel, packet.frame())
        self._count(backend, 2, len(frame))
        return self._send(packet, hop)

    def _out(self, packet: Packet, hop: Hop) -> tuple[int, bytes]:
        stays = hop.interface == self.interface or packet.tagged
        return TX if stays else REDIRECT, hop.destination + hop.source + packet.link[12:]

    def _send(self, packet: Packet, hop: Hop) -> tuple[int, bytes]:
        verdict, packet.link = self._out(packet, hop)
        return verdict, packet.frame()

    def _count(self, backend: Backend, first: int, size: int) -> None:
        for counters in (self.service_counters[backend.service.name], self.backend_counters[backend.key]):
            counters[first] += 1
            counters[first + 1] += size
