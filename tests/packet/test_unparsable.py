# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody gets past filters with packets that the program cannot read, but the kernel or a backend may."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Packet, Raw

from tests.packet.frames import dropped, passed
from tests.packet.network import FRONT_MAC, ROUTER_MAC, mac
from tests.support.program import ALL_FEATURES

VIP, VIP6 = "203.0.113.10", "2001:db8:1::10"
SERVICES = [
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "dns6", "address": VIP6, "protocol": "udp", "port": 53},
]
FORBIDDEN, FORBIDDEN6 = "198.51.100.66", "2001:db8:2::66"
EXEMPT, EXEMPT6 = "198.51.100.77", "2001:db8:2::77"
STRANGER, STRANGER6 = "198.51.100.88", "2001:db8:2::88"
FILTERS = [
    {"prefix": FORBIDDEN, "action": "drop"},
    {"prefix": FORBIDDEN6, "action": "drop"},
    {"prefix": EXEMPT, "action": "pass"},
    {"prefix": EXEMPT6, "action": "pass"},
]
TAG = b"\x81\x00\x00\x07"
ANYWHERE = "192.0.2.99"


def behind(tags: int, packet: Packet, **bytes_at: int) -> bytes:
    """A frame with so many tags; then bytes of the packet are written over, by their place."""
    data = bytearray(bytes(packet))
    for place, value in bytes_at.items():
        data[int(place.removeprefix("at_"))] = value
    kind = b"\x08\x00" if data[:1] and isinstance(packet, IP) else b"\x86\xdd"
    return mac(FRONT_MAC) + mac(ROUTER_MAC) + TAG * tags + kind + bytes(data)


def four(source: str, tags: int = 0) -> dict[str, bytes]:
    """IPv4 packets that are not as they should be."""
    datagram = IP(src=source, dst=VIP) / UDP(sport=4000, dport=53) / Raw(bytes(40))
    segment = TCP(sport=4000, dport=80)
    return {
        "header of four words": behind(tags, datagram, at_0=0x44),
        "total length below the header's": behind(tags, datagram, at_2=0, at_3=19),
        "UDP of which nothing is there": behind(tags, datagram, at_2=0, at_3=20),
        "total length beyond the frame": behind(tags, datagram, at_2=1, at_3=0),
        "TCP first fragment of 16 bytes": behind(
            tags, IP(src=source, dst=VIP, flags="MF", proto=6) / Raw(bytes(segment)[:16])
        ),
        "TCP of 19 bytes": behind(tags, IP(src=source, dst=VIP, proto=6) / Raw(bytes(segment)[:19])),
        "ICMP of 7 bytes": behind(tags, IP(src=source, dst=ANYWHERE, proto=1) / Raw(bytes(7))),
        "options to the end of the frame": behind(tags, IP(src=source, dst=VIP, proto=17) / Raw(bytes(20)), at_0=0x4A),
    }


def six(source: str, tags: int = 0) -> dict[str, bytes]:
    header = IPv6(src=source, dst=VIP6)
    datagram = header / UDP(sport=4000, dport=53) / Raw(bytes(40))
    padding = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    many = header
    for _number in range(7):
        many = many / padding
    first = IPv6ExtHdrFragment(offset=0, m=1, id=7, nh=6)
    return {
        "UDP of which nothing is there": behind(tags, datagram, at_4=0, at_5=0),
        "payload beyond the frame": behind(tags, datagram, at_4=1, at_5=0),
        "TCP first fragment of 16 bytes": behind(tags, header / first / Raw(bytes(TCP())[:16])),
        "options cut off": behind(tags, IPv6(src=source, dst=VIP6, nh=60) / Raw(bytes(7))),
        "seven headers": behind(tags, many / UDP(sport=4000, dport=53)),
        "routing with segments left": behind(
            tags, header / IPv6ExtHdrRouting(segleft=1, addresses=["2001:db8::9"]) / UDP(sport=4000, dport=53)
        ),
        "hop-by-hop options, then nothing": behind(
            tags, header / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))], nh=17)
        ),
    }


def unreadable() -> dict[str, bytes]:
    """Frames whose source address cannot be read."""
    datagram = IP(src=FORBIDDEN, dst=VIP) / UDP(sport=4000, dport=53) / Raw(bytes(40))
    datagram6 = IPv6(src=FORBIDDEN6, dst=VIP6) / UDP(sport=4000, dport=53) / Raw(bytes(40))
    return {
        **{f"version {version}": behind(0, datagram, at_0=version << 4 | 5) for version in (0, 5, 6, 15)},
        **{f"IPv6, version {version}": behind(0, datagram6, at_0=version << 4) for version in (0, 4, 5, 15)},
        "IPv6 header cut off": behind(0, datagram6)[: 14 + 39],
        "three tags": behind(3, datagram),
        "three tags, IPv6": behind(3, datagram6),
    }


def by_sources(*sources: tuple[str, str]) -> list[tuple[str, bytes]]:
    return [
        (f"{description}, {tags} tags", frame)
        for source, source6 in sources
        for tags in (0, 1, 2)
        for description, frame in [*four(source, tags).items(), *six(source6, tags).items()]
    ]


@pytest.fixture(scope="module")
def filtering(make_rig):
    return make_rig(SERVICES, [], filters=FILTERS)


@pytest.fixture(scope="module")
def open_for_all(make_rig):
    return make_rig(SERVICES, [], ALL_FEATURES - {"filters"})


@pytest.mark.parametrize("case", by_sources((FORBIDDEN, FORBIDDEN6)), ids=lambda case: case[0])
def test_of_a_forbidden_source_is_filtered(filtering, case):
    filtering.check(dropped(*case, "filtered"))


@pytest.mark.parametrize("case", by_sources((EXEMPT, EXEMPT6), (STRANGER, STRANGER6)), ids=lambda case: case[0])
def test_unparsable_packets_are_dropped_with_their_reason(filtering, case):
    long = any(part in case[0] for part in ("seven headers", "segments left"))
    filtering.check(dropped(*case, "extension_headers" if long else "malformed"))


@pytest.mark.parametrize("case", unreadable().items(), ids=lambda case: case[0])
def test_without_a_source_is_dropped(filtering, case):
    filtering.check(dropped(*case, "malformed"))


def test_other_frames_pass_filters(filtering):
    """A filter judges IP, and there is nothing else that tags could hide."""
    for kind in (b"\x08\x06", b"\x88\xcc", b"\x88\x47", struct.pack(">H", 60)):
        frame = mac(FRONT_MAC) + mac(ROUTER_MAC) + TAG * 2 + kind + bytes(60)
        filtering.check(passed("", frame, "not_ip"))


def test_unparsable_packets_pass_without_filters(open_for_all):
    """It drops what it cannot read, and counts it."""
    for description, frame in unreadable().items():
        open_for_all.check(passed(description, frame, "not_ip" if "tags" in description else "malformed"))
