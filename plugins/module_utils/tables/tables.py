# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of the maps' values, made from a configuration. Pure functions."""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from ..config.addresses import Address
from ..config.model import Backend, BackendKey, Config, Pool, Service, backend_ports, ring_members
from ..config.vocabulary import FORWARDINGS, LOCAL_FORWARDING, PROTOCOLS, SCHEDULERS
from ..errors import EngineError
from . import lookup
from .layout import (
    ADDRESS_BLOOM_BITS,
    AFFINITY_PREFIX_SHIFT,
    BACKEND,
    BACKEND_FORWARDING_BYTE,
    ENDPOINT,
    ENDPOINT6,
    ENDPOINT_BACKEND,
    ENDPOINT_MULTIPLIER,
    ENDPOINT_PROBES,
    ENDPOINT_SERVICE,
    ENDPOINT_SOURCE,
    ENDPOINT_TABLE_HEADER,
    ENDPOINT_VIP,
    ICMP,
    IPIP,
    IPV6_IN_IP,
    LOOKUP_TABLE,
    MASK64,
    POOL,
    QUIC_ID_LENGTH_SHIFT,
    SERVICE_FLOW_TABLE,
    SERVICE_KEEPS_TTL,
    SERVICE_SESSIONS,
    SERVICE_SOURCE_RANGES,
    Sizes,
    table_bytes,
    table_room,
    ticks,
)
from .server_ids import server_key

# Key of an endpoint, the bytes of its slot before the id, to its id. Keys of IPv4 have 8 bytes, of IPv6 24.
Endpoints = dict[bytes, int]
# The slot of a key, of 64 bits shifted right so far.
Home = Callable[[bytes, int], int]


@dataclass(frozen=True)
class PoolPlace:
    """Where the ports of a full_nat source are."""

    id: int
    first_session: int


@dataclass(frozen=True)
class BackendPlace:
    """What a backend's entry says of other maps."""

    ring: int
    service_counters: int
    backend_counters: int
    pool: PoolPlace | None = None
    interface: int = 0  # index


def pack_port(port: int | None) -> bytes:
    """Network byte order; 0 stands for none."""
    return (port or 0).to_bytes(2, "big")


def checksum_delta(before: bytes, after: bytes, *, ttl_step: bool = False) -> bytes:
    """What replacing `before` by `after` adds to the complement of a checksum: ~m + m' (RFC 1624, equation 3).

    Both have the same even length. `ttl_step` includes a TTL lowered by 1, the high byte of its word.
    Two bytes in network order.
    """
    complement = (1 << 8 * len(before)) - 1 - int.from_bytes(before, "big")
    total = complement + int.from_bytes(after, "big")
    if ttl_step:
        total += ~0x0100 & 0xFFFF
    # A word counts the same wherever it lies, since 2^16 is 1 modulo 0xFFFF; only nothing at all adds up to 0.
    return ((total - 1) % 0xFFFF + 1 if total else 0).to_bytes(2, "big")


def _rewrite_deltas(vip: bytes, address: bytes, vip_port: bytes, port: bytes) -> list[bytes]:
    """ip_delta, l4_delta and those of replies; IPv4's header has the TTL in its checksum."""
    in_header = len(vip) == 4
    return [
        checksum_delta(vip, address, ttl_step=in_header),
        checksum_delta(vip + vip_port, address + port),
        checksum_delta(address, vip, ttl_step=in_header),
        checksum_delta(address + port, vip + vip_port),
    ]


def _outer_header_sum(service: Service, address: Address) -> int:
    """Of the words of an outer IPv4 header that are the same for every packet, in the byte order of the packet."""
    if address.family == 6:
        return 0
    if service.forwarding == "gue":
        protocol = PROTOCOLS["udp"]
    else:
        protocol = IPIP if service.family == 4 else IPV6_IN_IP
    words = struct.unpack("<4H", b"\x45\0" + bytes((64, protocol)) + address.packed)
    return sum(words)


class BackendPacker:
    """Makes struct backend for the backends of one service; what they share is worked out once."""

    def __init__(self, service: Service) -> None:
        self._service, self._pool = service, service.pool
        self._rewrites = service.forwarding in ("dnat", "full_nat")
        self._forwarding = FORWARDINGS[service.forwarding]
        vip, source = Address(service.address), service.source_prefix
        self._vip, self._vip_words = vip.packed, vip.words
        self._port = pack_port(service.first_port)
        self._source_words, self._source_mask = bytes(16), bytes(4)
        if source:
            self._source_words = source.address.words
            if service.is_tunnel:
                self._source_mask = (source.host_mask & 0xFFFFFFFF).to_bytes(4, "big")

    def pack(self, backend: Backend, place: BackendPlace) -> bytes:
        """struct backend."""
        service, pool = self._service, self._pool
        port, vip_port = pack_port(service.tunnel_port), bytes(2)
        address = Address(backend.address) if backend.address else None
        packed = address.packed if address else b""
        deltas = [bytes(2)] * 4
        if self._rewrites:
            if backend.port is not None:
                port, vip_port = pack_port(backend.port), self._port
            deltas = _rewrite_deltas(self._vip, packed, vip_port, port)
        entry = BACKEND.pack(
            packed.ljust(16, b"\0"),
            self._vip_words,
            port,
            vip_port,
            LOCAL_FORWARDING if backend.local else self._forwarding,
            address.family if address else 0,
            1 if backend.mac else 0,
            bytes.fromhex(backend.mac.replace(":", "")) if backend.mac else bytes(6),
            *deltas,
            pool.first_port if pool else 0,
            place.ring,
            place.service_counters,
            place.backend_counters,
            place.interface,
            self._source_words,
            self._source_mask,
            _outer_header_sum(service, address) if address and service.is_tunnel else 0,
            place.pool.first_session if place.pool else 0,
            pool.ports if pool else 0,
            place.pool.id if place.pool else 0,
            0,
        )
        # The identity comes last.
        return entry[:-4] + zlib.crc32(entry).to_bytes(4, "little")


def pack_backend(service: Service, backend: Backend, place: BackendPlace) -> bytes:
    """struct backend of a single one."""
    return BackendPacker(service).pack(backend, place)


def retired(entry: bytes) -> bytes:
    """struct backend as it is when flows remembered with it are to be chosen anew."""
    return entry[:BACKEND_FORWARDING_BYTE] + b"\0" + entry[BACKEND_FORWARDING_BYTE + 1 :]


def pack_pool(pool: Pool, place: PoolPlace) -> bytes:
    """struct pool."""
    return POOL.pack(place.first_session, pool.first_port, pool.ports)


def endpoint_key(kind: int, address: str, protocol: int, port: int) -> bytes:
    """The bytes of a slot before its id."""
    packed = Address(address).packed
    if len(packed) == 4:
        return ENDPOINT.pack(packed, pack_port(port), protocol, kind, 0, 0)[:8]
    return ENDPOINT6.pack(packed, pack_port(port), protocol, kind, 0)[:20]


def endpoints(
    config: Config,
    rings: dict[str, int],
    backend_ids: dict[BackendKey, int],
    pools: dict[Pool, PoolPlace],
) -> Endpoints:
    """All endpoints of a configuration, with the places of rings by service, backends by key, and pools."""
    found: Endpoints = {}
    for service in config.services.values():
        found[endpoint_key(ENDPOINT_VIP, service.address, ICMP, 0)] = 0
        for port in service.ports:
            found[endpoint_key(ENDPOINT_SERVICE, service.address, PROTOCOLS[service.protocol], port)] = rings[
                service.name
            ]
    for pool in config.pools():
        found[endpoint_key(ENDPOINT_SOURCE, pool.address, 0, 0)] = pools[pool].id
    for key, backend in config.backends.items():
        service = config.services[backend.service]
        # The replies of the host itself do not arrive.
        if service.forwarding == "dnat" and not backend.local:
            protocol = PROTOCOLS[service.protocol]
            for port in backend_ports(service, backend.port):
                found[endpoint_key(ENDPOINT_BACKEND, backend.target, protocol, port)] = backend_ids[key]
        if backend.server_id is not None and service.by_connection_id:
            slot = server_key(service, rings[service.name], backend.server_id)
            if slot in found:
                raise EngineError(
                    f"{backend.label}: server_id {backend.server_id} has the hash of another server's; take another id"
                )
            found[slot] = backend_ids[key]
    return found


def _home4(key: bytes, shift: int) -> int:
    return (int.from_bytes(key, "little") * ENDPOINT_MULTIPLIER & MASK64) >> shift


def _home6(key: bytes, shift: int) -> int:
    upper: int
    lower: int
    rest: int
    upper, lower, rest = struct.unpack("<QQI", key)
    number = (upper ^ rest << 32) * ENDPOINT_MULTIPLIER & MASK64
    return ((number ^ number >> 32 ^ lower) * ENDPOINT_MULTIPLIER & MASK64) >> shift


def pack_endpoint_tables(found: Endpoints, sizes: Sizes) -> tuple[bytes, bytes | None]:
    """struct endpoint_table and struct endpoint6_table; None if nothing has an IPv6 address.

    As small as keeps every key within ENDPOINT_PROBES slots of its home. Raises EngineError if there are more
    endpoints than a table may hold.
    """
    found6 = {key: number for key, number in found.items() if len(key) == 20}
    found4 = {key: number for key, number in found.items() if len(key) == 8} if found6 else found
    table4 = _pack_endpoint_table(found4, sizes, sizes.endpoint_table_bytes, ENDPOINT.size, _home4)
    if not found6:
        return table4, None
    return table4, _pack_endpoint_table(found6, sizes, sizes.endpoint6_table_bytes, ENDPOINT6.size, _home6)


def _port_bits(found: Endpoints, kind: int) -> int:
    """Bit n stands for ports that are n modulo 64; port 0, which is any, for all of them."""
    ports = {key[-4:-2] for key in found if key[-1] == kind}
    if bytes(2) in ports:
        return MASK64
    bits = 0
    for port in ports:
        bits |= 1 << (port[1] & 63)
    return bits


def _bloom_bits(found: Endpoints) -> bytes:
    """Bloom filter over VIPs and sources of full_nat, as may_be_vip_or_source() reads it."""
    bits = 0
    for address in {key[:-4] for key in found if key[-1] in (ENDPOINT_VIP, ENDPOINT_SOURCE)}:
        mixed = 0
        for (word,) in struct.iter_unpack("<I", address):
            mixed ^= word
        bits |= 1 << ((mixed * ENDPOINT_MULTIPLIER & MASK64) >> 54)
    return bits.to_bytes(ADDRESS_BLOOM_BITS // 8, "little")


def _pack_endpoint_table(found: Endpoints, sizes: Sizes, table_bytes: int, slot_bytes: int, home: Home) -> bytes:
    if len(found) > sizes.max_endpoints:
        raise EngineError(
            f"the configuration needs {len(found)} endpoints (a port of a service, a port of a dnat backend, a VIP, a "
            f"server id), max_endpoints is {sizes.max_endpoints}; raise max_endpoints of the balancer"
        )
    slots = min(max(16, 1 << (4 * max(len(found), 1) - 1).bit_length()), sizes.endpoint_slots)
    while slots <= sizes.endpoint_slots:
        table = _place(found, slots, table_bytes, slot_bytes, home)
        if table is not None:
            return bytes(table)
        slots *= 2
    raise EngineError(
        f"{len(found)} endpoints cluster too much for max_endpoints {sizes.max_endpoints}; double max_endpoints"
    )


def _place(found: Endpoints, slots: int, table_bytes: int, slot_bytes: int, home: Home) -> bytearray | None:
    """Linear probing; None if some key would lie farther from its home than the program looks."""
    table = bytearray(table_bytes)
    shift = 64 - (slots.bit_length() - 1)
    service_ports, backend_ports = _port_bits(found, ENDPOINT_SERVICE), _port_bits(found, ENDPOINT_BACKEND)
    ENDPOINT_TABLE_HEADER.pack_into(table, 0, shift, 0, service_ports, backend_ports, 0, _bloom_bits(found))
    taken = bytearray(slots + ENDPOINT_PROBES)
    header = ENDPOINT_TABLE_HEADER.size
    for key, number in found.items():
        place = home(key, shift)
        slot = taken.find(0, place, place + ENDPOINT_PROBES)
        if slot < 0:
            return None
        taken[slot] = 1
        offset = header + slot * slot_bytes
        entry = key + number.to_bytes(4, "little")
        table[offset : offset + len(entry)] = entry
    return table


def unpack_endpoint_table(table: bytes) -> Endpoints:
    """The endpoints in struct endpoint_table."""
    return _unpack_endpoints(table, ENDPOINT.size, 8)


def unpack_endpoint6_table(table: bytes) -> Endpoints:
    """The endpoints in struct endpoint6_table."""
    return _unpack_endpoints(table, ENDPOINT6.size, 20)


def _unpack_endpoints(table: bytes, slot_bytes: int, key_bytes: int) -> Endpoints:
    found: Endpoints = {}
    for offset in range(ENDPOINT_TABLE_HEADER.size, len(table), slot_bytes):
        # The last byte of a key is its kind, which is 0 in an empty slot only.
        if table[offset + key_bytes - 1]:
            key = table[offset : offset + key_bytes]
            found[key] = int.from_bytes(table[offset + key_bytes : offset + key_bytes + 4], "little")
    return found


def service_flags(service: Service) -> int:
    """enum service_flags, the length of server ids, and the prefix length of the client's affinity."""
    flags = SERVICE_FLOW_TABLE if service.flow_table else 0
    if service.forwarding == "full_nat":
        flags |= SERVICE_SESSIONS
    if service.forwarding in ("dsr", "redirect"):
        flags |= SERVICE_KEEPS_TTL
    if service.source_ranges:
        flags |= SERVICE_SOURCE_RANGES
    flags |= service.server_id_length << QUIC_ID_LENGTH_SHIFT
    return flags | service.affinity_prefix << AFFINITY_PREFIX_SHIFT


def _place_in_order(backend: Backend) -> tuple[int, bytes, int]:
    """IPv4 before IPv6, then by address and port; interfaces by name."""
    if backend.address is None:
        return 0, backend.target.encode(), 0
    address = Address(backend.address)
    return address.family, address.packed, backend.port or 0


def _maglev_name(service: Service, backend: Backend) -> str:
    """What a backend's preferences come from; in a group without the port, so that its services agree on the slots."""
    if service.affinity_group:
        return backend.target
    return f"{backend.target}:{backend.port or service.port}"


def slot_ids(service: Service, active: list[Backend], ids: list[int], fill: lookup.Fill) -> array[int]:
    """The ids of backends, slot by slot; the order in which an inventory lists them makes no difference."""
    if service.scheduler == "maglev":
        names = [_maglev_name(service, backend) for backend in active]
        return fill(lookup.members(names, [backend.share for backend in active], ids, service.table_size))
    in_order = sorted(zip(active, ids), key=lambda entry: _place_in_order(entry[0]))
    weights = [backend.share for backend, _number in in_order]
    cycle = lookup.round_robin(weights) if service.scheduler == "round_robin" else lookup.hashed(weights)
    return array("I", (in_order[turn][1] for turn in cycle))


def pack_ring(
    service: Service,
    backends: Iterable[Backend],
    backend_ids: dict[BackendKey, int],
    out: Container[BackendKey] = (),
    fill: lookup.Fill = lookup.fill,
) -> bytes | None:
    """struct lookup_table with its slots, or None for a service without a backend that takes packets.

    One that keeps connections has a table for as long as it has backends, drained ones included. `fill` fills a Maglev
    table.
    """
    backends = list(backends)
    active = ring_members(backends, out)
    if not active and not (backends and service.keeps_connections):
        return None
    ids = [backend_ids[backend.key] for backend in active]
    slots = slot_ids(service, active, ids, fill) if active else array("I")
    header = LOOKUP_TABLE.pack(
        SCHEDULERS[service.scheduler], len(slots), service_flags(service), ticks(service.idle_timeout)
    )
    return (header + slots.tobytes()).ljust(table_bytes(table_room(service.table_size)), b"\0")
