# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend a flow goes to when the hash has a seed, and what whoever does not know it can do."""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import replace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, map_set
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import frames, reference
from tests.packet.network import FRONT_MAC, ROUTER_MAC
from tests.support.compile_once import SOURCE
from tests.support.program import ALL_FEATURES, SIZES, load

SEED, OTHER = "9f86d081884c7d65", "00000000deadbeef"
VIP, VIP6, MAC = "203.0.113.10", "2001:db8:f::10", "52:54:00:00:00:01"
HOSTS = range(1, 9)


def service(name: str, port: int, **more) -> dict:
    return {"name": name, "address": VIP6 if name.endswith("6") else VIP, "protocol": "udp", "port": port, **more}


TUNNEL, TUNNEL6 = (
    {"forwarding": "ipip", "source": "10.99.0.0/16"},
    {"forwarding": "ipip", "source": "2001:db8:99::/64"},
)
SERVICES = [
    service("plain", 80),
    service("plain6", 80),
    service("modulo", 81, scheduler="hash"),
    service("small6", 81, table_size=251),
    service("known", 82, flow_table=True),
    service("known6", 82, flow_table=True),
    service("tunnel", 83, **TUNNEL),
    service("tunnel6", 83, **TUNNEL6),
    service("known-tunnel", 84, flow_table=True, **TUNNEL),
    service("client", 85, affinity="client", **TUNNEL),
    service("client6", 85, affinity="client", affinity_prefix=64, flow_table=True),
    service("turns", 86, affinity="client", scheduler="round_robin", flow_table=True),
    service("nat", 87, forwarding="full_nat", source="10.0.0.250"),
]
BACKENDS = [
    {"service": entry["name"], "address": f"{'2001:db8::' if entry['name'].endswith('6') else '10.0.0.'}{host}"}
    for entry in SERVICES
    for host in HOSTS
]


@pytest.fixture(scope="module", params=[False, True], ids=["xdp", "tc"])
def rig(request, make_rig):
    return make_rig(SERVICES, BACKENDS, tc=request.param, hash_seed=SEED)


@pytest.fixture(scope="module")
def public(make_rig):
    return make_rig(SERVICES, BACKENDS)


def udp(source: str, source_port: int, port: int) -> bytes:
    if ":" not in source:
        return frames.udp(source, source_port, VIP, port)
    network = IPv6(src=source, dst=VIP6) / UDP(sport=source_port, dport=port) / Raw(b"payload")
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / network)


def shares(rig, sent: list[bytes]) -> Counter[bytes]:
    """How many of the frames each backend gets."""
    return Counter(reference.take_apart(rig.send(frame)[1], rig.model.features).destination for frame in sent)


@pytest.mark.parametrize("declared", SERVICES, ids=lambda declared: declared["name"])
def test_every_way_to_choose_agrees_with_the_model(rig, declared):
    family6 = declared["address"] == VIP6
    for number in range(40):
        client = f"2001:db8:{number:x}:7::{number % 3:x}" if family6 else f"198.51.{number}.{number % 3}"
        # Twice, so that what remembers flows remembers them.
        for _time in range(2):
            rig.send(udp(client, 1024 + 97 * number, declared["port"]))
            assert rig.model.last_reason is None
    rig.check_counters()


# --- who chooses ports and knows the public hash


def public_backend(client: bytes, client_port: int, port: int, ring: list) -> bytes:
    value = reference.flow_hash(client, client_port.to_bytes(2, "big"), port.to_bytes(2, "big"))
    return ring[(value >> 32) * len(ring) >> 32].address


@pytest.mark.parametrize("name", ["plain", "plain6", "known", "nat"])
def test_ports_chosen_for_one_backend_are_spread_over_all(rig, public, name):
    (declared,) = (entry for entry in SERVICES if entry["name"] == name)
    client = "2001:db8:5::5" if name.endswith("6") else "198.51.100.5"
    packed = reference.pack_address(client)
    (found,) = {id(entry): entry for entry in rig.model.services.values() if entry.name == name}.values()
    target = found.ring[0].address
    ports = [
        port for port in range(1024, 30000) if public_backend(packed, port, declared["port"], found.ring) == target
    ]
    attack = [udp(client, port, declared["port"]) for port in ports[:400]]
    assert shares(public, attack) == {target: 400}
    # 50 each; five standard deviations are 33.
    spread = shares(rig, attack)
    assert len(spread) == len(HOSTS) and max(spread.values()) < 84


def test_addresses_of_a_prefix_do_not_make_up_for_ports(rig, public):
    """Without a seed, XOR of the lower half and the ports is all that an IPv6 hash has of both."""
    attack = []
    for number in range(400):
        source_port = 1024 + number
        ports = int.from_bytes(source_port.to_bytes(2, "big"), "little") << 16
        lower = (0x0123456789ABCDEF ^ ports).to_bytes(8, "little")
        attack.append(
            udp(socket.inet_ntop(socket.AF_INET6, bytes.fromhex("20010db800050000") + lower), source_port, 80)
        )
    assert len(shares(public, attack)) == 1
    spread = shares(rig, attack)
    assert len(spread) == len(HOSTS) and max(spread.values()) < 84


# --- another seed


def test_another_seed_moves_flows_unless_they_are_remembered(make_rig):
    """Also the first seed that a balancer gets, and the last one that it loses."""
    names = ("plain", "known", "nat", "turns")
    services = [entry for entry in SERVICES if entry["name"] in names]
    rig = make_rig(services, [entry for entry in BACKENDS if entry["service"] in names])
    program, loaded = rig.program, []
    sent = {
        entry["name"]: [udp("198.51.100.5", port, entry["port"]) for port in range(2000, 2030)] for entry in services
    }

    def answers(fd: int, name: str) -> list[bytes]:
        return [bpf.test_run(fd, frame, 1, rig.interface, program.type)[1][26:42] for frame in sent[name]]

    try:
        descriptors = list(program.maps.descriptors.values())
        for seed in ("", SEED, OTHER):
            loaded.append(load(replace(program.build, hash_seed=seed), descriptors))
        first, second, third = ({name: answers(fd, name) for name in names} for fd in loaded)
        for name in ("known", "nat", "turns"):
            assert first[name] == second[name] == third[name]
        assert first["plain"] != second["plain"] != third["plain"] != first["plain"]
    finally:
        for fd in loaded:
            os.close(fd)


@pytest.mark.parametrize("tc", [False, True], ids=["xdp", "tc"])
def test_the_verifier_takes_all_features_with_a_seed_for_a_machine_of_many_cpus(tc):
    features = ALL_FEATURES - (compiler.NOT_ON_TC if tc else frozenset())
    build = compiler.Build(SOURCE, features, SIZES, tc, cpus=512, hash_seed=SEED)
    with map_set.create(SIZES) as created:
        os.close(load(build, list(created.descriptors.values())))
