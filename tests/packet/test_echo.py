# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VIP answers echo requests, nothing else of ICMP, and no other address does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.packet.frames import CLIENT, Case, dropped, icmp, padded, passed, sent, with_bytes
from tests.packet.network import FRONT_ADDRESS, FRONT_MAC, ROUTER_MAC

VIP, DSR_VIP, EMPTY_VIP, BACKEND = "203.0.113.10", "203.0.113.11", "203.0.113.12", "10.0.0.1"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "web-tls", "address": VIP, "protocol": "tcp", "port": 443},
    {"name": "direct", "address": DSR_VIP, "protocol": "tcp", "port": 443, "forwarding": "dsr"},
    {"name": "empty", "address": EMPTY_VIP, "protocol": "udp", "port": "1-1000"},
]
BACKENDS = [
    {"service": "web", "address": BACKEND, "port": 8080},
    {"service": "direct", "address": "10.0.0.2"},
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


def echo(description: str, payload: bytes = b"payload", vip: str = VIP, **fields: Any) -> Case:
    frame = icmp(CLIENT, vip, payload, **fields)
    answer = icmp(vip, CLIENT, payload, macs=(FRONT_MAC, ROUTER_MAC), type=0, **{**fields, "ttl": 64})
    return Case(description, frame, sent("", frame, answer).verdict, answer, "echo")


ANSWERED = [
    echo("as ping sends it", bytes(range(56)), flags="DF"),
    echo("no payload", b""),
    echo("odd payload", b"odd"),
    echo("large", bytes(1400)),
    echo("VIP of a dsr service", vip=DSR_VIP),
    echo("VIP of a service without backends", vip=EMPTY_VIP),
    *(echo(f"TTL {ttl}", ttl=ttl) for ttl in (0, 1, 2, 63, 64, 65, 128, 255)),
]


@pytest.mark.parametrize("case", ANSWERED, ids=str)
def test_answered(rig, case):
    rig.check(case)


def test_padding_stays_as_it_is(rig):
    case = echo("", b"x")
    assert case.expected is not None
    rig.check(Case("", padded(case.frame), case.verdict, padded(case.expected), "echo"))


def test_checksum_of_many_payloads(rig):
    generator = random.Random(2)
    for size in [*range(40), *(generator.randrange(1400) for dummy in range(60))]:
        rig.check(echo("", generator.randbytes(size)))


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x07FF, 0x0800, 0xF7FF, 0xF800, 0xFFFE])
def test_checksum_becomes(rig, value):
    plain = echo("", bytes(2)).expected
    assert plain is not None
    payload = (int.from_bytes(plain[36:38], "big") - value) % 0xFFFF
    case = echo("", payload.to_bytes(2, "big"))
    assert case.expected is not None and case.expected[36:38] == value.to_bytes(2, "big")
    rig.check(case)


def test_wrong_checksum_stays_wrong(rig):
    frame = icmp(CLIENT, VIP)
    _verdict, right = rig.send(frame)
    _verdict, wrong = rig.send(with_bytes(frame, 36, b"\x12\x34"))
    assert wrong[36:38] != right[36:38]


IGNORED = [
    passed("the balancer's own address", icmp(CLIENT, FRONT_ADDRESS), "not_ours"),
    passed("an address next to a VIP", icmp(CLIENT, "203.0.113.9"), "not_ours"),
    passed("a backend", icmp(CLIENT, BACKEND), "not_ours"),
    dropped("echo request with a code", icmp(CLIENT, VIP, code=1), "vip_unserved"),
    *(
        dropped(f"ICMP type {type}", icmp(CLIENT, VIP, type=type), "vip_unserved")
        for type in (0, 3, 4, 5, 9, 10, 11, 12, 13, 15, 17, 42, 255)
    ),
    passed("from a VIP", icmp(VIP, CLIENT), "not_ours"),
    dropped("fragment", icmp(CLIENT, VIP, flags="MF"), "vip_unserved"),
    dropped("last fragment", icmp(CLIENT, VIP, frag=100), "fragment"),
    dropped("total length without the ICMP header", icmp(CLIENT, VIP, len=27), "malformed"),
]


@pytest.mark.parametrize("case", IGNORED, ids=str)
def test_ignored(rig, case):
    rig.check(case)
