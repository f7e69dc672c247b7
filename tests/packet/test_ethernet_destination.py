# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only frames for the interface's own Ethernet address, or for a virtual MAC address, are balanced."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from scapy.layers.inet import GRE, ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.packet import reference
from tests.packet.frames import CLIENT, CLIENT_PORT, dropped, icmp, passed, sent, tcp, udp, with_bytes
from tests.packet.network import BACK_MAC, FRONT, FRONT_MAC, ROUTER_MAC, neighbour_mac
from tests.support import balancer as support
from tests.support.balancer import declared, settings

VIP, VIP6 = "203.0.113.10", "2001:db8:1::10"
CLIENT6 = "2001:db8:2::7"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "web6", "address": VIP6, "protocol": "tcp", "port": 80},
]
BACKENDS = [{"service": "web", "address": "10.0.0.1"}, {"service": "web6", "address": "fd00::1"}]
# VRRP router 51: RFC 5798, section 7.3.
VIRTUAL_MAC, VIRTUAL_MAC6 = "00:00:5e:00:01:33", "00:00:5e:00:02:33"
OTHERS = {
    "another host's": "02:00:00:00:00:aa",
    "another in the first byte": "06" + FRONT_MAC[2:],
    "another in the last byte": FRONT_MAC[:-2] + "ff",
    "the other interface's": BACK_MAC,
    "VRRP of another router": "00:00:5e:00:01:34",
    "zero": "00:00:00:00:00:00",
    "broadcast": "ff:ff:ff:ff:ff:ff",
    "multicast": "01:00:5e:00:00:01",
    "its own with the group bit": "03" + FRONT_MAC[2:],
}
FILTERS = [{"prefix": "198.51.100.0/24", "action": "drop"}]


def to(destination: str, layers: object) -> bytes:
    return bytes(Ether(src=ROUTER_MAC, dst=destination) / layers)


REQUEST = IP(src=CLIENT, dst=VIP) / TCP(sport=CLIENT_PORT, dport=80)
PACKETS = {
    "a request": REQUEST,
    "a request over IPv6": IPv6(src=CLIENT6, dst=VIP6) / TCP(sport=CLIENT_PORT, dport=80),
    "a tagged request": Dot1Q(vlan=7) / REQUEST,
    "a request with IP options": IP(src=CLIENT, dst=VIP, options=b"\x01\x01\x01\x00") / TCP(dport=80),
    "an echo request": IP(src=CLIENT, dst=VIP) / ICMP(),
    "an echo request over IPv6": IPv6(src=CLIENT6, dst=VIP6) / ICMPv6EchoRequest(),
    "a reply": IP(src="10.0.0.1", dst=CLIENT) / TCP(sport=80, dport=CLIENT_PORT),
    "a request with a martian source": IP(src="127.0.0.1", dst=VIP) / TCP(dport=80),
    "a port that nothing serves": IP(src=CLIENT, dst=VIP) / TCP(dport=81),
    "a later fragment": IP(src=CLIENT, dst=VIP, frag=185) / bytes(64),
}


@pytest.fixture(scope="module", params=[False, True], ids=["xdp", "tc"])
def rig(request, make_rig):
    return make_rig(SERVICES, BACKENDS, tc=request.param, virtual_macs=(VIRTUAL_MAC, VIRTUAL_MAC6))


@pytest.mark.parametrize("destination", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_frames_for_others_pass_untouched(rig, packet, destination):
    rig.check(passed("", to(destination, packet), "other_mac"), rig.net.front)


@pytest.mark.parametrize("destination", [FRONT_MAC, VIRTUAL_MAC, VIRTUAL_MAC6])
def test_frames_for_the_host_are_balanced(rig, destination):
    macs = ROUTER_MAC, destination
    expected = tcp(CLIENT, CLIENT_PORT, "10.0.0.1", 80, macs=(FRONT_MAC, neighbour_mac(0, 1)), ttl=63)
    rig.check(sent("", tcp(CLIENT, CLIENT_PORT, VIP, 80, macs=macs), expected))
    for packet in PACKETS.values():
        rig.send(to(destination, packet))
        assert (rig.model.last_reason or ("",))[0] != "other_mac"
    rig.check_counters()


def test_the_link_s_own_protocols_pass_as_ever(rig):
    rig.check(passed("", to("ff:ff:ff:ff:ff:ff", ARP(pdst=VIP)), "not_ip"))
    solicitation = IPv6(src="fe80::1", dst="ff02::1:ff00:10", hlim=255) / ICMPv6ND_NS(tgt=VIP6)
    rig.check(passed("", to("33:33:ff:00:00:10", solicitation), "other_mac"))


def test_what_no_backend_could_get_passes_for_its_own_reason(rig):
    """Which the packet has whatever its frame's destination; the kernel forwards no such frame, so nothing loops."""
    packet = to(OTHERS["another host's"], IP(src=CLIENT, dst=VIP) / GRE())
    rig.check(passed("", packet, "not_ours"))


@pytest.mark.parametrize("destination", [FRONT_MAC, *OTHERS.values()], ids=["its own", *OTHERS])
@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_filters_judge_all_frames(make_rig, tc, destination):
    """A virtual interface above this one may take what is not for this one."""
    filtering = make_rig(SERVICES, BACKENDS, filters=FILTERS, tc=tc)
    macs = ROUTER_MAC, destination
    filtering.check(dropped("", tcp(CLIENT, CLIENT_PORT, VIP, 80, macs=macs), "filtered"))
    filtering.check(dropped("", icmp(CLIENT, "192.0.2.1", macs=macs), "filtered"))
    filtering.check(dropped("", with_bytes(udp("192.0.2.7", 1, VIP, 80, macs=macs), 16, b"\xff"), "malformed"))


def test_each_interface_has_its_own_address(rig, net):
    verdict = reference.PASS if not rig.tc else 0xFFFFFFFF
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80)
    assert rig.program.run(frame, interface=net.back)[:2] == (verdict, frame)
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80, macs=(ROUTER_MAC, BACK_MAC))
    assert rig.program.run(frame, interface=net.back)[0] != verdict


def test_on_an_interface_that_is_not_known_yet_any_unicast_address_counts(make_rig):
    rig = make_rig(SERVICES, BACKENDS)
    rig.program.maps.update_control([])
    request = Ether(tcp(CLIENT, CLIENT_PORT, VIP, 80))
    for destination, verdict in ((OTHERS["another host's"], reference.TX), (OTHERS["broadcast"], reference.PASS)):
        request.dst = destination
        assert rig.program.run(bytes(request), interface=rig.interface)[0] == verdict


class Host:
    """A balancer as a host has it, on the front interface."""

    def __init__(self, balancer, net) -> None:
        self._balancer, self._net = balancer, net

    def apply(self, **options) -> support.document.Document:
        chosen = settings(FRONT, **options)
        return self._balancer.apply(declared(chosen, SERVICES, BACKENDS), check=False)

    def balances(self, destination: str) -> bool:
        descriptor = bpf.object_get(str(self._balancer.places.program(FRONT)))
        frame = tcp(CLIENT, CLIENT_PORT, VIP, 80, macs=(ROUTER_MAC, destination))
        try:
            return bpf.test_run(descriptor, frame, 1, self._net.front)[1] != frame
        finally:
            os.close(descriptor)

    def forget_next_hops(self) -> None:
        self._balancer.forget_next_hops()


@pytest.fixture
def host(net):
    with support.balancer() as made:
        yield Host(made, net)


def test_virtual_macs_are_declared(host):
    host.apply()
    assert (host.balances(FRONT_MAC), host.balances(VIRTUAL_MAC)) == (True, False)
    assert host.apply(virtual_macs=(VIRTUAL_MAC,)).changed
    assert (host.balances(FRONT_MAC), host.balances(VIRTUAL_MAC)) == (True, True)
    assert not host.apply(virtual_macs=(VIRTUAL_MAC,)).changed
    host.forget_next_hops()
    assert host.balances(VIRTUAL_MAC)
    # A program that is put anew over the same maps, and new maps.
    for options in ({"latency": True}, {"latency": True, "sizes": support.SIZES.__class__(max_backends=99)}):
        assert host.apply(virtual_macs=(VIRTUAL_MAC,), **options).changed
        assert host.balances(VIRTUAL_MAC)
    host.apply()
    assert (host.balances(FRONT_MAC), host.balances(VIRTUAL_MAC)) == (True, False)


def test_the_engine_follows_an_interface_s_address(host):
    """lbops-watch calls this when a link changes. The kernel forgets the neighbours, too."""
    host.apply()
    other = OTHERS["another host's"]
    subprocess.run(["ip", "link", "set", FRONT, "address", other], check=True)
    try:
        host.forget_next_hops()
        assert (host.balances(FRONT_MAC), host.balances(other)) == (False, True)
    finally:
        subprocess.run(["ip", "link", "set", FRONT, "address", FRONT_MAC], check=True)
