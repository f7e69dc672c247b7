# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ICMP error about a forwarded packet, from its backend or a router, reaches the client in the VIP's name."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from scapy.layers.inet import TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment

from tests.packet.frames import (
    CLIENT,
    CLIENT_PORT,
    ERRORS,
    Case,
    dropped,
    icmp_error,
    padded,
    passed,
    quoted,
    sent,
    tcp,
    udp,
    with_bytes,
)
from tests.packet.network import (
    BACK_MAC,
    FRONT_ADDRESS,
    FRONT_MAC,
    PROHIBITED,
    ROUTER_MAC,
    UNRESOLVED,
    UNRESOLVED6,
    mac,
    neighbour_mac,
)
from tests.packet.reference import REDIRECT, TX

VIP, VIP6, CLIENT6 = "203.0.113.10", "2001:db8:1::10", "2001:db8:2::7"
BACKEND, BACKEND6, HOP, HOP6 = "10.0.0.5", "fd00::5", "10.0.0.99", "fd00::63"
NAT, NAT6 = "10.0.0.250", "fd00::fa"
FULL_NAT = {"forwarding": "full_nat", "source": NAT}
FULL_NAT6 = {"forwarding": "full_nat", "source": NAT6}
SERVICES = [
    {"name": "web", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "game", "address": VIP, "protocol": "udp", "port": "27000-27015"},
    {"name": "rest", "address": "203.0.113.11", "protocol": "udp", "port": "any"},
    {"name": "direct", "address": VIP, "protocol": "udp", "port": 6000, "forwarding": "dsr"},
    {"name": "nat", "address": VIP, "protocol": "udp", "port": 54, **FULL_NAT},
    {"name": "nat-tcp", "address": VIP, "protocol": "tcp", "port": 81, **FULL_NAT},
    {"name": "web6", "address": VIP6, "protocol": "tcp", "port": 80},
    {"name": "dns6", "address": VIP6, "protocol": "udp", "port": 53},
    {"name": "nat6", "address": VIP6, "protocol": "udp", "port": 54, **FULL_NAT6},
    {"name": "nat-tcp6", "address": VIP6, "protocol": "tcp", "port": 81, **FULL_NAT6},
]
BACKENDS = [
    {"service": "web", "address": BACKEND, "port": 8080},
    {"service": "dns", "address": BACKEND, "port": 5353},
    {"service": "game", "address": BACKEND},
    {"service": "rest", "address": "10.0.0.6"},
    {"service": "direct", "address": BACKEND},
    {"service": "nat", "address": BACKEND, "port": 5400},
    {"service": "nat-tcp", "address": BACKEND},
    {"service": "web6", "address": BACKEND6, "port": 8080},
    {"service": "dns6", "address": BACKEND6, "port": 5353},
    {"service": "nat6", "address": BACKEND6, "port": 5400},
    {"service": "nat-tcp6", "address": BACKEND6},
]
FILTERS = [{"prefix": "10.0.0.66", "action": "drop", "protocol": "icmp"}]
ARRIVING, LEAVING = (neighbour_mac(0, 5), FRONT_MAC), (FRONT_MAC, ROUTER_MAC)


@pytest.fixture(scope="module", params=["xdp", "tc"])
def rig(make_rig, request):
    return make_rig(SERVICES, BACKENDS, filters=FILTERS, tc=request.param == "tc")


def lived(family: int, ttl: int) -> dict[str, int]:
    return {"ttl" if family == 4 else "hlim": ttl}


def about(
    transport: Any, sender: str = BACKEND, kind: str = "unreachable", client: str = CLIENT, ttl: int = 64, **quote: Any
) -> bytes:
    """An error about what the balancer has forwarded to a dnat backend."""
    backend = quote.pop("backend", BACKEND6 if ":" in client else BACKEND)
    family = 6 if ":" in client else 4
    inner = quoted(client, backend, transport, **quote)
    return icmp_error(sender, client, inner, kind, macs=ARRIVING, **lived(family, ttl))


def seen(
    transport: Any,
    kind: str = "unreachable",
    client: str = CLIENT,
    macs: tuple[str, str] = LEAVING,
    ttl: int = 63,
    **quote: Any,
) -> bytes:
    """The error that the client is to see: about the packet that it has sent."""
    vip, family = (VIP6, 6) if ":" in client else (VIP, 4)
    vip = quote.pop("vip", vip)
    return icmp_error(vip, client, quoted(client, vip, transport, **quote), kind, macs=macs, **lived(family, ttl))


def to(port: int, layer: Any = UDP, client_port: int = CLIENT_PORT, **fields: Any) -> Any:
    return layer(sport=client_port, dport=port, **fields)


TRANSLATED = [
    *(
        sent(f"{kind} from {name}", about(to(5353), sender, kind), seen(to(53), kind))
        for kind in ERRORS
        for name, sender in (("the backend", BACKEND), ("a router", HOP), ("a router elsewhere", "192.0.2.9"))
    ),
    *(
        sent(
            f"{kind} from {name}, IPv6",
            about(to(5353), sender, kind, CLIENT6),
            seen(to(53), kind, CLIENT6),
        )
        for kind in ERRORS
        for name, sender in (("the backend", BACKEND6), ("a router", HOP6))
    ),
    sent("8 bytes of TCP", about(to(8080, TCP, seq=9)), seen(to(80, TCP, seq=9))),
    sent(
        "8 bytes of TCP, IPv6",
        about(to(8080, TCP, seq=9), BACKEND6, client=CLIENT6),
        seen(to(80, TCP, seq=9), client=CLIENT6),
    ),
    *(
        sent(f"{size or 'all'} bytes of TCP", about(to(8080, TCP), size=size), seen(to(80, TCP), size=size))
        for size in (18, 20, None)
    ),
    sent("whole UDP quoted", about(to(5353), size=None), seen(to(53), size=None)),
    sent(
        "whole UDP quoted, IPv6",
        about(to(5353), HOP6, client=CLIENT6, size=None),
        seen(to(53), client=CLIENT6, size=None),
    ),
    sent("UDP without a checksum", about(to(5353, chksum=0)), seen(to(53, chksum=0))),
    sent("backend that keeps the port", about(to(27009)), seen(to(27009))),
    sent("service on any port", about(to(777), backend="10.0.0.6"), seen(to(777), vip="203.0.113.11")),
    sent("client's port 0", about(to(5353, client_port=0)), seen(to(53, client_port=0))),
    sent(
        "client next to the balancer",
        about(to(5353), client="10.0.0.77"),
        seen(to(53), client="10.0.0.77", macs=(FRONT_MAC, neighbour_mac(0, 77))),
    ),
    sent("smallest TTL that can be forwarded", about(to(5353), ttl=2), seen(to(53), ttl=1)),
    sent(
        "quoted options",
        about(to(5353), options=[IPOption(b"\x94\x04\0\0")]),
        seen(to(53), options=[IPOption(b"\x94\x04\0\0")]),
    ),
    sent("quoted first fragment", about(to(5353), flags="MF", id=3), seen(to(53), flags="MF", id=3)),
    *(
        sent(
            f"quoted {name}, IPv6",
            about(to(5353), HOP6, "too big", CLIENT6, layers=layers),
            seen(to(53), "too big", CLIENT6, layers=layers),
        )
        for name, layers in (
            ("first fragment", (IPv6ExtHdrFragment(offset=0, m=1, id=3),)),
            ("atomic fragment", (IPv6ExtHdrFragment(offset=0, m=0, id=3),)),
            ("destination options", (IPv6ExtHdrDestOpt(),)),
        )
    ),
]


@pytest.mark.parametrize("case", TRANSLATED, ids=str)
def test_of_dnat_backends(rig, case):
    rig.check(case)
    rig.check(sent("", padded(case.frame, 100), padded(case.expected, 100)))


def test_to_a_client_behind_another_interface(rig):
    case = about(to(5353), client="10.0.1.9"), seen(to(53), client="10.0.1.9", macs=(BACK_MAC, neighbour_mac(1, 9)))
    rig.check(Case("", case[0], REDIRECT, case[1]))


def test_tagged(rig):
    before, after = (frame[:12] + b"\x81\0\0\5" + frame[12:] for frame in (about(to(5353)), seen(to(53))))
    rig.check(sent("", before, after))


def test_counted_as_a_reply(rig):
    before = list(rig.model.service_counters["dns"]), list(rig.model.backend_counters["dns", BACKEND, 5353])
    frame = about(to(5353))
    rig.check(sent("", frame, seen(to(53))))
    after = rig.model.service_counters["dns"], rig.model.backend_counters["dns", BACKEND, 5353]
    for old, new in zip(before, after):
        assert [two - one for one, two in zip(old, new)] == [0, 0, 1, len(frame), 0]


@pytest.mark.parametrize("checksum", [0, 0x1234])
def test_a_wrong_icmp_checksum_stays_wrong(rig, checksum):
    right, wanted = about(to(5353)), seen(to(53))
    wrong = with_bytes(right, 36, checksum.to_bytes(2, "big"))
    _verdict, output = rig.send(wrong)
    assert output[:36] + output[38:] == wanted[:36] + wanted[38:]
    assert output[36:38] != wanted[36:38]


@pytest.mark.parametrize("client", [UNRESOLVED, UNRESOLVED6])
def test_without_a_neighbour_the_kernel_sends_it(rig, client):
    sender = BACKEND6 if ":" in client else BACKEND
    expected = seen(to(53), client=client, macs=ARRIVING, ttl=64)
    rig.check(passed("", about(to(5353), sender, client=client), "no_neighbour", expected))


NOT_TRANSLATED = [
    passed("TTL 1", about(to(5353), ttl=1), "ttl_expired"),
    passed("about a request of the balancer's", about(to(5353), client=FRONT_ADDRESS), "local_reply"),
    dropped("no route to the client", about(to(5353), client=PROHIBITED), "no_route"),
    dropped("martian source", about(to(5353), "127.0.0.1"), "martian"),
    dropped("client as source", about(to(5353), CLIENT), "martian"),
    dropped("multicast source, IPv6", about(to(5353), "ff02::1", client=CLIENT6), "martian"),
    dropped("filtered source", about(to(5353), "10.0.0.66"), "filtered"),
    passed("no port of a backend", about(to(53)), "not_ours"),
    passed("another protocol", about(to(8080)), "not_ours"),
    passed("no backend", about(to(5353), backend="10.0.0.7"), "not_ours"),
    passed("dsr backend, who has seen the VIP", about(to(6000)), "not_ours"),
    passed(
        "error for somebody else than the packet's sender",
        icmp_error(HOP, "198.51.100.9", quoted(CLIENT, BACKEND, to(5353)), macs=ARRIVING),
        "not_ours",
    ),
    passed("less than 8 bytes", about(to(5353), size=7), "not_ours"),
    passed("later fragment quoted", about(to(5353), frag=100), "not_ours"),
    passed(
        "later fragment quoted, IPv6",
        about(to(5353), HOP6, client=CLIENT6, layers=(IPv6ExtHdrFragment(offset=9, id=3),)),
        "not_ours",
    ),
    passed("ports in the padding", padded(about(to(5353), size=0), 100), "not_ours"),
    passed(
        "fragment of an error",
        icmp_error(BACKEND, CLIENT, quoted(CLIENT, BACKEND, to(5353)), macs=ARRIVING, flags="MF"),
        "not_ours",
    ),
    passed("redirect", with_bytes(about(to(5353)), 34, b"\5"), "not_ours"),
    passed("source quench", with_bytes(about(to(5353)), 34, b"\4"), "not_ours"),
]


@pytest.mark.parametrize("case", NOT_TRANSLATED, ids=str)
def test_not_translated(rig, case):
    rig.check(case)


# --- full_nat

NATS = {
    "UDP": (4, UDP, 54, 5400),
    "TCP": (4, TCP, 81, 81),
    "UDP, IPv6": (6, UDP, 54, 5400),
    "TCP, IPv6": (6, TCP, 81, 81),
}


class Nat:
    """A session, and errors about its packets."""

    def __init__(self, rig: Any, name: str) -> None:
        self.rig = rig
        self.family, self.layer, self.port, self.backend_port = NATS[name]
        if self.family == 4:
            self.client, self.vip, self.source, self.backend, self.router = CLIENT, VIP, NAT, BACKEND, HOP
            build = udp if self.layer is UDP else tcp
            frame = build(CLIENT, CLIENT_PORT, VIP, self.port)
        else:
            self.client, self.vip, self.source, self.backend, self.router = CLIENT6, VIP6, NAT6, BACKEND6, HOP6
            packet = quoted(self.client, self.vip, self.layer(sport=CLIENT_PORT, dport=self.port), size=None)
            frame = mac(FRONT_MAC) + mac(ROUTER_MAC) + b"\x86\xdd" + packet
        verdict, self.request = rig.send(frame)
        assert verdict == TX
        at = 34 if self.family == 4 else 54
        self.source_port = int.from_bytes(self.request[at : at + 2], "big")

    def error(
        self,
        sender: str | None = None,
        kind: str = "unreachable",
        source_port: int | None = None,
        backend: str | None = None,
        backend_port: int | None = None,
        destination: str | None = None,
        ttl: int = 64,
        **quote: Any,
    ) -> bytes:
        transport = self.layer(sport=source_port or self.source_port, dport=backend_port or self.backend_port)
        inner = quoted(self.source, backend or self.backend, transport, **quote)
        return icmp_error(
            sender or self.backend,
            destination or self.source,
            inner,
            kind,
            macs=ARRIVING,
            **lived(self.family, ttl),
        )

    def seen(self, kind: str = "unreachable", **quote: Any) -> bytes:
        transport = self.layer(sport=CLIENT_PORT, dport=self.port)
        inner = quoted(self.client, self.vip, transport, **quote)
        return icmp_error(self.vip, self.client, inner, kind, macs=LEAVING, **lived(self.family, 63))

    def session(self) -> bytes:
        program = self.rig.program
        pool, place = next(
            item for item in program.plan.allocation.pools.items() if (":" in item[0].address) == (self.family == 6)
        )
        number = place.first_session + self.source_port - pool.first_port
        return bpf.map_lookup(program.maps["sessions"], layout.index(number), layout.SESSION.size)


@pytest.fixture(params=NATS)
def nat(rig, request):
    return Nat(rig, request.param)


@pytest.mark.parametrize("kind", ERRORS)
def test_of_full_nat_backends(rig, nat, kind):
    for sender in (nat.backend, nat.router):
        rig.check(sent("", nat.error(sender, kind), nat.seen(kind)))


def test_of_full_nat_with_longer_quotes(rig, nat):
    rig.check(sent("", nat.error(size=None), nat.seen(size=None)))
    if nat.family == 6:
        layers = (IPv6ExtHdrFragment(offset=0, m=1, id=3),)
        rig.check(sent("", nat.error(layers=layers), nat.seen(layers=layers)))
    else:
        options = [IPOption(b"\x94\x04\0\0")]
        rig.check(sent("", nat.error(options=options), nat.seen(options=options)))


def test_of_full_nat_not_translated(rig, nat):
    other = "fd00::7" if nat.family == 6 else "10.0.0.7"
    for description, frame in (
        ("no session at this port", nat.error(source_port=nat.source_port + 9)),
        ("port outside of the pool", nat.error(source_port=80)),
        ("another host than the backend", nat.error(backend=other)),
        ("another port of the backend", nat.error(backend_port=9)),
        ("less than 8 bytes", nat.error(size=7)),
    ):
        rig.check(dropped(description, frame, "vip_unserved"))
    rig.check(passed("sent to another address", nat.error(destination=nat.client), "not_ours"))
    rig.check(passed("", nat.error(ttl=1), "ttl_expired"))
    rig.check(dropped("", nat.error(sender=nat.source), "martian"))


def test_an_error_neither_lengthens_nor_shortens_a_session(rig, nat):
    before = nat.session()
    rig.check(sent("", nat.error(), nat.seen()))
    assert nat.session() == before
    if nat.layer is TCP:
        # What a quote of a FIN says of it does not count either.
        fin = quoted(
            nat.source,
            nat.backend,
            TCP(sport=nat.source_port, dport=nat.backend_port, flags="FA"),
            size=20,
        )
        rig.send(icmp_error(nat.backend, nat.source, fin, macs=ARRIVING))
        assert nat.session() == before


def test_without_dnat_there_are_no_errors_of_its_backends(make_rig):
    services = [service for service in SERVICES if service["name"] in ("nat", "dns")]
    backends = [backend for backend in BACKENDS if backend["service"] in ("nat", "dns")]
    rig = make_rig(services, backends, frozenset(("full_nat",)))
    rig.check(passed("", about(to(5353)), "not_ours"))
    session = Nat(rig, "UDP")
    rig.check(sent("", session.error(), session.seen()))


def test_with_dnat_alone(make_rig):
    rig = make_rig(SERVICES[:1], BACKENDS[:1], frozenset(("dnat",)))
    rig.check(sent("", about(to(8080, TCP, seq=9)), seen(to(80, TCP, seq=9))))
    rig.check(passed("", about(to(5353)), "not_ours"))


def test_errors_pass_without_dnat_and_full_nat(make_rig):
    rig = make_rig(SERVICES[4:5], BACKENDS[4:5], frozenset(("dsr",)))
    rig.check(passed("", about(to(6000)), "not_ours"))
