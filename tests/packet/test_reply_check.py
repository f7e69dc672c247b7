# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may answer in the VIP's name: the backend itself, by the interface that leads to it and its Ethernet address."""

from __future__ import annotations

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import Interface
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from tests.packet.frames import CLIENT, CLIENT_PORT, icmp_error, quoted, tcp, udp
from tests.packet.network import (
    BACK_MAC,
    FRONT_MAC,
    PROHIBITED,
    ROUTER_MAC,
    UNRESOLVED,
    UNRESOLVED_BACK,
    mac,
    neighbour_mac,
)

VIP, SOURCE = "203.0.113.10", "198.51.100.250"
NEAR, BEHIND, ROUTED, GIVEN = "10.0.0.1", "10.0.1.1", "192.0.2.77", "10.0.0.9"
GIVEN_MAC, OTHER_MAC = "52:54:00:00:00:09", "52:54:00:00:00:66"
BACKENDS = {
    "near": {"address": NEAR},
    "behind": {"address": BEHIND},
    "routed": {"address": ROUTED},
    "given": {"address": GIVEN, "mac": GIVEN_MAC},
    "unresolved": {"address": UNRESOLVED},
    "unresolved-back": {"address": UNRESOLVED_BACK},
    "prohibited": {"address": PROHIBITED},
}
PORTS = {name: 1000 + number for number, name in enumerate(BACKENDS)}
NAT_PORT = 53
SERVICES = [{"name": name, "address": VIP, "protocol": "tcp", "port": port} for name, port in PORTS.items()]
SERVICES.append(
    {"name": "nat", "address": VIP, "protocol": "udp", "port": NAT_PORT, "forwarding": "full_nat", "source": SOURCE}
)
DECLARED = [{"service": name, **keys} for name, keys in BACKENDS.items()] + [{"service": "nat", "address": BEHIND}]
# Whose reply, its Ethernet address, where it arrives; whether `strict` and `interface` accept it.
ARRIVALS = {
    "a neighbour": ("near", neighbour_mac(0, 1), FRONT_MAC, True, True),
    "another host of its network": ("near", OTHER_MAC, FRONT_MAC, False, True),
    "a router, in a neighbour's name": ("near", ROUTER_MAC, FRONT_MAC, False, True),
    "a neighbour's address, from the other network": ("near", neighbour_mac(0, 1), BACK_MAC, False, False),
    "a neighbour behind the other interface": ("behind", neighbour_mac(1, 1), BACK_MAC, True, True),
    "a client, in the name of a backend behind the other interface": ("behind", ROUTER_MAC, FRONT_MAC, False, False),
    "the same with the backend's Ethernet address": ("behind", neighbour_mac(1, 1), FRONT_MAC, False, False),
    "a gateway": ("routed", ROUTER_MAC, FRONT_MAC, True, True),
    "a gateway's other address": ("routed", OTHER_MAC, FRONT_MAC, True, True),
    "the other interface than the gateway's": ("routed", ROUTER_MAC, BACK_MAC, False, False),
    "the address of the inventory": ("given", GIVEN_MAC, FRONT_MAC, True, True),
    "the same on another interface": ("given", GIVEN_MAC, BACK_MAC, True, True),
    "another than the address of the inventory": ("given", OTHER_MAC, FRONT_MAC, False, True),
    "no neighbour known, so the interface decides": ("unresolved", OTHER_MAC, FRONT_MAC, True, True),
    "no neighbour known, on the other interface": ("unresolved", OTHER_MAC, BACK_MAC, False, False),
    "no neighbour known at the back": ("unresolved-back", OTHER_MAC, BACK_MAC, True, True),
    "no neighbour known at the back, arriving in front": ("unresolved-back", OTHER_MAC, FRONT_MAC, False, False),
    "no route to the backend": ("prohibited", ROUTER_MAC, FRONT_MAC, False, False),
}
SMALL = frozenset(("dnat", "full_nat"))
LOOSER = {"interface": SMALL | {"reply_interface"}, "off": SMALL | {"reply_unchecked"}}
UNVERIFIED = ("reply_unverified", "pass"), ("reply_unverified", "drop")


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(request, make_rig):
    return make_rig(SERVICES, DECLARED, tc=request.param == "tc")


@pytest.fixture(scope="module", params=list(LOOSER))
def looser(request, make_rig):
    return request.param, make_rig(SERVICES, DECLARED, LOOSER[request.param])


def gets_vip(rig, frame: bytes) -> bool:
    """Whether the frame leaves with the VIP as its source; if not, it is untouched and counted."""
    _verdict, output = rig.send(frame)
    if Ether(output)[IP].src == VIP:
        return True
    assert output == frame
    assert rig.model.last_reason in UNVERIFIED
    return False


def reply(name: str, macs: tuple[str, str], **fields) -> bytes:
    return tcp(BACKENDS[name]["address"], PORTS[name], CLIENT, CLIENT_PORT, macs=macs, **fields)


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_who_gets_the_vip(rig, arrival):
    name, sender, arrives, strict, _by_interface = ARRIVALS[arrival]
    for _time in range(2):
        assert gets_vip(rig, reply(name, (sender, arrives))) == strict
    rig.check_counters()


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_who_gets_the_vip_when_less_is_checked(looser, arrival):
    name, sender, arrives, _strict, by_interface = ARRIVALS[arrival]
    check, rig = looser
    assert gets_vip(rig, reply(name, (sender, arrives))) == (by_interface if check == "interface" else True)
    rig.check_counters()


# Whose reply with a VLAN tag, its Ethernet address, where it arrives; whether it is accepted. There is no VLAN here.
TAGGED = {
    "on the interface of the route": ("near", neighbour_mac(0, 1), FRONT_MAC, True),
    "from another host": ("near", OTHER_MAC, FRONT_MAC, False),
    "on another interface of the balancer": ("behind", neighbour_mac(1, 1), FRONT_MAC, False),
}


def tagged(frame: bytes, number: int = 7) -> bytes:
    packet = Ether(frame)
    return bytes(Ether(src=packet.src, dst=packet.dst) / Dot1Q(vlan=number) / packet.payload)


@pytest.mark.parametrize("arrival", TAGGED)
def test_a_tagged_reply(rig, arrival):
    name, sender, arrives, accepted = TAGGED[arrival]
    assert gets_vip(rig, tagged(reply(name, (sender, arrives)))) == accepted
    rig.check_counters()


def test_a_tagged_reply_of_a_vlan(make_rig, net):
    """The route leads over a VLAN device, which is no interface of the balancer: the program does not know its tag."""
    rig = make_rig(SERVICES, DECLARED)
    rig.program.maps.update_control([Interface(net.front, 1500, FRONT_MAC)])
    rig.model.masters = {net.front: 0}
    frame = reply("behind", (neighbour_mac(1, 1), FRONT_MAC))
    assert gets_vip(rig, tagged(frame))
    assert not gets_vip(rig, tagged(reply("behind", (OTHER_MAC, FRONT_MAC))))
    assert not gets_vip(rig, frame)


def test_a_reply_by_a_port_of_the_bond_that_the_route_leads_over(make_rig, net):
    rig = make_rig(SERVICES, DECLARED)
    rig.program.maps.update_control(
        [Interface(net.front, 1500, FRONT_MAC, net.back), Interface(net.back, 1500, BACK_MAC)]
    )
    rig.model.masters = {net.front: net.back, net.back: 0}
    assert gets_vip(rig, reply("behind", (neighbour_mac(1, 1), FRONT_MAC)))
    assert not gets_vip(rig, reply("near", (neighbour_mac(0, 1), BACK_MAC)))


def test_a_reply_to_a_session(rig):
    """One that is not verified does not reach the session: it goes on as if none had come."""
    _verdict, output = rig.send(udp(CLIENT, CLIENT_PORT, VIP, NAT_PORT))
    port = Ether(output)[UDP].sport
    answer = [BEHIND, NAT_PORT, SOURCE, port]
    for macs in ((OTHER_MAC, BACK_MAC), (ROUTER_MAC, FRONT_MAC), (neighbour_mac(1, 1), FRONT_MAC)):
        assert not gets_vip(rig, udp(*answer, macs=macs))
        # The kernel would send it to the router, for SOURCE is none of its addresses.
        assert rig.model.last_reason == ("reply_unverified", "drop")
    assert [session.state for session in rig.model.sessions.values()] == ["new"]
    assert gets_vip(rig, udp(*answer, macs=(neighbour_mac(1, 1), BACK_MAC)))
    rig.check_counters()


def test_every_fragment_is_checked(rig):
    good, bad = (neighbour_mac(0, 1), FRONT_MAC), (OTHER_MAC, FRONT_MAC)
    first = reply("near", bad, flags="MF", id=77)
    later = bytes(Ether(src=good[0], dst=good[1]) / IP(src=NEAR, dst=CLIENT, proto=6, frag=4, id=77) / bytes(24))
    assert not gets_vip(rig, first)
    # The first one that was not verified is not remembered.
    assert rig.send(later)[1] == later and rig.model.last_reason == ("not_ours", "pass")
    assert gets_vip(rig, reply("near", good, flags="MF", id=77))
    assert not gets_vip(rig, later[:6] + mac(OTHER_MAC) + later[12:])
    assert gets_vip(rig, later)
    rig.check_counters()


def test_an_error_of_a_backend(rig):
    """Errors of routers behind the balancer are translated from wherever they come."""
    quote = quoted(CLIENT, NEAR, TCP(sport=CLIENT_PORT, dport=PORTS["near"]))
    assert gets_vip(rig, icmp_error(NEAR, CLIENT, quote, macs=(neighbour_mac(0, 1), FRONT_MAC)))
    assert not gets_vip(rig, icmp_error(NEAR, CLIENT, quote, macs=(OTHER_MAC, FRONT_MAC)))
    assert not gets_vip(rig, icmp_error(NEAR, CLIENT, quote, macs=(neighbour_mac(0, 1), BACK_MAC)))
    assert gets_vip(rig, icmp_error("172.16.0.9", CLIENT, quote, macs=(OTHER_MAC, BACK_MAC)))
    rig.check_counters()
