# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of flow tables, as files/bpf/flow_table.h has them, in a table of another size. Pure functions.

A bucket's index is the upper bits of a signature of which an entry has only lower ones. In a larger table a flow may
belong to each of the buckets that its own becomes; in a smaller one, several buckets become one. Both numbers of
buckets are powers of two.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from .layout import FLOWS_PER_BUCKET

TICK_SHIFT, TICKS, STATE_SHIFT, SIGNATURE_SHIFT = 21, 1 << 12, 33, 35
ESTABLISHED = 1
# Beside it, a state has one more bit, of flows that close.
_ESTABLISHED_BIT = ESTABLISHED << STATE_SHIFT


def state(flow: int) -> int:
    return flow >> STATE_SHIFT & 3


def age(flow: int, now: int) -> int:
    """In ticks."""
    return (now - (flow >> TICK_SHIFT)) % TICKS


def candidates(place: int, before: int, after: int) -> range:
    """The buckets of `after` that a flow of this bucket of `before` may belong to."""
    if after < before:
        return range(place // (before // after), place // (before // after) + 1)
    return range(place * (after // before), (place + 1) * (after // before))


def resized(words: array[int], before: int, after: int, now: int) -> array[int]:
    """The buckets that consecutive buckets of a table of `before` become in one of `after`.

    In a larger table all but one of a flow's entries are of no use. So none is established until the flow is seen
    again, and those of no use make room for new flows.
    """
    if after < before:
        return _smaller(words, before // after, now)
    mask = int.from_bytes((~_ESTABLISHED_BIT & (1 << 64) - 1).to_bytes(8, "little") * len(words), "little")
    size = len(words) * 8
    data = (int.from_bytes(words.tobytes(), "little") & mask).to_bytes(size, "little")
    step = 8 * FLOWS_PER_BUCKET
    found = array("Q")
    found.frombytes(b"".join(data[at : at + step] * (after // before) for at in range(0, size, step)))
    return found


def _smaller(words: array[int], factor: int, now: int) -> array[int]:
    found = array("Q", bytes(8 * len(words) // factor))
    step = FLOWS_PER_BUCKET * factor
    nothing = array("Q", bytes(8 * step))
    for number, at in enumerate(range(0, len(words), step)):
        several = words[at : at + step]
        if several == nothing:
            continue
        flows = [flow for flow in several if flow]
        # Flows with one signature would be taken for one; the last one seen stays.
        if len(flows) > FLOWS_PER_BUCKET or len({flow >> SIGNATURE_SHIFT for flow in flows}) < len(flows):
            flows.sort(key=lambda flow: (state(flow) == ESTABLISHED, -age(flow, now)))
            flows = list({flow >> SIGNATURE_SHIFT: flow for flow in flows}.values())[-FLOWS_PER_BUCKET:]
        place = number * FLOWS_PER_BUCKET
        found[place : place + len(flows)] = array("Q", flows)
    return found


def seen_within(words: array[int], ticks: int, now: int) -> Iterator[tuple[int, int]]:
    """Flows that were seen so lately, each with the number of its bucket among these."""
    for number, flow in enumerate(words):
        # A CPU may be a tick ahead.
        if flow and age(flow, now + 1) <= ticks + 1:
            yield number // FLOWS_PER_BUCKET, flow


def holds(bucket: Sequence[int], flow: int) -> bool:
    return any(other and other >> SIGNATURE_SHIFT == flow >> SIGNATURE_SHIFT for other in bucket)


def added(bucket: Sequence[int], flow: int) -> list[int] | None:
    """The bucket with a flow that it does not hold; None if it is full of others."""
    found = list(bucket)
    if 0 not in found:
        return None
    found[found.index(0)] = flow
    return found
