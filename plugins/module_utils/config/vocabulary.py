# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of the inventory, with the numbers that files/bpf/layout.h has for them."""

from __future__ import annotations

# IP protocol numbers.
PROTOCOLS = {"tcp": 6, "udp": 17}
# enum scheduler, enum forwarding
SCHEDULERS = {"maglev": 1, "round_robin": 2, "hash": 3}
FORWARDINGS = {"dnat": 1, "dsr": 2, "full_nat": 3, "ipip": 4, "redirect": 5, "gue": 6}
# That of a backend which is the balancer itself, whatever its service has.
LOCAL_FORWARDING = 7
# Those that put an IP header in front of packets.
TUNNELS = ("ipip", "gue")
# UDP port of GUE (IANA).
DEFAULT_TUNNEL_PORT = 6080
# Slots of a Maglev table: a prime, as Maglev asks (Eisenbud et al., NSDI 2016, section 3.4), between these.
MIN_TABLE_SIZE, MAX_TABLE_SIZE = 251, 131071
DEFAULT_TABLE_SIZE = 65537
# Of all services of a balancer together.
MAX_SOURCE_RANGES = 65536
# enum filter_action; the classes of protocols in the order of enum filter_class
FILTER_ACTIONS = {"drop": 1, "pass": 2, "limit": 3}
FILTER_CLASSES = ("tcp", "udp", "icmp", "other")
# What the program can be compiled without.
FEATURES = (
    "dnat",
    "full_nat",
    "dsr",
    "ipip",
    "redirect",
    "ipv6",
    "round_robin",
    "flow_table",
    "any_port",
    "filters",
    "multi_buffer",
    "latency",
    "table_size",
    "unserved_pass",
    "affinity",
    "gue",
    "handover",
    "local",
    "source_ranges",
    "next_program",
    "quic",
    "reply_interface",
    "reply_unchecked",
)
# What chooses the backend instead of the whole flow.
AFFINITIES = ("none", "client", "quic")
# Of connection ids of QUIC: bytes of a server id, which the data plane loads as one word; config ids, of which 7 says
# that there is no server id.
MAX_SERVER_ID_LENGTH = 8
MAX_QUIC_CONFIG_ID = 6
# Actions for packets to a VIP or a source address of full_nat that match no service.
UNSERVED = ("drop", "pass")
# What a reply of a backend is held to: interface and Ethernet address, the interface alone, or nothing.
REPLY_CHECKS = ("strict", "interface", "off")
