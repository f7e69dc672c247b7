# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ICMP error about a backend's packet goes to that backend, whatever headers the quoted packet has."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)

from tests.packet.frames import CLIENT, CLIENT_PORT, ERRORS, Case, dropped, icmp_error, padded, quoted, sent, udp
from tests.packet.network import FRONT_MAC, neighbour_mac

VIP, VIP6, CLIENT6 = "203.0.113.10", "2001:db8:1::10", "2001:db8:2::7"
HOP, HOP6 = "192.0.2.1", "2001:db8:9::1"
NAT = "10.0.0.250"
SERVICES = [
    {"name": "web6", "address": VIP6, "protocol": "tcp", "port": 80},
    {"name": "dns6", "address": VIP6, "protocol": "udp", "port": 53},
    {"name": "direct6", "address": VIP6, "protocol": "udp", "port": 6000, "forwarding": "dsr"},
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "nat", "address": VIP, "protocol": "udp", "port": 54, "forwarding": "full_nat", "source": NAT},
]
BACKENDS = [
    {"service": "web6", "address": "fd00::5", "port": 8080},
    {"service": "dns6", "address": "fd00::5", "port": 5353},
    {"service": "direct6", "address": "fd00::5"},
    {"service": "web", "address": "10.0.0.5", "port": 8080},
    {"service": "dns", "address": "10.0.0.5"},
    {"service": "nat", "address": "10.0.0.5", "port": 5300},
]
TO_BACKEND = (FRONT_MAC, neighbour_mac(0, 5))
FRAGMENT = IPv6ExtHdrFragment(offset=0, m=1, id=7)
HEADERS: dict[str, tuple[Any, ...]] = {
    "no extension header": (),
    "first fragment": (FRAGMENT,),
    "atomic fragment": (IPv6ExtHdrFragment(offset=0, m=0, id=7),),
    "hop-by-hop options": (IPv6ExtHdrHopByHop(),),
    "destination options": (IPv6ExtHdrDestOpt(),),
    "routing header, no segments left": (IPv6ExtHdrRouting(segleft=0),),
    "options in front of a fragment header": (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), FRAGMENT),
    "six headers": (IPv6ExtHdrDestOpt(),) * 6,
}


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(make_rig, request):
    return make_rig(SERVICES, BACKENDS, tc=request.param == "tc")


def error6(description: str, transport: Any, translated: Any, kind: str = "too big", **quote: Any) -> Case:
    """The error as it comes from a router, and with the backend's addresses."""
    before = quoted(VIP6, CLIENT6, transport, **quote)
    after = quoted("fd00::5", CLIENT6, translated, **quote)
    return sent(
        description,
        icmp_error(HOP6, VIP6, before, kind),
        icmp_error(HOP6, "fd00::5", after, kind, macs=TO_BACKEND, hlim=63),
    )


def tcp6(description: str, kind: str = "too big", **quote: Any) -> Case:
    transport = TCP(sport=80, dport=CLIENT_PORT, seq=77)
    return error6(description, transport, TCP(sport=8080, dport=CLIENT_PORT, seq=77), kind, **quote)


def udp6(description: str, kind: str = "too big", **quote: Any) -> Case:
    return error6(description, UDP(sport=53, dport=CLIENT_PORT), UDP(sport=5353, dport=CLIENT_PORT), kind, **quote)


TRANSLATED = [
    *(tcp6(f"TCP, {name}", layers=layers) for name, layers in HEADERS.items()),
    *(udp6(f"UDP, {name}", layers=layers) for name, layers in HEADERS.items()),
    *(udp6(f"{kind}, first fragment", kind, layers=(FRAGMENT,)) for kind in ERRORS),
    udp6("whole packet quoted", layers=(FRAGMENT,), size=None),
    *(tcp6(f"{size or 'all'} bytes of TCP, first fragment", layers=(FRAGMENT,), size=size) for size in (18, 20, None)),
]


@pytest.mark.parametrize("case", TRANSLATED, ids=str)
def test_translated_over_ipv6(rig, case):
    rig.check(case)


@pytest.mark.parametrize("name", HEADERS)
def test_dsr_gets_the_error_as_it_is(rig, name):
    quote = quoted(VIP6, CLIENT6, UDP(sport=6000, dport=CLIENT_PORT), layers=HEADERS[name])
    rig.check(sent("", icmp_error(HOP6, VIP6, quote), icmp_error(HOP6, VIP6, quote, macs=TO_BACKEND)))


def test_error_with_extension_headers_of_its_own(rig):
    layers = (IPv6ExtHdrDestOpt(),)
    before = quoted(VIP6, CLIENT6, UDP(sport=53, dport=CLIENT_PORT), layers=(FRAGMENT,))
    after = quoted("fd00::5", CLIENT6, UDP(sport=5353, dport=CLIENT_PORT), layers=(FRAGMENT,))
    frame = icmp_error(HOP6, VIP6, before, layers=layers)
    rig.check(sent("", frame, icmp_error(HOP6, "fd00::5", after, macs=TO_BACKEND, layers=layers, hlim=63)))


def of_no_flow6(description: str, quote: bytes) -> Case:
    return dropped(description, icmp_error(HOP6, VIP6, quote), "vip_unserved")


def web_quote(*layers: Any, size: int = 8) -> bytes:
    return quoted(VIP6, CLIENT6, TCP(sport=80, dport=CLIENT_PORT), size=size, layers=layers)


OF_NO_FLOW = [
    of_no_flow6("later fragment", web_quote(IPv6ExtHdrFragment(offset=100, m=1, id=7))),
    of_no_flow6("last fragment", web_quote(IPv6ExtHdrFragment(offset=1, m=0, id=7))),
    of_no_flow6("segments left", web_quote(IPv6ExtHdrRouting(segleft=1, addresses=[CLIENT6]))),
    of_no_flow6("seven headers", web_quote(*HEADERS["six headers"], FRAGMENT)),
    of_no_flow6("port cut off", web_quote(FRAGMENT, size=3)),
    of_no_flow6("less than 8 bytes of TCP", web_quote(FRAGMENT, size=7)),
    of_no_flow6("fragment header cut off", web_quote(FRAGMENT)[:44]),
    of_no_flow6("TCP cut off", web_quote(FRAGMENT)[:48]),
    of_no_flow6("options longer than the quote", web_quote(IPv6ExtHdrDestOpt(len=255))),
    of_no_flow6("no service", quoted(VIP6, CLIENT6, TCP(sport=81, dport=CLIENT_PORT), layers=(FRAGMENT,))),
    of_no_flow6("another source than the VIP", quoted("2001:db8:1::11", CLIENT6, TCP(sport=80), layers=(FRAGMENT,))),
    dropped("ports in the padding", padded(icmp_error(HOP6, VIP6, web_quote(FRAGMENT)[:48]), 200), "vip_unserved"),
]


@pytest.mark.parametrize("case", OF_NO_FLOW, ids=str)
def test_of_no_flow(rig, case):
    rig.check(case)


OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "router alert": {"options": [IPOption(b"\x94\x04\0\0")]},
    "40 bytes of options": {"options": [IPOption(b"\x01")] * 40},
    "first fragment": {"flags": "MF", "id": 7},
}


@pytest.mark.parametrize("checksum", [None, 0, 0x1234])
@pytest.mark.parametrize("name", OPTIONS)
def test_ipv4_quotes_with_options(rig, name, checksum):
    """Over IPv4 a UDP checksum of 0 stays 0, and a wrong one stays as wrong."""
    udp_layer = UDP(sport=53, dport=CLIENT_PORT, chksum=checksum)
    before = quoted(VIP, CLIENT, udp_layer, **OPTIONS[name])
    expected = udp_layer.copy()
    if checksum:
        # VIP and backend by RFC 1624: HC' = ~(~HC + ~m + m').
        total = ~checksum & 0xFFFF
        for old, new in ((0xCB00, 0x0A00), (0x710A, 0x0005)):
            total += (~old & 0xFFFF) + new
        expected.chksum = ~(total % 0xFFFF) & 0xFFFF
    after = quoted("10.0.0.5", CLIENT, expected, **OPTIONS[name])
    frame = icmp_error(HOP, VIP, before)
    rig.check(sent("", frame, icmp_error(HOP, "10.0.0.5", after, macs=TO_BACKEND, ttl=63)))


@pytest.mark.parametrize("size", [8, 16, 17, 18, 20, None])
def test_ipv4_quotes_of_tcp(rig, size):
    """Its checksum changes if it is there, and is the checksum of the packet that the backend has sent."""
    before = quoted(VIP, CLIENT, TCP(sport=80, dport=CLIENT_PORT), size=size)
    after = quoted("10.0.0.5", CLIENT, TCP(sport=8080, dport=CLIENT_PORT), size=size)
    if size == 17:
        # Half of it is no checksum.
        after = after[:-1] + before[-1:]
    frame = padded(icmp_error(HOP, VIP, before), 100)
    expected = padded(icmp_error(HOP, "10.0.0.5", after, macs=TO_BACKEND, ttl=63), 100)
    rig.check(sent("", frame, expected))


@pytest.mark.parametrize("name", OPTIONS)
def test_ipv4_quotes_of_full_nat(rig, name):
    _verdict, request = rig.send(udp(CLIENT, CLIENT_PORT, VIP, 54))
    port = int.from_bytes(request[34:36], "big")
    before = quoted(VIP, CLIENT, UDP(sport=54, dport=CLIENT_PORT), **OPTIONS[name])
    after = quoted("10.0.0.5", NAT, UDP(sport=5300, dport=port), **OPTIONS[name])
    rig.check(sent("", icmp_error(HOP, VIP, before), icmp_error(HOP, "10.0.0.5", after, macs=TO_BACKEND, ttl=63)))
