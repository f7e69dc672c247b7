# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file: what is saved is what is loaded, and nothing else is taken for it."""

from __future__ import annotations

import os

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, Settings
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.previous import Previous
from ansible_collections.lbops.xdp.plugins.module_utils.config import filters, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

SERVICES = [
    {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53, "flow_table": True, "idle_timeout": 7},
    {"name": "nat", "address": "192.0.2.11", "protocol": "tcp", "port": "any", "forwarding": "full_nat"},
    {"name": "six", "address": "2001:db8::10", "protocol": "tcp", "port": "80-90", "forwarding": "ipip"},
    {"name": "out", "address": "192.0.2.12", "protocol": "udp", "port": 9, "forwarding": "redirect"},
]
SERVICES[1]["source"], SERVICES[2]["source"] = "10.0.0.9", "fd99::/64"
BACKENDS = [
    {"service": "dns", "address": "198.51.100.1", "port": 5353, "weight": 3, "mac": "52:54:00:00:00:01"},
    {"service": "nat", "address": "198.51.100.2", "state": "drained", "name": "two"},
    {"service": "six", "address": "fd00::1"},
    {"service": "out", "interface": "eth1"},
]
FILTERS = [
    {"prefix": "203.0.113.0/24", "action": "drop"},
    {"prefix": "2001:db8::/32", "action": "limit", "protocol": "udp", "rate": 100, "name": "slow"},
]


@pytest.fixture
def full() -> state.State:
    config = model.Config(parse_services(SERVICES), parse_backends(BACKENDS))
    declared = filters.parse_filters(FILTERS)
    chosen = {
        "mode": "tc",
        "prepare": True,
        "latency": True,
        "reply_check": "off",
        "virtual_macs": ("00:00:5e:00:01:33",),
    }
    settings = Settings(("eth0", "eth1.7"), sizes=Sizes(max_flows=9), **chosen)
    hooks = {"eth0": state.Hook("tc", "why", 1.5), "eth1.7": state.Hook("", "detached")}
    return state.State(
        Document(settings, config, declared),
        state.ProgramState("digest", ["dnat"], Sizes(max_flows=9), hooks),
        plan.make(model.Config({}, {}), plan.Allocation(), config, Sizes()).allocation,
        state.Tables(1, 2, 3, {0: 4}, "digest"),
        {key: number for number, key in enumerate(declared, start=5)},
        generation=7,
        applied_by="ops from 192.0.2.1",
        previous={"out": Previous(1800000000.5, config.services["out"], (config.backends["out", "eth1", None],), "a1")},
    )


def test_what_is_saved_is_loaded(tmp_path, full):
    path = tmp_path / "state.json"
    state.save(path, full)
    assert state.load(path) == full
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_there_may_be_none(tmp_path):
    assert state.load(tmp_path / "state.json") is None


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is damaged"),
        ("[]", "has schema None, this engine reads 3"),
        ('{"schema": 4}', "has schema 4, this engine reads 3"),
        ('{"schema": 2}', "has schema 2, this engine reads 3"),
        ('{"schema": 3}', "is damaged"),
    ],
)
def test_anything_else_is_refused_with_the_remedy(tmp_path, content, words):
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(EngineError, match=f"{words}.*restore it from a backup"):
        state.load(path)
