# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which lookup table is the previous one over a series of changes, and what it is made of."""

from __future__ import annotations

import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, Settings
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.previous import follow, in_force
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey, Config
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.tables import tables
from ansible_collections.lbops.xdp.plugins.module_utils.tables.previous_table import NO_ID, pack_previous_table

WEB = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80, "flow_table": True}
NOW = 1_800_000_000.0
NOBODY: frozenset[BackendKey] = frozenset()


def document(*hosts: int | dict, seed: str = "", **keys) -> Document:
    backends = [host if isinstance(host, dict) else {"address": f"10.0.0.{host}"} for host in hosts]
    config = Config(
        parse_services([{**WEB, **keys}]), parse_backends([{"service": "web", **backend} for backend in backends])
    )
    return Document(Settings(("eth0",), hash_seed=seed), config)


def hosts(found: dict) -> list[str]:
    return [backend.address for backend in found["web"].members]


def test_the_table_before_a_change_of_the_backends():
    found = follow(document(1, 2), document(1, 2, 3), NOBODY, {}, NOW)
    assert hosts(found) == ["10.0.0.1", "10.0.0.2"] and found["web"].until == NOW + 900


WEIGHT = {"address": "10.0.0.2", "weight": 2}
DRAINED = {"address": "10.0.0.2", "state": "drained"}
BACKUP = {"address": "10.0.0.2", "state": "backup"}
NEW_BACKUP = {"address": "10.0.0.3", "state": "backup"}
MAC = {"address": "10.0.0.2", "mac": "52:54:00:00:00:01"}


@pytest.mark.parametrize(
    "after, kept",
    [
        (document(1), True),
        (document(1, 9), True),
        (document(1, WEIGHT), True),
        (document(1, DRAINED), True),
        (document(1, BACKUP), True),
        (document(1, 2, NEW_BACKUP), False),
        (document(1, 2, table_size=251), True),
        (document(1, 2, scheduler="hash"), True),
        (document(1, 2, affinity="client"), True),
        (document(2, 1), False),
        (document(1, MAC), False),
        (document(1, 2, idle_timeout=60), False),
        (document(1, 2, seed="9f86d081884c7d65"), False),
        (document(1, 2, 3, handover_seconds=0), False),
        (document(1, 2, 3, address="192.0.2.11"), False),
        (document(1, 2, 3, forwarding="dsr"), False),
        (document(1, 2, 3, scheduler="round_robin"), False),
        (document(1, 2, 3, flow_table=None), False),
    ],
)
def test_what_moves_slots(after, kept):
    assert bool(follow(document(1, 2), after, NOBODY, {}, NOW)) == kept


def test_turns_have_no_slots():
    assert not follow(document(1, 2, scheduler="round_robin"), document(1, 2), NOBODY, {}, NOW)


def test_the_first_of_several_changes_counts_until_its_time_is_up():
    first = follow(document(1), document(1, 2), NOBODY, {}, NOW)
    second = follow(document(1, 2), document(1, 2, 3), NOBODY, first, NOW + 800)
    assert second == first
    assert in_force(second, NOW + 899) and not in_force(second, NOW + 900)
    third = follow(document(1, 2, 3), document(1), NOBODY, second, NOW + 900)
    assert hosts(third) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] and third["web"].until == NOW + 1800


def test_a_repair_keeps_it_and_a_shorter_time_shortens_it():
    first = follow(document(1), document(1, 2), NOBODY, {}, NOW)
    assert follow(document(1, 2), document(1, 2), NOBODY, first, NOW + 5) == first
    shorter = document(1, 2, handover_seconds=60)
    assert follow(document(1, 2), shorter, NOBODY, first, NOW + 5)["web"].until == NOW + 65
    # A clock that was set back.
    assert follow(document(1, 2), document(1, 2), NOBODY, first, NOW - 5000)["web"].until == NOW - 4100


def test_backends_that_were_left_out_are_not_in_it():
    out = frozenset([BackendKey("web", "10.0.0.2", None)])
    assert hosts(follow(document(1, 2), document(1, 2, 3), out, {}, NOW)) == ["10.0.0.1"]
    assert not follow(document(2), document(1, 2), out, {}, NOW)
    drained = follow(document(1, DRAINED), document(1), NOBODY, {}, NOW)
    assert not drained


def test_slots_are_those_of_the_lookup_table():
    before = document(1, 2, 3, table_size=251)
    found = follow(before, document(1, 3, 4), NOBODY, {}, NOW)["web"]
    ids = {key: number for number, key in enumerate(before.config.backends, start=11)}
    table = tables.pack_ring(before.config.services["web"], before.config.backends.values(), ids)
    assert table is not None
    wanted = struct.unpack_from("<251I", table, 16)
    del ids[BackendKey("web", "10.0.0.2", None)]
    packed = pack_previous_table(found.service, found.members, ids, 0xABC, 77)
    # struct previous_header, and lines of 16 ids.
    assert len(packed) == 64 * (1 + 16)
    assert struct.unpack_from("<QIII", packed) == (0xABC, 77, 251, 0)
    assert struct.unpack_from("<251I", packed, 64) == tuple(NO_ID if number == 12 else number for number in wanted)
