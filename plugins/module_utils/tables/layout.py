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

LAYOUT_VERSION = 4
ENDPOINT_PROBES = 16
ENDPOINT_MULTIPLIER = 0x9E3779B97F4A7C15
MASK64 = 0xFFFFFFFFFFFFFFFF
SERVER_KEY_MULTIPLIER = 0xFF51AFD7ED558CCD
CLIENT_NEXT_HOPS = 32768
FRAGMENT_BUCKETS = 512
FLOW_BUDGETS = 64
MAX_POOLS = 64
MAX_REASONS = 64
MAX_LINKS = 256
MAX_INTERFACES = 16
MAX_VIRTUAL_MACS = 16
FLOWS_PER_BUCKET = 8
TICK_SHIFT, TICKS_AT_BOOT = 30, 4096  # clock.h
TICK = (1 << TICK_SHIFT) / 1e9  # seconds

# enum endpoint_kind
ENDPOINT_SERVICE = 1
ENDPOINT_BACKEND = 2
ENDPOINT_VIP = 3
ENDPOINT_SOURCE = 4
ENDPOINT_QUIC_SERVER = 5
ENDPOINT_KIND_BYTE = 7  # of the key

ICMP = 1
IPIP, IPV6_IN_IP = 4, 41
# enum service_flags
SERVICE_FLOW_TABLE = 1
SERVICE_SESSIONS = 2
SERVICE_KEEPS_TTL = 4
SERVICE_SOURCE_RANGES = 8
QUIC_ID_LENGTH_SHIFT = 4  # of the flags
AFFINITY_PREFIX_SHIFT = 8

# Offsets and padding as the C compiler lays them out; tests/unit/test_layout.py compares them.
ENDPOINT = struct.Struct("<4s2sBBII")  # address, port, protocol, kind, id, unused
ENDPOINT6 = struct.Struct("<16s2sBBI")  # address, port, protocol, kind, id
ADDRESS_BLOOM_BITS = 1024
# shift, unused, service_ports, backend_ports, unused, address_bloom
ENDPOINT_TABLE_HEADER = struct.Struct(f"<IIQQQ{ADDRESS_BLOOM_BITS // 8}s")
LOOKUP_TABLE = struct.Struct("<IIII")  # scheduler, length, flags, idle_timeout
# seed, until, length, affinity_prefix; as long as a line of ids
PREVIOUS_HEADER = struct.Struct("<QIII44x")
IDS_PER_LINE = 16
# Slots for which the maps of lookup tables have room, in the order in which the program looks at them.
TABLE_ROOMS = (65537, 16381, 4093, 1021, 131071)
BACKEND_FIELDS = (
    "address vip port vip_port forwarding family has_mac mac ip_delta l4_delta reply_ip_delta reply_l4_delta "
    "source_port service service_counters backend_counters interface source source_mask header_sum first_session "
    "source_ports pool identity"
).split()
BACKEND = struct.Struct("<16s16s2s2sBBBx6s2s2s2s2sHIIII16s4sIIIII")
BACKEND_FORWARDING_BYTE = 36
COUNTERS = struct.Struct("<QQQQQ")  # packets, bytes, reply_packets, reply_bytes, new_flows
FLOW_BUCKET = struct.Struct("<8Q")
SESSION = struct.Struct("<16s2s2sIIIIBB2s2sHIII8x")
SESSION_WORD_SEEN, SESSION_WORD_TIMEOUT = 7, 8  # of its 32-bit words
POOL = struct.Struct("<IHH")  # first_session, first_port, ports
BUDGET = struct.Struct(f"<II3I{FLOW_BUDGETS}I")  # tick, errors, searches by cause, flows by service
LATENCY_FIRST, LATENCY_BUCKETS = 5, 14
LATENCY_BOUNDS = tuple(1 << LATENCY_FIRST + place for place in range(LATENCY_BUCKETS - 1))  # ns, of all but the last
LATENCY = struct.Struct(f"<Q{LATENCY_BUCKETS}Q")  # nanoseconds, packets
NEXT_HOP = struct.Struct("<IIHBx6s6s")  # generation, interface, mtu, on_link, destination, source
BACKEND_COUNTERS = struct.Struct(f"<QQQQQ{NEXT_HOP.size}x")  # COUNTERS, what the program remembers
CLIENT_NEXT_HOP = struct.Struct(f"<16s{NEXT_HOP.size}s")
MAC = struct.Struct("<2x6s")
INTERFACE = struct.Struct(f"<II{MAC.size}sI4x")  # index, mtu, address, master
# layout_version, next_hop_generation, seed, interfaces, virtual_macs
CONTROL = struct.Struct(f"<IIQ{MAX_INTERFACES * INTERFACE.size}s{MAX_VIRTUAL_MACS * MAC.size}s")
SOURCE_RANGE = struct.Struct("<II16s")  # length, service, address
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

# enum reason, in its order: (label, verdict). New ones come last, as reasons.h says.
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
    ("malformed", "drop"),
    ("extension_headers", "drop"),
    ("vip_unserved", "drop"),
    ("too_big", "pass"),
    ("other_mac", "pass"),
    ("handover", "forward"),
    ("source_not_allowed", "drop"),
    ("quic_unknown_id", "forward"),
    ("reply_unverified", "pass"),
    ("reply_unverified", "drop"),
)


def power_of_two(least: int) -> int:
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
        return power_of_two(4 * self.max_endpoints)

    @property
    def endpoint_table_bytes(self) -> int:
        return ENDPOINT_TABLE_HEADER.size + (self.endpoint_slots + ENDPOINT_PROBES) * ENDPOINT.size

    @property
    def endpoint6_table_bytes(self) -> int:
        return ENDPOINT_TABLE_HEADER.size + (self.endpoint_slots + ENDPOINT_PROBES) * ENDPOINT6.size

    @property
    def flow_buckets(self) -> int:
        """A power of two of which half is used, so that few flows meet in a full bucket."""
        return max(2, power_of_two(2 * self.max_flows) // FLOWS_PER_BUCKET)

    @property
    def filter_lines(self) -> int:
        """Room for every prefix, the markers of a search for it, and its verdict."""
        return 16 + 16 * power_of_two(self.max_filters)


def table_room(slots: int) -> int:
    """The least of TABLE_ROOMS in which a table of so many slots fits."""
    return min(room for room in TABLE_ROOMS if room >= slots)


def table_bytes(room: int) -> int:
    """struct lookup_table with its slots."""
    return LOOKUP_TABLE.size + 4 * room


def index(number: int) -> bytes:
    """The key of an array's element."""
    return INDEX.pack(number)


def ticks_now() -> int:
    """The data plane's time, as clock_ticks() in clock.h has it."""
    return (time.monotonic_ns() >> TICK_SHIFT) + TICKS_AT_BOOT


def ticks(seconds: float) -> int:
    """At least so long in the data plane's time."""
    return int(-(-seconds // TICK))
