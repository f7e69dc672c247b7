# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in the maps: the Python side of files/bpf/layout.h, maps.h and reasons.h.

Struct formats start with "<" because the data plane only compiles for little-endian machines; fields that
are in network byte order are bytes here. An address has 16 bytes, IPv4 in the first four.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from . import bpf

LAYOUT_VERSION = 2
RING_SIZE = 65537
ENDPOINT_PROBES = 16
ENDPOINT_MULTIPLIER = 0x9E3779B97F4A7C15
CLIENT_NEXT_HOPS = 32768
FRAGMENT_BUCKETS = 512
MAX_POOLS = 64
MAX_LINKS = 256
FLOWS_PER_BUCKET = 8
TICK_SHIFT, TICKS_AT_BOOT = 30, 4096  # clock.h
TICK = (1 << TICK_SHIFT) / 1e9  # seconds

# enum endpoint_kind
ENDPOINT_SERVICE = 1
ENDPOINT_BACKEND = 2
ENDPOINT_VIP = 3
ENDPOINT_SOURCE = 4
ENDPOINT_KIND_BYTE = 7  # of the key

PROTOCOLS = {"tcp": 6, "udp": 17}
ICMP = 1
IPIP, IPV6_IN_IP = 4, 41
# enum scheduler, enum forwarding, enum service_flags
SCHEDULERS = {"maglev": 1, "round_robin": 2, "hash": 3}
FORWARDINGS = {"dnat": 1, "dsr": 2, "full_nat": 3, "ipip": 4, "redirect": 5}
SERVICE_FLOW_TABLE = 1
SERVICE_SESSIONS = 2
SERVICE_KEEPS_TTL = 4
# enum filter_action; the classes of protocols in the order of enum filter_class
FILTER_ACTIONS = {"drop": 1, "pass": 2, "limit": 3}
FILTER_CLASSES = ("tcp", "udp", "icmp", "other")

# Offsets and padding as the C compiler lays them out; tests/unit/test_layout.py compares them.
ENDPOINT = struct.Struct("<4s2sBBII")  # address, port, protocol, kind, id, unused
ENDPOINT6 = struct.Struct("<16s2sBBI")  # address, port, protocol, kind, id
ENDPOINT_TABLE_HEADER = struct.Struct("<IIQQ")  # shift, unused, service_ports, backend_ports
RING_HEADER = struct.Struct("<IIII")  # scheduler, length, flags, idle_timeout
RING = struct.Struct(f"<IIII{RING_SIZE}II")
BACKEND_FIELDS = (
    "address vip port vip_port forwarding family has_mac mac ip_delta l4_delta reply_ip_delta reply_l4_delta "
    "source_port service service_counters backend_counters interface source source_mask header_sum first_session "
    "source_ports pool identity"
).split()
BACKEND = struct.Struct("<16s16s2s2sBBBx6s2s2s2s2sHIIII16s4sIIIII")
BACKEND_FORWARDING_BYTE = 36
COUNTERS = struct.Struct("<QQQQQ")  # packets, bytes, reply_packets, reply_bytes, new_flows
FLOW_BUCKET = struct.Struct("<8Q")
SESSION = struct.Struct("<16s2s2sIIIIBB2s2sHI16x")
SESSION_WORD_SEEN, SESSION_WORD_TIMEOUT = 7, 8  # of its 32-bit words
POOL = struct.Struct("<IHH")  # first_session, first_port, ports
BUDGET = struct.Struct("<IIII")
LATENCY_FIRST, LATENCY_BUCKETS = 5, 14
LATENCY_BOUNDS = tuple(1 << LATENCY_FIRST + place for place in range(LATENCY_BUCKETS - 1))  # ns, of all but the last
LATENCY = struct.Struct(f"<Q{LATENCY_BUCKETS}Q")  # nanoseconds, packets
NEXT_HOP = struct.Struct("<III6s6s")  # generation, interface, mtu, destination, source
BACKEND_COUNTERS = struct.Struct(f"<QQQQQ{NEXT_HOP.size}x")  # COUNTERS, what the program remembers
CLIENT_NEXT_HOP = struct.Struct(f"<16s{NEXT_HOP.size}s")
CONTROL = struct.Struct("<IIIIQ")  # layout_version, next_hop_generation, mtu, unused, seed
FILTER_RULE = struct.Struct("<IIII")  # id, action, interval, burst
FILTER_HEADER = struct.Struct("<IIIIIIIBB32sH128s")
FILTER_SLOT4 = struct.Struct("<QII")  # key, verdict, unused
FILTER_SLOT6 = struct.Struct("<QQIIQ")  # address, address, length, verdict, unused
FILTER_LINE = 64  # bytes
FILTER_COUNTERS = struct.Struct("<QQ")  # packets, dropped
LIMIT = struct.Struct("<Q")
LINK = struct.Struct("<I")  # the interface's index, as a device map takes it
INDEX = struct.Struct("<I")
REASON = struct.Struct("<Q")

# enum reason, in its order: (label, verdict)
REASONS = (
    ("not_ip", "pass"),
    ("not_ours", "pass"),
    ("malformed", "pass"),
    ("extension_headers", "pass"),
    ("ttl_expired", "pass"),
    ("local_reply", "pass"),
    ("no_neighbour", "pass"),
    ("no_backend", "drop"),
    ("no_route", "drop"),
    ("no_neighbour", "drop"),
    ("martian", "drop"),
    ("fragment", "drop"),
    ("no_port", "drop"),
    ("link_down", "drop"),
    ("too_big", "drop"),
    ("filtered", "drop"),
    ("rate_limited", "drop"),
    ("echo", "tx"),
    ("too_big", "tx"),
    ("flow_limit", "forward"),
)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@dataclass(frozen=True)
class Sizes:
    """How much the maps hold. Ids of backends start at 1, so there is one slot less than max_backends."""

    max_services: int = 1024
    max_backends: int = 16384
    max_endpoints: int = 32768
    max_flows: int = 262144  # each CPU
    max_sessions: int = 65536
    max_filters: int = 1024
    max_new_flows: int = 100000  # each second and CPU

    @property
    def endpoint_slots(self) -> int:
        """Slots of the endpoint table: a power of two of which at most a quarter is used."""
        return _power_of_two(4 * self.max_endpoints)

    @property
    def endpoint_table_bytes(self) -> int:
        return ENDPOINT_TABLE_HEADER.size + (self.endpoint_slots + ENDPOINT_PROBES) * ENDPOINT.size

    @property
    def endpoint6_table_bytes(self) -> int:
        return ENDPOINT_TABLE_HEADER.size + (self.endpoint_slots + ENDPOINT_PROBES) * ENDPOINT6.size

    @property
    def flow_buckets(self) -> int:
        """A power of two of which half is used, so that few flows meet in a full bucket."""
        return max(2, _power_of_two(2 * self.max_flows) // FLOWS_PER_BUCKET)

    @property
    def filter_lines(self) -> int:
        """Room for every prefix, the markers of a search for it, and its verdict."""
        return 16 + 16 * _power_of_two(self.max_filters)


@dataclass(frozen=True)
class MapSpec:
    """One pinned map. For an array of maps, value_size and inner_entries are those of each inner array."""

    name: str
    type: int
    value_size: int
    max_entries: int
    per_cpu: bool = False
    inner_entries: int = 1
    inner_flags: int = 0

    @property
    def holds_maps(self) -> bool:
        return self.type == bpf.MAP_TYPE_ARRAY_OF_MAPS


def map_specs(sizes: Sizes) -> tuple[MapSpec, ...]:
    """The maps in the order of their numbers in maps.h."""

    def array(name: str, value_size: int, max_entries: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_ARRAY, value_size, max_entries)

    def per_cpu(name: str, value_size: int, max_entries: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_PERCPU_ARRAY, value_size, max_entries, per_cpu=True)

    def tables(name: str, value_size: int, max_entries: int = 1, **inner: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_ARRAY_OF_MAPS, value_size, max_entries, **inner)

    return (
        array("control", CONTROL.size, 1),
        tables("endpoints", sizes.endpoint_table_bytes),
        tables("rings", RING.size, sizes.max_services),
        array("backends", BACKEND.size, sizes.max_backends),
        per_cpu("service_counters", COUNTERS.size, sizes.max_services),
        per_cpu("backend_counters", BACKEND_COUNTERS.size, sizes.max_backends),
        per_cpu("reasons", REASON.size, len(REASONS)),
        per_cpu("round_robin", INDEX.size, sizes.max_services),
        per_cpu("client_next_hops", CLIENT_NEXT_HOP.size, CLIENT_NEXT_HOPS),
        tables("endpoints6", sizes.endpoint6_table_bytes),
        # Mapped memory begins at a page, so that a bucket or line is one cache line.
        tables(
            "flows",
            FLOW_BUCKET.size,
            bpf.possible_cpus(),
            inner_entries=sizes.flow_buckets,
            inner_flags=bpf.MAP_FLAG_MMAPABLE,
        ),
        per_cpu("fragments", FLOW_BUCKET.size, FRAGMENT_BUCKETS),
        per_cpu("budget", BUDGET.size, 1),
        array("sessions", SESSION.size, sizes.max_sessions),
        array("pools", POOL.size, MAX_POOLS),
        per_cpu("pool_cursors", INDEX.size, MAX_POOLS),
        MapSpec("links", bpf.MAP_TYPE_DEVMAP_HASH, LINK.size, MAX_LINKS),
        tables("filters", FILTER_LINE, inner_entries=sizes.filter_lines, inner_flags=bpf.MAP_FLAG_MMAPABLE),
        per_cpu("filter_counters", FILTER_COUNTERS.size, sizes.max_filters),
        array("filter_limits", LIMIT.size, sizes.max_filters),
        per_cpu("latency", LATENCY.size, 1),
    )


def index(number: int) -> bytes:
    """The key of an array's element."""
    return INDEX.pack(number)


def ticks_now() -> int:
    """The data plane's time, as clock_ticks() in clock.h has it."""
    return (time.monotonic_ns() >> TICK_SHIFT) + TICKS_AT_BOOT


def ticks(seconds: float) -> int:
    """At least so long in the data plane's time."""
    return int(-(-seconds // TICK))
