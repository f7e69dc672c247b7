# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rings: which backend serves which slot of a service's lookup table. Pure functions.

A ring is a list of RING_SIZE positions in the list of backends it was made for.
"""

from __future__ import annotations

import hashlib
from array import array
from functools import reduce
from math import gcd

from .layout import RING_SIZE

# Slots of the plain hash ring.
HASH_SLOTS = 512


def _permutation(name: str) -> tuple[int, int]:
    """Where a backend starts on the ring and how far it steps (Maglev, NSDI 2016, section 3.4)."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    offset = int.from_bytes(digest[:8], "little") % RING_SIZE
    skip = int.from_bytes(digest[8:], "little") % (RING_SIZE - 1) + 1
    return offset, skip


def maglev(names: list[str], weights: list[int]) -> array:
    """Share the slots by weight so that a change of one backend moves few slots of the others.

    Names give the order of preference, so balancers that agree on names and weights agree on the ring.
    Weights are positive; a backend takes its turn in a round when its accumulated weight reaches the largest.
    """
    ring = array("i", [-1]) * RING_SIZE
    # The turns a backend takes must not depend on the order in which an inventory lists it.
    order = sorted(range(len(names)), key=names.__getitem__)
    largest = max(weights)
    steps = [(position, weights[position], *_permutation(names[position])) for position in order]
    places = [offset for _position, _weight, offset, _skip in steps]
    # Everybody takes a turn in the first round, so that no weight is too small for a slot.
    credits = [largest - weight for _position, weight, _offset, _skip in steps]
    filled = 0
    while True:
        for turn, (position, weight, _offset, skip) in enumerate(steps):
            credit = credits[turn] + weight
            if credit < largest:
                credits[turn] = credit
                continue
            credits[turn] = credit - largest
            place = places[turn]
            while ring[place] >= 0:
                place += skip
                if place >= RING_SIZE:
                    place -= RING_SIZE
            ring[place] = position
            place += skip
            places[turn] = place if place < RING_SIZE else place - RING_SIZE
            filled += 1
            if filled == RING_SIZE:
                return ring


def hashed(weights: list[int]) -> list[int]:
    """The plain ring: HASH_SLOTS slots that repeat the weighted cycle, so with equal weights slot modulo backends.

    More backends than slots fill a slot each.
    """
    cycle = round_robin(weights, max(HASH_SLOTS, len(weights)))
    return [cycle[slot % len(cycle)] for slot in range(max(HASH_SLOTS, len(weights)))]


def round_robin(weights: list[int], longest: int = RING_SIZE) -> list[int]:
    """One cycle in which each backend occurs as often as its weight, spread as evenly as can be.

    Weights are positive; those that do not fit into `longest` are scaled down, none to nothing.
    """
    divisor = reduce(gcd, weights)
    weights = [weight // divisor for weight in weights]
    if sum(weights) > longest:
        room = longest - len(weights)
        total = sum(weights)
        weights = [1 + weight * room // total for weight in weights]
    total = sum(weights)
    # Occurrence k of a backend belongs at (k + 1/2) / weight of the cycle; sorting those spreads all of them.
    places = [
        ((2 * occurrence + 1) * total / weight, position)
        for position, weight in enumerate(weights)
        for occurrence in range(weight)
    ]
    places.sort()
    return [position for _place, position in places]
