# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the balancer should do with a frame, written a second time and on purpose differently.

Nothing of the engine is imported. Checksums are summed up afresh over the whole packet, endpoints are a plain
dictionary, rings follow the rule as the collection documents it. Inventory entries are taken as they are written.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd
from typing import Any

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
ICMP, TCP, UDP = 1, 6, 17
PROTOCOLS = {"tcp": TCP, "udp": UDP}
RING = 65537
MASK = 0xFFFFFFFFFFFFFFFF
HEADER_BYTES = {ICMP: 8, TCP: 20, UDP: 8}
CHECKSUM_AT = {ICMP: 36, TCP: 50, UDP: 40}


# --- checksums


def word_sum(data: bytes) -> int:
    """The sum of all 16-bit words modulo 0xffff; zero means that a checksum over them is right."""
    data += bytes(len(data) % 2)
    return sum(struct.unpack(f">{len(data) // 2}H", data)) % 0xFFFF


def _ip_sum(frame: bytes) -> int:
    return word_sum(frame[14:34])


def _l4_sum(frame: bytes) -> int:
    total = struct.unpack_from(">H", frame, 16)[0]
    segment = frame[34 : 14 + total]
    if frame[23] == ICMP:
        return word_sum(segment)
    return word_sum(frame[26:34] + struct.pack(">HH", frame[23], len(segment)) + segment)


def _with_checksum(frame: bytearray, position: int, sums: Callable[[bytes], int], wanted: int) -> None:
    """Choose the checksum so that the sum is `wanted`: zero, or the error that the frame arrived with."""
    struct.pack_into(">H", frame, position, 0)
    value = (wanted - sums(bytes(frame))) % 0xFFFF
    if position == CHECKSUM_AT[UDP] and frame[23] == UDP and value == 0:
        value = 0xFFFF
    struct.pack_into(">H", frame, position, value)


def rewritten(frame: bytes, changes: dict[int, bytes]) -> bytes:
    """The frame with bytes replaced by position, its checksums as right or as wrong as they were."""
    ip_sum, l4_sum = _ip_sum(frame), _l4_sum(frame)
    position = CHECKSUM_AT[frame[23]]
    unchecked = frame[23] == UDP and frame[position : position + 2] == bytes(2)
    result = bytearray(frame)
    for start, value in changes.items():
        result[start : start + len(value)] = value
    _with_checksum(result, 24, _ip_sum, ip_sum)
    if not unchecked:
        _with_checksum(result, position, _l4_sum, l4_sum)
    return bytes(result)


# --- which backend


def maglev(weights: dict[str, int]) -> list[str]:
    """Rounds in the order of the names; until round r a backend had 1 + floor((r - 1) * weight / largest weight) turns.

    In a turn it takes the first free place of its permutation: offset, offset + skip, offset + 2 * skip, ...
    """

    def preferences(name: str) -> Iterator[int]:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        first, second = struct.unpack("<QQ", digest)
        offset, skip = first % RING, 1 + second % (RING - 1)
        return ((offset + step * skip) % RING for step in range(RING))

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
            if len(ring) == RING:
                return [ring[place] for place in range(RING)]


def round_robin(weights: list[int]) -> list[int]:
    """Occurrence k of a backend belongs at (k + 1/2) / weight of the cycle; of equals, the one declared first."""
    weights = [weight // gcd(*weights) for weight in weights]
    return [
        position
        for _place, position in sorted(
            (Fraction(2 * occurrence + 1, 2 * weight), position)
            for position, weight in enumerate(weights)
            for occurrence in range(weight)
        )
    ]


def flow_slot(frame: bytes) -> int:
    """Client address, client port and destination port, mixed and spread over the ring."""
    client, client_port, port = struct.unpack("<IHH", frame[26:30] + frame[34:38])
    value = client << 32 | client_port << 16 | port
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor & MASK
    return (value >> 32) * RING >> 32


# --- the network around the balancer


@dataclass(frozen=True)
class Hop:
    """Where the kernel's tables send packets for an address."""

    interface: int
    destination: bytes
    source: bytes


# What the kernel's tables say about an address that has no hop.
UNRESOLVED = "route, but no neighbour"
NOT_FORWARDED = "an address of this host, or no route"
REFUSED = "a route that refuses"

Resolve = Callable[[str], Hop | str]


def unknown(_address: str) -> str:
    return NOT_FORWARDED


# --- the balancer


@dataclass
class Service:
    name: str
    forwarding: str
    vip: bytes
    first_port: int
    backends: list[Backend] = field(default_factory=list)
    ring: list[Backend] = field(default_factory=list)
    in_turn: bool = False
    turns: int = 0


@dataclass
class Backend:
    service: Service
    address: str
    port: int | None
    mac: bytes | None

    @property
    def key(self) -> tuple[str, str, int | None]:
        return self.service.name, self.address, self.port


def port_range(port: Any) -> range:
    first, _separator, last = str(port).partition("-")
    return range(int(first), int(last or first) + 1)


class Balancer:
    """One balancer on one CPU; counters grow with every frame."""

    def __init__(
        self,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        resolve: Resolve = unknown,
        interface: int = 1,
        features: frozenset[str] = frozenset(("dnat", "dsr", "round_robin")),
    ) -> None:
        self.resolve, self.interface, self.features = resolve, interface, features
        self.services: dict[tuple[bytes, int, int], Service] = {}
        self.replies: dict[tuple[bytes, int, int], Backend] = {}
        self.reasons: Counter[tuple[str, str]] = Counter()
        # packets, bytes, reply packets, reply bytes
        self.service_counters: dict[str, list[int]] = {}
        self.backend_counters: dict[tuple[str, str, int | None], list[int]] = {}
        self.last_reason: tuple[str, str] | None = None
        for service in services:
            self._add(service, [backend for backend in backends if backend["service"] == service["name"]])

    def _add(self, declared: dict[str, Any], backends: list[dict[str, Any]]) -> None:
        ports, protocol = port_range(declared["port"]), PROTOCOLS[declared["protocol"]]
        vip = socket.inet_aton(declared["address"])
        service = Service(declared["name"], declared.get("forwarding", "dnat"), vip, ports[0])
        self.service_counters[service.name] = [0, 0, 0, 0]
        for port in ports:
            self.services[vip, protocol, port] = service
        weights: dict[str, int] = {}
        by_name: dict[str, Backend] = {}
        for item in backends:
            mac = bytes.fromhex(item["mac"].replace(":", "")) if item.get("mac") else None
            backend = Backend(service, item["address"], item.get("port"), mac)
            self.backend_counters[backend.key] = [0, 0, 0, 0]
            if service.forwarding == "dnat":
                for port in [backend.port] if backend.port else ports:
                    self.replies[socket.inet_aton(backend.address), protocol, port] = backend
            weight = item.get("weight", 1) if item.get("state", "enabled") == "enabled" else 0
            if weight:
                name = f"{backend.address}:{backend.port or declared['port']}"
                weights[name], by_name[name] = weight, backend
        service.in_turn = declared.get("scheduler") == "round_robin"
        if service.in_turn and weights:
            in_order = list(by_name.values())
            service.ring = [in_order[position] for position in round_robin(list(weights.values()))]
        elif weights:
            service.ring = [by_name[name] for name in maglev(weights)]

    def process(self, frame: bytes) -> tuple[int, bytes]:
        """Verdict and the frame afterwards."""
        self.last_reason = None
        problem = self._problem(frame)
        if problem:
            return self._because(PASS, problem, frame)
        protocol, source, destination = frame[23], frame[26:30], frame[30:34]
        if protocol == ICMP:
            is_vip = any(vip == destination for vip, _protocol, _port in self.services)
            if is_vip and frame[34:36] == b"\x08\x00":
                return self._because(TX, "echo", self._echo_reply(frame))
            return self._because(PASS, "not_ours", frame)
        source_port, destination_port = struct.unpack_from(">HH", frame, 34)
        service = self.services.get((destination, protocol, destination_port))
        if service:
            return self._forward(frame, service)
        backend = self.replies.get((source, protocol, source_port))
        if backend and "dnat" in self.features:
            return self._reply(frame, backend)
        return self._because(PASS, "not_ours", frame)

    @staticmethod
    def _problem(frame: bytes) -> str | None:
        """Why the kernel is to look at this frame itself."""
        if len(frame) < 14 + 20 + 8:
            return "malformed"
        ethertype, version, header_words = frame[12:14], frame[14] >> 4, frame[14] & 15
        if ethertype != b"\x08\x00":
            return "not_ipv4"
        if version != 4 or header_words < 5:
            return "malformed"
        if header_words > 5:
            return "ip_options"
        header = HEADER_BYTES.get(frame[23])
        if header is None:
            return "not_ours"
        total, _identification, fragment = struct.unpack_from(">HHH", frame, 16)
        if fragment & 0x2000 or fragment & 0x1FFF:
            return "fragment"
        if not 20 + header <= total <= len(frame) - 14:
            return "malformed"
        return None

    def _because(self, verdict: int, reason: str, frame: bytes) -> tuple[int, bytes]:
        self.last_reason = (reason, {PASS: "pass", DROP: "drop", TX: "tx"}[verdict])
        self.reasons[self.last_reason] += 1
        return verdict, frame

    @staticmethod
    def _echo_reply(frame: bytes) -> bytes:
        swapped = frame[6:12] + frame[:6] + frame[12:]
        return rewritten(swapped, {22: b"\x40", 26: frame[30:34], 30: frame[26:30], 34: b"\x00"})

    def _forward(self, frame: bytes, service: Service) -> tuple[int, bytes]:
        if not service.ring or service.forwarding not in self.features:
            return self._because(DROP, "no_backend", frame)
        if service.in_turn:
            backend = service.ring[service.turns % len(service.ring)]
            service.turns += 1
        else:
            backend = service.ring[flow_slot(frame)]
        changes: dict[int, bytes] = {}
        if service.forwarding == "dnat":
            if frame[22] < 2:
                return self._because(PASS, "ttl_expired", frame)
            changes = {22: bytes((frame[22] - 1,)), 30: socket.inet_aton(backend.address)}
            if backend.port:
                changes[36] = struct.pack(">H", backend.port)
        if backend.mac:
            hop: Hop | str = Hop(self.interface, backend.mac, frame[:6])
        else:
            hop = self.resolve(backend.address)
        if hop == UNRESOLVED and service.forwarding == "dnat":
            # The kernel will forward it, and lower the TTL then.
            return self._because(PASS, "no_neighbour", rewritten(frame, {**changes, 22: frame[22:23]}))
        if hop == UNRESOLVED:
            return self._because(DROP, "no_neighbour", frame)
        if not isinstance(hop, Hop):
            return self._because(DROP, "no_route", frame)
        self._count(backend, 0, len(frame))
        return self._send(rewritten(frame, changes) if changes else frame, hop)

    def _reply(self, frame: bytes, backend: Backend) -> tuple[int, bytes]:
        if frame[22] < 2:
            return self._because(PASS, "ttl_expired", frame)
        hop = self.resolve(socket.inet_ntoa(frame[30:34]))
        if hop == NOT_FORWARDED:
            return self._because(PASS, "local_reply", frame)
        if hop == REFUSED:
            return self._because(DROP, "no_route", frame)
        lowered = frame[22] - 1 if isinstance(hop, Hop) else frame[22]
        changes = {22: bytes((lowered,)), 26: backend.service.vip}
        if backend.port:
            changes[34] = struct.pack(">H", backend.service.first_port)
        restored = rewritten(frame, changes)
        if not isinstance(hop, Hop):
            return self._because(PASS, "no_neighbour", restored)
        self._count(backend, 2, len(frame))
        return self._send(restored, hop)

    def _send(self, frame: bytes, hop: Hop) -> tuple[int, bytes]:
        verdict = TX if hop.interface == self.interface else REDIRECT
        return verdict, hop.destination + hop.source + frame[12:]

    def _count(self, backend: Backend, first: int, size: int) -> None:
        for counters in (self.service_counters[backend.service.name], self.backend_counters[backend.key]):
            counters[first] += 1
            counters[first + 1] += size
