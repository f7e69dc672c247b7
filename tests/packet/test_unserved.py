# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets for a VIP that no service is there for, with the kernel behind the program: it routes them back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import UDP as UDP6
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import GRE, Ether

from tests.packet.conftest import TC_VERDICTS
from tests.packet.frames import CLIENT, CLIENT_PORT, dropped, icmp, passed, tcp, udp
from tests.packet.network import FRONT, FRONT_ADDRESS, FRONT_ADDRESS6, FRONT_MAC, ROUTER_MAC, set_forwarding
from tests.packet.reference import PASS
from tests.packet.test_interfaces import FRONT_PEER, exchange, pass_frames
from tests.support import balancer as support
from tests.support.balancer import declared, settings
from tests.support.program import ALL_FEATURES

VIP, VIP6, SOURCE = "203.0.113.10", "2001:db8:1::10", "198.51.100.250"
SERVICES = [
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "nat", "address": VIP, "protocol": "tcp", "port": 80, "forwarding": "full_nat", "source": SOURCE},
    {"name": "dns6", "address": VIP6, "protocol": "udp", "port": 53},
]
BACKENDS = [
    {"service": "dns", "address": "10.0.0.1"},
    {"service": "nat", "address": "10.0.0.1"},
    {"service": "dns6", "address": "fd00::1"},
]
ETHERNET = Ether(src=ROUTER_MAC, dst=FRONT_MAC)
FRAMES = {
    "UDP to another port": udp(CLIENT, CLIENT_PORT, VIP, 9999),
    "TCP to another port": tcp(CLIENT, CLIENT_PORT, VIP, 81),
    "GRE": bytes(ETHERNET / IP(src=CLIENT, dst=VIP) / GRE() / IP(src=CLIENT, dst=VIP)),
    "a protocol of nobody": bytes(ETHERNET / IP(src=CLIENT, dst=VIP, proto=253) / bytes(20)),
    "ICMP timestamp": icmp(CLIENT, VIP, type=13),
    "fragmented echo request": icmp(CLIENT, VIP, flags="MF"),
    "UDP that ends in its header": udp(CLIENT, CLIENT_PORT, VIP, 53, len=24),
    "a source of full_nat without a session": tcp(CLIENT, CLIENT_PORT, SOURCE, 20000),
}


@pytest.fixture(scope="module")
def peer(net) -> None:
    pass_frames(FRONT_PEER)


@pytest.fixture(scope="module", params=["native", "tc"])
def apply(request, peer) -> Iterator[Callable[[str], None]]:
    with support.balancer() as made:
        yield lambda unserved: made.apply(
            declared(settings(FRONT, mode=request.param, unserved=unserved), SERVICES, BACKENDS), check=False
        )


def test_the_kernel_would_send_them_back(apply):
    """What the rest of this file is about."""
    apply("pass")
    for name, frame in FRAMES.items():
        (packet,) = exchange(frame, FRONT_PEER, FRONT_PEER)
        assert (packet.dst, packet[IP].dst, packet.ttl) == (ROUTER_MAC, Ether(frame)[IP].dst, 63), name


def test_unserved_packets_are_dropped(apply):
    apply("drop")
    for name, frame in FRAMES.items():
        assert not exchange(frame, FRONT_PEER, FRONT_PEER), name


def test_the_kernel_answers_where_the_vip_is_its_address(apply):
    """As it is where VRRP has put it on an interface."""
    apply("drop")
    subprocess.run(["ip", "address", "add", f"{VIP}/32", "dev", "lo"], check=True)
    try:
        (answer,) = exchange(FRAMES["UDP to another port"], FRONT_PEER, FRONT_PEER)
        assert (answer[IP].src, answer[ICMP].type, answer[ICMP].code) == (VIP, 3, 3)
    finally:
        subprocess.run(["ip", "address", "delete", f"{VIP}/32", "dev", "lo"], check=True)
    assert not exchange(FRAMES["UDP to another port"], FRONT_PEER, FRONT_PEER)


@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_what_the_kernel_would_not_forward_passes(make_rig, tc):
    """It cannot come back: neighbours of the link speak, or the host forwards nothing."""
    rig = make_rig(SERVICES, BACKENDS, tc=tc)
    solicitation = IPv6(src="fe80::1", dst=VIP6, hlim=255) / ICMPv6ND_NS(tgt=VIP6)
    rig.check(passed("", bytes(ETHERNET / solicitation), "not_ours"))
    solicitation.hlim = 254
    rig.check(dropped("", bytes(ETHERNET / solicitation), "vip_unserved"))
    set_forwarding(False)
    try:
        for frame in (
            FRAMES["UDP to another port"],
            bytes(ETHERNET / IPv6(src="2001:db8:2::7", dst=VIP6) / UDP6(dport=9)),
        ):
            assert rig.program.run(frame, interface=rig.interface)[:2] == (TC_VERDICTS[PASS] if tc else PASS, frame)
    finally:
        set_forwarding(True)


@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_later_fragments_for_a_vip_are_dropped(make_rig, tc):
    rig = make_rig(SERVICES, BACKENDS, tc=tc)
    later = IP(src=CLIENT, dst=VIP, proto=47, frag=100, id=9) / bytes(24)
    rig.check(dropped("", bytes(ETHERNET / later), "fragment"))
    lenient = make_rig(SERVICES, BACKENDS, ALL_FEATURES | {"unserved_pass"}, tc=tc)
    for frame in (bytes(ETHERNET / later), icmp(CLIENT, VIP, flags="MF"), icmp(CLIENT, VIP, frag=100)):
        lenient.check(passed("", frame, "not_ours"))


@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_what_is_for_the_host_itself_passes(make_rig, tc):
    """An address of the host that is a VIP as well keeps its other ports: SSH, say."""
    own = [
        {"name": "web", "address": FRONT_ADDRESS, "protocol": "tcp", "port": 80},
        {"name": "web6", "address": FRONT_ADDRESS6, "protocol": "tcp", "port": 80},
    ]
    rig = make_rig(own, [], tc=tc)
    for frame in (
        tcp(CLIENT, CLIENT_PORT, FRONT_ADDRESS, 22),
        icmp(CLIENT, FRONT_ADDRESS, type=3),
        udp(CLIENT, CLIENT_PORT, FRONT_ADDRESS, 4789, flags="MF"),
        udp(CLIENT, CLIENT_PORT, FRONT_ADDRESS, 4789, frag=100),
        bytes(ETHERNET / IPv6(src="2001:db8:2::7", dst=FRONT_ADDRESS6) / UDP6(sport=7, dport=7)),
    ):
        rig.check(passed("", frame, "not_ours"))
