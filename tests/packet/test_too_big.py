# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A packet longer than the MTU of its next hop: its sender is told, or the kernel fragments it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.frames import dropped, passed, sent
from tests.packet.network import (
    BACK,
    BACK_MAC,
    FRONT_MAC,
    NARROW,
    NARROW6,
    NARROW_MTU,
    ROUTER_MAC,
    TIGHT,
    TIGHT6,
    TIGHT_MTU,
    TINY,
    TINY_MTU,
    ip,
    neighbour_mac,
)
from tests.packet.reference import DROP, PASS, REDIRECT, TX

VIP, VIP6 = "203.0.113.10", "2001:db8:1::10"
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:7::7"
NAT, NAT6 = "10.0.0.250", "fd00::fa"
BACKEND, BACKEND6 = "10.0.0.1", "fd00::1"
MAC = "52:54:00:00:00:01"
# Each mode by its port. Backends behind a narrow route have their services' ports, "near" ones reply to narrow clients.
PORTS = {
    "dnat": 80,
    "full_nat": 81,
    "dsr": 82,
    "ipip": 83,
    "near": 84,
    "near-nat": 85,
    "mac": 86,
    "mac-dsr": 87,
    "tight": 88,
    "tight-ipip": 89,
    "tiny": 90,
    "behind": 91,
}
FORWARDING = {
    "near": "dnat",
    "near-nat": "full_nat",
    "mac": "dnat",
    "mac-dsr": "dsr",
    "tight": "dnat",
    "tight-ipip": "ipip",
    "tiny": "ipip",
    "behind": "dnat",
}
TARGETS = {
    4: {
        **dict.fromkeys(("dnat", "full_nat", "dsr", "ipip"), NARROW),
        **dict.fromkeys(("near", "near-nat", "mac", "mac-dsr"), BACKEND),
        "tight": TIGHT,
        "tight-ipip": TIGHT,
        "tiny": TINY,
        "behind": "10.0.1.1",
    },
    6: {
        **dict.fromkeys(("dnat", "full_nat", "dsr", "ipip"), NARROW6),
        **dict.fromkeys(("near", "near-nat", "mac", "mac-dsr"), BACKEND6),
        "tight": TIGHT6,
        "tight-ipip": TIGHT6,
        "behind": "fd00:0:0:1::1",
    },
}
VIPS, CLIENTS, SOURCES = {4: VIP, 6: VIP6}, {4: CLIENT, 6: CLIENT6}, {4: NAT, 6: NAT6}
NARROW_CLIENTS = {4: NARROW, 6: NARROW6}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def declared() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    services, backends = [], []
    for family, targets in TARGETS.items():
        for mode, target in targets.items():
            for protocol in ("tcp", "udp"):
                forwarding = FORWARDING.get(mode, mode)
                service: dict[str, Any] = {
                    "name": f"{mode}-{protocol}{family}",
                    "address": VIPS[family],
                    "protocol": protocol,
                    "port": PORTS[mode],
                    "forwarding": forwarding,
                }
                if forwarding in ("full_nat", "ipip"):
                    service["source"] = SOURCES[family]
                backend = {"service": service["name"], "address": target}
                if mode.startswith("mac"):
                    backend["mac"] = MAC
                services.append(service)
                backends.append(backend)
    return services, backends


@pytest.fixture(scope="module", params=[False, True], ids=["xdp", "tc"])
def tc(request):
    return request.param


@pytest.fixture(scope="module")
def rig(make_rig, tc):
    return make_rig(*declared(), tc=tc)


def layers(family: int, source: str, destination: str, **fields: Any) -> Packet:
    if family == 6:
        fields.pop("flags", None)
        if "ttl" in fields:
            fields["hlim"] = fields.pop("ttl")
        return IPv6(src=source, dst=destination, **fields)
    return IP(src=source, dst=destination, **fields)


def packet(
    family: int,
    protocol: str,
    ports: tuple[int, int],
    size: int,
    *,
    source: str = "",
    destination: str = "",
    macs: tuple[str, str] = (ROUTER_MAC, FRONT_MAC),
    **fields: Any,
) -> bytes:
    """A frame whose packet has this size, from the client to the VIP unless told otherwise."""
    network = layers(family, source or CLIENTS[family], destination or VIPS[family], **fields)
    transport = (TCP if protocol == "tcp" else UDP)(sport=ports[0], dport=ports[1])
    if protocol == "tcp":
        transport.flags = "A"
    payload = bytes(number % 251 for number in range(size - len(network / transport)))
    return bytes(Ether(src=macs[0], dst=macs[1]) / network / transport / Raw(payload))


def request(family: int, protocol: str, mode: str, size: int, **fields: Any) -> bytes:
    return packet(family, protocol, (40000, PORTS[mode]), size, **{"flags": "DF", **fields})


def answer(frame: bytes, mtu: int) -> bytes:
    """ICMP fragmentation needed or ICMPv6 packet too big, from where the frame was sent to."""
    ether = Ether(frame)
    quoted = bytes(ether)[14:]
    if IPv6 in ether:
        network: Packet = IPv6(src=ether[IPv6].dst, dst=ether[IPv6].src, hlim=64)
        message: Packet = ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted[:504])
    else:
        network = IP(src=ether[IP].dst, dst=ether[IP].src, ttl=64, id=0)
        message = ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted[:68])
    return bytes(Ether(src=ether.dst, dst=ether.src) / network / message)


def answered(frame: bytes, mtu: int) -> Any:
    case = sent("", frame, answer(frame, mtu))
    return type(case)(case.description, case.frame, TX, case.expected, "too_big")


def forwarded(rig: Any, frame: bytes) -> bytes:
    """The frame afterwards, which was sent and not counted as anything else."""
    verdict, output = rig.send(frame)
    assert (verdict, rig.model.last_reason) == (TX, None)
    rig.check_counters()
    return output


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("mode", ["dnat", "full_nat", "dsr"])
def test_a_request_of_the_size_of_the_mtu_is_forwarded(rig, family, protocol, mode):
    assert len(forwarded(rig, request(family, protocol, mode, NARROW_MTU))) == 14 + NARROW_MTU


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("mode", ["dnat", "full_nat", "dsr"])
@pytest.mark.parametrize("size", [NARROW_MTU + 1, 1500])
def test_a_longer_request_is_answered(rig, family, protocol, mode, size):
    before = {name: counters[:4] for name, counters in rig.model.service_counters.items()}
    rig.check(answered(request(family, protocol, mode, size), NARROW_MTU))
    assert {name: counters[:4] for name, counters in rig.model.service_counters.items()} == before


@pytest.mark.parametrize("mode", ["full_nat", "dsr", "ipip"])
def test_what_the_kernel_would_not_forward_is_answered_without_df(rig, mode):
    """From an address of its own, or to the VIP."""
    rig.check(answered(request(4, "udp", mode, 1500, flags=""), NARROW_MTU - 20 * (mode == "ipip")))


@FAMILIES
def test_a_tunnel_takes_its_header_off_the_mtu(rig, family):
    header = 20 if family == 4 else 40
    frame = request(family, "tcp", "ipip", NARROW_MTU - header + 1)
    rig.check(answered(frame, NARROW_MTU - header))
    forwarded(rig, request(family, "tcp", "ipip", NARROW_MTU - header))


@PROTOCOLS
def test_a_longer_request_that_may_be_fragmented_is_left_to_the_kernel(rig, protocol):
    """Which lowers the TTL when it forwards the packet."""
    frame = request(4, protocol, "dnat", 1500, flags="")
    expected = packet(4, protocol, (40000, PORTS["dnat"]), 1500, destination=NARROW)
    rig.check(passed("", frame, "too_big", expected))


def reply(family: int, protocol: str, size: int, **fields: Any) -> bytes:
    port = PORTS["near"]
    macs = (neighbour_mac(0, 1), FRONT_MAC)
    ends = {"source": TARGETS[family]["near"], "destination": NARROW_CLIENTS[family]}
    return packet(family, protocol, (port, 40000), size, macs=macs, **{"flags": "DF", **ends, **fields})


@FAMILIES
@PROTOCOLS
def test_a_reply_of_the_size_of_the_mtu_is_sent(rig, family, protocol):
    expected = reply(family, protocol, NARROW_MTU, source=VIPS[family], ttl=63)
    expected = bytes(Ether(src=FRONT_MAC, dst=ROUTER_MAC) / Ether(expected).payload)
    rig.check(sent("", reply(family, protocol, NARROW_MTU), expected))


@FAMILIES
@PROTOCOLS
def test_a_longer_reply_is_answered_in_the_name_of_the_client(rig, family, protocol):
    rig.check(answered(reply(family, protocol, NARROW_MTU + 1), NARROW_MTU))


@PROTOCOLS
def test_a_longer_reply_that_may_be_fragmented_is_left_to_the_kernel(rig, protocol):
    frame = reply(4, protocol, 1500, flags="")
    rig.check(passed("", frame, "too_big", reply(4, protocol, 1500, flags="", source=VIP)))


def session_reply(rig: Any, family: int, protocol: str, size: int, **fields: Any) -> bytes:
    """Of a session that a narrow client has begun."""
    verdict, output = rig.send(request(family, protocol, "near-nat", 100, source=NARROW_CLIENTS[family]))
    assert verdict == TX
    session_port = Ether(output)[protocol.upper()].sport
    ends = {"source": TARGETS[family]["near-nat"], "destination": SOURCES[family]}
    macs = (neighbour_mac(0, 1), FRONT_MAC)
    return packet(
        family, protocol, (PORTS["near-nat"], session_port), size, macs=macs, **{"flags": "DF", **ends, **fields}
    )


@FAMILIES
@PROTOCOLS
def test_a_longer_reply_of_full_nat_is_answered_by_the_address_it_was_sent_to(rig, family, protocol):
    forwarded(rig, session_reply(rig, family, protocol, NARROW_MTU))
    rig.check(answered(session_reply(rig, family, protocol, NARROW_MTU + 1), NARROW_MTU))


@PROTOCOLS
def test_a_longer_reply_of_full_nat_that_may_be_fragmented_is_left_to_the_kernel(rig, protocol):
    frame = session_reply(rig, 4, protocol, 1500, flags="")
    macs = (neighbour_mac(0, 1), FRONT_MAC)
    expected = packet(
        4, protocol, (PORTS["near-nat"], 40000), 1500, source=VIP, destination=NARROW, macs=macs, flags=""
    )
    rig.check(passed("", frame, "too_big", expected))


@FAMILIES
@pytest.mark.parametrize("mode", ["mac", "mac-dsr"])
def test_a_next_hop_of_the_inventory_is_on_the_interface_that_the_packet_fitted(rig, family, mode):
    assert forwarded(rig, request(family, "tcp", mode, 1500))[:6].hex(":") == MAC


def test_padding_is_no_part_of_the_packet(rig):
    forwarded(rig, request(4, "udp", "dnat", NARROW_MTU) + bytes(100))


@FAMILIES
def test_a_tagged_packet_is_answered_with_its_tags(rig, family, tc):
    if tc:
        pytest.skip("a test run leaves the tag where it is, the kernel does not")
    plain = request(family, "tcp", "dnat", 1500)
    tagged = bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / Dot1Q(vlan=7) / Ether(plain).payload)
    head = bytes(Ether(src=FRONT_MAC, dst=ROUTER_MAC) / Dot1Q(vlan=7) / Ether(plain).payload)[:18]
    expected = head + answer(plain, NARROW_MTU)[14:]
    verdict, output = rig.send(tagged)
    assert (verdict, output.hex()) == (TX, expected.hex())


# --- values that a sender may not use


@pytest.mark.parametrize("mode", ["tight", "tight-ipip"])
def test_ipv6_is_not_told_less_than_1280(rig, mode):
    rig.check(answered(request(6, "udp", mode, 1281), 1280))


@pytest.mark.parametrize("mode", ["tight", "tight-ipip"])
def test_a_sender_that_may_not_send_less_is_told_nothing(rig, mode):
    rig.check(dropped("", request(6, "udp", mode, 1280), "too_big"))


def test_packets_that_fit_an_mtu_below_1280_are_forwarded(rig):
    forwarded(rig, request(6, "udp", "tight", TIGHT_MTU))
    forwarded(rig, request(6, "udp", "tight-ipip", TIGHT_MTU - 40))


def test_ipv4_is_not_told_less_than_68(rig):
    rig.check(answered(request(4, "udp", "tiny", 69), 68))
    rig.check(dropped("", request(4, "udp", "tiny", 68), "too_big"))
    forwarded(rig, request(4, "udp", "tiny", TINY_MTU - 20))
    rig.check(answered(request(4, "udp", "tight", TIGHT_MTU + 1), TIGHT_MTU))


# --- what gets no ICMP error


def test_later_fragments_of_ipv4_are_dropped(rig):
    """RFC 1812, section 4.3.2.7: only the first one is answered."""
    first = request(4, "udp", "dnat", 1500, flags="DF+MF", id=7)
    rig.check(answered(first, NARROW_MTU))
    rig.check(dropped("", request(4, "udp", "dnat", 1500, flags="DF", frag=185, id=7), "too_big"))
    forwarded(rig, request(4, "udp", "dnat", 700, flags="DF", frag=370, id=7))


def test_later_fragments_that_may_be_cut_again_are_left_to_the_kernel(rig):
    for flags, offset in (("MF", 0), ("", 185)):
        verdict, output = rig.send(request(4, "udp", "dnat", 1500, flags=flags, frag=offset, id=8))
        assert (verdict, rig.model.last_reason) == (PASS, ("too_big", "pass"))
        assert Ether(output)[IP].dst == NARROW


def test_all_fragments_of_ipv6_are_answered(rig):
    """RFC 4443, section 2.4 (e), leaves none of them out."""
    for offset in (0, 181):
        frame = Ether(request(6, "udp", "dnat", 1450))
        payload = frame[IPv6].payload
        network = IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment(offset=offset, m=1, id=7, nh=17)
        rig.check(answered(bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / network / payload), NARROW_MTU))


@pytest.mark.parametrize("mode", ["dnat", "dsr", "ipip"])
def test_icmp_errors_are_not_answered(rig, mode):
    quote = IP(src=VIP, dst=CLIENT) / UDP(sport=PORTS[mode], dport=40000) / Raw(bytes(1420))
    frame = (
        Ether(src=ROUTER_MAC, dst=FRONT_MAC) / IP(src="192.0.2.1", dst=VIP, flags="DF") / ICMP(type=3, code=1) / quote
    )
    rig.check(dropped("", bytes(frame), "too_big"))


def test_answers_are_rate_limited(rig):
    frame = request(6, "tcp", "dnat", 1500)
    while rig.model.errors[rig.model.tick]:
        time.sleep(0.01)
    verdicts = [rig.send(frame)[0] for _time in range(150)]
    assert verdicts[:100] == [TX] * 100 and DROP in verdicts[100:]
    rig.check_counters()


@FAMILIES
def test_the_mtu_of_another_interface(make_rig, tc, family):
    """Of that the kernel tells as of a route's."""
    ip(f"link set {BACK} mtu 1300")
    rig = make_rig(*declared(), tc=tc)
    try:
        frame = request(family, "tcp", "behind", 1301)
        found = rig.program.run(frame, interface=rig.interface)[:2]
        assert (found[0], found[1].hex()) == (7 if tc else TX, answer(frame, 1300).hex())
        verdict, output, _duration = rig.program.run(request(family, "tcp", "behind", 1300), interface=rig.interface)
        assert (verdict, output[6:12].hex(":")) == (7 if tc else REDIRECT, BACK_MAC)
    finally:
        ip(f"link set {BACK} mtu 1500")
