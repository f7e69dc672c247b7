# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources that a router does not forward for (RFC 1812, 5.3.7), and that a host does not answer (RFC 1122, 3.2.1.3)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.packet.frames import CLIENT, Case, dropped, icmp, icmp_error, passed, quoted, tcp, udp
from tests.packet.network import FRONT_MAC, ROUTER_MAC

VIP, DSR_VIP, NAT_VIP, SOURCE = "203.0.113.10", "203.0.113.11", "203.0.113.12", "10.0.0.250"
VIP6, SOURCE6 = "2001:db8:1::10", "fd00::fa"
SERVICES = [
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "echo", "address": DSR_VIP, "protocol": "udp", "port": 7, "forwarding": "dsr"},
    {"name": "nat", "address": NAT_VIP, "protocol": "udp", "port": 53, "forwarding": "full_nat", "source": SOURCE},
    {"name": "dns6", "address": VIP6, "protocol": "udp", "port": 53},
    {"name": "nat6", "address": VIP6, "protocol": "udp", "port": 54, "forwarding": "full_nat", "source": SOURCE6},
]
BACKENDS = [
    *({"service": name, "address": "10.0.0.1"} for name in ("dns", "echo", "nat")),
    *({"service": name, "address": "fd00::1"} for name in ("dns6", "nat6")),
]
# The first and the last address of each class, and what balancers send from themselves.
REFUSED = [
    *("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "169.254.0.0", "169.254.255.255"),
    *("192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.0.255", "224.0.0.0", "239.255.255.255", "240.0.0.0"),
    *("255.255.255.255", VIP, DSR_VIP, NAT_VIP, SOURCE),
]
REFUSED6 = [
    *("::", "::1", "::7f00:1", "::ffff:ffff", "::ffff:0.0.0.0", "::ffff:198.51.100.7", "::ffff:255.255.255.255"),
    *("fe80::", "fe80::1", "febf:ffff::1", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    *("2001:10::", "2001:1f:ffff::1", VIP6, SOURCE6),
]
# Of those, what routers may send ICMP errors from.
ERRORS_ONLY = [
    *("169.254.0.0", "169.254.255.255", "192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.0.255"),
    *("fe80::", "fe80::1", "febf:ffff::1", "2001:10::", "2001:1f:ffff::1"),
]
# Their neighbours, and prefixes that RFC 6890 has as forwardable.
TAKEN = [
    *("1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "191.255.255.255", "192.0.0.0"),
    *("192.0.0.7", "192.0.0.9", "192.0.0.10", "192.0.1.0", "223.255.255.255", "10.1.2.3", "100.64.0.1", "172.16.9.9"),
    *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.9"),
]
TAKEN6 = [
    *("::1:0:0", "::fffe:0:1", "::1:ffff:0:1", "64:ff9b::1", "100::1", "2001::1", "2001:f:ffff::1", "2001:20::1"),
    *("2002:a00:1::1", "fc00::1", "fe7f::1", "fec0::1", "feff::1"),
]
ETHERNET = Ether(src=ROUTER_MAC, dst=FRONT_MAC)


def udp6(source: str, port: int = 53) -> bytes:
    return bytes(ETHERNET / IPv6(src=source, dst=VIP6) / UDP(sport=7, dport=port) / Raw(b"x" * 20))


def echo6(source: str) -> bytes:
    return bytes(ETHERNET / IPv6(src=source, dst=VIP6) / ICMPv6EchoRequest(data=b"x" * 20))


def error_from(source: str) -> bytes:
    vip, client = (VIP6, "2001:db8:2::7") if ":" in source else (VIP, CLIENT)
    return icmp_error(source, vip, quoted(vip, client, UDP(sport=53, dport=7) / Raw(b"x" * 20)))


def everything_from(source: str) -> list[bytes]:
    if ":" in source:
        return [udp6(source), udp6(source, 54), echo6(source)]
    return [
        *(udp(source, 7, vip, port) for vip, port in ((VIP, 53), (DSR_VIP, 7), (NAT_VIP, 53))),
        *(icmp(source, vip) for vip in (VIP, DSR_VIP)),
        bytes(ETHERNET / Dot1Q(vlan=7) / IP(src=source, dst=VIP) / UDP(sport=7, dport=53)),
        udp(source, 7, VIP, 53, flags="MF", id=9),
    ]


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(request, make_rig):
    return make_rig(SERVICES, BACKENDS, tc=request.param == "tc")


@pytest.mark.parametrize("source", [*REFUSED, *REFUSED6])
def test_martian_sources_are_dropped(rig, source):
    for frame in everything_from(source):
        rig.check(dropped("", frame, "martian"))
    if source not in ERRORS_ONLY:
        rig.check(dropped("", error_from(source), "martian"))


@pytest.mark.parametrize("source", ERRORS_ONLY)
def test_icmp_errors_from_unforwardable_sources_are_forwarded(rig, source):
    """For example 192.0.0.8, the IPv4 dummy address of RFC 7600."""
    rig.send(error_from(source))
    assert rig.model.last_reason is None
    rig.check_counters()


@pytest.mark.parametrize("source", [*TAKEN, *TAKEN6])
def test_neighbouring_sources_are_forwarded(rig, source):
    for frame in [*everything_from(source), error_from(source)]:
        rig.send(frame)
        assert rig.model.last_reason != ("martian", "drop")
    rig.check_counters()


def not_for_a_service() -> list[Case]:
    """A backend of dsr that answers through the balancer does so in the VIP's name."""
    return [
        passed("a reply of dsr", udp(DSR_VIP, 7, CLIENT, 40000), "not_ours"),
        passed("multicast", udp("0.0.0.0", 68, "255.255.255.255", 67), "not_ours"),
        passed("link-local", tcp("169.254.1.1", 7, "169.254.1.2", 179), "not_ours"),
    ]


@pytest.mark.parametrize("case", not_for_a_service(), ids=str)
def test_packets_that_match_no_service_are_not_checked(rig, case):
    rig.check(case)
