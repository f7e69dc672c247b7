# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move flow tables and sessions into maps of another size, so that flows and sessions go on.

Twice: before the new program is on the hooks, and after that once more what packets have changed meanwhile.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ..kernel import bpf
from ..tables import flow_entries
from ..tables.layout import (
    FLOW_BUCKET,
    FLOWS_PER_BUCKET,
    SESSION,
    SESSION_WORD_SEEN,
    SESSION_WORD_TIMEOUT,
    index,
    ticks_now,
)
from .maps import Maps

# Buckets or sessions that are read in one call: 1 MiB of each.
AT_ONCE = 1 << 14


@contextmanager
def moved(old: Maps, new: Maps, pools: Collection[tuple[int, int]]) -> Iterator[None]:
    """Within this, the new maps take the place of the old ones."""
    move = Move(old, new, pools)
    move.copy()
    yield
    move.follow()


class Move:
    """From the maps that are in use until the switch; all methods raise OSError.

    `pools`: first session and number of those that are at the same places in both.
    """

    def __init__(self, old: Maps, new: Maps, pools: Collection[tuple[int, int]]) -> None:
        self._old, self._new, self._pools = old, new, pools
        self._buckets = old.sizes.flow_buckets, new.sizes.flow_buckets
        self._began = ticks_now()

    def copy(self) -> None:
        """Before the switch: nobody looks at the new maps yet."""
        for old, new in self._flow_tables():
            for first, words in self._chunks(old):
                found = flow_entries.resized(words, *self._buckets, self._began)
                _write(new, self._places(first).start, found, FLOW_BUCKET.size)
        for first, words in self._sessions():
            _write(self._new["sessions"], first, words, SESSION.size)

    def follow(self) -> None:
        """After the switch: what came in between, unless packets have brought it again."""
        now = ticks_now()
        for old, new in self._flow_tables():
            for first, words in self._chunks(old):
                start, count = self._places(first).start, len(words) // FLOWS_PER_BUCKET
                end = self._places(first + count - 1).stop
                present = _read(new, start, end - start, FLOW_BUCKET.size)
                for place, flow in flow_entries.seen_within(words, now - self._began, now):
                    places = self._places(first + place)
                    known = present[
                        (places.start - start) * FLOWS_PER_BUCKET : (places.stop - start) * FLOWS_PER_BUCKET
                    ]
                    if not flow_entries.holds(known, flow):
                        _add(new, places, flow)
        for first, words in self._sessions():
            count = len(words) * 8 // SESSION.size
            live = _live(_read(self._new["sessions"], first, count, SESSION.size), now)
            for place in _live(words, now) - live:
                value = words.tobytes()[place * SESSION.size : (place + 1) * SESSION.size]
                bpf.map_update(self._new["sessions"], index(first + place), value)

    def _flow_tables(self) -> Iterator[tuple[int, int]]:
        """Descriptors of each CPU's old and new table."""
        if self._buckets[0] == self._buckets[1]:
            return
        old, new = self._old.table_ids("flows"), self._new.table_ids("flows")
        for cpu in sorted(old.keys() & new.keys()):
            with _table(old[cpu]) as one, _table(new[cpu]) as other:
                yield one, other

    def _sessions(self) -> Iterator[tuple[int, array[int]]]:
        """Some at a time, each with the index of the first."""
        if self._old.sizes.max_sessions == self._new.sizes.max_sessions:
            return
        for start, ports in self._pools:
            for first in range(start, start + ports, AT_ONCE):
                count = min(AT_ONCE, start + ports - first)
                yield first, _read(self._old["sessions"], first, count, SESSION.size)

    def _places(self, place: int) -> range:
        return flow_entries.candidates(place, *self._buckets)

    def _chunks(self, descriptor: int) -> Iterator[tuple[int, array[int]]]:
        """Some buckets at a time, each with the index of the first; whole buckets of the new table."""
        before, after = self._buckets
        at_once = max(AT_ONCE, before // after) if after < before else max(1, AT_ONCE * before // after)
        for first in range(0, before, at_once):
            yield first, _read(descriptor, first, min(at_once, before - first), FLOW_BUCKET.size)


def _add(table: int, places: range, flow: int) -> None:
    """Packets write to the same buckets: a flow that comes between reading and writing has to be learnt once more."""
    for place in places:
        found = flow_entries.added(FLOW_BUCKET.unpack(bpf.map_lookup(table, index(place), FLOW_BUCKET.size)), flow)
        if found:
            bpf.map_update(table, index(place), FLOW_BUCKET.pack(*found))


@contextmanager
def _table(number: int) -> Iterator[int]:
    descriptor = bpf.map_fd(number)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _live(words: array[int], now: int) -> set[int]:
    """The places of sessions that have a port, as is_alive() in sessions.h has it."""
    numbers = memoryview(words).cast("B").cast("I")
    seen, timeouts = (numbers[word :: SESSION.size // 4] for word in (SESSION_WORD_SEEN, SESSION_WORD_TIMEOUT))
    return {place for place, (tick, timeout) in enumerate(zip(seen, timeouts)) if now - tick <= timeout}


def _read(descriptor: int, first: int, count: int, size: int) -> array[int]:
    after = index(first - 1) if first else None
    words = array("Q")
    words.frombytes(bpf.map_lookup_batch(descriptor, count, size, after=after)[1])
    return words


def _write(descriptor: int, first: int, words: array[int], size: int) -> None:
    count = len(words) * 8 // size
    bpf.map_update_batch(descriptor, b"".join(map(index, range(first, first + count))), words.tobytes(), count)
