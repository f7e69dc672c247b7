# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dataplane.py measures: configurations, each with the features it needs, and a frame for each case."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.packet import quic, reference

BACKENDS = 100
MILLION = 1 << 20
VIP, CLIENT, ROUTER, BALANCER = "192.0.2.10", "203.0.113.9", "10.0.255.254", "10.0.255.1"
VIP6, CLIENT6, ROUTER6, BALANCER6 = "2001:db8::10", "2001:db8:9::9", "fd00::ff:fffe", "fd00::ff:1"
SOURCE_PORT, SERVICE_PORT, BACKEND_PORT, OTHER_PORT = 40000, 53, 5300, 8080
# Of nobody here.
ELSEWHERE = "192.0.2.99"
PAYLOAD = Raw(bytes(range(18)))
OUT = "out"  # the other interface of redirect


def mac_of(address: str) -> str:
    """Every host's Ethernet address follows from its IPv4 address."""
    return "02:00:" + ":".join(f"{octet:02x}" for octet in socket.inet_aton(address))


def backend_addresses(family: int, service: int = 0) -> list[str]:
    if family == 4:
        return [f"10.0.{service}.{host}" for host in range(1, BACKENDS + 1)]
    return [f"fd00::{service:x}:{host:x}" for host in range(1, BACKENDS + 1)]


def mac_of6(address: str) -> str:
    """Hosts have the same Ethernet address over both protocols."""
    packed = ipaddress.ip_address(address).packed
    return mac_of(f"10.0.{packed[13]}.{packed[15]}" if packed[12:14] != b"\0\xff" else f"10.0.255.{packed[15]}")


@dataclass(frozen=True)
class Case:
    name: str
    frame: Packet
    flows: int = 1
    # Whether another run on the output gives that output again, so that the wrapper is not needed.
    repeatable: bool = False
    verdict: int = reference.TX
    grows: int = 0  # by so many bytes

    @cached_property
    def is_ipv6(self) -> bool:
        return IPv6 in self.frame

    @cached_property
    def wire(self) -> bytes:
        """The frame as it arrives: Ethernet pads to 60 bytes; wrapper.c restores whole words."""
        return bytes(self.frame).ljust(80 if self.is_ipv6 else 60, b"\0")


@dataclass(frozen=True)
class Scene:
    """One configuration, loaded once a round, with the cases that are measured with it."""

    name: str
    services: list[dict[str, Any]]
    backends: list[dict[str, Any]]
    cases: list[Case]
    filters: list[dict[str, Any]] = field(default_factory=list)
    sizes: Sizes = Sizes(max_services=2048, max_backends=4096, max_endpoints=8192)
    more_features: frozenset[str] = frozenset()


def frame4(l4: Packet, vip: str = VIP) -> Packet:
    return Ether(src=mac_of(ROUTER), dst=mac_of(BALANCER)) / IP(src=CLIENT, dst=vip) / l4


def frame6(l4: Packet) -> Packet:
    return Ether(src=mac_of(ROUTER), dst=mac_of(BALANCER)) / IPv6(src=CLIENT6, dst=VIP6) / l4


def udp(port: int = SERVICE_PORT) -> Packet:
    return UDP(sport=SOURCE_PORT, dport=port) / PAYLOAD


def tcp(port: int) -> Packet:
    return TCP(sport=SOURCE_PORT, dport=port, flags="A") / Raw(bytes(10))


def service(name: str = "bench", **keys: Any) -> dict[str, Any]:
    return {"name": name, "address": VIP, "protocol": "udp", "port": SERVICE_PORT, **keys}


def members(name: str = "bench", family: int = 4, number: int = 0, count: int = BACKENDS, **keys: Any) -> list[dict]:
    return [{"service": name, "address": address, **keys} for address in backend_addresses(family, number)[:count]]


def base() -> Scene:
    """dnat and dsr, as a site has them."""
    with_macs = [
        {**item, "mac": mac_of(item["address"])}
        for name, number in (("dnat-mac", 3), ("dsr-mac", 4))
        for item in members(name, number=number, **({"port": BACKEND_PORT} if name == "dnat-mac" else {}))
    ]
    services = [
        service("dnat"),
        service("dnat-tcp", protocol="tcp", port=SERVICE_PORT + 1),
        service("dsr", address="192.0.2.20", forwarding="dsr"),
        service("dnat-mac", port=SERVICE_PORT + 3),
        service("dsr-mac", address="192.0.2.20", port=SERVICE_PORT + 4, forwarding="dsr"),
    ]
    backends = [
        *members("dnat", port=BACKEND_PORT),
        *members("dnat-tcp", number=1, port=BACKEND_PORT),
        *members("dsr", number=2),
        *with_macs,
    ]
    reply = (
        Ether(src=mac_of("10.0.0.42"), dst=mac_of(BALANCER))
        / IP(src="10.0.0.42", dst=CLIENT)
        / UDP(sport=BACKEND_PORT, dport=SOURCE_PORT)
        / PAYLOAD
    )
    arp = Ether(src=mac_of(ROUTER), dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac_of(ROUTER), psrc=ROUTER, pdst=BALANCER)
    passed = {"repeatable": True, "verdict": reference.PASS}
    return Scene(
        "base",
        services,
        backends,
        [
            Case("dnat_udp4", frame4(udp())),
            Case("dnat_tcp4", frame4(tcp(SERVICE_PORT + 1))),
            Case("dsr_udp4", frame4(udp(), "192.0.2.20")),
            Case("reply_udp4", reply),
            Case("pass_tcp4", frame4(tcp(OTHER_PORT), ELSEWHERE), **passed),
            Case("unserved_tcp4", frame4(tcp(OTHER_PORT)), repeatable=True, verdict=reference.DROP),
            Case("pass_ipv6", frame6(tcp(OTHER_PORT)), **passed),
            Case("pass_arp", arp, **passed),
            Case("dnat_udp4_mac", frame4(udp(SERVICE_PORT + 3))),
            Case("dsr_udp4_mac", frame4(udp(SERVICE_PORT + 4), "192.0.2.20")),
            Case("dnat_udp4_1m", frame4(udp()), flows=MILLION),
        ],
    )


def small() -> Scene:
    services = [service(f"small-{number}", port=SERVICE_PORT + number) for number in range(8)]
    backends = [
        item for number in range(8) for item in members(f"small-{number}", number=number, count=4, port=BACKEND_PORT)
    ]
    return Scene("small", services, backends, [Case("small_config", frame4(udp()))])


def thousand_services() -> Scene:
    """Packets are looked up in a table filled by hash as in one filled by maglev, which takes seconds to fill."""
    services = [
        service(f"many-{number}", address=f"192.0.{2 + number // 250}.{1 + number % 250}", scheduler="hash")
        for number in range(1000)
    ]
    backends = [{**item, "service": entry["name"]} for entry in services for item in members(count=2)]
    for number, item in enumerate(backends):
        item["port"] = 10000 + number // 2
    return Scene("services", services, backends, [Case("services_1000", frame4(udp(), services[500]["address"]))])


def many_filters() -> Scene:
    """Random prefixes of all usual lengths, none of which holds the client."""
    source = random.Random(7)
    found: dict[str, dict[str, Any]] = {}
    client = ipaddress.ip_address(CLIENT)
    while len(found) < 100_000:
        length = source.choice((16, 20, 22, 24, 24, 24, 28, 32, 32))
        prefix = ipaddress.ip_network((source.getrandbits(32) >> (32 - length) << (32 - length), length))
        if client not in prefix:
            found[str(prefix)] = {"prefix": str(prefix), "action": "drop"}
    sizes = Sizes(max_services=64, max_backends=1024, max_endpoints=4096, max_filters=131072)
    return Scene(
        "filters",
        [service()],
        members(port=BACKEND_PORT),
        [Case("filters_100k", frame4(udp()))],
        list(found.values()),
        sizes,
    )


def flow_table() -> Scene:
    sizes = Sizes(max_services=64, max_backends=1024, max_endpoints=4096, max_flows=MILLION, max_new_flows=100_000_000)
    cases = [
        Case("flow_hit_1", frame4(udp())),
        Case("flow_hit_100k", frame4(udp()), flows=1 << 17),
        Case("flow_hit_1m", frame4(udp()), flows=MILLION),
    ]
    return Scene("flows", [service(flow_table=True)], members(port=BACKEND_PORT), cases, sizes=sizes)


def flood() -> Scene:
    """With the sizes that a site has by default, its limit of new flows included."""
    cases = [Case("flow_miss", frame4(udp()), flows=1 << 24)]
    return Scene("flood", [service(flow_table=True)], members(port=BACKEND_PORT), cases, sizes=Sizes())


def quic_scene() -> Scene:
    """Packets of established connections, whose ids name the backend."""
    backends = [
        {**item, "server_id": f"{number:08x}"} for number, item in enumerate(members(port=BACKEND_PORT), 0x0A000001)
    ]
    datagram = quic.short(quic.connection_id(backends[41]["server_id"]))[:18]
    entry = service(affinity="quic", quic_server_id_length=4)
    frame = frame4(UDP(sport=SOURCE_PORT, dport=SERVICE_PORT) / Raw(datagram))
    return Scene("quic", [entry], backends, [Case("quic_udp4", frame)])


def scenes() -> Iterator[Scene]:
    yield base()
    yield small()
    ipip = service(forwarding="ipip", source="10.99.0.0/16")
    yield Scene(
        "ipip",
        [ipip],
        members(),
        [Case("ipip_udp4", frame4(udp()), grows=20), Case("ipip_udp4_1m", frame4(udp()), flows=MILLION, grows=20)],
    )
    six = {"address": VIP6}
    yield Scene("dnat6", [service(**six)], members(family=6, port=BACKEND_PORT), [Case("dnat_udp6", frame6(udp()))])
    yield Scene(
        "dsr6",
        [service(**six, forwarding="dsr")],
        members(family=6),
        [Case("dsr_udp6", frame6(udp()))],
    )
    yield Scene(
        "ipip6",
        [service(**six, forwarding="ipip", source="fd99::/64")],
        members(family=6),
        [Case("ipip_udp6", frame6(udp()), grows=40)],
    )
    nat = service(forwarding="full_nat", source="10.0.255.9")
    yield Scene("full_nat", [nat], members(port=BACKEND_PORT), [Case("full_nat_udp4", frame4(udp()))])
    yield Scene(
        "redirect",
        [service(forwarding="redirect")],
        [{"service": "bench", "interface": OUT}],
        [Case("redirect", frame4(udp()), repeatable=True, verdict=reference.REDIRECT)],
    )
    measured = [Case("dnat_udp4_latency", frame4(udp()))]
    latency = frozenset(("latency",))
    yield Scene("latency", [service()], members(port=BACKEND_PORT), measured, more_features=latency)
    yield quic_scene()
    yield flow_table()
    yield flood()
    yield thousand_services()
    yield many_filters()
