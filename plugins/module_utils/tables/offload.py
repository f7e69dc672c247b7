# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of an offloaded program's maps: the Python side of files/bpf/offload_layout.h. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass

from ..config.model import BackendKey, Config
from ..errors import EngineError
from .layout import BACKEND, BACKEND_FIELDS, ENDPOINT, LOOKUP_TABLE, MAX_REASONS, power_of_two
from .lookup import HASH_SLOTS
from .tables import BackendPacker, BackendPlace, endpoints, pack_ring

PROBES = 8
MULTIPLIER = 0x9E3779B1
MASK32 = 0xFFFFFFFF
# A value that holds a whole half takes up to 2 MiB; KMALLOC_MAX_SIZE, which limits values, is 4 MiB on x86.
MAX_SERVICES = 1024
MAX_PORTS = 16384
MAX_BACKENDS = 32767
# The smallest maps have room for this many, so that few changes need larger maps.
LEAST_SERVICES, LEAST_BACKENDS, LEAST_ENDPOINTS = 16, 128, 64

CONTROL = struct.Struct("<II8s")  # half, mtu, address as interfaces.pack_mac() has it
OFFLOAD_BACKEND = struct.Struct("<4s4s4sI6sBxII")
OFFLOAD_BACKEND_FIELDS = (
    "address source source_mask header_sum mac forwarding service_counters backend_counters"
).split()
OFFLOAD_COUNTERS = struct.Struct("<QQ")  # packets, bytes
SLOT = struct.Struct("<I")  # a backend's record, 0: none
# The maps that have two halves, with the bytes of a record.
HALVES = {"endpoints": ENDPOINT.size, "slots": SLOT.size, "backends": OFFLOAD_BACKEND.size}


@dataclass(frozen=True)
class Shape:
    """Records of each map, powers of two; endpoints, slots and backends of one half."""

    endpoints: int
    services: int
    backends: int
    counters: int
    # A value of a map is a whole half, or all counters, instead of one record.
    whole: bool

    @classmethod
    def of(cls, config: Config, whole: bool) -> Shape:
        """The smallest maps that the configuration fits into. Raises EngineError."""
        found = len(endpoints(config, dict.fromkeys(config.services, 0), {}, {}))
        services = power_of_two(max(len(config.services), LEAST_SERVICES))
        # There is no backend 0.
        backends = power_of_two(max(len(config.backends) + 1, LEAST_BACKENDS))
        return cls(
            power_of_two(4 * max(found, LEAST_ENDPOINTS)),
            services,
            backends,
            power_of_two(MAX_REASONS + services + backends),
            whole,
        )

    @property
    def slots(self) -> int:
        return self.services * HASH_SLOTS

    @property
    def definitions(self) -> dict[str, int]:
        """What the compiler is to know."""
        return {
            "OFFLOAD_ENDPOINTS": self.endpoints,
            "OFFLOAD_SLOTS": self.slots,
            "OFFLOAD_BACKENDS": self.backends,
            "OFFLOAD_COUNTERS": self.counters,
            **({"OFFLOAD_WHOLE": 1} if self.whole else {}),
        }


@dataclass(frozen=True)
class Places:
    """The records of MAP_COUNTERS."""

    services: dict[str, int]
    backends: dict[BackendKey, int]


def pack_half(config: Config, places: Places, shape: Shape, out: Container[BackendKey] = ()) -> dict[str, bytes]:
    """The records of each map of HALVES, one after the other. `out`: backends that get nothing.

    The order of the inventory makes no difference to the backend of a flow. Raises EngineError for what does not fit.
    """
    numbers = {name: number for number, name in enumerate(config.services)}
    ids = {key: number for number, key in enumerate(config.backends, 1)}
    backends, slots = bytearray(shape.backends * OFFLOAD_BACKEND.size), bytearray(shape.slots * SLOT.size)
    for name, members in config.backends_of().items():
        service = config.services[name]
        packer = BackendPacker(service)
        for backend in members:
            place = BackendPlace(0, places.services[name], places.backends[backend.key])
            entry = dict(zip(BACKEND_FIELDS, BACKEND.unpack(packer.pack(backend, place))))
            entry |= {"address": entry["address"][:4], "source": entry["source"][:4]}
            fields = [entry[field] for field in OFFLOAD_BACKEND_FIELDS]
            OFFLOAD_BACKEND.pack_into(backends, ids[backend.key] * OFFLOAD_BACKEND.size, *fields)
        ring = pack_ring(service, members, ids, out)
        if ring is not None:
            begin, size = numbers[name] * HASH_SLOTS * SLOT.size, HASH_SLOTS * SLOT.size
            slots[begin : begin + size] = ring[LOOKUP_TABLE.size : LOOKUP_TABLE.size + size]
    found = endpoints(config, numbers, {}, {})
    return {"endpoints": _pack_endpoints(found, shape), "slots": bytes(slots), "backends": bytes(backends)}


def _home(key: bytes, records: int) -> int:
    lower, upper = struct.unpack("<II", key)
    home: int = ((upper * MULTIPLIER ^ lower) * MULTIPLIER & MASK32) // ((1 << 32) // records)
    return home


def _pack_endpoints(found: dict[bytes, int], shape: Shape) -> bytes:
    """Linear probing, which goes on at the first record behind the last."""
    taken: dict[int, bytes] = {}
    for key, number in found.items():
        home = _home(key, shape.endpoints)
        tries = ((home + probe) % shape.endpoints for probe in range(PROBES))
        place = next((place for place in tries if place not in taken), None)
        if place is None:
            raise EngineError(
                f"{len(found)} endpoints (a port of a service, a VIP) cluster too much for mode: offload; use fewer "
                "ports, or mode: native"
            )
        taken[place] = key + number.to_bytes(4, "little")
    table = bytearray(shape.endpoints * ENDPOINT.size)
    for place, entry in taken.items():
        table[place * ENDPOINT.size : place * ENDPOINT.size + len(entry)] = entry
    return bytes(table)
