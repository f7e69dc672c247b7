# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup tables: shares follow the weights, changes move little, and balancers agree for ever."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from math import gcd

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.vocabulary import DEFAULT_TABLE_SIZE
from ansible_collections.lbops.xdp.plugins.module_utils.tables.lookup import fill, members, round_robin
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packet import reference

ADDRESSES = st.builds("10.{}.{}.{}:{}".format, *[st.integers(0, 255)] * 3, st.integers(1, 65535))


def weights_by_name(most: int = 30, heaviest: int = 100) -> st.SearchStrategy[dict[str, int]]:
    return st.dictionaries(ADDRESSES, st.integers(1, heaviest), min_size=2, max_size=most)


def maglev(names: list[str], weights: list[int]) -> list[int]:
    """The table, with positions in the list of names."""
    return [number - 1 for number in fill(members(names, weights, list(range(1, len(names) + 1))))]


# A table takes some 30 ms.
few = settings(max_examples=25, deadline=None)


@lru_cache(maxsize=4)
def _named_table(items: tuple[tuple[str, int], ...]) -> list[str]:
    names = [name for name, _weight in items]
    return [names[position] for position in maglev(names, [weight for _name, weight in items])]


def named_table(weights: dict[str, int]) -> list[str]:
    """The table, with names in place of positions."""
    return _named_table(tuple(weights.items()))


def moved(before: list[str], after: list[str], changed: str) -> float:
    """The part of the table that went from one backend to another, neither of which is the one that changed."""
    pairs = zip(before, after, strict=True)
    return sum(old != new and changed not in (old, new) for old, new in pairs) / DEFAULT_TABLE_SIZE


# --- maglev


@few
@given(weights_by_name())
def test_every_slot_is_filled(weights):
    table = maglev(list(weights), list(weights.values()))
    assert len(table) == DEFAULT_TABLE_SIZE
    assert set(table) <= set(range(len(weights)))


@few
@given(weights_by_name(heaviest=65535))
def test_shares_follow_the_weights(weights):
    """After r rounds a backend had 1 + floor((r - 1) * w / largest) turns; the last round may not be finished.

    With W the sum of the n weights, the rounds are at most DEFAULT_TABLE_SIZE * largest / W + 1, since turns are
    rounded up, and at least (DEFAULT_TABLE_SIZE - n) * largest / W, since less than n of them were won by rounding.
    """
    shares = Counter(named_table(weights))
    total = sum(weights.values())
    for name, weight in weights.items():
        fair = DEFAULT_TABLE_SIZE * weight / total
        assert fair - 1 - len(weights) * weight / total < shares[name] < fair + 2
        assert shares[name]


@few
@given(st.lists(ADDRESSES, min_size=1, max_size=60, unique=True))
def test_equal_weights_differ_by_one_slot_at_most(names):
    shares = Counter(named_table(dict.fromkeys(names, 7)))
    assert set(shares) == set(names)
    assert max(shares.values()) - min(shares.values()) <= 1


@few
@given(weights_by_name(), st.randoms(use_true_random=False))
def test_order_of_the_inventory_does_not_matter(weights, generator):
    shuffled = list(weights.items())
    generator.shuffle(shuffled)
    assert named_table(dict(shuffled)) == named_table(weights)


@few
@given(weights_by_name(), st.integers(2, 9))
def test_only_the_proportion_of_weights_matters(weights, factor):
    assert named_table({name: weight * factor for name, weight in weights.items()}) == named_table(weights)


@few
@given(weights_by_name())
def test_same_as_the_rule_in_other_words(weights):
    assert named_table(weights) == reference.maglev(weights)


@few
@given(weights_by_name(), st.data())
def test_removing_or_adding_one_moves_few_others(weights, data):
    changed = data.draw(st.sampled_from(sorted(weights)))
    without = {name: weight for name, weight in weights.items() if name != changed}
    assert moved(named_table(weights), named_table(without), changed) < 0.03


@few
@given(weights_by_name(), st.integers(1, 100), st.data())
def test_another_weight_moves_few_others(weights, weight, data):
    changed = data.draw(st.sampled_from(sorted(weights)))
    assert moved(named_table(weights), named_table({**weights, changed: weight}), changed) < 0.03


def test_removing_one_of_a_hundred_moves_less_than_1_percent_of_the_others():
    weights = {f"10.0.0.{host}:80": 1 for host in range(1, 101)}
    without = {name: weight for name, weight in weights.items() if name != "10.0.0.50:80"}
    assert moved(named_table(weights), named_table(without), "10.0.0.50:80") < 0.01


def test_one_backend_has_all_slots():
    assert set(maglev(["10.0.0.1:80"], [42])) == {0}


def test_a_thousand_backends():
    names = [f"10.0.{number // 250}.{number % 250 + 1}:80" for number in range(1000)]
    shares = Counter(maglev(names, [1] * 1000))
    assert len(shares) == 1000
    assert set(shares.values()) == {65, 66}


def test_more_backends_than_slots():
    """The first ones by name have a slot each."""
    names = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80" for number in range(DEFAULT_TABLE_SIZE + 1000)]
    table = maglev(names, [1] * len(names))
    assert {names[position] for position in table} == set(sorted(names)[:DEFAULT_TABLE_SIZE])


def test_more_weight_than_slots():
    shares = Counter(maglev(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], [65535, 65535, 1]))
    assert shares[0] + shares[1] + shares[2] == DEFAULT_TABLE_SIZE
    assert abs(shares[0] - shares[1]) <= 1


@pytest.mark.parametrize(
    "weights, digest",
    [
        ([1] * 20, "7e3195c028f7744932198832718e9e8e5493447c04fe769c743961afbd5d5d1b"),
        ([1 + number % 5 for number in range(20)], "ba3360b8dc988eebed6afca9f45db5b4c0dcfcba4c2fd5cdf654dea7f0da80e0"),
    ],
    ids=["equal", "weighted"],
)
def test_balancers_of_all_releases_agree(weights, digest):
    """A changed digest means that two balancers send a flow to different backends while they are upgraded."""
    table = maglev([f"192.0.2.{host}:80" for host in range(1, 21)], weights)
    content = b"".join(position.to_bytes(4, "little") for position in table)
    assert hashlib.sha256(content).hexdigest() == digest


# --- round robin

SMALL_WEIGHTS = st.lists(st.integers(1, 200), min_size=1, max_size=20)


def index_of_occurrences(cycle: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, position in enumerate(cycle):
        found.setdefault(position, []).append(index)
    return found


@given(SMALL_WEIGHTS)
def test_cycle_is_exactly_proportional(weights):
    divisor = gcd(*weights)
    counts = Counter(round_robin(weights))
    assert [counts[position] for position in range(len(weights))] == [weight // divisor for weight in weights]


@given(SMALL_WEIGHTS)
def test_cycle_is_evenly_spread(weights):
    """Occurrence k of a backend is at most half a place per backend away from (k + 1/2) / weight of the cycle."""
    cycle = round_robin(weights)
    for position, indexes in index_of_occurrences(cycle).items():
        distance = len(cycle) / len(indexes)
        for occurrence, index in enumerate(indexes):
            assert abs(index + 0.5 - (occurrence + 0.5) * distance) <= len(weights) / 2, position


@given(SMALL_WEIGHTS)
def test_cycle_is_the_same_as_the_rule_in_other_words(weights):
    assert round_robin(weights) == reference.round_robin(weights)


def test_equal_weights_take_turns():
    assert round_robin([5, 5, 5]) == [0, 1, 2]


def test_heavy_backend_does_not_send_in_bursts():
    assert round_robin([1, 2, 4]) == [2, 1, 2, 0, 2, 1, 2]


def test_cycle_of_one():
    assert round_robin([65535]) == [0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 65535), min_size=2, max_size=50))
def test_weights_that_do_not_fit_are_scaled(weights):
    """No backend loses its place, and each has its share of what every one's first place leaves."""
    divisor = gcd(*weights)
    total = sum(weights) // divisor
    cycle = round_robin(weights)
    assert len(cycle) <= DEFAULT_TABLE_SIZE
    if total <= DEFAULT_TABLE_SIZE:
        assert len(cycle) == total
        return
    counts = Counter(cycle)
    for position, weight in enumerate(weights):
        fair = weight // divisor * (DEFAULT_TABLE_SIZE - len(weights)) / total
        assert fair < counts[position] <= fair + 1


def test_lightest_backend_keeps_a_place_beside_the_heaviest():
    counts = Counter(round_robin([65535, 65535, 1]))
    assert counts[2] == 1
    assert counts[0] == counts[1] > 32000


def test_a_thousand_backends_of_one_weight_take_one_place_each():
    assert round_robin([65535] * 1000) == list(range(1000))
