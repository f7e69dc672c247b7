# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of all kinds in one document: check mode, a run, a second run, a change of each, and bad values of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError

from tests.packet.network import FRONT
from tests.packet.test_next_program import FIREWALL, OTHER, PASS, pin
from tests.support import balancer as support
from tests.support.balancer import declared, settings

WEB = {"name": "web", "address": "203.0.113.10", "protocol": "tcp", "port": 80, "flow_table": True}
WEB |= {"handover_seconds": 60, "source_ranges": ["192.0.2.0/24"]}
QUIC = {"name": "quic", "address": "203.0.113.10", "protocol": "udp", "port": 443, "affinity": "quic"}
QUIC |= {"quic_server_id_length": 2, "quic_config_id": 1}
ONE = {"service": "web", "address": "10.0.0.1"}
SPARE = {"service": "web", "address": "10.0.0.2", "state": "backup"}
HERE = {"service": "web", "address": "10.0.0.254", "local": True}
SERVER = {"service": "quic", "address": "10.0.0.3", "server_id": "0a01"}
OPTIONS = {
    "reply_check": "interface",
    "next_program": str(FIREWALL),
    "virtual_macs": ["00:00:5e:00:01:01"],
    "hash_seed": "9f86d081884c7d65",
}


@pytest.fixture(scope="module")
def balancer(net) -> Iterator[Balancer]:
    for path in (FIREWALL, OTHER):
        pin(path, PASS)
    with support.balancer() as made:
        yield made
    for path in (FIREWALL, OTHER):
        path.unlink()


def apply(balancer: Balancer, entries: dict[str, dict], check: bool = False, **options: Any) -> bool:
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in (OPTIONS | options).items()}
    services = [entries.get("web", WEB), entries.get("quic", QUIC)]
    backends = [entries.get("one", ONE), entries.get("spare", SPARE), HERE, entries.get("server", SERVER)]
    return balancer.apply(declared(settings(FRONT, **chosen), services, backends), check).changed


def files(balancer: Balancer) -> dict[Path, bytes | int]:
    """What a run writes, by path: state files, and the kernel's numbers of what is pinned."""
    state, pins = balancer.places.state_directory, balancer.places.pins
    written: dict[Path, bytes | int] = {
        path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path.suffix != ".program"
    }
    return written | {path: path.stat().st_ino for path in pins.rglob("*")}


def test_check_mode_a_run_and_a_second_run(balancer):
    assert apply(balancer, {}, check=True)
    assert not balancer.places.pins.exists() and not balancer.places.state_file.exists()
    assert apply(balancer, {})
    assert not apply(balancer, {}, check=True)
    before = files(balancer)
    assert not apply(balancer, {})
    assert files(balancer) == before


CHANGES = {
    "handover_seconds": ({"web": {**WEB, "handover_seconds": 30}}, {}),
    "source_ranges": ({"web": {**WEB, "source_ranges": ["192.0.2.0/25", "198.51.100.7"]}}, {}),
    "quic_config_id": ({"quic": {**QUIC, "quic_config_id": 2}}, {}),
    "server_id": ({"server": {**SERVER, "server_id": "0a02"}}, {}),
    "state": ({"spare": {**SPARE, "state": "enabled"}}, {}),
    "reply_check": ({}, {"reply_check": "strict"}),
    "next_program": ({}, {"next_program": str(OTHER)}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_and_the_way_back(balancer, name):
    entries, options = CHANGES[name]
    apply(balancer, {})
    before = files(balancer)
    assert apply(balancer, entries, check=True, **options)
    assert files(balancer) == before
    assert apply(balancer, entries, **options)
    assert not apply(balancer, entries, check=True, **options) and not apply(balancer, entries, **options)
    assert apply(balancer, {}) and not apply(balancer, {})


WRONG = {
    "handover_seconds": ({"web": {**WEB, "handover_seconds": 3601}}, {}, "handover_seconds 3601"),
    "source_ranges": ({"web": {**WEB, "source_ranges": ["192.0.2.300/24"]}}, {}, "source_ranges: '192.0.2.300/24'"),
    "quic_server_id_length": ({"quic": {**QUIC, "quic_server_id_length": 9}}, {}, "quic_server_id_length 9"),
    "server_id": ({"server": {**SERVER, "server_id": "0a"}}, {}, "server_id 0a has 1 bytes"),
    "state": ({"spare": {**SPARE, "state": "spare"}}, {}, "state 'spare'"),
    "local": ({"one": {**HERE, "address": "10.0.0.1", "port": 81}}, {}, "port 81"),
    "next_program": ({}, {"next_program": "/sys/fs/bpf/nothing"}, "next_program /sys/fs/bpf/nothing does not exist"),
    "reply_check": ({}, {"reply_check": "lax"}, "reply_check 'lax'"),
    "mode": ({}, {"mode": "offload"}, "has mode native, and mode offload keeps its tables elsewhere"),
}


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_touched(balancer, name, check):
    entries, options, words = WRONG[name]
    apply(balancer, {})
    before = files(balancer)
    with pytest.raises(EngineError) as caught:
        apply(balancer, entries, check, **options)
    assert words in str(caught.value)
    assert files(balancer) == before
