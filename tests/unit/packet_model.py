# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a packet, twice: as files/bpf/ reads it from the bytes in the maps, and as docs/data-plane.md says.

An outcome is a tuple that names what happens and everything that decides where the packet ends up.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import Backend, BackendKey, Service
from ansible_collections.lbops.xdp.plugins.module_utils.tables import lookup

from .memory_tables import Map, Program, index_of

MASK64 = 0xFFFFFFFFFFFFFFFF
MULTIPLIER = 0x9E3779B97F4A7C15
PROBES = 16
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
SERVICE, BACKEND, VIP, SOURCE = 1, 2, 3, 4
FORWARDINGS = {1: "dnat", 2: "dsr", 3: "full_nat", 4: "ipip", 5: "redirect", 6: "gue", 7: "local"}
BACKEND_ENTRY = struct.Struct("<16s16s2s2sBBBx6s8xHIIII16s4sIIIII")
SESSION = struct.Struct("<16s2s2sIIIIBxHHHI16x")
LINKS_TRIED = 32
# Slots for which maps of lookup tables have room, in the order in which the program looks at them.
ROOMS = (65537, 16381, 4093, 1021, 131071)

PASS = ("pass",)
NO_BACKEND = ("drop", "no_backend")
LOCAL: Outcome = ("local",)
NOT_ALLOWED: Outcome = ("drop", "source_not_allowed")
# Of no address of the host, as all VIPs and sources are here.
UNSERVED = ("drop", "vip_unserved")
Outcome = tuple


class Packet(NamedTuple):
    source: str
    destination: str
    protocol: str  # icmp: an echo request
    source_port: int = 0
    port: int = 0
    ttl: int = 64
    # The backend that the flow table or a session knows it with, and the number of that.
    known: BackendKey | None = None
    number: int = 0
    memory: int = 0  # the id of the map that remembers it
    has_begun: bool = False  # TCP, and no SYN

    @property
    def family(self) -> int:
        return 6 if ":" in self.source else 4


class Entry(NamedTuple):
    address: bytes
    vip: bytes
    port: bytes
    vip_port: bytes
    forwarding: int
    family: int
    has_mac: int
    mac: bytes
    source_port: int
    service: int
    service_counters: int
    backend_counters: int
    interface: int
    source: bytes
    source_mask: bytes
    header_sum: int
    first_session: int
    source_ports: int
    pool: int
    identity: int


@cache
def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def words(address: str) -> bytes:
    return packed(address).ljust(16, b"\0")


@cache
def flow_hash(packet: Packet) -> int:
    client = packed(packet.source)
    ports = packet.source_port.to_bytes(2, "big"), packet.port.to_bytes(2, "big")
    number = int.from_bytes(ports[0], "little") << 16 | int.from_bytes(ports[1], "little")
    if packet.family == 4:
        mixed = int.from_bytes(client, "little") << 32 | number
    else:
        upper, lower = struct.unpack("<QQ", client)
        mixed = (upper ^ upper >> 33) * 0xFF51AFD7ED558CCD & MASK64
        mixed ^= lower ^ number
    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & MASK64
    return (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & MASK64


# --- from the maps


class LivePackets:
    """The program of one interface over the maps it was loaded with."""

    def __init__(self, program: Program) -> None:
        self.features, self.maps = program.features, program.maps

    def _table(self, name: str, place: int = 0) -> bytes | None:
        found = self.maps[name].values.get(place)
        return found.content() if isinstance(found, Map) else None

    def outcome(self, packet: Packet) -> Outcome:
        if packet.family == 6 and "ipv6" not in self.features:
            return PASS
        if "filters" in self.features:
            action = self._filter(packet)
            if action in ("drop", "limit"):
                # A packet more than the rate is dropped; which one that is, is not the tables' business.
                if action == "drop":
                    return ("drop", "filtered")
                return ("limited", *self._unfiltered(packet))
        return self._unfiltered(packet)

    def _unfiltered(self, packet: Packet) -> Outcome:
        table = self._table("endpoints" if packet.family == 4 else "endpoints6")
        if table is None:
            return PASS
        if packet.protocol == "icmp":
            found = self._endpoint(table, packet.family, VIP, packet.destination, 1, 0)
            return PASS if found is None else ("echo",)
        protocol = PROTOCOLS[packet.protocol]
        service = self._port_endpoint(table, packet.family, SERVICE, packet.destination, protocol, packet.port)
        if service is not None:
            return self._to_service(packet, service)
        if "full_nat" in self.features:
            pool = self._endpoint(table, packet.family, SOURCE, packet.destination, 0, 0)
            if pool is not None:
                answered = self._answered(packet, pool)
                if answered:
                    return answered
        if "dnat" in self.features:
            number = self._port_endpoint(table, packet.family, BACKEND, packet.source, protocol, packet.source_port)
            entry = self._entry(number) if number else None
            if entry:
                port = int.from_bytes(entry.vip_port, "big")
                return ("reply", entry.vip, port or packet.source_port)
        return UNSERVED if self._is_vip_or_source(table, packet) else PASS

    def _is_vip_or_source(self, table: bytes, packet: Packet) -> bool:
        mixed = 0
        for (word,) in struct.iter_unpack("<I", packed(packet.destination)):
            mixed ^= word
        if not int.from_bytes(table[32:160], "little") >> ((mixed * MULTIPLIER & MASK64) >> 54) & 1:
            return False
        kinds = [(VIP, 1), (SOURCE, 0)] if "full_nat" in self.features else [(VIP, 1)]
        return any(
            self._endpoint(table, packet.family, kind, packet.destination, protocol, 0) is not None
            for kind, protocol in kinds
        )

    def _endpoint(self, table: bytes, family: int, kind: int, address: str, protocol: int, port: int) -> int | None:
        shift = struct.unpack_from("<I", table)[0]
        rest = port.to_bytes(2, "big") + bytes((protocol, kind))
        if family == 4:
            size, key = 16, packed(address) + rest
            home = int.from_bytes(key, "little") * MULTIPLIER & MASK64
        else:
            size, key = 24, packed(address) + rest
            upper, lower, last = struct.unpack("<QQI", key)
            home = (upper ^ last << 32) * MULTIPLIER & MASK64
            home = (home ^ home >> 32 ^ lower) * MULTIPLIER & MASK64
        for probe in range(PROBES):
            offset = 160 + ((home >> shift) + probe) * size
            slot = table[offset : offset + size]
            if slot[: len(key)] == key:
                return int.from_bytes(slot[len(key) : len(key) + 4], "little")
            if not any(slot[len(key) - 4 : len(key)]):
                return None
        return None

    def _port_endpoint(
        self, table: bytes, family: int, kind: int, address: str, protocol: int, port: int
    ) -> int | None:
        ports = struct.unpack_from("<QQ", table, 8)[0 if kind == SERVICE else 1]
        if not ports >> (port & 63) & 1:
            return None
        found = self._endpoint(table, family, kind, address, protocol, port)
        if found is None and "any_port" in self.features:
            found = self._endpoint(table, family, kind, address, protocol, 0)
        return found

    def _entry(self, number: int) -> Entry | None:
        if not 0 < number < self.maps["backends"].max_entries:
            return None
        value = self.maps["backends"].values.get(number, bytes(BACKEND_ENTRY.size))
        return Entry(*BACKEND_ENTRY.unpack(value))

    def _lookup_table(self, service: int) -> bytes | None:
        for room in ROOMS if "table_size" in self.features else ROOMS[:1]:
            found = self._table(f"lookup_{room}", service)
            if found is not None:
                return found
        return None

    def chosen(self, packet: Packet) -> Entry | None:
        """The entry of the backend that a hash gives a packet to; it names the counters where the packet counts."""
        table = self._table("endpoints" if packet.family == 4 else "endpoints6")
        protocol = PROTOCOLS[packet.protocol]
        service = table and self._port_endpoint(
            table, packet.family, SERVICE, packet.destination, protocol, packet.port
        )
        ring = None if service is None else self._lookup_table(service)
        if ring is None:
            return None
        length = struct.unpack_from("<I", ring, 4)[0]
        return self._entry(struct.unpack_from("<I", ring, 16 + 4 * ((flow_hash(packet) >> 32) * length >> 32))[0])

    def _to_service(self, packet: Packet, service: int) -> Outcome:
        ring = self._lookup_table(service)
        if ring is None:
            return NO_BACKEND
        scheduler, length, flags, _idle = struct.unpack_from("<IIII", ring)
        if flags & 8 and "source_ranges" in self.features and not self._is_in_range(packet, service):
            return NOT_ALLOWED
        if packet.ttl <= 1 and not flags & 4:
            return ("pass", "ttl_expired")

        def slot(number: int) -> int:
            return struct.unpack_from("<I", ring, 16 + 4 * number)[0]

        remembers = flags & 3 and self.features & {"flow_table", "full_nat"}
        if packet.number and remembers and packet.memory == self.maps["flows"].id:
            entry = self._entry(packet.number)
            if entry and entry.service == service and entry.forwarding:
                return self._forward(packet, packet.number, None)
        if packet.has_begun and flags & 1 and "handover" in self.features:
            number = self._previous(packet, service)
            if number:
                return self._forward(packet, number, None)
        if scheduler == 2 and "round_robin" in self.features:
            chosen = {slot(number) for number in range(length)} or {0}
            return ("in turn", frozenset(self._forward(packet, number, None) for number in chosen))
        hashed = (flow_hash(packet) >> 32) * length >> 32
        return self._forward(packet, slot(hashed), lambda found: slot((found >> 32) * length >> 32))

    def _previous(self, packet: Packet, service: int) -> int:
        """The number of a backend that takes packets; 0 if there is none."""
        table = self._table("previous", service)
        if table is None:
            return 0
        length = struct.unpack_from("<I", table, 12)[0]
        number: int = struct.unpack_from("<I", table, 64 + 4 * ((flow_hash(packet) >> 32) * length >> 32))[0]
        entry = self._entry(number)
        return number if entry and entry.service == service and entry.forwarding else 0

    def _is_in_range(self, packet: Packet, service: int) -> bool:
        client = packed(packet.source).ljust(16, b"\0")
        for number in self.maps["source_ranges"].values:
            length, place, prefix = struct.unpack("<II16s", number.to_bytes(24, "little"))
            shift = 128 - (length - 32)
            if place == service and int.from_bytes(client, "big") >> shift == int.from_bytes(prefix, "big") >> shift:
                return True
        return False

    def _forward(self, packet: Packet, number: int, slot_of: Callable[[int], int] | None) -> Outcome:
        entry = self._entry(number)
        if not entry or FORWARDINGS.get(entry.forwarding) not in self.features:
            return NO_BACKEND
        mode = FORWARDINGS[entry.forwarding]
        mac = entry.mac if entry.has_mac else None
        port = int.from_bytes(entry.port, "big") or packet.port
        if mode == "dnat":
            return ("dnat", entry.address, port, mac)
        if mode == "local":
            return LOCAL
        if mode == "dsr":
            return ("dsr", entry.address, mac)
        if mode == "ipip":
            return ("ipip", entry.family, entry.address, entry.source, entry.source_mask, mac)
        if mode == "gue":
            return ("gue", entry.family, entry.address, entry.source, entry.source_mask, mac, port)
        if mode == "full_nat":
            pool = struct.unpack("<IHH", self.maps["pools"].values.get(entry.pool, bytes(8)))
            if pool != (entry.first_session, entry.source_port, entry.source_ports):
                return ("full_nat", "its pool is another's")
            return ("full_nat", entry.address, port, entry.source, entry.source_port, entry.source_ports, mac)
        return self._redirect(packet, entry, slot_of)

    def _redirect(self, packet: Packet, entry: Entry, slot_of: Callable[[int], int] | None) -> Outcome:
        number = flow_hash(packet)
        for _try in range(LINKS_TRIED):
            if entry.interface in self.maps["links"].values:
                return ("redirect", entry.interface)
            if slot_of is None:
                break
            number = (number * MULTIPLIER + 1) & MASK64
            other = self._entry(slot_of(number))
            if other is None:
                break
            entry = other
        return ("drop", "link_down")

    def _answered(self, packet: Packet, pool: int) -> Outcome | None:
        value = self.maps["pools"].values.get(pool, bytes(8))
        first_session, first_port, ports = struct.unpack("<IHH", value)
        place = packet.port - first_port
        if not 0 <= place < ports:
            return None
        value = self.maps["sessions"].values.get(first_session + place)
        if value is None or not any(value):
            return None
        client, client_port, vip_port, number, _service, _seen, _timeout, protocol, *_deltas, identity = SESSION.unpack(
            value
        )
        entry = self._entry(number)
        if protocol != PROTOCOLS[packet.protocol] or not entry or entry.identity != identity or not entry.forwarding:
            return None
        if entry.address != words(packet.source):
            return None
        if packet.source_port.to_bytes(2, "big") != (entry.port if any(entry.port) else vip_port):
            return None
        return ("session reply", entry.vip, vip_port, client, client_port)

    # --- filters

    def _filter(self, packet: Packet) -> str:
        found = self.rule(packet)
        return ("", "drop", "pass", "limit")[found[1]] if found else ""

    def rule(self, packet: Packet) -> tuple[int, ...] | None:
        """The rule for a packet: index of its counters and limits, action, interval, burst; None without a prefix."""
        table = self._table("filters")
        if table is None:
            return None
        first4, first6, shift4, shift6, first_verdict, any4, any6, count4, count6 = struct.unpack_from("<7IBB", table)
        address = int.from_bytes(packed(packet.source), "big")
        if packet.family == 4:
            first, shift, verdict, count, bits, lengths = first4, shift4, any4, count4, 32, table[30:62]
        else:
            first, shift, verdict, count, bits, lengths = first6, shift6, any6, count6, 128, table[64:192]
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            length = lengths[middle]
            found = self._prefix(table, first, shift, bits, address >> (bits - length) << (bits - length), length)
            if found is None:
                high = middle
            else:
                low, verdict = middle + 1, found
        if not verdict:
            return None
        place = {"tcp": 0, "udp": 1, "icmp": 2}[packet.protocol]
        return struct.unpack_from("<IIII", table, (first_verdict + verdict) * 64 + 16 * place)

    @staticmethod
    def _prefix(table: bytes, first: int, shift: int, bits: int, number: int, length: int) -> int | None:
        if bits == 32:
            key = (number | length << 32).to_bytes(8, "little")
            home, size = int.from_bytes(key, "little") * MULTIPLIER & MASK64, 16
        else:
            upper, lower = number >> 64, number & MASK64
            key = struct.pack("<QQI", upper, lower, length)
            home = (upper ^ length) * MULTIPLIER & MASK64
            home, size = (home ^ home >> 32 ^ lower) * MULTIPLIER & MASK64, 32
        for _probe in range(2):
            line = (first + (home >> shift)) * 64
            for offset in range(line, line + 64, size):
                if table[offset : offset + len(key)] == key:
                    return struct.unpack_from("<I", table, offset + len(key))[0]
                if not any(table[offset : offset + len(key)]):
                    return None
            home = (home ^ home >> 29) * MULTIPLIER & MASK64
        return None


# --- from a document


def place_in_order(backend: Backend) -> tuple[str | int, ...]:
    if backend.interface:
        return (backend.interface,)
    address = ipaddress.ip_address(backend.address or "")
    return address.version, int(address), backend.port or 0


class DeclaredPackets:
    """A document, with backends that health checks keep out. `kept`: those with the entry that flows remember.

    `before`: the document that was in force, with a flow table or without one.
    """

    def __init__(
        self,
        document: Document,
        out: frozenset[BackendKey] = frozenset(),
        kept: Any = None,
        before: DeclaredPackets | None = None,
    ) -> None:
        self.document, self.out, self.before = document, out, before
        self.members = document.config.backends_of()
        self.kept = frozenset(document.config.backends) if kept is None else kept
        self._slots: dict[str, list[Backend]] = {}
        self._prefixes = [
            (ipaddress.ip_network(key.prefix), key.protocol, item.action) for key, item in document.filters.items()
        ]

    def outcome(self, packet: Packet) -> Outcome:
        action = self._filter(packet)
        if action == "drop":
            return ("drop", "filtered")
        found = self._unfiltered(packet)
        return ("limited", *found) if action == "limit" else found

    def _filter(self, packet: Packet) -> str:
        source, best = ipaddress.ip_address(packet.source), (-1, 0, "")
        for prefix, protocol, action in self._prefixes:
            if source in prefix and protocol in ("any", packet.protocol):
                best = max(best, (prefix.prefixlen, int(protocol != "any"), action))
        return "" if best[2] == "pass" else best[2]

    def _unfiltered(self, packet: Packet) -> Outcome:
        services = self.document.config.services.values()
        if packet.protocol == "icmp":
            return ("echo",) if any(service.address == packet.destination for service in services) else PASS
        for ports in (packet.port, 0):
            for service in services:
                if (service.address, service.protocol) == (packet.destination, packet.protocol):
                    if service.first_port <= ports <= service.last_port:
                        return self._to_service(packet, service)
        return self._session_reply(packet) or self._reply(packet) or self._no_match(packet)

    def _no_match(self, packet: Packet) -> Outcome:
        own = {service.address for service in self.document.config.services.values()}
        own |= {
            service.source for service in self.document.config.services.values() if service.forwarding == "full_nat"
        }
        return UNSERVED if packet.destination in own else PASS

    def _to_service(self, packet: Packet, service: Service) -> Outcome:
        members = self._takers(service)
        if not members and not (self.members[service.name] and service.remembers_flows):
            return NO_BACKEND
        ranges = [ipaddress.ip_network(prefix) for prefix in service.source_ranges]
        if ranges and not any(ipaddress.ip_address(packet.source) in network for network in ranges):
            return NOT_ALLOWED
        if packet.ttl <= 1 and service.forwarding not in ("dsr", "redirect"):
            return ("pass", "ttl_expired")
        if packet.known and packet.known.service == service.name and service.remembers_flows:
            if packet.known in self.kept and packet.known not in self.out:
                return self._forward(packet, service, self.document.config.backends[packet.known])
        previous = self._previous(packet, service) if packet.has_begun else None
        if previous:
            return self._forward(packet, service, previous)
        if not members:
            return ("in turn", frozenset((NO_BACKEND,))) if service.scheduler == "round_robin" else NO_BACKEND
        if service.scheduler == "round_robin":
            return ("in turn", frozenset(self._forward(packet, service, backend) for backend in members))
        slots = self._slots_of(service, members)
        number = flow_hash(packet)
        if service.forwarding != "redirect":
            return self._forward(packet, service, slots[(number >> 32) * len(slots) >> 32])
        for _try in range(LINKS_TRIED):
            interface = slots[(number >> 32) * len(slots) >> 32].interface or ""
            if interface in LINKS_UP:
                return ("redirect", index_of(interface))
            number = (number * MULTIPLIER + 1) & MASK64
        return ("drop", "link_down")

    def _previous(self, packet: Packet, service: Service) -> Backend | None:
        """The backend that the document before gave a connection, if that is still in the service."""
        old = self.before.document.config.services.get(service.name) if self.before else None
        if self.before is None or old is None or "round_robin" in (old.scheduler, service.scheduler):
            return None
        where = [(found.address, found.port, found.forwarding, found.source) for found in (old, service)]
        members = [found.members[service.name] for found in (self, self.before)]
        members = [self._declared_takers(found) for found in members]
        shares = [{backend.key: backend.weight for backend in found} for found in members]
        same_slots = old.scheduler == service.scheduler and shares[0] == shares[1]
        if not service.flow_table or where[0] != where[1] or same_slots:
            return None
        slots = self.before._slots_of(old, members[1]) if members[1] else []
        chosen = slots[(flow_hash(packet) >> 32) * len(slots) >> 32] if slots else None
        if chosen is None or chosen.key in self.out:
            return None
        return self.document.config.backends.get(chosen.key)

    def _takers(self, service: Service) -> list[Backend]:
        """Who gets new flows."""
        return self._declared_takers([found for found in self.members[service.name] if found.key not in self.out])

    @staticmethod
    def _declared_takers(members: list[Backend]) -> list[Backend]:
        ready = [backend for backend in members if backend.weight]
        enabled = [backend for backend in ready if backend.state == "enabled"]
        return enabled or [backend for backend in ready if backend.state == "backup"]

    def _slots_of(self, service: Service, members: list[Backend]) -> list[Backend]:
        if service.name not in self._slots:
            if service.scheduler == "hash":
                members = sorted(members, key=place_in_order)
            weights = [backend.weight for backend in members]
            if service.scheduler == "hash":
                if len(set(weights)) == 1:
                    slots = [members[place % len(members)] for place in range(512)]
                else:
                    slots = [members[place] for place in lookup.hashed(weights)]
            else:
                names = [f"{backend.target}:{backend.port or service.port}" for backend in members]
                # 0 is a free slot.
                numbers = list(range(1, len(members) + 1))
                filled = lookup.fill(lookup.members(names, weights, numbers, service.table_size))
                slots = [members[number - 1] for number in filled]
            self._slots[service.name] = slots
        return self._slots[service.name]

    @staticmethod
    def _forward(packet: Packet, service: Service, backend: Backend) -> Outcome:
        mac = bytes.fromhex(backend.mac.replace(":", "")) if backend.mac else None
        mode = service.forwarding
        if backend.local:
            return LOCAL
        if mode == "redirect":
            return ("redirect", index_of(backend.interface or ""))
        address = backend.address or ""
        if mode == "dsr":
            return ("dsr", words(address), mac)
        if mode in ("ipip", "gue"):
            source = ipaddress.ip_network(service.source or "")
            mask = (int(source.hostmask) & 0xFFFFFFFF).to_bytes(4, "big")
            family = 6 if ":" in address else 4
            outer = (mode, family, words(address), words(str(source.network_address)), mask, mac)
            return outer if mode == "ipip" else (*outer, service.tunnel_port)
        port = backend.port or packet.port
        if mode == "dnat":
            return ("dnat", words(address), port, mac)
        first, last = map(int, (service.source_ports or "").split("-"))
        return ("full_nat", words(address), port, words(service.source or ""), first, last - first + 1, mac)

    def _session_reply(self, packet: Packet) -> Outcome | None:
        service = self.document.config.services.get(packet.known.service) if packet.known else None
        if service is None or service.source != packet.destination or packet.known not in self.kept:
            return None
        if packet.known in self.out:
            return None
        return ("session reply", words(service.address), *SESSION_OF_REPLIES)

    def _reply(self, packet: Packet) -> Outcome | None:
        found = None
        for backend in self.document.config.backends.values():
            service = self.document.config.services[backend.service]
            if (
                service.forwarding != "dnat"
                or backend.local
                or (backend.address, service.protocol) != (packet.source, packet.protocol)
            ):
                continue
            vip_port = service.first_port if backend.port else packet.source_port
            if backend.port == packet.source_port or (
                not backend.port and (service.any_port or packet.source_port in service.ports)
            ):
                found = ("reply", words(service.address), vip_port)
        return found


LINKS_UP = frozenset(("out0", "out1", "out2"))
# Client and port of the sessions that tests begin: vip_port, client, client_port
SESSION_OF_REPLIES = ((80).to_bytes(2, "big"), words("203.0.113.9"), (4000).to_bytes(2, "big"))
