# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of the maps' values, made from a configuration. Pure functions."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from .errors import EngineError
from .layout import (
    BACKEND,
    ENDPOINT,
    ENDPOINT_BACKEND,
    ENDPOINT_MULTIPLIER,
    ENDPOINT_PROBES,
    ENDPOINT_SERVICE,
    ENDPOINT_TABLE_HEADER,
    ENDPOINT_VIP,
    FORWARDINGS,
    ICMP,
    PROTOCOLS,
    RING_HEADER,
    RING_SIZE,
    SCHEDULERS,
    Sizes,
)
from .model import Backend, BackendKey, Config, Service, backend_ports
from .ring import maglev, round_robin

# Key of an endpoint, the first 8 bytes of its slot, to its id.
Endpoints = dict[bytes, int]


def pack_port(port: int | None) -> bytes:
    """Network byte order; 0 stands for none."""
    return (port or 0).to_bytes(2, "big")


def _fold(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum_delta(before: bytes, after: bytes, *, ttl_step: bool = False) -> bytes:
    """What replacing `before` by `after` adds to the complement of a checksum: ~m + m' (RFC 1624, equation 3).

    Both have the same even length. `ttl_step` includes a TTL lowered by 1, the high byte of its word.
    Two bytes in network order.
    """
    total = 0
    for position in range(0, len(before), 2):
        total += ~int.from_bytes(before[position : position + 2], "big") & 0xFFFF
        total += int.from_bytes(after[position : position + 2], "big")
    if ttl_step:
        total += ~0x0100 & 0xFFFF
    return _fold(total).to_bytes(2, "big")


def pack_backend(service: Service, backend: Backend, service_counters: int, backend_counters: int) -> bytes:
    """struct backend."""
    vip = socket.inet_aton(service.address)
    address = socket.inet_aton(backend.address)
    mac = bytes.fromhex(backend.mac.replace(":", "")) if backend.mac else bytes(6)
    port = vip_port = bytes(2)
    deltas = [bytes(2)] * 4
    if service.forwarding == "dnat":
        if backend.port is not None:
            port, vip_port = pack_port(backend.port), pack_port(service.first_port)
        deltas = [
            checksum_delta(vip, address, ttl_step=True),
            checksum_delta(vip + vip_port, address + port),
            checksum_delta(address, vip, ttl_step=True),
            checksum_delta(address + port, vip + vip_port),
        ]
    return BACKEND.pack(
        address,
        port,
        FORWARDINGS[service.forwarding],
        1 if backend.mac else 0,
        mac,
        vip_port,
        vip,
        *deltas,
        service_counters,
        backend_counters,
        0,
    )


def endpoint_key(kind: int, address: str, protocol: int, port: int) -> bytes:
    """The first 8 bytes of a slot."""
    return ENDPOINT.pack(socket.inet_aton(address), pack_port(port), protocol, kind, 0, 0)[:8]


def endpoints(config: Config, rings: dict[str, int], backend_ids: dict[BackendKey, int]) -> Endpoints:
    """All endpoints of a configuration, with the ids of rings by service and of backends by key."""
    found: Endpoints = {}
    for service in config.services.values():
        found[endpoint_key(ENDPOINT_VIP, service.address, ICMP, 0)] = 0
        for port in service.ports:
            found[endpoint_key(ENDPOINT_SERVICE, service.address, PROTOCOLS[service.protocol], port)] = rings[
                service.name
            ]
    for key, backend in config.backends.items():
        service = config.services[backend.service]
        if service.forwarding == "dnat":
            protocol = PROTOCOLS[service.protocol]
            for port in backend_ports(service, backend.port):
                found[endpoint_key(ENDPOINT_BACKEND, backend.address, protocol, port)] = backend_ids[key]
    return found


def pack_endpoint_table(found: Endpoints, sizes: Sizes) -> bytes:
    """struct endpoint_table, as small as keeps every key within ENDPOINT_PROBES slots of its home.

    Raises EngineError if there are more endpoints than the table may hold.
    """
    if len(found) > sizes.max_endpoints:
        raise EngineError(
            f"the configuration needs {len(found)} endpoints (a port of a service, a port of a dnat backend, a VIP), "
            f"max_endpoints is {sizes.max_endpoints}; raise max_endpoints of xdp_program"
        )
    slots = min(max(16, 1 << (4 * max(len(found), 1) - 1).bit_length()), sizes.endpoint_slots)
    while slots <= sizes.endpoint_slots:
        table = _place(found, slots, sizes)
        if table is not None:
            return bytes(table)
        slots *= 2
    raise EngineError(
        f"{len(found)} endpoints cluster too much for max_endpoints {sizes.max_endpoints}; double max_endpoints"
    )


def _place(found: Endpoints, slots: int, sizes: Sizes) -> bytearray | None:
    """Linear probing; None if some key would lie farther from its home than the program looks."""
    table = bytearray(sizes.endpoint_table_bytes)
    shift = 64 - (slots.bit_length() - 1)
    ENDPOINT_TABLE_HEADER.pack_into(table, 0, shift, 0)
    taken = bytearray(slots + ENDPOINT_PROBES)
    size, header = ENDPOINT.size, ENDPOINT_TABLE_HEADER.size
    for key, number in found.items():
        home = (int.from_bytes(key, "little") * ENDPOINT_MULTIPLIER & 0xFFFFFFFFFFFFFFFF) >> shift
        slot = taken.find(0, home, home + ENDPOINT_PROBES)
        if slot < 0:
            return None
        taken[slot] = 1
        offset = header + slot * size
        table[offset : offset + 8] = key
        table[offset + 8 : offset + 12] = number.to_bytes(4, "little")
    return table


def pack_ring(service: Service, backends: Iterable[Backend], backend_ids: dict[BackendKey, int]) -> bytes | None:
    """struct ring, or None for a service without a backend that takes new packets."""
    active = [backend for backend in backends if backend.share]
    if not active:
        return None
    ids = [backend_ids[backend.key] for backend in active]
    weights = [backend.share for backend in active]
    if service.scheduler == "round_robin":
        positions: Iterable[int] = round_robin(weights)
    else:
        positions = maglev([f"{backend.address}:{backend.port or service.port}" for backend in active], weights)
    slots = b"".join(map([number.to_bytes(4, "little") for number in ids].__getitem__, positions))
    header = RING_HEADER.pack(SCHEDULERS[service.scheduler], len(slots) // 4)
    return header + slots.ljust(RING_SIZE * 4 + 4, b"\0")
