# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow tables that become larger or smaller: which bucket has which flow afterwards."""

from __future__ import annotations

import random
from array import array

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.tables import flow_entries

NOW = 5000
NEW, ESTABLISHED, CLOSING = range(3)


def entry(signature: int, state: int = ESTABLISHED, age: int = 0, number: int = 7) -> int:
    """files/bpf/layout.h, struct flow_bucket."""
    return signature << 35 | state << 33 | (NOW - age) % 4096 << 21 | number


def buckets(words: array) -> list[list[int]]:
    return [[flow for flow in words[at : at + 8] if flow] for at in range(0, len(words), 8)]


def table(*content: list[int]) -> array:
    return array("Q", [flow for bucket in content for flow in (*bucket, *[0] * (8 - len(bucket)))])


@pytest.mark.parametrize("before, after", [(2, 2), (8, 32), (32, 8), (4, 64)])
def test_every_flow_is_where_the_program_looks_for_it(before, after):
    """The bucket is the upper bits of a signature, whose bits 2 to 30 are in the entry."""
    chance = random.Random(1)
    signatures = [chance.getrandbits(64) for _flow in range(2 * before)]
    content: list[list[int]] = [[] for _bucket in range(before)]
    for signature in signatures:
        place = signature * before >> 64
        if len(content[place]) < 8 // max(1, before // after):
            content[place].append(entry(signature >> 2 & (1 << 29) - 1))
    kept = {flow for bucket in content for flow in bucket}
    found = buckets(flow_entries.resized(table(*content), before, after, NOW))
    assert len(found) == after
    for signature in signatures:
        flow = entry(signature >> 2 & (1 << 29) - 1)
        if flow in kept:
            place = signature * after >> 64
            assert place in flow_entries.candidates(signature * before >> 64, before, after)
            assert [other for other in found[place] if other >> 35 == flow >> 35], (before, after)


def test_in_a_larger_table_no_flow_is_established():
    found = buckets(flow_entries.resized(table([entry(1), entry(2, CLOSING), entry(3, NEW)], []), 2, 4, NOW))
    wanted = [entry(1, NEW), entry(2, CLOSING), entry(3, NEW)]
    assert found == [wanted, wanted, [], []]


def test_in_a_smaller_table_established_flows_and_those_seen_last_stay():
    one = [entry(number, age=number) for number in range(1, 9)]
    two = [entry(20, NEW), entry(21, CLOSING), entry(22, age=0), entry(23, age=30)]
    (found,) = buckets(flow_entries.resized(table(one, two), 2, 1, NOW))
    assert set(found) == {*one[:7], two[2]}


def test_of_flows_that_would_be_taken_for_one_the_last_seen_stays():
    (found,) = buckets(flow_entries.resized(table([entry(5, age=9, number=1)], [entry(5, number=2)]), 2, 1, NOW))
    assert found == [entry(5, number=2)]


def test_flows_that_were_seen_lately():
    words = table([entry(1), entry(2, age=3)], [entry(3, age=2), entry(4, age=-1)])
    assert list(flow_entries.seen_within(words, 2, NOW)) == [(0, entry(1)), (1, entry(3, age=2)), (1, entry(4, age=-1))]


def test_a_bucket_takes_a_flow_that_it_does_not_hold():
    bucket = table([entry(1), entry(2)])
    assert flow_entries.holds(bucket, entry(2, NEW, age=9)) and not flow_entries.holds(bucket, entry(3))
    assert not flow_entries.holds(bucket, entry(0))
    assert flow_entries.added(bucket, entry(3)) == [entry(1), entry(2), entry(3), 0, 0, 0, 0, 0]
    assert flow_entries.added(table([entry(number) for number in range(8)]), entry(9)) is None
