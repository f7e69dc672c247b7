# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that were compiled with some of the features only."""

from __future__ import annotations

import os

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, map_set

from tests.packet.frames import CLIENT, CLIENT_PORT, dropped, icmp, passed, sent, tcp, udp
from tests.packet.network import FRONT_MAC
from tests.support.compile_once import SOURCE
from tests.support.program import ALL_FEATURES, SIZES, load

VIP, MAC = "203.0.113.10", "52:54:00:00:00:01"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "direct", "address": VIP, "protocol": "udp", "port": "6000-6010", "forwarding": "dsr"},
]
BACKENDS = [
    {"service": "web", "address": "10.0.0.1", "port": 8080, "mac": MAC},
    {"service": "web", "address": "10.0.0.2", "port": 8080, "mac": MAC},
    {"service": "direct", "address": "10.0.0.3", "mac": MAC},
]
TO_DNAT = tcp(CLIENT, CLIENT_PORT, VIP, 80)
TO_DSR = udp(CLIENT, CLIENT_PORT, VIP, 6005)
FROM_DNAT = tcp("10.0.0.1", 8080, CLIENT, CLIENT_PORT, macs=(MAC, FRONT_MAC))


@pytest.fixture(scope="module")
def dnat_only(make_rig):
    return make_rig(SERVICES, BACKENDS, frozenset(("dnat",)))


@pytest.fixture(scope="module")
def dsr_only(make_rig):
    return make_rig(SERVICES, BACKENDS, frozenset(("dsr",)))


def test_dnat_only_forwards_dnat(dnat_only):
    dnat_only.send(TO_DNAT)
    assert dnat_only.model.last_reason is None
    dnat_only.send(FROM_DNAT)
    assert dnat_only.model.last_reason is None
    dnat_only.check_counters()


def test_dnat_only_has_no_backend_for_dsr(dnat_only):
    dnat_only.check(dropped("", TO_DSR, "no_backend"))


def test_dsr_only_forwards_dsr(dsr_only):
    dsr_only.check(sent("", TO_DSR, udp(CLIENT, CLIENT_PORT, VIP, 6005, macs=(FRONT_MAC, MAC))))


def test_dsr_only_has_no_backend_for_dnat(dsr_only):
    dsr_only.check(dropped("", TO_DNAT, "no_backend"))


def test_dsr_only_leaves_replies_alone(dsr_only):
    dsr_only.check(passed("", FROM_DNAT, "not_ours"))


@pytest.mark.parametrize("rig", ["dnat_only", "dsr_only"])
def test_echo_is_answered(rig, request):
    rig = request.getfixturevalue(rig)
    rig.send(icmp(CLIENT, VIP))
    assert rig.model.last_reason == ("echo", "tx")
    rig.check_counters()


@pytest.mark.parametrize("rig", ["dnat_only", "dsr_only"])
def test_balancers_with_other_features_choose_the_same_backend(rig, request, make_rig):
    rig = request.getfixturevalue(rig)
    everything = make_rig(SERVICES, BACKENDS)
    frame = TO_DNAT if rig.model.features == {"dnat"} else TO_DSR
    for port in range(1024, 1088):
        changed = frame[:34] + port.to_bytes(2, "big") + frame[36:]
        assert rig.send(changed) == everything.send(changed)


@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_the_verifier_takes_all_features_for_a_machine_of_many_cpus(tc):
    features = ALL_FEATURES - (compiler.NOT_ON_TC if tc else frozenset())
    build = compiler.Build(SOURCE, features, SIZES, tc, cpus=512)
    with map_set.create(SIZES) as created:
        os.close(load(build, list(created.descriptors.values())))
