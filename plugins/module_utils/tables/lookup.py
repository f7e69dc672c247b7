# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup tables: which backend serves which slot of a service. Pure functions.

A table is an array of backend ids, one for each slot.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import gcd

from ..config.vocabulary import DEFAULT_TABLE_SIZE

# Slots of the plain hash table.
HASH_SLOTS = 512


@dataclass(frozen=True)
class Members:
    """The backends of a Maglev table of `size` slots in the order of their turns; column by column.

    No id is 0, since that stands for an empty slot.
    """

    size: int
    ids: array[int]
    weights: array[int]
    largest: int  # weight
    offsets: array[int]  # the first slot that a backend wants
    skips: array[int]  # and how far it is to the next one


# Fills the slots of a Maglev table: an array of ids. All implementations agree with fill().
# Python 3.9 evaluates this line and has no "array[int]".
Fill = Callable[[Members], "array[int]"]


def members(names: list[str], weights: list[int], ids: list[int], size: int = DEFAULT_TABLE_SIZE) -> Members:
    """What a Maglev table is filled from (Eisenbud et al., NSDI 2016, section 3.4).

    Names give the order of preference, so balancers that agree on names, weights and size agree on the table.
    Weights are positive.
    """
    # The turns a backend takes must not depend on the order in which an inventory lists it.
    # Everybody takes a turn in the first round, and nobody more than one.
    order = sorted(range(len(names)), key=names.__getitem__)[:size]
    halves = array("Q")
    for position in order:
        halves.frombytes(hashlib.blake2b(names[position].encode(), digest_size=16).digest())
    return Members(
        size,
        array("I", map(ids.__getitem__, order)),
        array("I", map(weights.__getitem__, order)),
        max(weights),
        array("I", [half % size for half in halves[::2]]),
        array("I", [half % (size - 1) + 1 for half in halves[1::2]]),
    )


def fill(found: Members) -> array[int]:
    """Share the slots by weight so that a change of one backend moves few slots of the others.

    A backend takes its turn in a round when its accumulated weight reaches the largest.
    """
    size, largest, ids = found.size, found.largest, found.ids
    table = array("I", bytes(4 * size))
    slots = list(found.offsets)
    steps = list(zip(found.weights, found.skips))
    # So that no weight is too small for a turn in the first round.
    credits = [largest - weight for weight in found.weights]
    filled = 0
    while True:
        for turn, (weight, skip) in enumerate(steps):
            credit = credits[turn] + weight
            if credit < largest:
                credits[turn] = credit
                continue
            credits[turn] = credit - largest
            slot = slots[turn]
            while table[slot]:
                slot += skip
                if slot >= size:
                    slot -= size
            table[slot] = ids[turn]
            slot += skip
            slots[turn] = slot if slot < size else slot - size
            filled += 1
            if filled == size:
                return table


def hashed(weights: list[int]) -> list[int]:
    """The plain table: HASH_SLOTS slots that repeat the weighted cycle, so with equal weights slot modulo backends.

    Positions in the list of weights. More backends than slots fill a slot each.
    """
    slots = max(HASH_SLOTS, len(weights))
    cycle = round_robin(weights, slots)
    return (cycle * -(-slots // len(cycle)))[:slots]


def round_robin(weights: list[int], longest: int = DEFAULT_TABLE_SIZE) -> list[int]:
    """One cycle in which each backend occurs as often as its weight, spread as evenly as can be.

    Positions in the list of weights. Weights are positive; those that do not fit into `longest` are scaled down, none
    to nothing.
    """
    divisor = reduce(gcd, weights)
    weights = [weight // divisor for weight in weights]
    if sum(weights) > longest:
        room = longest - len(weights)
        total = sum(weights)
        weights = [1 + weight * room // total for weight in weights]
    total = sum(weights)
    if total == len(weights):
        return list(range(total))
    # Occurrence k of a backend belongs at (k + 1/2) / weight of the cycle; sorting those spreads all of them.
    # Where two belong at the same point, the sort leaves them in the order of the backends.
    points = [odd * total / weight for weight in weights for odd in range(1, 2 * weight, 2)]
    owners = [position for position, weight in enumerate(weights) for _occurrence in range(weight)]
    return [owners[occurrence] for occurrence in sorted(range(total), key=points.__getitem__)]
