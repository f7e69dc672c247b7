# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dnat: a packet for a service gets its backend's address, port and Ethernet address."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.packet.frames import BUILDERS, CLIENT, CLIENT_PORT, Case, padded, passed, sent, tcp, udp, with_bytes
from tests.packet.network import FRONT_MAC

VIP = "203.0.113.10"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "sip", "address": VIP, "protocol": "udp", "port": 5060},
    {"name": "game", "address": VIP, "protocol": "udp", "port": "27000-27063"},
    {"name": "ftp", "address": VIP, "protocol": "tcp", "port": "65000-65535"},
]
WEB, DNS, SIP, GAME, FTP = (f"10.0.0.{host}" for host in range(1, 6))
WEB_MAC, DNS_MAC, SIP_MAC, GAME_MAC, FTP_MAC = (f"52:54:00:00:00:{host:02x}" for host in range(1, 6))
BACKENDS = [
    {"service": "web", "address": WEB, "port": 8080, "mac": WEB_MAC},
    {"service": "dns", "address": DNS, "mac": DNS_MAC},
    {"service": "sip", "address": SIP, "port": 5070, "mac": SIP_MAC},
    {"service": "game", "address": GAME, "mac": GAME_MAC},
    {"service": "ftp", "address": FTP, "mac": FTP_MAC},
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


def dnat(
    description: str,
    protocol: str,
    port: int,
    backend: str,
    backend_port: int,
    mac: str,
    payload: bytes = b"payload",
    **fields: Any,
) -> Case:
    """A packet of the client's and the same one as the balancer sends it on, one hop further."""
    build = BUILDERS[protocol]
    after = {**fields, "ttl": fields.get("ttl", 64) - 1}
    return sent(
        description,
        build(CLIENT, CLIENT_PORT, VIP, port, payload, **fields),
        build(CLIENT, CLIENT_PORT, backend, backend_port, payload, macs=(FRONT_MAC, mac), **after),
    )


def dnat_web(description: str, payload: bytes = b"payload", **fields: Any) -> Case:
    return dnat(description, "tcp", 80, WEB, 8080, WEB_MAC, payload, **fields)


def dnat_sip(description: str, payload: bytes = b"payload", **fields: Any) -> Case:
    return dnat(description, "udp", 5060, SIP, 5070, SIP_MAC, payload, **fields)


DESTINATIONS = [
    dnat_web("TCP to a backend on another port"),
    dnat_sip("UDP to a backend on another port"),
    dnat("UDP to a backend on the same port", "udp", 53, DNS, 53, DNS_MAC),
    *(dnat(f"UDP port {port} of a range", "udp", port, GAME, port, GAME_MAC) for port in (27000, 27031, 27063)),
    *(dnat(f"TCP port {port} of a range", "tcp", port, FTP, port, FTP_MAC) for port in (65000, 65534, 65535)),
]


@pytest.mark.parametrize("case", DESTINATIONS, ids=str)
def test_destination(rig, case):
    rig.check(case)


def test_every_port_of_a_range(rig):
    for port in range(27000, 27064):
        rig.check(dnat("", "udp", port, GAME, port, GAME_MAC))


RANDOM_BYTES = random.Random(1).randbytes(1460)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 17, 18, 19, 100, 101, 1399, 1459, 1460])
def test_payload_of_any_size(rig, size):
    rig.check(dnat_web("", RANDOM_BYTES[:size]))
    rig.check(dnat_sip("", RANDOM_BYTES[:size]))


@pytest.mark.parametrize("size", range(7))
def test_padding_stays_as_it_is(rig, size):
    for case in (dnat_web("", RANDOM_BYTES[:size]), dnat_sip("", RANDOM_BYTES[:size])):
        assert case.expected is not None
        rig.check(sent("", padded(case.frame), padded(case.expected)))


HEADERS = [
    dnat_web("DF", flags="DF"),
    dnat_web("reserved flag", flags="evil"),
    dnat_web("type of service", tos=0xB8),
    dnat_web("identification", id=0xFFFF),
    dnat_web("largest TTL", ttl=255),
    dnat_web("smallest TTL that can be forwarded", ttl=2),
    dnat_web("TCP options", options=[("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]),
    *(dnat_web(f"TCP flags {flags}", tcp_flags=flags) for flags in ("S", "SA", "A", "PA", "FA", "R", "RA", "UPEC", "")),
    dnat_sip("UDP without a checksum", checksum=0),
    dnat_sip("UDP without a checksum, odd payload", b"odd", checksum=0),
]


@pytest.mark.parametrize("case", HEADERS, ids=str)
def test_header_fields(rig, case):
    rig.check(case)


def test_udp_without_checksum_has_none_afterwards(rig):
    assert rig.send(udp(CLIENT, CLIENT_PORT, VIP, 5060, checksum=0))[1][40:42] == bytes(2)


@pytest.mark.parametrize("build, port", [(tcp, 80), (udp, 5060)])
@pytest.mark.parametrize("ttl", [0, 1])
def test_expired_ttl_is_the_kernels_to_answer(rig, build, port, ttl):
    rig.check(passed("", build(CLIENT, CLIENT_PORT, VIP, port, ttl=ttl), "ttl_expired"))


# --- checksums at the ends of their range


def with_checksum(case: Case, build: Any, position: int, value: int) -> Case:
    """A variant of the case whose expected checksum has this value, or its other form, by its payload."""
    assert case.expected is not None
    found = int.from_bytes(case.expected[position : position + 2], "big")
    # The payload was two zero bytes; what the checksum is to lose, they are to hold.
    payload = (found - value) % 0xFFFF
    variant = build("", payload.to_bytes(2, "big"))
    assert int.from_bytes(variant.expected[position : position + 2], "big") in (value, value ^ 0xFFFF)
    return variant


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFFE])
def test_tcp_checksum_becomes(rig, value):
    case = with_checksum(dnat_web("", bytes(2)), dnat_web, 50, value)
    assert case.expected is not None and case.expected[50:52] == value.to_bytes(2, "big")
    rig.check(case)


@pytest.mark.parametrize("value", [0x0001, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF])
def test_udp_checksum_becomes(rig, value):
    case = with_checksum(dnat_sip("", bytes(2)), dnat_sip, 40, value)
    assert case.expected is not None and case.expected[40:42] == value.to_bytes(2, "big")
    rig.check(case)


def test_udp_checksum_that_becomes_0_is_sent_as_ffff(rig):
    case = with_checksum(dnat_sip("", bytes(2)), dnat_sip, 40, 0)
    rig.check(case)
    assert rig.send(case.frame)[1][40:42] == b"\xff\xff"


@pytest.mark.parametrize("protocol, position", [("tcp", 50), ("udp", 40)])
def test_checksum_that_arrives_in_its_other_form(rig, protocol, position):
    """0x0000 and 0xffff are both zero; TCP sends the first, UDP the second, and a receiver takes either."""
    build = dnat_web if protocol == "tcp" else dnat_sip
    plain = build("", bytes(2))
    payload = plain.frame[position : position + 2]
    case = build("", payload)
    assert case.frame[position : position + 2] in (b"\0\0", b"\xff\xff")
    rig.check(sent("", with_bytes(case.frame, position, b"\xff\xff"), case.expected))
    if protocol == "tcp":
        rig.check(sent("", with_bytes(case.frame, position, b"\0\0"), case.expected))


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x00FF, 0x0100, 0xFEFF, 0xFF00, 0xFFFE])
def test_ip_checksum_becomes(rig, value):
    plain = dnat_web("", id=0)
    assert plain.expected is not None
    found = int.from_bytes(plain.expected[24:26], "big")
    case = dnat_web("", id=(found - value) % 0xFFFF)
    assert case.expected is not None and case.expected[24:26] == value.to_bytes(2, "big")
    rig.check(case)


def test_checksums_over_many_payloads(rig):
    for word in range(0, 0x10000, 37):
        rig.send(with_bytes(udp(CLIENT, CLIENT_PORT, VIP, 5060, bytes(2)), 42, word.to_bytes(2, "big")))


@pytest.mark.parametrize("position", [24, 50])
def test_wrong_checksum_stays_wrong(rig, position):
    """The receiver is to notice what went wrong before the balancer."""
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80)
    _verdict, right = rig.send(frame)
    wrong = (int.from_bytes(frame[position : position + 2], "big") ^ 0x0400).to_bytes(2, "big")
    _verdict, output = rig.send(with_bytes(frame, position, wrong))
    assert output[position : position + 2] != right[position : position + 2]
    assert with_bytes(output, position, bytes(2)) == with_bytes(right, position, bytes(2))
