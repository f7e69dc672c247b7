# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in the maps: the Python side of files/bpf/layout.h, maps.h and reasons.h.

Struct formats start with "<" because the data plane only compiles for little-endian machines; fields that
are in network byte order are bytes here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import bpf

LAYOUT_VERSION = 1
RING_SIZE = 65537
ENDPOINT_PROBES = 16
ENDPOINT_MULTIPLIER = 0x9E3779B97F4A7C15
CLIENT_NEXT_HOPS = 16384

# enum endpoint_kind
ENDPOINT_SERVICE = 1
ENDPOINT_BACKEND = 2
ENDPOINT_VIP = 3
ENDPOINT_KIND_BYTE = 7  # of the key

PROTOCOLS = {"tcp": 6, "udp": 17}
ICMP = 1
# enum scheduler, enum forwarding
SCHEDULERS = {"maglev": 1, "round_robin": 2}
FORWARDINGS = {"dnat": 1, "dsr": 2}

# Offsets and padding as the C compiler lays them out; tests/unit/test_layout.py compares them.
ENDPOINT = struct.Struct("<4s2sBBII")  # address, port, protocol, kind, id, unused
ENDPOINT_TABLE_HEADER = struct.Struct("<II")  # shift, unused
RING_HEADER = struct.Struct("<II")  # scheduler, length
RING = struct.Struct(f"<II{RING_SIZE}II")
# address, port, forwarding, has_mac, mac, vip_port, vip, ip_delta, l4_delta, reply_ip_delta, reply_l4_delta,
# service_counters, backend_counters, unused
BACKEND = struct.Struct("<4s2sBB6s2s4s2s2s2s2sIII")
COUNTERS = struct.Struct("<QQQQ")  # packets, bytes, reply_packets, reply_bytes
NEXT_HOP = struct.Struct("<4sII6s6s")  # address, generation, interface, destination, source
CONTROL = struct.Struct("<II")  # layout_version, next_hop_generation
INDEX = struct.Struct("<I")
REASON = struct.Struct("<Q")

# enum reason, in its order: (label, verdict)
REASONS = (
    ("not_ipv4", "pass"),
    ("not_ours", "pass"),
    ("malformed", "pass"),
    ("fragment", "pass"),
    ("ip_options", "pass"),
    ("ttl_expired", "pass"),
    ("local_reply", "pass"),
    ("no_neighbour", "pass"),
    ("no_backend", "drop"),
    ("no_route", "drop"),
    ("no_neighbour", "drop"),
    ("echo", "tx"),
)


@dataclass(frozen=True)
class Sizes:
    """How much the maps hold. Ids of backends start at 1, so there is one slot less than max_backends."""

    max_services: int = 1024
    max_backends: int = 16384
    max_endpoints: int = 32768

    @property
    def endpoint_slots(self) -> int:
        """Slots of the endpoint table: a power of two of which at most a quarter is used."""
        return 1 << (4 * self.max_endpoints - 1).bit_length()

    @property
    def endpoint_table_bytes(self) -> int:
        return ENDPOINT_TABLE_HEADER.size + (self.endpoint_slots + ENDPOINT_PROBES) * ENDPOINT.size


@dataclass(frozen=True)
class MapSpec:
    """One pinned map. For an array of maps, value_size is that of the single element of each inner array."""

    name: str
    type: int
    value_size: int
    max_entries: int
    per_cpu: bool = False

    @property
    def holds_maps(self) -> bool:
        return self.type == bpf.MAP_TYPE_ARRAY_OF_MAPS


def map_specs(sizes: Sizes) -> tuple[MapSpec, ...]:
    """The maps in the order of their numbers in maps.h."""

    def per_cpu(name: str, value_size: int, max_entries: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_PERCPU_ARRAY, value_size, max_entries, per_cpu=True)

    return (
        MapSpec("control", bpf.MAP_TYPE_ARRAY, CONTROL.size, 1),
        MapSpec("endpoints", bpf.MAP_TYPE_ARRAY_OF_MAPS, sizes.endpoint_table_bytes, 1),
        MapSpec("rings", bpf.MAP_TYPE_ARRAY_OF_MAPS, RING.size, sizes.max_services),
        MapSpec("backends", bpf.MAP_TYPE_ARRAY, BACKEND.size, sizes.max_backends),
        per_cpu("service_counters", COUNTERS.size, sizes.max_services),
        per_cpu("backend_counters", COUNTERS.size, sizes.max_backends),
        per_cpu("reasons", REASON.size, len(REASONS)),
        per_cpu("round_robin", INDEX.size, sizes.max_services),
        per_cpu("backend_next_hops", NEXT_HOP.size, sizes.max_backends),
        per_cpu("client_next_hops", NEXT_HOP.size, CLIENT_NEXT_HOPS),
    )


def index(number: int) -> bytes:
    """The key of an array's element."""
    return INDEX.pack(number)
