# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the maps are what was written last."""

from __future__ import annotations

import hashlib
import time

from ..kernel import link
from ..tables.layout import BACKEND, BACKEND_FIELDS
from ..tables.source_ranges import pack_source_ranges
from . import maps, plan, source_ranges, state
from .previous import in_force


def find(current: state.State, live_maps: maps.Maps) -> plan.Drift:
    """What a module would repair."""
    known = current.tables
    live_rings = live_maps.ring_ids()
    entries = entries_in_use(live_maps, current.allocation)
    live_previous, now = live_maps.table_ids("previous"), time.time()
    nothing_known = unfinished(current)
    return plan.Drift(
        endpoints=nothing_known
        or (live_maps.table_id("endpoints"), live_maps.table_id("endpoints6")) != (known.endpoints, known.endpoints6),
        rings=frozenset(
            ring
            for ring in current.allocation.rings.values()
            if nothing_known or live_rings.get(ring, 0) != known.rings.get(ring, 0)
        ),
        backends=backends_digest(entries, current.allocation) != known.backends
        or _renumbered_interfaces(entries, current),
        previous=frozenset(
            ring
            for ring in (current.allocation.rings[name] for name in in_force(current.previous, now))
            if nothing_known or live_previous.get(ring, 0) != known.previous.get(ring, 0)
        ),
        source_ranges=source_ranges.read(live_maps) != pack_source_ranges(current.config, current.allocation.rings),
    )


def unfinished(current: state.State) -> bool:
    """A killed run left no ids: what it should have written may be missing altogether."""
    return bool(current.allocation.rings) and not current.tables.endpoints


def entries_in_use(live_maps: maps.Maps, allocation: plan.Allocation) -> bytes:
    """Those up to the last one that a backend has."""
    return live_maps.read_backends(max(allocation.backends.values(), default=-1) + 1)


def live_digest(live_maps: maps.Maps, allocation: plan.Allocation) -> str:
    """backends_digest() of what the maps hold."""
    return backends_digest(entries_in_use(live_maps, allocation), allocation)


def backends_digest(entries: bytes, allocation: plan.Allocation) -> str:
    """Of the entries in use, wherever they lie."""
    if not allocation.backends:
        return ""
    size = BACKEND.size
    digest = hashlib.sha256()
    for place in sorted(allocation.backends.values()):
        digest.update(entries[place * size : (place + 1) * size])
    return digest.hexdigest()


def table_ids(live_maps: maps.Maps) -> tuple[int, ...]:
    return tuple(live_maps.table_id(name) for name in ("endpoints", "endpoints6", "filters"))


def known_ids(known: state.Tables) -> tuple[int, ...]:
    return known.endpoints, known.endpoints6, known.filters


def _renumbered_interfaces(entries: bytes, current: state.State) -> bool:
    """Whether an interface of redirect was made anew since its backend was written."""
    indexes = {interface: link.index_or_0(interface) for interface in current.config.redirect_interfaces()}
    if not indexes:
        return False
    place_in_entry = BACKEND_FIELDS.index("interface")
    for key, backend in current.config.backends.items():
        if backend.interface:
            entry = BACKEND.unpack_from(entries, current.allocation.backends[key] * BACKEND.size)
            if entry[place_in_entry] != indexes[backend.interface]:
                return True
    return False


def is_sure(current: state.State, live_maps: maps.Maps) -> bool:
    """Whether the state's indexes are those of the maps: not after an interrupted change of the program."""
    return bool(current.program.digest) or table_ids(live_maps) == known_ids(current.tables)
