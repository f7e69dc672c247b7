# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers in front of packets, taken apart by scapy: lengths, checksums, TTL, DSCP and ECN, DF."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.network import (
    FRONT_MAC,
    NARROW,
    NARROW_MTU,
    ROUTER_MAC,
    TIGHT,
    TIGHT_MTU,
)
from tests.packet.reference import DROP, TX

VIPS = {4: "203.0.113.10", 6: "2001:db8:1::10"}
CLIENTS = {4: "198.51.100.7", 6: "2001:db8:7::7"}
# By the family of the outer header.
SOURCES = {4: "10.99.0.0/16", 6: "fd99::/96"}
BACKENDS = {4: "10.0.0.1", 6: "fd00::1"}
NARROW_TARGETS = {"narrow": NARROW, "tight": TIGHT}
PORTS = {"near": 80, "narrow": 81, "tight": 82}
LEAST_MTU6 = 1280
# DSCP 46 (EF) and ECN 3 (CE).
TOS = 0xBB
CE = 3
# Forwarding, family of the VIP, family of the outer header.
TUNNELS = [(forwarding, inside, outside) for forwarding in ("ipip", "gue") for inside in (4, 6) for outside in (4, 6)]
GUE_PORT = 6080
# Bytes of the outer headers over IPv4.
OUTER4 = {"ipip": 20, "gue": 32}


def vip_port(forwarding: str, outside: int, kind: str = "near") -> int:
    return PORTS[kind] + 10 * outside + 100 * (forwarding == "gue")


def declared() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    services: list[dict[str, Any]] = []
    backends: list[dict[str, Any]] = []
    for forwarding, inside, outside in TUNNELS:
        kinds = {"near": BACKENDS[outside], **(NARROW_TARGETS if outside == 4 else {})}
        for kind, target in kinds.items():
            for protocol in ("tcp", "udp"):
                name = f"{forwarding}-{inside}-in-{outside}-{kind}-{protocol}"
                services.append(
                    {
                        "name": name,
                        "address": VIPS[inside],
                        "protocol": protocol,
                        "port": vip_port(forwarding, outside, kind),
                        "forwarding": forwarding,
                        "source": SOURCES[outside],
                    }
                )
                backends.append({"service": name, "address": target})
    return services, backends


@pytest.fixture(scope="module", params=[False, True], ids=["xdp", "tc"])
def rig(make_rig, request):
    return make_rig(*declared(), tc=request.param)


def ip_layer(family: int, **fields: Any) -> Packet:
    if family == 4:
        return IP(src=CLIENTS[4], dst=VIPS[4], flags=fields.pop("flags", "DF"), **fields)
    return IPv6(src=CLIENTS[6], dst=VIPS[6], **fields)


def frame_of(packet: Packet) -> bytes:
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / packet)


def request(family: int, port: int, length: int = 100, source_port: int = 40000, **fields: Any) -> bytes:
    """A UDP packet of this length."""
    headers = (20 if family == 4 else 40) + 8
    return frame_of(ip_layer(family, **fields) / UDP(sport=source_port, dport=port) / Raw(bytes(length - headers)))


def outer(rig: Any, frame: bytes, outside: int) -> Packet:
    """What is sent for a frame, behind its Ethernet header."""
    verdict, output = rig.send(frame)
    assert verdict == TX
    found = Ether(output)[IP if outside == 4 else IPv6]
    assert found.underlayer.name == "Ethernet"
    return found


def check_outer(found: Packet, forwarding: str, inner: bytes, outside: int, inside: int) -> None:
    """Lengths, checksums and constants of the outer headers, and the inner packet."""
    protocol = {4: 4, 6: 41}[inside]
    packet = bytes(found.payload)
    if forwarding == "gue":
        header, packet = found[UDP], bytes(found[UDP].payload)
        assert (header.dport, header.chksum, header.len) == (GUE_PORT, 0, 8 + len(packet))
        assert header.sport >= 49152
        # Variant 0, no control flag and no options; the protocol inside; no flags.
        assert packet[:4] == bytes((0, protocol, 0, 0))
        protocol, packet = 17, packet[4:]
    assert packet == inner
    if outside == 4:
        assert (found.version, found.ihl, found.ttl, found.frag) == (4, 5, 64, 0)
        assert (found.len, found.dst, found.proto) == (len(found), BACKENDS[4], protocol)
        assert found.src.startswith("10.99.")
        computed = found.copy()
        del computed.chksum
        assert IP(bytes(computed)).chksum == found.chksum
    else:
        assert (found.version, found.hlim, found.fl) == (6, 64, 0)
        assert (found.plen, found.dst, found.nh) == (len(found) - 40, BACKENDS[6], protocol)
        assert found.src.startswith("fd99::")


@pytest.mark.parametrize("forwarding, inside, outside", TUNNELS)
@pytest.mark.parametrize("length", [60, 61, 576, 1400])
def test_outer_headers(rig, forwarding, inside, outside, length):
    frame = request(inside, vip_port(forwarding, outside), length)
    check_outer(outer(rig, frame, outside), forwarding, frame[14:], outside, inside)


@pytest.mark.parametrize("forwarding, inside, outside", TUNNELS)
@pytest.mark.parametrize("tos", [0, TOS, TOS & ~CE])
def test_dscp_and_ecn_are_copied(rig, forwarding, inside, outside, tos):
    """RFC 6040, section 4.1, normal mode."""
    frame = request(inside, vip_port(forwarding, outside), **{"tos" if inside == 4 else "tc": tos})
    found = outer(rig, frame, outside)
    assert (found.tos if outside == 4 else found.tc) == tos


@pytest.mark.parametrize("forwarding, inside, outside", TUNNELS)
def test_the_inner_ttl_stays(rig, forwarding, inside, outside):
    frame = request(inside, vip_port(forwarding, outside), **{"ttl" if inside == 4 else "hlim": 2})
    found = outer(rig, frame, outside)
    assert (found.ttl if outside == 4 else found.hlim) == 64
    check_outer(found, forwarding, frame[14:], outside, inside)


@pytest.mark.parametrize("forwarding, inside, outside", [tunnel for tunnel in TUNNELS if tunnel[2] == 4])
def test_dont_fragment(rig, forwarding, inside, outside):
    """Copied from IPv4 (RFC 2003, section 3.1), and never set for IPv6 (RFC 4213, section 3.2)."""
    port = vip_port(forwarding, outside)
    if inside == 4:
        assert [str(outer(rig, request(4, port, flags=flags), 4).flags) for flags in ("DF", "")] == ["DF", ""]
    else:
        assert not outer(rig, request(6, port), 4).flags


def test_identifications_of_ipv6_over_ipv4_differ(rig):
    """Fragments of different packets must not be put together (RFC 6864, section 4.3)."""
    found = {outer(rig, request(6, vip_port("ipip", 4)), 4).id for _packet in range(64)}
    assert len(found) > 48


def test_ipv6_over_ipv4_keeps_tags_and_extension_headers(rig):
    port = vip_port("ipip", 4)
    for packet in (
        ip_layer(6) / IPv6ExtHdrFragment(m=1, id=77, nh=17) / UDP(sport=1, dport=port, len=3000) / Raw(bytes(64)),
        ip_layer(6) / IPv6ExtHdrFragment(offset=9, m=0, id=77, nh=17) / Raw(bytes(64)),
    ):
        check_outer(outer(rig, frame_of(packet), 4), "ipip", bytes(packet), 4, 6)
    packet = ip_layer(6) / TCP(sport=1, dport=port, flags="S")
    tagged = bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / Dot1Q(vlan=7) / packet)
    verdict, output = rig.send(tagged)
    found = Ether(output)
    assert (verdict, found[Dot1Q].vlan, found[Dot1Q].type) == (TX, 7, 0x0800)
    check_outer(found[IP], "ipip", bytes(packet), 4, 6)


def test_a_flow_keeps_its_source_port_and_flows_differ(rig):
    for inside, outside in ((4, 4), (6, 6), (6, 4)):
        port = vip_port("gue", outside)
        ports = {
            client_port: {
                outer(rig, request(inside, port, length, client_port), outside)[UDP].sport for length in (70, 800)
            }
            for client_port in range(40000, 40064)
        }
        assert all(len(of_flow) == 1 for of_flow in ports.values())
        assert len(set.union(*ports.values())) > 48


# --- the MTU


@pytest.mark.parametrize("forwarding, inside, outside", [tunnel for tunnel in TUNNELS if tunnel[2] == 4])
def test_the_outer_headers_count_for_the_mtu(rig, forwarding, inside, outside):
    port, most = vip_port(forwarding, 4, "narrow"), NARROW_MTU - OUTER4[forwarding]
    verdict, output = rig.send(request(inside, port, most))
    assert verdict != DROP and len(output) == 14 + NARROW_MTU
    verdict, output = rig.send(request(inside, port, most + 1))
    assert rig.model.last_reason == ("too_big", "tx")
    found = Ether(output)
    assert (found[IP].payload.nexthopmtu if inside == 4 else found[IPv6].payload.mtu) == most


@pytest.mark.parametrize("forwarding", sorted({forwarding for forwarding, _inside, _outside in TUNNELS}))
def test_ipv6_in_a_tunnel_is_not_told_less_than_1280(rig, forwarding):
    """RFC 4213, section 3.2.2; the program cannot fragment what the link does not take."""
    port = vip_port(forwarding, 4, "tight")
    _verdict, output = rig.send(request(6, port, LEAST_MTU6 + 1))
    assert rig.model.last_reason == ("too_big", "tx")
    assert Ether(output)[IPv6].payload.mtu == LEAST_MTU6
    assert rig.send(request(6, port, LEAST_MTU6))[0] == DROP
    assert rig.model.last_reason == ("too_big", "drop")
    verdict, output = rig.send(request(6, port, TIGHT_MTU - OUTER4[forwarding]))
    assert verdict != DROP and len(output) == 14 + TIGHT_MTU
