# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dsr: only the Ethernet addresses change, the backend answers the client itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.packet.frames import BUILDERS, CLIENT, CLIENT_PORT, Case, padded, sent, tcp, udp
from tests.packet.network import FRONT_MAC, neighbour_mac

VIP = "203.0.113.13"
SERVICES = [
    {"name": "direct", "address": VIP, "protocol": "tcp", "port": 443, "forwarding": "dsr"},
    {"name": "resolved", "address": VIP, "protocol": "tcp", "port": 444, "forwarding": "dsr"},
    {"name": "media", "address": VIP, "protocol": "udp", "port": "6000-6999", "forwarding": "dsr"},
]
MAC, MEDIA_MAC = "52:54:00:00:00:01", "52:54:00:00:00:03"
BACKENDS = [
    {"service": "direct", "address": "10.0.0.1", "mac": MAC},
    {"service": "resolved", "address": "10.0.0.2"},
    {"service": "media", "address": "10.0.0.3", "mac": MEDIA_MAC},
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


def dsr(description: str, protocol: str, port: int, mac: str, payload: bytes = b"payload", **fields: Any) -> Case:
    build = BUILDERS[protocol]
    return sent(
        description,
        build(CLIENT, CLIENT_PORT, VIP, port, payload, **fields),
        build(CLIENT, CLIENT_PORT, VIP, port, payload, macs=(FRONT_MAC, mac), **fields),
    )


CASES = [
    dsr("TCP, address from the inventory", "tcp", 443, MAC),
    dsr("TCP, address from the kernel", "tcp", 444, neighbour_mac(0, 2)),
    *(dsr(f"UDP port {port} of a range", "udp", port, MEDIA_MAC) for port in (6000, 6500, 6999)),
    dsr("UDP without a checksum", "udp", 6000, MEDIA_MAC, checksum=0),
    dsr("UDP with a wrong checksum", "udp", 6000, MEDIA_MAC, checksum=0x1234),
    dsr("IP header with a wrong checksum", "tcp", 443, MAC, chksum=0x1234),
    *(dsr(f"TTL {ttl}", "tcp", 443, MAC, ttl=ttl) for ttl in (0, 1, 2, 64, 255)),
    dsr("TTL 1, address from the kernel", "tcp", 444, neighbour_mac(0, 2), ttl=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_ethernet_addresses_change(rig, case):
    rig.check(case)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 1000, 1459])
def test_payload_of_any_size(rig, size):
    rig.check(dsr("", "tcp", 443, MAC, bytes(size)))


def test_padding_stays_as_it_is(rig):
    rig.check(
        sent(
            "",
            padded(udp(CLIENT, CLIENT_PORT, VIP, 6000, b"x")),
            padded(udp(CLIENT, CLIENT_PORT, VIP, 6000, b"x", macs=(FRONT_MAC, MEDIA_MAC))),
        )
    )


def test_everything_behind_the_ethernet_addresses_is_the_same(rig):
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 443, bytes(range(256)))
    assert rig.send(frame)[1][12:] == frame[12:]
