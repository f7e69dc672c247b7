# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services whose backend follows from the client's address alone."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import frames, reference
from tests.packet.frames import tcp
from tests.packet.network import FRONT_MAC, ROUTER_MAC
from tests.support.program import ALL_FEATURES

VIP, VIP6, MAC = "203.0.113.10", "2001:db8:f::10", "52:54:00:00:00:01"
HOSTS = range(1, 10)
AFFINITY = {"protocol": "udp", "affinity": "client"}


def service(name: str, port: Any, vip: str = VIP, **more: Any) -> dict[str, Any]:
    return {"name": name, "address": vip, "port": port, **AFFINITY, **more}


def backends(name: str, vip: str = VIP, **more: Any) -> list[dict[str, Any]]:
    network = "10.0.0." if vip == VIP else "2001:db8::"
    return [{"service": name, "address": f"{network}{host}", "mac": MAC, **more} for host in HOSTS]


def clients(family: int) -> list[str]:
    """From networks that differ in each of their bytes."""
    if family == 4:
        return [f"{20 + number}.{number * 7 % 256}.{number * 11 % 256}.{number}" for number in range(1, 61)]
    return [f"2001:db8:{number:x}:{number * 7:x}:{number * 11:x}::{number:x}" for number in range(1, 61)]


def udp(source: str, source_port: int, destination: str, port: int) -> bytes:
    if ":" not in source:
        return frames.udp(source, source_port, destination, port)
    network = IPv6(src=source, dst=destination) / UDP(sport=source_port, dport=port) / Raw(b"payload")
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / network)


def chosen(rig, frame: bytes) -> str:
    _verdict, output = rig.send(frame)
    assert rig.model.last_reason is None
    sent = reference.take_apart(output, rig.model.features)
    return socket.inet_ntop(socket.AF_INET if sent.family == 4 else socket.AF_INET6, sent.destination)


@contextmanager
def other_interface(name: str) -> Iterator[None]:
    subprocess.run(["ip", "link", "add", name, "type", "veth"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


@pytest.fixture(scope="module")
def every_rig(make_rig):
    """By hook, with maglev and hash over both families."""
    services, members = [], []
    for vip in (VIP, VIP6):
        for port, scheduler in ((1, "maglev"), (2, "hash")):
            name = f"{scheduler}{4 if vip == VIP else 6}"
            services.append(service(name, f"{port}000-{port}009", vip, scheduler=scheduler))
            members += backends(name, vip)
    return {
        "xdp": make_rig(services, members),
        "tc": make_rig(services, members, tc=True),
        "few": make_rig(services, members, frozenset(("dnat", "ipv6", "affinity"))),
    }


@pytest.mark.parametrize("kind", ["xdp", "tc", "few"])
@pytest.mark.parametrize("vip, family", [(VIP, 4), (VIP6, 6)])
@pytest.mark.parametrize("port", [1000, 2000])
def test_ports_make_no_difference(every_rig, kind, vip, family, port):
    rig, used = every_rig[kind], set()
    for client in clients(family):
        (backend,) = {chosen(rig, udp(client, source, vip, port + source % 10)) for source in (1024, 5003, 40009)}
        used.add(backend)
    assert len(used) >= len(HOSTS) - 1
    rig.check_counters()


@pytest.mark.parametrize("vip, prefix", [(VIP, prefix) for prefix in (1, 8, 20, 31, 32)])
def test_prefix_of_ip4(make_rig, vip, prefix):
    check_prefix(make_rig, vip, prefix, ipaddress.ip_address("20.85.170.85"))


@pytest.mark.parametrize("vip, prefix", [(VIP6, prefix) for prefix in (1, 48, 63, 64, 65, 127, 128)])
def test_prefix_of_ip6(make_rig, vip, prefix):
    check_prefix(make_rig, vip, prefix, ipaddress.ip_address("2001:db8:5555:aaaa:5555:aaaa:5555:aaaa"))


def check_prefix(make_rig, vip: str, prefix: int, client) -> None:
    """Clients that differ behind the prefix have one backend; the model says which of those that differ within it."""
    rig = make_rig([service("web", 80, vip, affinity_prefix=prefix)], backends("web", vip))
    bits = client.max_prefixlen
    within = {chosen(rig, udp(str(client + 0), 1024, vip, 80))}
    for bit in range(bits - prefix):
        within.add(chosen(rig, udp(str(type(client)(int(client) ^ 1 << bit)), 1024 + bit, vip, 80)))
    assert len(within) == 1
    # The highest bits would make the client an invalid source.
    beyond = [int(client) ^ 1 << bit for bit in range(bits - prefix, min(bits - prefix + 24, bits - 8))]
    for number in beyond:
        chosen(rig, udp(str(type(client)(number)), 1024, vip, 80))


def test_services_of_a_group_send_a_client_to_one_backend(make_rig):
    """Whatever their ports, those of the backends, and the order of the inventory."""
    web = service("web", 80, protocol="tcp", affinity_group="shop")
    secure = service("secure", 443, protocol="tcp", affinity_group="shop", forwarding="dsr")
    game = service("game", "5000-5010", affinity_group="shop", flow_table=True)
    weights = {host: 1 + host % 3 for host in HOSTS}
    members = [
        *({**entry, "weight": weights[host]} for host, entry in zip(HOSTS, backends("web", port=8080))),
        *({**entry, "weight": weights[host]} for host, entry in zip(HOSTS, backends("secure"))),
        *({**entry, "weight": weights[host]} for host, entry in zip(HOSTS, backends("game"))),
    ]
    rig = make_rig([web, secure, game], members[::-1])
    mac = {f"10.0.0.{host}": bytes((0x52, 0x54, 0, 0, 1, host)) for host in HOSTS}
    by_mac = make_rig(
        [secure],
        [{**entry, "mac": mac[entry["address"]].hex(":")} for entry in members if entry["service"] == "secure"],
    )
    for client in clients(4):
        backend = chosen(rig, tcp(client, 1024, VIP, 80))
        assert chosen(rig, udp(client, 2048, VIP, 5003)) == backend
        _verdict, output = by_mac.send(tcp(client, 3072, VIP, 443))
        assert output[:6] == mac[backend]


@pytest.mark.parametrize("kind", [4, 6])
def test_the_source_of_a_tunnel_still_follows_the_flow(make_rig, kind):
    vip = VIP if kind == 4 else VIP6
    source = "10.99.0.0/16" if kind == 4 else "2001:db8:99::/64"
    rig = make_rig([service("web", "any", vip, forwarding="ipip", source=source)], backends("web", vip))
    client = clients(kind)[0]
    seen = set()
    for port in range(1024, 1064):
        _verdict, output = rig.send(udp(client, port, vip, 80))
        seen.add(output[26:34] if kind == 4 else output[22:54])
    destinations = {item[4:] if kind == 4 else item[16:] for item in seen}
    assert len(destinations) == 1 and len(seen) == 40


def test_all_flows_of_a_client_leave_by_one_interface_of_those_that_are_up(make_rig, net):
    names = [socket.if_indextoname(number) for number in (net.front, net.back)]
    members = [{"service": "move", "interface": name} for name in (*names, "spare")]
    with other_interface("spare"):
        rig = make_rig([service("move", "any", forwarding="redirect")], members)
    rig.model.link_is_up = lambda name: name != "spare"
    rig.program.maps.set_links({net.front, net.back})
    for client in clients(4)[:30]:
        for port in range(1024, 1029):
            rig.send(udp(client, port, VIP, 80))
    rig.check_counters()


# --- round robin


@pytest.fixture
def turns(make_rig):
    turn = service("turns", "any", protocol="tcp", scheduler="round_robin", flow_table=True, affinity_prefix=24)
    return make_rig([turn], backends("turns"))


def test_round_robin_gives_each_client_a_turn_and_keeps_it(turns):
    first = {client: chosen(turns, tcp(client, 1024, VIP, 80)) for client in clients(4)[:20]}
    assert list(first.values())[:9] == [f"10.0.0.{host}" for host in HOSTS]
    for client, backend in first.items():
        # Neither another connection nor a reset nor another host of the prefix takes a turn.
        neighbour = client.rpartition(".")[0] + ".250"
        for flags, source in (("S", client), ("A", client), ("R", client), ("S", neighbour), ("A", client)):
            assert chosen(turns, tcp(source, 3000, VIP, 443, tcp_flags=flags)) == backend
    turns.check_counters()


def test_a_client_is_known_on_all_cpus(turns):
    cpus = sorted(os.sched_getaffinity(0))
    everywhere = list(range(bpf.possible_cpus()))
    client = clients(4)[0]
    backend = chosen(turns, tcp(client, 1024, VIP, 80))
    chosen(turns, tcp(clients(4)[1], 1024, VIP, 80))
    try:
        for cpu in everywhere:
            os.sched_setaffinity(0, {cpu})
            _verdict, output, _duration = turns.program.run(
                tcp(client, 2000 + cpu, VIP, 80, tcp_flags="S"), interface=turns.interface
            )
            assert socket.inet_ntoa(output[30:34]) == backend
    finally:
        os.sched_setaffinity(0, cpus)


def test_without_affinity_a_program_with_the_feature_chooses_as_one_without(make_rig):
    plain = [{"name": "web", "address": VIP, "protocol": "udp", "port": 80}]
    here = make_rig(plain, backends("web"))
    there = make_rig(plain, backends("web"), ALL_FEATURES - {"affinity"})
    for client in clients(4):
        for port in (1024, 1025):
            assert here.send(udp(client, port, VIP, 80)) == there.send(udp(client, port, VIP, 80))
