# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where connections go that no flow table knows, after the backends of their service have changed."""

from __future__ import annotations

import os
import socket
from collections import Counter

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout, previous_table
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.packet import frames, reference
from tests.packet.frames import CLIENT
from tests.packet.network import FRONT_MAC, ROUTER_MAC

VIP, VIP6 = "203.0.113.10", "2001:db8:f::10"
HANDOVER = ("handover", "forward")


def service(name: str, port: int, **more) -> dict:
    address = VIP6 if name.endswith("6") else VIP
    return {"name": name, "address": address, "protocol": "tcp", "port": port, "flow_table": True, **more}


SERVICES = [
    service("plain", 80),
    service("plain6", 80),
    service("small", 81, table_size=251),
    service("modulo", 82, scheduler="hash"),
    service("client", 83, affinity="client", affinity_prefix=24),
    service("direct6", 84, forwarding="dsr"),
    service("turns", 85, scheduler="round_robin"),
    service("datagrams", 80, protocol="udp"),
]


def members(name: str, *hosts: int, **more) -> list[dict]:
    network = "fd00::" if name.endswith("6") else "10.0.0."
    return [
        {"service": name, "address": f"{network}{host:x}" if ":" in network else f"{network}{host}", **more}
        for host in hosts
    ]


BACKENDS = [backend for entry in SERVICES for backend in members(entry["name"], 1, 2, 3, 4)]


def tcp(name: str, number: int, flags: str) -> bytes:
    (port,) = (entry["port"] for entry in SERVICES if entry["name"] == name)
    if not name.endswith("6"):
        return frames.tcp(f"198.51.{number % 200}.7", 2000 + number, VIP, port, tcp_flags=flags)
    packet = IPv6(src=f"2001:db8:7::{number:x}", dst=VIP6) / TCP(sport=2000 + number, dport=port, flags=flags)
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / packet)


@pytest.fixture(params=[False, True], ids=["xdp", "tc"])
def rig(request, make_rig):
    return make_rig(SERVICES, BACKENDS, tc=request.param)


def targets(rig, name: str, numbers: range, flags: str) -> list[bytes]:
    """The backend of each packet, by the Ethernet address that it leaves to."""
    return [rig.send(tcp(name, number, flags))[1][:6] for number in numbers]


@pytest.mark.parametrize("name", ["plain", "plain6", "small", "modulo", "client", "direct6"])
def test_connections_go_where_they_went_and_new_ones_where_they_go_now(rig, name):
    old, numbers, others = members(name, 1, 2, 3), range(200), range(200, 400)
    rig.hand_over(name, old)
    before = reference.Balancer(SERVICES, old, own_macs=rig.model.own_macs)
    (declared,) = (entry for entry in before.services.values() if entry.name == name)
    wanted = []
    for number in numbers:
        packet = reference.take_apart(tcp(name, number, "A"), rig.model.features)
        flow = (name, packet.protocol, packet.source, *packet.ports)
        wanted.append(before._hashed(declared, flow).target)
    found = targets(rig, name, numbers, "A")
    assert len(set(zip(wanted, found))) == len(set(wanted)) == 3
    assert 0 < rig.model.reasons[HANDOVER] < len(numbers)
    assert len(set(targets(rig, name, others, "S"))) == 4
    # They are remembered: their packets are not handed over again.
    handed_over = rig.model.reasons[HANDOVER]
    assert targets(rig, name, numbers, "PA") == found
    assert rig.model.reasons[HANDOVER] == handed_over
    rig.check_counters()


def test_the_end_of_a_connection_goes_to_its_backend(rig):
    rig.hand_over("plain", members("plain", 1))
    assert len(set(targets(rig, "plain", range(100), "FA"))) == 1
    assert len(set(targets(rig, "plain", range(100, 200), "R"))) == 1


def test_a_connection_is_established_at_once(rig):
    """So that new flows do not push it out."""
    rig.hand_over("plain", members("plain", 1))
    targets(rig, "plain", range(50), "A")
    moved = rig.model.reasons[HANDOVER]
    states = Counter(
        flow >> 33 & 3
        for table in flow_tables(rig.program)
        for bucket in layout.FLOW_BUCKET.iter_unpack(table)
        for flow in bucket
        if flow
    )
    assert states == {1: moved, 0: 50 - moved}


def flow_tables(program) -> list[bytes]:
    spec, found = program.maps.spec("flows"), []
    for cpu in range(spec.max_entries):
        descriptor = bpf.map_fd(int.from_bytes(bpf.map_lookup(program.maps["flows"], layout.index(cpu), 4), "little"))
        found.append(bpf.map_lookup_batch(descriptor, spec.inner_entries, layout.FLOW_BUCKET.size)[1])
        os.close(descriptor)
    return found


def test_a_drained_backend_counts_and_one_that_is_gone_does_not(make_rig):
    backends = [*members("plain", 1), *members("plain", 2, state="drained")]
    rig = make_rig(SERVICES[:1], backends)
    rig.hand_over("plain", members("plain", 2, 3))
    found = Counter(socket.inet_ntoa(rig.send(tcp("plain", number, "A"))[1][30:34]) for number in range(100))
    assert found.keys() == {"10.0.0.1", "10.0.0.2"} and min(found.values()) > 25
    rig.check_counters()


def test_an_unhealthy_backend_does_not_count(make_rig):
    rig = make_rig(SERVICES[:1], members("plain", 1, 2))
    program, key = rig.program, next(key for key in rig.program.backend_ids if key.address == "10.0.0.2")
    (healthy,) = (backend for backend in program.config.backends.values() if backend.key != key)
    rig.hand_over("plain", members("plain", 2))
    program.replace_ring("plain", [healthy])
    program.maps.retire_backends([program.backend_ids[key]])
    for number in range(20):
        frame = program.run(tcp("plain", number, "A"), interface=rig.interface)[1]
        assert socket.inet_ntoa(frame[30:34]) == "10.0.0.1"


def test_it_ends(rig):
    """The table stays in the map, but is not looked at."""
    rig.hand_over("plain", members("plain", 1), seconds=-2)
    targets(rig, "plain", range(40), "A")
    assert not rig.model.reasons[HANDOVER]
    assert len(set(targets(rig, "plain", range(40, 80), "A"))) == 4


@pytest.mark.parametrize("change", ["hash seed", "affinity"])
def test_a_table_for_another_hash_is_not_looked_at(make_rig, change):
    seed = "9f86d081884c7d65" if change == "hash seed" else ""
    rig = make_rig(SERVICES, BACKENDS, hash_seed=seed)
    name = "plain" if change == "hash seed" else "client"
    other = make_rig([{**SERVICES[0], "name": name}], members(name, 1))
    table = other.program
    packed = previous_table.pack_previous_table(
        table.config.services[name], list(table.config.backends.values()), rig.program.backend_ids, 0, (1 << 32) - 1
    )
    rig.program.maps.swap_table("previous", packed, rig.program.rings[name])
    assert len(set(targets(rig, name, range(60), "A"))) == 4
    rig.check_counters()


def test_datagrams_are_not_handed_over(rig):
    rig.program.hand_over("datagrams", list(rig.program.config.backends_of()["datagrams"])[:1], (1 << 32) - 1)
    found = {rig.send(frames.udp(CLIENT, 3000 + number, VIP, 80, bytes(18)))[1][:6] for number in range(60)}
    assert len(found) == 4


def error(number: int) -> bytes:
    """A router says that a backend's packet to the client is too big."""
    quote = IP(src=VIP, dst=f"198.51.{number % 200}.7") / TCP(sport=80, dport=2000 + number, flags="A")
    packet = IP(src="192.0.2.77", dst=VIP) / ICMP(type=3, code=4, nexthopmtu=1400) / quote
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / packet)


def test_errors_go_where_the_connection_went_and_teach_nothing(rig):
    rig.hand_over("plain", members("plain", 1))
    sent = {rig.send(error(number))[1][:6] for number in range(60)}
    assert sent == set(targets(rig, "plain", range(60), "A")) and len(sent) == 1
    assert rig.program.maps.read_counters("service_counters")[rig.program.rings["plain"]][4] == 60
    # One of a connection that is remembered goes there.
    targets(rig, "plain", range(60, 120), "S")
    for number in range(60, 120):
        assert rig.send(error(number))[1][:6] == rig.send(tcp("plain", number, "A"))[1][:6]
    rig.check_counters()
