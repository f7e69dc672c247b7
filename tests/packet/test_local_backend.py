# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that is the balancer's own host: the kernel gets its packets as they came, and they count for it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey
from scapy.layers.inet import TCP

from tests.packet.frames import CLIENT, CLIENT_PORT, Case, dropped, icmp_error, passed, quoted, tcp
from tests.packet.network import FRONT_ADDRESS
from tests.packet.reference import PASS, TX

VIP = "203.0.113.14"
SOURCES = {"ipip": "10.0.0.254", "gue": "10.0.0.254", "full_nat": "10.0.0.250"}
MODES = ["dnat", "dsr", "ipip", "gue", "full_nat"]
SERVICES: list[dict[str, Any]] = [
    {"name": mode, "address": VIP, "protocol": "tcp", "port": 80 + place, "forwarding": mode}
    | ({"source": SOURCES[mode]} if mode in SOURCES else {})
    for place, mode in enumerate(MODES)
]
# Half of its flows go elsewhere.
MIXED = {"name": "mixed", "address": VIP, "protocol": "tcp", "port": 90, "flow_table": True}
LOCAL = {"address": FRONT_ADDRESS, "local": True}
BACKENDS = [
    *({"service": mode, **LOCAL} for mode in MODES),
    {"service": "mixed", **LOCAL},
    {"service": "mixed", "address": "10.0.0.7", "port": 8080},
]


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(make_rig, request):
    return make_rig([*SERVICES, MIXED], BACKENDS, tc=request.param == "tc")


def counters(rig, mode: str) -> list[int]:
    number = rig.program.backend_ids[BackendKey(mode, FRONT_ADDRESS, None)]
    return list(rig.program.maps.read_counters("backend_counters")[number])


@pytest.mark.parametrize("service", SERVICES, ids=MODES)
def test_the_kernel_gets_packets_as_they_came(rig, service):
    before = counters(rig, service["name"])
    frame = tcp(CLIENT, CLIENT_PORT, VIP, service["port"], b"data")
    assert rig.send(frame) == (PASS, frame)
    assert rig.model.last_reason is None
    after = counters(rig, service["name"])
    assert [now - then for now, then in zip(after, before)][:4] == [1, len(frame), 0, 0]
    rig.check_counters()


@pytest.mark.parametrize("service", SERVICES, ids=MODES)
def test_icmp_errors_about_its_packets_pass(rig, service):
    error = icmp_error(CLIENT, VIP, quoted(VIP, CLIENT, TCP(sport=service["port"], dport=CLIENT_PORT)))
    rig.send(tcp(CLIENT, CLIENT_PORT, VIP, service["port"]))
    assert rig.send(error) == (PASS, error)
    assert rig.model.last_reason is None
    rig.check_counters()


def test_fragments_follow_the_first(rig):
    first = tcp(CLIENT, CLIENT_PORT, VIP, 80, bytes(80), flags="MF", id=7)
    later = tcp(CLIENT, CLIENT_PORT, VIP, 80, bytes(80), frag=13, id=7)
    for frame in (first, later):
        assert rig.send(frame) == (PASS, frame)
    rig.check_counters()


def test_a_ttl_that_ends_here(rig):
    """dsr never looks at it; for the others, the kernel sees it first, as it does without a local backend."""
    rig.check(passed("", tcp(CLIENT, CLIENT_PORT, VIP, 80, ttl=1), "ttl_expired"))
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 81, ttl=1)
    assert rig.send(frame) == (PASS, frame) and rig.model.last_reason is None


def test_flows_of_a_mixed_service_stay(rig):
    ports = range(30000, 30040)
    verdicts = [rig.send(tcp(CLIENT, port, VIP, 90, tcp_flags="S"))[0] for port in ports]
    assert {PASS, TX} == set(verdicts)
    assert [rig.send(tcp(CLIENT, port, VIP, 90, tcp_flags="A"))[0] for port in ports] == verdicts
    rig.check_counters()


def test_what_comes_from_its_address_is_no_reply(rig):
    frame = tcp(FRONT_ADDRESS, 80, CLIENT, CLIENT_PORT)
    rig.check(Case("", frame, PASS, None, "not_ours"))
    rig.check(dropped("", tcp(VIP, 5, VIP, 80), "martian"))
