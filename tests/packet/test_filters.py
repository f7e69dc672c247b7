# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters: thousands of prefixes in one table, their counters, and limits over time."""

from __future__ import annotations

import ipaddress
import random
import time
from typing import Any

import pytest

from tests.packet import reference
from tests.packet.frames import icmp, padded, tcp, udp
from tests.packet.network import FRONT_MAC, ROUTER_MAC
from tests.support.program import Program

FILTERS = frozenset(("dnat", "filters", "ipv6"))
ELSEWHERE = "203.0.113.99"
CLASSES = ("tcp", "udp", "icmp")


def random_filters(family: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Nested ones above all: half of them lie in another one."""
    source = random.Random(seed)
    bits = 32 if family == 4 else 128
    found: dict[tuple[str, str], dict[str, Any]] = {}
    known = [(0, 0)]
    while len(found) < count:
        number, shortest = source.choice(known) if source.random() < 0.5 else (0, 0)
        # Shorter ones would leave nothing without a rule; one that holds everything comes beside, for one protocol.
        length = source.randrange(max(6, shortest), bits + 1)
        rest = source.getrandbits(bits) & ((1 << bits - shortest) - 1)
        number = (number | rest) >> bits - length << bits - length
        known.append((number, length))
        network = ipaddress.ip_network((number.to_bytes(bits // 8, "big"), length))
        protocol = source.choice(("any", *CLASSES))
        found[str(network), protocol] = {
            "prefix": str(network),
            "protocol": protocol,
            "action": source.choice(("drop", "pass")),
        }
    everything = {"prefix": "0.0.0.0/0" if family == 4 else "::/0", "protocol": "udp", "action": "drop"}
    return [everything, *found.values()]


class Rules:
    """The longest prefix by trying all lengths."""

    def __init__(self, filters: list[dict[str, Any]]) -> None:
        self.by_prefix = {(item["prefix"], item["protocol"]): item["action"] for item in filters}

    def action(self, address: str, kind: str) -> str | None:
        packed = ipaddress.ip_address(address)
        for length in range(packed.max_prefixlen, -1, -1):
            prefix = str(ipaddress.ip_network((packed, length), strict=False))
            for protocol in (kind, "any"):
                if (prefix, protocol) in self.by_prefix:
                    return self.by_prefix[prefix, protocol]
        return None


def frame(address: str, kind: str) -> bytes:
    if ":" not in address:
        build = {"tcp": tcp, "udp": udp}.get(kind)
        return build(address, 7, ELSEWHERE, 7) if build else icmp(address, ELSEWHERE)
    from scapy.layers.inet import TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.layers.l2 import Ether

    layer = {"tcp": TCP(), "udp": UDP(), "icmp": ICMPv6EchoRequest()}[kind]
    return padded(bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / IPv6(src=address, dst="2001:db8:ff::1") / layer))


@pytest.mark.parametrize("family", [4, 6])
def test_the_longest_prefix_with_a_rule_for_the_protocol_decides(family):
    filters = random_filters(family, 2000, family)
    rules = Rules(filters)
    program = Program([], [], FILTERS, declared_filters=filters)
    source = random.Random(1)
    bits = 32 if family == 4 else 128
    verdicts = set()
    try:
        for _frame in range(2500):
            # Near a prefix's ends, where it matters.
            network = ipaddress.ip_network(source.choice(filters)["prefix"])
            edges = (int(network.network_address), int(network.broadcast_address), source.getrandbits(bits))
            number = (source.choice(edges) + source.choice((-1, 0, 0, 1))) % (1 << bits)
            address = str(ipaddress.ip_address(number.to_bytes(bits // 8, "big")))
            kind = source.choice(CLASSES)
            action = rules.action(address, kind)
            verdict, _output, _duration = program.run(frame(address, kind))
            assert verdict == (reference.DROP if action == "drop" else reference.PASS), (address, kind)
            verdicts.add(action)
    finally:
        program.close()
    assert verdicts == {"drop", "pass", None}


def test_a_limit_lets_so_many_through_and_no_more():
    """A burst at once, then the rate; the kernel's coarse clock advances every few milliseconds."""
    limit = {"prefix": "198.51.100.0/24", "action": "limit", "rate": 1000, "burst": 50}
    program = Program([], [], FILTERS, declared_filters=[limit])
    try:
        packet = udp("198.51.100.7", 7, ELSEWHERE, 7)
        started = time.monotonic()
        passed = sent = 0
        while time.monotonic() < started + 1:
            for _packet in range(20):
                passed += program.run(packet)[0] == reference.PASS
            sent += 20
        elapsed = time.monotonic() - started
        assert sent > 4000, "too few packets to be limited"
        assert 0.9 * 1000 * elapsed < passed < 50 + 1.1 * 1000 * elapsed
        assert program.maps.read_counters("filter_counters")[0] == (sent, sent - passed)
        # Others are not in that bucket.
        assert program.run(udp("198.51.101.7", 7, ELSEWHERE, 7))[0] == reference.PASS
    finally:
        program.close()


def test_without_a_table_everything_passes():
    program = Program([], [], FILTERS)
    try:
        assert program.run(udp("198.51.100.7", 7, ELSEWHERE, 7))[0] == reference.PASS
    finally:
        program.close()
