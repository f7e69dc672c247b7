# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of a real QUIC client to real servers behind the balancer, in namespaces of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.packet import reference
from tests.packet.network import ip, write_setting
from tests.support import namespace
from tests.support.balancer import balancer, declared, settings

PEER = Path(__file__).resolve().parents[1] / "support/quic_peer.py"
VIP, CLIENTS = "192.0.2.10", ("10.1.0.2", "10.1.0.3")
SERVERS = range(1, 5)
# By the service's port that of its backends.
PORTS = {443: 4433, 444: 4434}
# Seconds to wait for an answer, of which the second service gives none.
PATIENCE = {443: 10.0, 444: 1.5}
SERVICES = [
    {"name": "quic", "address": VIP, "protocol": "udp", "port": 443, "affinity": "quic", "quic_server_id_length": 4},
    {"name": "plain", "address": VIP, "protocol": "udp", "port": 444},
]


def server_id(server: int) -> str:
    return f"0a02{server:02x}02"


def backends(servers: Any) -> list[dict[str, Any]]:
    return [
        {
            "service": service["name"],
            "address": f"10.2.{server}.2",
            "port": PORTS[service["port"]],
            "server_id": server_id(server),
        }
        for service in SERVICES
        for server in servers
    ]


def by_flow(servers: Any, service_port: int, address: str, port: int) -> str:
    """The id of the server that the flow hash chooses."""
    model = MODELS.setdefault(len(servers), reference.Balancer(SERVICES, backends(servers)))
    service = model.services[reference.pack_address(VIP), 17, service_port]
    ends = reference.pack_address(address), port.to_bytes(2, "big"), service_port.to_bytes(2, "big")
    chosen = model._hashed(service, (service.name, 17, *ends))
    return server_id(int(chosen.target.split(".")[2]))


MODELS: dict[int, reference.Balancer] = {}


def port_that(wanted: Any, first: int) -> int:
    return next(port for port in range(first, first + 1000) if wanted(port))


class Peer:
    """A program in a namespace of its own, behind the interface of the same name."""

    def __init__(self, stack: ExitStack, name: str, *arguments: str) -> None:
        command = ["ip", "netns", "exec", name, sys.executable, str(PEER), *arguments]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        # Both end with their input.
        stack.callback(self._process.stdin.close)

    def line(self) -> str:
        return self._process.stdout.readline()

    def do(self, *what: Any) -> str | None:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self.line())


@contextmanager
def wired(name: str, addresses: list[str], gateway: str) -> Iterator[None]:
    """A namespace with these addresses behind an interface that has the gateway's."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ip(
            f"link add {name} type veth peer name eth0 netns {name}",
            f"address add {gateway}/24 dev {name}",
            f"link set {name} up",
        )
        inside = [
            *(f"address add {address}/24 dev eth0" for address in addresses),
            "link set lo up",
            "link set eth0 up",
        ]
        commands = "\n".join([*inside, f"route add default via {gateway}"])
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=commands, text=True, check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


class Site:
    """The balancer, which can get other backends, and the client."""

    def __init__(self, applied: Any, client: Peer) -> None:
        self._applied, self._client = applied, client

    def serve_with(self, servers: Any) -> None:
        names = ["client", *(f"server{server}" for server in SERVERS)]
        self._applied.apply(declared(settings(*names, mode="tc"), SERVICES, backends(servers)), False)

    def connect(self, service_port: int, port: int) -> str | None:
        return self._client.do("connect", VIP, service_port, CLIENTS[0], port)

    def move(self, address: str, port: int, is_known: bool, patience: float) -> str | None:
        return self._client.do("move", address, port, is_known, patience)

    def ask(self, patience: float) -> str | None:
        return self._client.do("ask", patience)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with namespace.own_host(), ExitStack() as stack:
        stack.enter_context(wired("client", list(CLIENTS), "10.1.0.1"))
        for server in SERVERS:
            stack.enter_context(wired(f"server{server}", [f"10.2.{server}.2"], f"10.2.{server}.1"))
        for name in ("client", *(f"server{server}" for server in SERVERS)):
            write_setting(f"ipv4/conf/{name}/forwarding", 1)
            write_setting(f"ipv4/conf/{name}/rp_filter", 0)
        write_setting("ipv4/conf/all/rp_filter", 0)
        ports = [str(port) for port in PORTS.values()]
        servers = [Peer(stack, f"server{server}", "server", server_id(server), *ports) for server in SERVERS]
        made = Site(stack.enter_context(balancer()), Peer(stack, "client", "client"))
        made.serve_with(SERVERS[:-1])
        assert [server.line() for server in servers] == ["ready\n"] * len(servers)
        yield made


@pytest.mark.parametrize("service_port", PORTS)
@pytest.mark.parametrize("address, is_known", [(CLIENTS[0], False), (CLIENTS[1], True)], ids=["rebinding", "migration"])
def test_a_client_that_moves(site, service_port, address, is_known):
    """A NAT that takes another port, of which the client knows nothing, and a client that goes to another network."""
    servers, first = SERVERS[:-1], 20000 + 10 * service_port + 100 * is_known
    server = by_flow(servers, service_port, CLIENTS[0], first)
    elsewhere = port_that(lambda port: by_flow(servers, service_port, address, port) != server, first + 1)
    assert site.connect(service_port, first) == server
    answer = site.move(address, elsewhere, is_known, PATIENCE[service_port])
    assert answer == (server if service_port == 443 else None)


@pytest.mark.parametrize("service_port", PORTS)
def test_a_backend_that_is_added(site, service_port):
    """A connection whose flow goes to the new one from then on."""
    site.serve_with(SERVERS[:-1])
    new = server_id(SERVERS[-1])
    first = port_that(lambda port: by_flow(SERVERS, service_port, CLIENTS[0], port) == new, 100 * service_port)
    server = by_flow(SERVERS[:-1], service_port, CLIENTS[0], first)
    assert site.connect(service_port, first) == server
    site.serve_with(SERVERS)
    assert site.ask(PATIENCE[service_port]) == (server if service_port == 443 else None)
