# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real sockets through the balancer."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.conftest import DIRECTORY, INTERFACE
from tests.support.client import Client

VIP = "10.77.0.20"
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}


@pytest.fixture
def serve(lab, site):
    """Make this service, on UDP and TCP port 7, and these backends the whole document."""

    def apply(backends: dict[str, dict], **service) -> dict:
        # RR spreads packets, so it serves UDP only.
        protocols = ["udp"] if service.get("scheduler") == "round_robin" else ["udp", "tcp"]
        services = [
            {"name": protocol, "address": VIP, "protocol": protocol, "port": 7, **service} for protocol in protocols
        ]
        port = None if "-" in str(service.get("port", "")) else 8080
        entries = [
            {"service": protocol, "address": BACKENDS[name], "port": port, **options}
            for protocol in protocols
            for name, options in backends.items()
        ]
        made = lab.module("xdp_balancer", interfaces=[INTERFACE], services=services, backends=entries)
        assert not made.get("failed"), made
        return made

    return apply


def counters(lab) -> dict[str, int]:
    rows = lab.module("xdp_info")["reasons"]
    return {f"{row['verdict']} {row['reason']}": row["packets"] for row in rows}


def test_udp_and_tcp_reach_every_backend_and_come_back_from_the_vip(lab, serve):
    serve({"be1": {}, "be2": {}, "be3": {}})
    # The client's sockets are connected and check the address that the backend saw.
    for answers in (lab.ask(VIP, 7, 300), lab.connect(VIP, 7, 90)):
        assert set(answers) == set(BACKENDS)


def test_dsr_answers_come_straight_from_the_backend(lab, site):
    service = {"name": "d", "address": "10.77.0.130", "protocol": "udp", "port": 8080, "forwarding": "dsr"}
    backends = [{"service": "d", "address": address} for address in BACKENDS.values()]
    lab.module("xdp_balancer", interfaces=[INTERFACE], services=[service], backends=backends)
    assert set(lab.ask("10.77.0.130", 8080, 100)) == set(BACKENDS)
    row = lab.module("xdp_info")["services"][0]
    assert (row["packets"], row["reply_packets"]) == (100, 0)


def test_the_vip_answers_ping(lab, serve):
    serve({"be1": {}})
    assert "3 received" in lab.ssh("client", f"ping -c3 -i0.2 -W1 {VIP}")


def test_a_service_without_backends_drops_and_counts(lab, serve):
    serve({})
    before = counters(lab)["drop no_backend"]
    assert lab.ask(VIP, 7, 5) == {"": 5}
    assert counters(lab)["drop no_backend"] == before + 5


def test_weights_and_drained_backends(lab, serve):
    serve({"be1": {"weight": 3}, "be2": {}, "be3": {"state": "drained"}})
    answers = lab.ask(VIP, 7, 4000)
    assert set(answers) == {"be1", "be2"}
    # Three quarters of 4,000 flows, give or take five standard deviations.
    assert abs(answers["be1"] - 3000) < 140


def test_a_drained_backend_finishes_what_it_has(lab, serve):
    """A reply that it still owes gets the VIP back."""
    serve({"be1": {}, "be2": {"state": "drained"}})
    listen = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.77.1.10', 7777)); "
        "s.settimeout(5); print(s.recvfrom(99))"
    )
    # The echo service holds the port, so the datagram is made on the raw level.
    owed = (
        "import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP); "
        "s.sendto(struct.pack('>HHHH', 8080, 7777, 12, 0) + b'owed', ('10.77.1.10', 0))"
    )
    with ThreadPoolExecutor() as pool:
        heard = pool.submit(lab.ssh, "client", f'python3 -c "{listen}"')
        time.sleep(1)
        lab.ssh("be2", f'python3 -c "{owed}"')
        assert heard.result() == f"(b'owed', ('{VIP}', 7))"


def test_round_robin_takes_turns(lab, serve):
    serve({"be1": {}, "be2": {}, "be3": {}}, scheduler="round_robin")
    answers = lab.ask(VIP, 7, 300)
    # Each CPU takes turns by itself.
    assert all(abs(answers[name] - 100) <= 2 for name in BACKENDS), answers


def test_a_port_range_keeps_the_port(lab, serve):
    serve({"be1": {}, "be2": {}}, port="8079-8081")
    assert set(lab.ask(VIP, 8080, 100)) == {"be1", "be2"}
    assert lab.ask(VIP, 8082, 2) == {"": 2}


@pytest.fixture
def under_load(lab, serve):
    """Continuous requests while a function runs; every one of them must be answered."""

    def during(action) -> dict:
        client = Client(DIRECTORY / "ssh_config")
        try:
            client("start_load", VIP, 7)
            action()
            result = client("stop_load")
        finally:
            client.close()
        assert result["udp_replies"] == result["udp_sent"] > 500, result
        assert result["tcp_replies"] == result["tcp_requests"] > 100, result
        return result

    return during


def test_changing_backends_loses_nothing(serve, under_load):
    serve({"be1": {}, "be2": {}})

    def changes() -> None:
        serve({"be1": {}, "be2": {}, "be3": {}})
        serve({"be1": {"weight": 5}, "be2": {}, "be3": {}})
        serve({"be2": {}, "be3": {"state": "drained"}})
        serve({"be3": {}})

    # Each of four swaps of the TCP service's lookup table can meet one open connection, which has to connect again.
    assert under_load(changes)["tcp_reconnects"] <= 4


def test_another_vip_port_takes_over_in_one_step(lab, serve, under_load):
    """A second service comes and goes beside the one under load."""
    serve({"be1": {}, "be2": {}})
    other = {"name": "other", "address": "10.77.0.21", "protocol": "udp", "port": 9}

    def changes() -> None:
        assert lab.module("xdp_services", services=[other], purge=False)["changed"]
        both = [{"name": name, "address": VIP, "protocol": name, "port": 7} for name in ("udp", "tcp")]
        assert lab.module("xdp_services", services=both)["removed"] == ["other"]

    under_load(changes)


def test_replacing_program_and_maps_loses_nothing_and_keeps_counters(lab, serve, under_load):
    serve({"be1": {}, "be2": {}})
    lab.ask(VIP, 7, 100)

    def packets() -> Counter[str]:
        rows = lab.module("xdp_info")["services"]
        return Counter({row["name"]: row["packets"] for row in rows})

    before = packets()
    assert before["udp"] >= 100

    def changes() -> None:
        other = lab.module("xdp_program", interfaces=[INTERFACE], latency=True)
        assert other["compiled"] and not other["new_maps"]
        assert packets()["udp"] > before["udp"]
        larger = lab.module("xdp_program", interfaces=[INTERFACE], latency=True, max_backends=20000)
        assert larger["new_maps"]

    assert under_load(changes)["tcp_reconnects"] == 0
    after = packets()
    assert after["udp"] > before["udp"] + 500
    lab.module("xdp_program", interfaces=[INTERFACE])


def test_the_exporter_counts_what_was_sent(lab, serve):
    serve({"be1": {}})
    name = 'lbops_service_packets_total{balancer="main",direction="%s",service="udp"}'
    before = lab.metrics()
    lab.ask(VIP, 7, 250)
    after = lab.metrics()
    for direction in ("to_backend", "to_client"):
        assert after[name % direction] - before[name % direction] == 250
