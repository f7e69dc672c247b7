# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that is the balancer's own host: how it is declared, checked and written."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.filter import inventory
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import host_check
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, parse_document, public
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import neighbours, sockets

# test_health has made the engine that these import.
from roles.health.files import checks, common  # noqa: E402
from roles.health.files.common import open_socket  # noqa: E402
from tests.unit.test_health import Failed, Target, target

VIP, OWN, OTHER = "192.0.2.10", "198.51.100.1", "198.51.100.2"
SERVICE = {"name": "web", "address": VIP, "protocol": "tcp", "port": 443}
LOCAL = {"service": "web", "address": OWN, "local": True}


def document(service: dict[str, Any], *backends: dict[str, Any]) -> Document:
    return parse_document({"interfaces": ["eth0"], "services": [{**SERVICE, **service}], "backends": list(backends)})


@pytest.mark.parametrize(
    ("service", "backend", "problem"),
    [
        ({}, {"port": 8443}, "port 8443, but a local backend gets packets as they are, on port 443"),
        (
            {},
            {"mac": "02:00:00:00:00:01"},
            "mac '02:00:00:00:00:01' beside local: packets for this host are sent to nobody",
        ),
        (
            {"forwarding": "redirect"},
            {"address": None, "interface": "eth1"},
            "local beside interface: redirect goes to an",
        ),
        ({}, {"local": "perhaps"}, "local 'perhaps' is neither true nor false"),
    ],
)
def test_what_it_cannot_be(service, backend, problem):
    with pytest.raises(EngineError) as caught:
        document(service, {key: value for key, value in {**LOCAL, **backend}.items() if value is not None})
    assert problem in str(caught.value)


def test_it_is_shown_only_where_it_is_declared():
    found = [
        public(entry) for entry in document({}, LOCAL, {"service": "web", "address": OTHER}).config.backends.values()
    ]
    assert [entry.get("local") for entry in found] == [True, None]
    again = parse_document(document({}, LOCAL).as_dict())
    assert again == document({}, LOCAL) and again != document({}, {**LOCAL, "local": False})


def test_it_alone_needs_the_feature():
    assert "local" in used_features(document({}, LOCAL).config)
    assert "local" not in used_features(document({}, {**LOCAL, "local": False}).config)


# --- the host


@pytest.mark.parametrize(
    ("own", "warnings"),
    [
        ({VIP, OWN}, []),
        (
            {OWN},
            [
                "service web: the VIP 192.0.2.10 is no address of this host, so the kernel does not take packets for "
                "its local backend; ip address add 192.0.2.10/32 dev lo"
            ],
        ),
        ({VIP}, ["backend 198.51.100.1 of service web is declared local, but its address is none of this host's"]),
    ],
)
def test_what_the_host_lacks_is_named(monkeypatch, own, warnings):
    monkeypatch.setattr(neighbours, "local_addresses", lambda: own)
    monkeypatch.setattr(sockets, "listeners", lambda *_arguments: ["nginx"])
    assert host_check.warnings(document({}, LOCAL)) == warnings


# --- the inventory

GROUPS = {"servers": ["lb1", "lb2"]}
HOSTVARS = {
    "lb1": {"backend_address": OWN, "backend_local": True},
    "lb2": {"backend_address": OTHER, "backend_local": True},
}
DECLARED = {**SERVICE, "backends": "servers"}


def test_each_balancer_is_local_to_itself_alone():
    for balancer in GROUPS["servers"]:
        found = inventory.backends([DECLARED], GROUPS, HOSTVARS, balancer=balancer)
        assert [entry["name"] for entry in found if entry.get("local")] == [balancer]
    assert not any(entry.get("local") for entry in inventory.backends([DECLARED], GROUPS, HOSTVARS))


def test_balancers_that_would_bounce_packets_are_refused():
    direct = {**DECLARED, "forwarding": "dsr"}
    assert inventory.inventory_problems([direct], GROUPS, HOSTVARS, balancer="lb1") == [
        "service web: lb1 and lb2 have backend_local and would balance each other's packets again with dsr; use ipip, "
        "gue or full_nat, which reach the other's server alone"
    ]
    alone = {"lb1": HOSTVARS["lb1"], "lb2": {"backend_address": OTHER}}
    assert inventory.inventory_problems([direct], GROUPS, alone, balancer="lb1") == []
    tunnel = {**DECLARED, "forwarding": "ipip", "source": "198.51.100.9"}
    assert inventory.inventory_problems([tunnel], GROUPS, HOSTVARS, balancer="lb1") == []


# --- health checks


def local(**health: Any) -> Target:
    made = target()
    return replace(made, health=replace(made.health, **health), backend=made.backend._replace(local=True))


def test_it_is_checked_at_the_vip():
    """Where its packets go; from there as well, so that no other balancer answers."""
    made = local(source="203.0.113.1")
    assert (made.address, made.source) == (made.service.address, made.service.address)
    assert made.checked != replace(made, backend=target().backend).checked


def test_it_is_down_while_the_host_lacks_the_vip(monkeypatch):
    class Elsewhere(socket.socket):
        def bind(self, _address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(common.socket, "socket", Elsewhere)
    with pytest.raises(Failed, match=r"the VIP .* is no address of this host"):
        open_socket(local(), socket.SOCK_STREAM)


def test_it_has_no_way_to_go(monkeypatch):
    async def check(_target: Target) -> None:
        raise Failed("the kernel was asked")

    monkeypatch.setitem(checks.CHECKS, "tcp", check)
    assert asyncio.run(checks.problem_of(local(end_to_end=True))) == "the kernel was asked"
