# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies of dnat backends get the VIP and its port back, without any state."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from tests.packet.frames import BUILDERS, CLIENT, CLIENT_PORT, Case, dropped, padded, passed, sent, tcp, udp
from tests.packet.network import (
    BACK_ADDRESS,
    BACK_MAC,
    BLACKHOLE,
    FRONT_ADDRESS,
    FRONT_MAC,
    PROHIBITED,
    ROUTER_MAC,
    UNREACHABLE,
    UNRESOLVED,
    UNRESOLVED_BACK,
    neighbour_mac,
)
from tests.packet.reference import REDIRECT

VIP, OTHER_VIP = "203.0.113.10", "203.0.113.11"
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "sip", "address": VIP, "protocol": "udp", "port": 5060},
    {"name": "game", "address": OTHER_VIP, "protocol": "udp", "port": "27000-27063"},
    {"name": "direct", "address": OTHER_VIP, "protocol": "tcp", "port": 443, "forwarding": "dsr"},
]
WEB, SPARE, DNS, SIP, GAME, DIRECT = (f"10.0.0.{host}" for host in range(1, 7))
DIRECT_MAC = "52:54:00:00:00:06"
BACKENDS = [
    {"service": "web", "address": WEB, "port": 8080},
    {"service": "web", "address": SPARE, "port": 8081, "state": "drained"},
    {"service": "web", "address": GAME, "port": 8080, "weight": 0},
    {"service": "dns", "address": DNS},
    {"service": "sip", "address": SIP, "port": 5070},
    {"service": "game", "address": GAME},
    {"service": "direct", "address": DIRECT, "mac": DIRECT_MAC},
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


def reply(
    description: str,
    protocol: str,
    backend: str,
    backend_port: int,
    vip: str,
    port: int,
    payload: bytes = b"payload",
    client: str = CLIENT,
    macs: tuple[str, str] = (FRONT_MAC, ROUTER_MAC),
    **fields: Any,
) -> Case:
    """A packet of the backend's and the same one with the VIP, as it goes to the client."""
    build = BUILDERS[protocol]
    arriving = (neighbour_mac(0, int(backend.rpartition(".")[2])), FRONT_MAC)
    after = {**fields, "ttl": fields.get("ttl", 64) - 1}
    return sent(
        description,
        build(backend, backend_port, client, CLIENT_PORT, payload, macs=arriving, **fields),
        build(vip, port, client, CLIENT_PORT, payload, macs=macs, **after),
    )


def web(description: str, payload: bytes = b"payload", **fields: Any) -> Case:
    return reply(description, "tcp", WEB, 8080, VIP, 80, payload, **fields)


RESTORED = [
    web("TCP from another port"),
    reply("UDP from another port", "udp", SIP, 5070, VIP, 5060),
    reply("UDP from the same port", "udp", DNS, 53, VIP, 53),
    *(reply(f"UDP port {port} of a range", "udp", GAME, port, OTHER_VIP, port) for port in (27000, 27031, 27063)),
    reply("drained backend", "tcp", SPARE, 8081, VIP, 80),
    reply("backend of weight 0, also a backend of another service", "tcp", GAME, 8080, VIP, 80),
    reply("UDP without a checksum", "udp", SIP, 5070, VIP, 5060, checksum=0),
    web("no payload", b""),
    web("odd payload", b"odd"),
    web("largest TTL", ttl=255),
    web("smallest TTL that can be forwarded", ttl=2),
    web("client next to the balancer", client="10.0.0.77", macs=(FRONT_MAC, neighbour_mac(0, 77))),
]


@pytest.mark.parametrize("case", RESTORED, ids=str)
def test_restored(rig, case):
    rig.check(case)


def test_padded(rig):
    case = reply("", "udp", DNS, 53, VIP, 53, b"x")
    assert case.expected is not None
    rig.check(sent("", padded(case.frame), padded(case.expected)))


def test_udp_checksum_that_becomes_0_is_sent_as_ffff(rig):
    plain = reply("", "udp", SIP, 5070, VIP, 5060, bytes(2))
    assert plain.expected is not None
    case = reply("", "udp", SIP, 5070, VIP, 5060, plain.expected[40:42])
    assert case.expected is not None and case.expected[40:42] == b"\xff\xff"
    rig.check(case)


def test_client_behind_another_interface(rig):
    case = web("", client="10.0.1.9", macs=(BACK_MAC, neighbour_mac(1, 9)))
    rig.check(Case("", case.frame, REDIRECT, case.expected))


UNTOUCHED = [
    passed("TTL 1", tcp(WEB, 8080, CLIENT, CLIENT_PORT, ttl=1), "ttl_expired"),
    passed("TTL 0", tcp(WEB, 8080, CLIENT, CLIENT_PORT, ttl=0), "ttl_expired"),
    passed("to the balancer", tcp(WEB, 8080, FRONT_ADDRESS, CLIENT_PORT), "local_reply"),
    passed("to another address of the balancer", tcp(WEB, 8080, BACK_ADDRESS, CLIENT_PORT), "local_reply"),
    passed("broadcast", udp(DNS, 53, "10.0.0.255", CLIENT_PORT), "local_reply"),
    passed("another port of the backend", tcp(WEB, 80, CLIENT, CLIENT_PORT), "not_ours"),
    passed("another protocol of the backend", udp(WEB, 8080, CLIENT, CLIENT_PORT), "not_ours"),
    passed("port below a range", udp(GAME, 26999, CLIENT, CLIENT_PORT), "not_ours"),
    passed("port above a range", udp(GAME, 27064, CLIENT, CLIENT_PORT), "not_ours"),
    passed("the service's port, not the backend's", udp(SIP, 5060, CLIENT, CLIENT_PORT), "not_ours"),
    passed("a host that is no backend", tcp("10.0.0.99", 8080, CLIENT, CLIENT_PORT), "not_ours"),
    passed("dsr backends answer themselves", tcp(DIRECT, 443, CLIENT, CLIENT_PORT), "not_ours"),
    passed("a VIP as the source", tcp(VIP, 80, CLIENT, CLIENT_PORT), "not_ours"),
]


@pytest.mark.parametrize("case", UNTOUCHED, ids=str)
def test_untouched(rig, case):
    rig.check(case)


REFUSED = [
    dropped("prohibit route", tcp(WEB, 8080, PROHIBITED, CLIENT_PORT), "no_route"),
    dropped("blackhole route", tcp(WEB, 8080, BLACKHOLE, CLIENT_PORT), "no_route"),
    dropped("unreachable route", udp(DNS, 53, UNREACHABLE, CLIENT_PORT), "no_route"),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_route(rig, case):
    rig.check(case)


@pytest.mark.parametrize("client", [UNRESOLVED, UNRESOLVED_BACK])
def test_unresolved_client_gets_a_restored_reply_from_the_kernel(rig, client):
    case = web("", client=client, macs=(neighbour_mac(0, 1), FRONT_MAC))
    # The kernel lowers the TTL when it forwards the packet.
    expected = Ether(case.expected)
    expected[IP].ttl += 1
    del expected[IP].chksum
    rig.check(passed("", case.frame, "no_neighbour", bytes(expected)))


def test_backend_as_client_of_a_service(rig):
    """What a backend sends to a VIP is a request, even from a port on which it serves."""
    rig.check(
        sent(
            "",
            tcp(WEB, 8080, OTHER_VIP, 443),
            tcp(WEB, 8080, OTHER_VIP, 443, macs=(FRONT_MAC, DIRECT_MAC)),
        )
    )


def test_there_and_back(rig):
    """The client sees the very packet that the backend sent to itself would be."""
    request = tcp(CLIENT, CLIENT_PORT, VIP, 80)
    _verdict, arrived = rig.send(request)
    assert (arrived[30:34], arrived[36:38]) == (bytes((10, 0, 0, 1)), (8080).to_bytes(2, "big"))
    answer = tcp(WEB, 8080, CLIENT, CLIENT_PORT, tcp_flags="SA")
    _verdict, seen = rig.send(answer)
    assert (seen[26:30], seen[34:36]) == (request[30:34], request[36:38])
    rig.check_counters()
