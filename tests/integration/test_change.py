# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests over every kind of change: each change is one run of xdp_balancer, and so is the way back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.conftest import CHECKOUT, DIRECTORY, INTERFACE, SERVERS, Lab
from tests.support.client import Client

# The backends hold this VIP themselves, so that they can also serve it with dsr.
VIP, PORT = "10.77.0.130", 8080
# This service remembers no flows.
PLAIN_PORT = 9
# A port of a backend serves one service of a protocol.
PLAIN_BACKEND_PORT = 8081
# How much higher the ports are that backends change to.
OTHER_PORTS = 2
HELD = 20
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}
BACKENDS6 = {name: f"fd77:0:0:2::{number}" for number, name in enumerate(BACKENDS, start=11)}
VIP6, BALANCER6 = "fd77::20", "fd77:0:0:2::1"
# Beside that of the lab's own echo server.
ECHO_PORTS = (PLAIN_BACKEND_PORT, PORT + OTHER_PORTS, PLAIN_BACKEND_PORT + OTHER_PORTS)
UDP_RATE, TCP_RATE = 400, 50
# A veth has no RSS: the packets of a connection come to several CPUs. There, a flow table may still remember an earlier
# connection from the same port, to another backend; so each case has ports of its own.
FIRST_SOURCE_PORT, SOURCE_PORTS = 16000, 4000
PORT_RANGE = "net.ipv4.ip_local_port_range"
ASKER = CHECKOUT / "tests/integration/asker.py"

Entries = list[dict[str, Any]]


def backends(service: str, addresses: dict[str, str] | None = None, port: int | None = PORT) -> Entries:
    found = (addresses or BACKENDS).items()
    return [{"service": service, "name": name, "address": address, "port": port} for name, address in found]


def document(
    names: tuple[str, str, str] = ("udp", "tcp", "plain"),
    port: int | None = PORT,
    plain_port: int = PLAIN_BACKEND_PORT,
    **keys: Any,
) -> dict:
    """The document that all changes start from, or one with other names, other ports or other keys of services."""
    udp, tcp, plain = names
    services = [
        {"name": udp, "address": VIP, "protocol": "udp", "port": PORT, **keys},
        {"name": tcp, "address": VIP, "protocol": "tcp", "port": PORT, **keys, "flow_table": True},
        {"name": plain, "address": VIP, "protocol": "tcp", "port": PLAIN_PORT},
    ]
    return {
        "interfaces": [INTERFACE],
        "services": services,
        "backends": [*backends(udp, port=port), *backends(tcp, port=port), *backends(plain, port=plain_port)],
    }


def beside(service: dict[str, Any], addresses: dict[str, str]) -> dict:
    """A service more."""
    found = document()
    return {
        **found,
        "services": [*found["services"], service],
        "backends": [*found["backends"], *backends(service["name"], addresses, PLAIN_BACKEND_PORT)],
    }


def other_ports() -> dict:
    return document(port=PORT + OTHER_PORTS, plain_port=PLAIN_BACKEND_PORT + OTHER_PORTS)


def round_robin() -> dict:
    found = document(scheduler="round_robin", flow_table=True)
    found["services"][2].update(scheduler="round_robin", flow_table=True)
    return found


@dataclass(frozen=True)
class Case:
    document: dict
    # What has to be true of the results there and back.
    compiled: bool = False
    new_maps: bool = False
    # Services whose connections cannot stay: their backends, or the ways to them, are others.
    moved: frozenset[str] = frozenset()


SIX = {
    "name": "six",
    "address": VIP6,
    "protocol": "udp",
    "port": 7,
    "forwarding": "full_nat",
    "source": BALANCER6,
}
OTHER = {"name": "other", "address": "10.77.0.21", "protocol": "udp", "port": 9}
CASES = {
    "rename the services": Case(document(("one", "two", "three"))),
    "another port of the backends": Case(other_ports(), moved=frozenset(("tcp", "plain"))),
    "dnat to dsr": Case(document(port=None, forwarding="dsr"), compiled=True, moved=frozenset(("tcp",))),
    "another VIP": Case(beside(OTHER, BACKENDS)),
    # A connection that nobody remembers yet takes its turn like a new one.
    "round robin": Case(round_robin(), compiled=True, moved=frozenset(("plain",))),
    "size of lookup tables": Case(document(table_size=4093), compiled=True),
    "size of a map": Case({**document(), "max_backends": 20000}, new_maps=True),
    "size of a map and names": Case({**document(("one", "two", "three")), "max_backends": 20000}, new_maps=True),
    "size of a map and another port": Case(
        {**other_ports(), "max_backends": 20000},
        new_maps=True,
        moved=frozenset(("tcp", "plain")),
    ),
    "a service that needs more of the program": Case(beside(SIX, BACKENDS6), compiled=True),
    "another interface": Case({**document(), "interfaces": [INTERFACE, "t0"]}),
}


@pytest.fixture(scope="module", autouse=True)
def prepared(lab: Lab, site: dict) -> Iterator[None]:
    """More echo servers, IPv6 beside IPv4, and a second interface of the balancer."""
    echo = (CHECKOUT / "playbooks/lab/echo.py").read_text()
    for name in SERVERS:
        for port in ECHO_PORTS:
            code = echo.replace("PORT = 8080", f"PORT = {port}")
            start = f"systemd-run --quiet --unit=echo-{port} python3 /run/echo-{port}.py"
            lab.ssh(name, f"cat >/run/echo-{port}.py <<'END'\n{code}\nEND\n{start}")
        lab.ssh(name, f"ip addr replace {BACKENDS6[name]}/64 dev {INTERFACE} nodad")
    lab.ssh("client", f"ip addr replace fd77:0:0:1::10/64 dev {INTERFACE} nodad")
    lab.ssh("client", "ip -6 route replace fd77::/16 via fd77:0:0:1::1")
    lab.ssh("lb1", f"ip addr replace fd77:0:0:1::1/64 dev {INTERFACE} nodad")
    lab.ssh("lb1", f"ip addr replace {BALANCER6}/64 dev {INTERFACE} nodad; sysctl -qw net.ipv6.conf.all.forwarding=1")
    lab.ssh("lb1", "ip link add t0 type veth peer name t1; ip link set t0 up; ip link set t1 up")
    ports = lab.ssh("client", f"sysctl -n {PORT_RANGE}")
    yield
    lab.ssh("client", f"sysctl -qw {PORT_RANGE}='{ports}'")
    lab.playbook("site.yml")
    lab.ssh("lb1", "ip link del t0")
    for name in SERVERS:
        lab.ssh(name, "systemctl stop 'echo-*'")


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(DIRECTORY / "ssh_config")
    yield made
    made.close()


def apply(lab: Lab, wanted: dict, case: Case) -> dict:
    result = lab.module("xdp_balancer", **wanted)
    assert result.get("changed"), result
    assert (result["new_maps"], result["repaired"]) == (case.new_maps, False)
    assert result["compiled"] is case.compiled, result
    return result


def ask_six(lab: Lab) -> set[str]:
    answers = json.loads(lab.ssh("client", f"python3 -c {shlex.quote(ASKER.read_text())} {VIP6} 7 udp 20 20 0"))
    return {answer[0] for answer in answers}


@pytest.mark.parametrize("name", CASES)
def test_no_request_is_lost(lab: Lab, client: Client, name: str):
    case = CASES[name]
    first = FIRST_SOURCE_PORT + SOURCE_PORTS * list(CASES).index(name)
    lab.ssh("client", f"sysctl -qw {PORT_RANGE}='{first} {first + SOURCE_PORTS - 1}'")
    started = lab.module("xdp_balancer", **document())
    assert not started.get("failed"), started
    client("hold", HELD, VIP, PORT)
    client("hold", HELD, VIP, PLAIN_PORT)
    before = client("ask_held")
    assert set(before) == set(BACKENDS)
    client("start_load", VIP, PORT, UDP_RATE, TCP_RATE)
    try:
        apply(lab, case.document, case)
        during = client("ask_held")
        six = ask_six(lab) if SIX in case.document["services"] else None
        apply(lab, document(), case)
        after = client("ask_held")
    finally:
        load = client("stop_load")
    print(f"\n{name}: {load}")
    assert load["udp_replies"] == load["udp_sent"] > 2 * UDP_RATE, load
    assert load["tcp_replies"] == load["tcp_requests"] > TCP_RATE, load
    # The load has one connection open at a time: only that one can meet the moment in which connections move.
    assert load["tcp_reconnects"] <= (2 if "tcp" in case.moved else 0), load
    if "tcp" not in case.moved:
        # The kernel makes up for lost segments, but says so.
        assert load["tcp_segments_lost"] == 0, load
    for service, start in (("tcp", 0), ("plain", HELD)):
        if service not in case.moved:
            held = slice(start, start + HELD)
            assert before[held] == during[held] == after[held], service
    assert six in (None, set(BACKENDS))
