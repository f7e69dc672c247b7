# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is not for a service reaches the kernel as it came, whatever it looks like."""

from __future__ import annotations

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, GRE, LLC, STP, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from tests.packet.frames import CLIENT, CLIENT_PORT, dropped, icmp, padded, passed, sent, tcp, udp, with_bytes
from tests.packet.network import FRONT_ADDRESS, FRONT_MAC, ROUTER_MAC
from tests.support.program import ALL_FEATURES

VIP, DSR_VIP = "203.0.113.10", "203.0.113.13"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "game", "address": VIP, "protocol": "udp", "port": "27000-27063"},
    {"name": "direct", "address": DSR_VIP, "protocol": "tcp", "port": 443, "forwarding": "dsr"},
]
WEB, DNS, MAC = "10.0.0.1", "10.0.0.2", "52:54:00:00:00:01"
BACKENDS = [
    {"service": "web", "address": WEB, "port": 8080, "mac": MAC},
    {"service": "dns", "address": DNS, "mac": MAC},
    {"service": "game", "address": "10.0.0.3", "mac": MAC},
    {"service": "direct", "address": "10.0.0.4", "mac": MAC},
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS, ALL_FEATURES - {"filters"})


@pytest.fixture(scope="module")
def empty(make_rig):
    return make_rig([], [])


ETHERNET = Ether(src=ROUTER_MAC, dst=FRONT_MAC)
OTHER = "203.0.113.99"
REQUEST = tcp(CLIENT, CLIENT_PORT, VIP, 80)
ELSEWHERE = tcp(CLIENT, CLIENT_PORT, OTHER, 80)

NOT_OURS = [
    passed("another address", tcp(CLIENT, CLIENT_PORT, "203.0.113.12", 80), "not_ours"),
    passed("the address in the other byte order", tcp(CLIENT, CLIENT_PORT, "10.113.0.203", 80), "not_ours"),
    passed("the balancer itself", tcp(CLIENT, CLIENT_PORT, FRONT_ADDRESS, 22), "not_ours"),
    passed("a backend addressed directly", tcp(CLIENT, CLIENT_PORT, WEB, 8080), "not_ours"),
    passed("from the VIP", tcp(VIP, 80, CLIENT, CLIENT_PORT), "not_ours"),
    *(
        passed(f"IP protocol {number}", with_bytes(ELSEWHERE, 23, bytes((number,))), "not_ours")
        for number in (0, 2, 4, 41, 50, 51, 58, 89, 112, 132, 136, 255)
    ),
    passed(
        "GRE", bytes(ETHERNET / IP(src=CLIENT, dst=OTHER) / GRE() / IP(src=CLIENT, dst=VIP) / TCP(dport=80)), "not_ours"
    ),
    passed(
        "IPv4 in IPv4",
        bytes(ETHERNET / IP(src=CLIENT, dst=OTHER) / IP(src=CLIENT, dst=VIP) / TCP(dport=80)),
        "not_ours",
    ),
]

# For a VIP, but no service: the kernel would send it back.
UNSERVED = [
    dropped("another TCP port of a VIP", tcp(CLIENT, CLIENT_PORT, VIP, 81), "vip_unserved"),
    dropped("port 0", tcp(CLIENT, CLIENT_PORT, VIP, 0), "vip_unserved"),
    dropped("a TCP service's port over UDP", udp(CLIENT, CLIENT_PORT, VIP, 80), "vip_unserved"),
    dropped("a UDP service's port over TCP", tcp(CLIENT, CLIENT_PORT, VIP, 53), "vip_unserved"),
    dropped("below a range", udp(CLIENT, CLIENT_PORT, VIP, 26999), "vip_unserved"),
    dropped("above a range", udp(CLIENT, CLIENT_PORT, VIP, 27064), "vip_unserved"),
    dropped("the port in the other byte order", tcp(CLIENT, CLIENT_PORT, VIP, 80 << 8), "vip_unserved"),
    dropped("a service's port of another VIP", tcp(CLIENT, CLIENT_PORT, DSR_VIP, 80), "vip_unserved"),
    dropped("behind a tag", bytes(ETHERNET / Dot1Q() / IP(src=CLIENT, dst=VIP) / TCP(dport=81)), "vip_unserved"),
    dropped("first fragment", udp(CLIENT, CLIENT_PORT, VIP, 9999, flags="MF"), "vip_unserved"),
    dropped("later fragment", udp(CLIENT, CLIENT_PORT, VIP, 53, frag=100), "fragment"),
    dropped("with TTL 1", tcp(CLIENT, CLIENT_PORT, VIP, 81, ttl=1), "vip_unserved"),
    *(
        dropped(f"IP protocol {number}", with_bytes(REQUEST, 23, bytes((number,))), "vip_unserved")
        for number in (0, 2, 4, 41, 50, 51, 58, 89, 112, 132, 136, 255)
    ),
    dropped(
        "GRE to the VIP",
        bytes(ETHERNET / IP(src=CLIENT, dst=VIP) / GRE() / IP(src=CLIENT, dst=VIP) / TCP(dport=80)),
        "vip_unserved",
    ),
    *(dropped(f"ICMP type {type}", icmp(CLIENT, VIP, type=type), "vip_unserved") for type in (0, 3, 5, 11, 13, 17)),
    dropped("total length without the last byte of TCP", tcp(CLIENT, CLIENT_PORT, VIP, 80, len=39), "vip_unserved"),
    dropped("from another VIP", tcp(DSR_VIP, CLIENT_PORT, VIP, 81), "vip_unserved"),
]

NOT_IP = [
    passed("ARP", bytes(ETHERNET / ARP(op=1, psrc=CLIENT, pdst=VIP)), "not_ip"),
    passed("ARP, padded", padded(bytes(ETHERNET / ARP(op=1, psrc=CLIENT, pdst=VIP))), "not_ip"),
    passed("IPv6 TCP", bytes(ETHERNET / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(dport=80)), "not_ours"),
    passed(
        "IPv6 neighbour solicitation",
        bytes(ETHERNET / IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NS(tgt="2001:db8::2")),
        "not_ours",
    ),
    passed(
        "three tags", bytes(ETHERNET / Dot1Q() / Dot1Q() / Dot1Q() / IP(src=CLIENT, dst=VIP) / TCP(dport=80)), "not_ip"
    ),
    passed("LLDP", bytes(Ether(src=ROUTER_MAC, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(bytes(60))), "not_ip"),
    passed("spanning tree", padded(bytes(Dot3(src=ROUTER_MAC, dst="01:80:c2:00:00:00") / LLC() / STP())), "not_ip"),
    passed("ethertype in the other byte order", with_bytes(REQUEST, 12, b"\x00\x08"), "not_ip"),
    passed("MPLS", with_bytes(REQUEST, 12, b"\x88\x47"), "not_ip"),
]

MALFORMED = [
    *(
        passed(f"IP header of {words} words", with_bytes(ELSEWHERE, 14, bytes((0x40 | words,))), "malformed")
        for words in range(5)
    ),
    *(
        passed(f"IP version {version}", with_bytes(ELSEWHERE, 14, bytes((version << 4 | 5,))), "malformed")
        for version in (0, 1, 3, 5, 6, 15)
    ),
    passed("IP version 6 with options' length", with_bytes(ELSEWHERE, 14, b"\x66"), "malformed"),
    passed("total length beyond the frame", tcp(CLIENT, CLIENT_PORT, OTHER, 80, len=48), "malformed"),
    passed("largest total length", tcp(CLIENT, CLIENT_PORT, OTHER, 80, len=65535), "malformed"),
    passed("total length 0", tcp(CLIENT, CLIENT_PORT, OTHER, 80, len=0), "malformed"),
    passed("total length of the IP header only", tcp(CLIENT, CLIENT_PORT, OTHER, 80, len=20), "malformed"),
    passed("total length without the last byte of TCP", tcp(CLIENT, CLIENT_PORT, OTHER, 80, len=39), "malformed"),
    passed("total length without the last byte of UDP", udp(CLIENT, CLIENT_PORT, OTHER, 53, len=27), "malformed"),
    passed("UDP header cut off", udp(CLIENT, CLIENT_PORT, OTHER, 53, b"")[:41], "malformed"),
    passed("TCP header cut off", tcp(CLIENT, CLIENT_PORT, OTHER, 80, b"")[:53], "malformed"),
    passed("ICMP header cut off", icmp(CLIENT, OTHER, b"")[:41], "malformed"),
]

UNTOUCHED = [*NOT_OURS, *UNSERVED, *NOT_IP, *MALFORMED]


@pytest.mark.parametrize("case", UNTOUCHED, ids=str)
def test_untouched(rig, case):
    rig.check(case)


def test_exact_total_length_is_enough(rig):
    """The neighbours of the malformed lengths."""
    for frame in (tcp(CLIENT, CLIENT_PORT, VIP, 80, b""), udp(CLIENT, CLIENT_PORT, VIP, 53, b"")):
        rig.send(frame)
        assert rig.model.last_reason is None


@pytest.mark.parametrize(
    "frame",
    [REQUEST, udp(CLIENT, CLIENT_PORT, VIP, 53), icmp(CLIENT, VIP), bytes(ETHERNET / ARP(pdst=VIP))],
    ids=["tcp", "udp", "icmp", "arp"],
)
def test_runts_of_every_length(rig, frame):
    """From 14 bytes on, which is the least that a network card or the kernel hands to a program."""
    for size in range(14, len(frame) + 1):
        rig.send(frame[:size])
    rig.check_counters()


def test_total_length_shorter_than_the_frame_is_padding(rig):
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80, b"")
    expected = tcp(CLIENT, CLIENT_PORT, WEB, 8080, b"", macs=(FRONT_MAC, MAC), ttl=63)
    for size in (0, 1, 6, 100, 1000):
        rig.check(sent("", frame + bytes(size), expected + bytes(size)))


@pytest.mark.parametrize(
    "case",
    [
        passed("TCP", REQUEST, "not_ours"),
        passed("UDP", udp(CLIENT, CLIENT_PORT, VIP, 53), "not_ours"),
        passed("echo request", icmp(CLIENT, VIP), "not_ours"),
        passed("from a backend", tcp(WEB, 8080, CLIENT, CLIENT_PORT), "not_ours"),
        passed("zero addresses and ports", tcp("0.0.0.0", 0, "0.0.0.0", 0), "not_ours"),
        passed("ARP", bytes(ETHERNET / ARP(pdst=VIP)), "not_ip"),
    ],
    ids=str,
)
def test_program_without_services_passes_everything(empty, case):
    empty.check(case)


def test_program_without_an_endpoint_table_passes_everything(make_rig):
    """Between loading the program and the first configuration there is none."""
    rig = make_rig([], [])
    bpf.map_delete(rig.program.maps["endpoints"], layout.index(0))
    rig.check(passed("", REQUEST, "not_ours"))
    rig.check(passed("", icmp(CLIENT, VIP), "not_ours"))
