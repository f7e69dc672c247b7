# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that take packets from some clients only."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import source_ranges
from scapy.layers.inet import TCP

from tests.packet import test_engine as engine
from tests.packet.frames import CLIENT_PORT, dropped, icmp, icmp_error, passed, quoted, tcp
from tests.packet.reference import DROP, PASS, TX
from tests.packet.test_engine import WEB, declare, run, web

balancer = engine.balancer
VIP = "203.0.113.15"
RANGES = ["198.51.100.0/25", "192.0.2.77"]
INSIDE, OUTSIDE = "198.51.100.7", "198.51.100.200"
FORWARDINGS: dict[str, dict[str, Any]] = {
    "dnat": {},
    "dsr": {"forwarding": "dsr"},
    "sticky": {"flow_table": True},
    "full_nat": {"forwarding": "full_nat", "source": "10.0.0.250"},
}
SERVICES = [
    {"name": name, "address": VIP, "protocol": "tcp", "port": 80 + place, "source_ranges": RANGES, **keys}
    for place, (name, keys) in enumerate(FORWARDINGS.items())
]
OPEN = {"name": "open", "address": VIP, "protocol": "tcp", "port": 90}
BACKENDS = [
    {"service": service["name"], "address": f"10.0.0.{place + 1}"} for place, service in enumerate([*SERVICES, OPEN])
]


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(make_rig, request):
    return make_rig([*SERVICES, OPEN], BACKENDS, tc=request.param == "tc")


@pytest.mark.parametrize("port", [service["port"] for service in SERVICES], ids=FORWARDINGS)
def test_other_clients_are_dropped(rig, port):
    assert rig.send(tcp(INSIDE, CLIENT_PORT, VIP, port))[0] == TX
    rig.check(dropped("", tcp(OUTSIDE, CLIENT_PORT, VIP, port), "source_not_allowed"))
    # A TTL that ends here makes no difference: the kernel is not to answer either.
    rig.check(dropped("", tcp(OUTSIDE, CLIENT_PORT, VIP, port, ttl=1), "source_not_allowed"))


def test_a_single_address_and_the_ends_of_a_prefix(rig):
    for client, allowed in (
        ("192.0.2.77", True),
        ("192.0.2.76", False),
        ("192.0.2.78", False),
        ("198.51.100.0", True),
        ("198.51.100.127", True),
        ("198.51.100.128", False),
        ("198.51.99.255", False),
    ):
        assert (rig.send(tcp(client, CLIENT_PORT, VIP, 80))[0] != DROP) == allowed
    rig.check_counters()


def test_other_services_at_the_vip_take_all(rig):
    assert rig.send(tcp(OUTSIDE, CLIENT_PORT, VIP, 90))[0] == TX
    assert rig.send(icmp(OUTSIDE, VIP))[0] == TX
    rig.check_counters()


def test_fragments(rig):
    for client, verdict in ((INSIDE, TX), (OUTSIDE, DROP)):
        assert rig.send(tcp(client, CLIENT_PORT, VIP, 80, bytes(80), flags="MF", id=77))[0] == verdict
    later = tcp(INSIDE, CLIENT_PORT, VIP, 80, bytes(80), frag=13, id=77)
    assert rig.send(later)[0] == TX
    # No first one was balanced.
    rig.send(tcp(OUTSIDE, CLIENT_PORT, VIP, 80, bytes(80), frag=13, id=77))
    rig.check_counters()


@pytest.mark.parametrize("router", [INSIDE, OUTSIDE])
def test_icmp_errors_by_the_client_that_they_are_about(rig, router):
    def about(client: str) -> bytes:
        return icmp_error(router, VIP, quoted(VIP, client, TCP(sport=80, dport=CLIENT_PORT)))

    assert rig.send(about(INSIDE))[0] == TX
    rig.check(dropped("", about(OUTSIDE), "source_not_allowed"))


def test_replies_pass_through(rig):
    rig.check(passed("not a reply", tcp(OUTSIDE, 80, INSIDE, CLIENT_PORT), "not_ours"))
    assert rig.send(tcp("10.0.0.1", 80, INSIDE, CLIENT_PORT))[0] in (TX, PASS)
    rig.check_counters()


def test_changes_in_maps_of_the_kernel(balancer, net):
    """What is tried at each step of a change is in tests/unit/test_transaction.py."""

    def verdicts() -> list[int]:
        return [run(balancer, net, tcp(client, 40000, engine.VIP, 80))[0] for client in (INSIDE, OUTSIDE)]

    def ranged(*ranges: str) -> dict:
        return {**WEB, "source_ranges": list(ranges)}

    for service, expected in (
        (ranged(INSIDE), [TX, DROP]),
        (ranged(OUTSIDE), [DROP, TX]),
        (ranged("198.51.100.0/24"), [TX, TX]),
        (WEB, [TX, TX]),
        (ranged("0.0.0.0/0"), [TX, TX]),
        (ranged("192.0.2.0/24"), [DROP, DROP]),
    ):
        assert declare(balancer, [service], web(1))
        assert not declare(balancer, [service], web(1))
        assert verdicts() == expected
    # Somebody else's entry is drift.
    with engine.live_maps(balancer) as maps:
        [key] = source_ranges.read(maps)
        source_ranges.write(maps, [])
    assert balancer.apply_services([ranged("192.0.2.0/24")], True, False).details["repaired"]
    with engine.live_maps(balancer) as maps:
        assert source_ranges.read(maps) == {key}
