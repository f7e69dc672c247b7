# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend a packet goes to."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from tests.packet.frames import CLIENT, CLIENT_PORT, dropped, icmp, tcp, udp, with_bytes
from tests.packet.reference import DROP, TX

VIP = "203.0.113.10"
MAGLEV = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}
RANGE = {"name": "game", "address": VIP, "protocol": "udp", "port": "27000-27063"}
ROUND_ROBIN = {"name": "sip", "address": VIP, "protocol": "udp", "port": 5060, "scheduler": "round_robin"}
FLOWS = 6000


def backend(service: str, host: int, weight: int = 1, state: str = "enabled", **fields) -> dict:
    return {"service": service, "address": f"10.0.0.{host}", "weight": weight, "state": state, **fields}


def flows(count: int, build=tcp, port: int = 80):
    """Frames of clients that differ in address and port; their checksums do not matter here."""
    frame = build(CLIENT, CLIENT_PORT, VIP, port)
    for number in range(count):
        address = socket.inet_aton(f"198.51.{number % 7}.{number % 251}")
        source_port = (1024 + number * 11 % 60000).to_bytes(2, "big")
        yield with_bytes(with_bytes(frame, 26, address), 34, source_port)


def chosen(output: bytes) -> str:
    """The backend to which the program sent the frame."""
    return socket.inet_ntoa(output[30:34])


def chosen_hosts(rig, frames) -> list[int]:
    return [int(chosen(rig.send(frame)[1]).rpartition(".")[2]) for frame in frames]


def test_weights_share_the_flows(make_rig):
    weights = {1: 1, 2: 2, 3: 4, 4: 3}
    rig = make_rig([MAGLEV], [backend("web", host, weight) for host, weight in weights.items()])
    shares = Counter(chosen_hosts(rig, flows(FLOWS)))
    for host, weight in weights.items():
        # Five standard deviations of a binomial distribution are at most 194 of 6000.
        assert abs(shares[host] - FLOWS * weight / 10) < 194, shares
    rig.check_counters()


def test_equal_weights_share_the_flows(make_rig):
    rig = make_rig([MAGLEV], [backend("web", host) for host in range(1, 21)])
    shares = Counter(chosen_hosts(rig, flows(FLOWS)))
    assert set(shares) == set(range(1, 21))
    assert max(abs(share - FLOWS / 20) for share in shares.values()) < 85, shares


def test_a_flow_stays_with_its_backend(make_rig):
    rig = make_rig([MAGLEV], [backend("web", host) for host in range(1, 21)])
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80)
    later = tcp(CLIENT, CLIENT_PORT, VIP, 80, bytes(1000), tcp_flags="A", ttl=10, id=77, tos=8)
    assert chosen(rig.send(frame)[1]) == chosen(rig.send(later)[1])


def test_each_part_of_a_flow_counts(make_rig):
    rig = make_rig([RANGE], [backend("game", host) for host in range(1, 21)])
    by_port = {chosen(rig.send(udp(CLIENT, CLIENT_PORT, VIP, 27000 + port))[1]) for port in range(64)}
    by_client_port = {chosen(rig.send(udp(CLIENT, 1024 + port, VIP, 27000))[1]) for port in range(64)}
    by_client = {chosen(rig.send(udp(f"198.51.100.{host}", CLIENT_PORT, VIP, 27000))[1]) for host in range(64)}
    assert min(len(by_port), len(by_client_port), len(by_client)) >= 15


def test_balancers_agree_whatever_the_order_of_the_inventory(make_rig):
    backends = [backend("web", host, 1 + host % 3) for host in range(1, 11)]
    here, there = make_rig([MAGLEV], backends), make_rig([RANGE, MAGLEV], backends[::-1])
    for frame in flows(500):
        assert here.send(frame) == there.send(frame)


def test_one_backend_gets_everything(make_rig):
    rig = make_rig([MAGLEV], [backend("web", 9, 65535)])
    assert set(chosen_hosts(rig, flows(200))) == {9}


def test_drained_backend_gets_only_its_replies_restored(make_rig):
    backends = [backend("web", 1, port=8080), backend("web", 2, state="drained", port=8080), backend("web", 3, 0)]
    rig = make_rig([MAGLEV], backends)
    assert set(chosen_hosts(rig, flows(1000))) == {1}
    for host, port in ((2, 8080), (3, 80)):
        verdict, output = rig.send(tcp(f"10.0.0.{host}", port, CLIENT, CLIENT_PORT))
        assert (verdict, output[26:30], output[34:36]) == (TX, socket.inet_aton(VIP), (80).to_bytes(2, "big"))
    rig.check_counters()


@pytest.mark.parametrize("service", [MAGLEV, {**MAGLEV, "forwarding": "dsr"}], ids=["dnat", "dsr"])
def test_service_without_backends_drops(make_rig, service):
    rig = make_rig([service], [])
    rig.check(dropped("", tcp(CLIENT, CLIENT_PORT, VIP, 80), "no_backend"))
    rig.send(icmp(CLIENT, VIP))
    assert rig.model.last_reason == ("echo", "tx")


@pytest.mark.parametrize("service, build, port", [(MAGLEV, tcp, 80), (ROUND_ROBIN, udp, 5060)])
def test_service_with_drained_backends_only_drops(make_rig, service, build, port):
    backends = [backend(service["name"], 1, state="drained"), backend(service["name"], 2, 0)]
    rig = make_rig([service], backends)
    rig.check(dropped("", build(CLIENT, CLIENT_PORT, VIP, port), "no_backend"))


# --- round robin


@pytest.mark.parametrize(
    "weights, cycle",
    [
        ({1: 1}, [1]),
        ({1: 1, 2: 1, 3: 1}, [1, 2, 3]),
        ({1: 3, 2: 1}, [1, 1, 2, 1]),
        ({1: 1, 2: 2, 3: 4}, [3, 2, 3, 1, 3, 2, 3]),
        ({1: 10, 2: 20, 3: 40}, [3, 2, 3, 1, 3, 2, 3]),
        ({1: 2, 2: 0, 3: 1}, [1, 3, 1]),
    ],
    ids=str,
)
def test_round_robin_sequence(make_rig, weights, cycle):
    rig = make_rig([ROUND_ROBIN], [backend("sip", host, weight) for host, weight in weights.items()])
    assert chosen_hosts(rig, flows(3 * len(cycle), udp, 5060)) == 3 * cycle
    rig.check_counters()


def test_round_robin_of_one_flow(make_rig):
    rig = make_rig([ROUND_ROBIN], [backend("sip", host) for host in (1, 2)])
    assert chosen_hosts(rig, 4 * [udp(CLIENT, CLIENT_PORT, VIP, 5060)]) == [1, 2, 1, 2]


def test_round_robin_of_two_services_is_separate(make_rig):
    other = {**ROUND_ROBIN, "name": "sips", "port": 5061}
    rig = make_rig([ROUND_ROBIN, other], [backend("sip", 1), backend("sip", 2), backend("sips", 3), backend("sips", 4)])
    frames = [udp(CLIENT, CLIENT_PORT, VIP, port) for port in (5060, 5061, 5061, 5060)]
    assert chosen_hosts(rig, frames) == [1, 3, 4, 2]


def test_round_robin_starts_anew_in_a_shorter_ring(make_rig):
    rig = make_rig([ROUND_ROBIN], [backend("sip", host) for host in range(1, 8)])
    frame = udp(CLIENT, CLIENT_PORT, VIP, 5060)
    assert chosen_hosts(rig, 5 * [frame]) == [1, 2, 3, 4, 5]
    program = rig.program
    program.replace_ring("sip", list(program.config.backends.values())[5:])
    outputs = [program.run(frame, interface=rig.interface)[1] for _time in range(4)]
    assert [chosen(output) for output in outputs] == ["10.0.0.6", "10.0.0.7", "10.0.0.6", "10.0.0.7"]


def test_ring_taken_away_drops(make_rig):
    rig = make_rig([MAGLEV], [backend("web", 1)])
    frame = tcp(CLIENT, CLIENT_PORT, VIP, 80)
    assert rig.program.run(frame, interface=rig.interface)[0] == TX
    rig.program.replace_ring("web", [])
    assert rig.program.run(frame, interface=rig.interface)[:2] == (DROP, frame)
