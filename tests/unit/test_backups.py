# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups get new flows while no other backend of their service does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.observed import Observed
from ansible_collections.lbops.xdp.plugins.module_utils.config import model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.tables.digest import tables_digest
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from engine.balancer.live import Reading
from engine.config import model as engine_model
from lbops_exporter.balancer import BalancerCollector, Labels
from lbops_exporter.exposition import Page

from tests.unit.test_exporter import samples

SIZES = Sizes(max_services=8, max_backends=32, max_endpoints=256)


def config(**states: str | dict) -> model.Config:
    """Backends a, b, ... with these states."""
    services = [{"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80, "scheduler": "hash"}]
    backends = [
        {
            "service": "web",
            "address": f"198.51.100.{ord(name)}",
            "name": name,
            **(state if isinstance(state, dict) else {"state": state}),
        }
        for name, state in states.items()
    ]
    return model.Config(parse_services(services), parse_backends(backends))


def observed(found: model.Config, down: str, dropping: bool = False) -> Observed:
    healthy = {key: backend.name not in down for key, backend in found.backends.items()}
    return Observed(healthy, frozenset(["web"] if dropping else []))


def takers(found: model.Config, seen: Observed) -> str:
    """The names of those that get new flows."""
    members = model.ring_members(found.backends.values(), seen.out(found))
    return "".join(backend.name or "" for backend in members)


WEIGHTLESS = {"state": "backup", "weight": 0}
ENABLED = "enabled"


@pytest.mark.parametrize(
    ("states", "down", "kept", "dropped"),
    [
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "", "ab", "ab"),
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "a", "b", "b"),
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "ab", "xy", "xy"),
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "abx", "y", "y"),
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "abxy", "ab", ""),
        ({"a": ENABLED, "b": ENABLED, "x": "backup", "y": "backup"}, "x", "ab", "ab"),
        # What is down does not matter where nothing new goes.
        ({"a": "drained", "b": {"weight": 0}, "x": "backup"}, "ab", "x", "x"),
        ({"a": "drained", "x": "backup"}, "", "x", "x"),
        ({"a": "drained", "x": "backup"}, "x", "x", ""),
        ({"a": ENABLED, "x": WEIGHTLESS}, "a", "a", ""),
        ({"a": ENABLED, "b": "drained", "x": "backup"}, "a", "x", "x"),
        ({"x": "backup", "y": "backup"}, "", "xy", "xy"),
        ({"x": "backup", "y": "backup"}, "x", "y", "y"),
    ],
)
def test_who_gets_new_flows(states, down, kept, dropped):
    found = config(**states)
    assert takers(found, observed(found, down)) == kept
    assert takers(found, observed(found, down, dropping=True)) == dropped


def test_a_backup_has_the_share_of_its_weight():
    [backup] = config(x={"state": "backup", "weight": 7}).backends.values()
    assert backup.share == 7


def test_backups_come_and_go_by_the_ring_alone():
    """So the flow table goes on with their flows, as with those of drained backends."""
    found = config(a=ENABLED, x="backup")
    active, backup = found.backends
    before = plan.make(model.Config({}, {}), plan.Allocation(), found, SIZES)
    assert before.written_backends == [active, backup]
    settled = plan.settled(before.allocation)
    down = frozenset([active])
    takes_over = plan.make(found, settled, found, SIZES, out=down)
    assert (takes_over.swapped_rings, takes_over.suspended_backends) == (["web"], [active])
    assert (takes_over.written_backends, takes_over.endpoints) == ([], None)
    is_back = plan.make(found, settled, found, SIZES, was_out=down)
    assert (is_back.swapped_rings, is_back.suspended_backends) == (["web"], [])
    assert is_back.written_backends == [active]
    # A backup that fails while it is not used leaves no ring.
    idle = plan.make(found, settled, found, SIZES, out=frozenset([backup]))
    assert (idle.swapped_rings, idle.suspended_backends) == ([], [backup])


def test_the_digest_tells_hosts_on_backups_apart():
    found = config(a=ENABLED, x="backup")
    active, backup = found.backends
    assert tables_digest(found) == tables_digest(config(a=ENABLED)) == tables_digest(found, {backup})
    assert tables_digest(found, {active}) == tables_digest(config(x=ENABLED))


@pytest.mark.parametrize(
    ("down", "ready", "on_backups", "weights"),
    [("", 1, 0, [2, 0, 0]), ("a", 1, 1, [2, 3, 0]), ("ax", 0, 0, [2, 0, 0])],
)
def test_metrics(down, ready, on_backups, weights):
    found = config(a={"weight": 2}, x={"state": "backup", "weight": 3}, d="drained")
    as_engine = engine_model.Config(
        found.services,
        {engine_model.BackendKey(*key): engine_model.Backend(*entry) for key, entry in found.backends.items()},
    )
    current = SimpleNamespace(config=as_engine, filters={})
    healthy = {key: entry.name not in down for key, entry in as_engine.backends.items() if entry.name != "d"}
    page, known = Page(), Labels("main", current)
    page.merge(known.constant)
    BalancerCollector._shares(page, Reading({}, current, healthy=healthy), known)
    shown = samples(page.content().decode())
    service = '{balancer="main",service="web"}'
    assert shown[f"lbops_service_ready_backends{service}"] == ready
    assert shown[f"lbops_service_on_backups{service}"] == on_backups

    def of(metric: str) -> list[float]:
        return [value for name, value in shown.items() if name.startswith(f"lbops_backend_{metric}{{")]

    assert of("weight") == weights
    assert of("backup") == [0, 1, 0]
    assert of("enabled") == [1, 1, 0]
