# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How lookup tables follow what health checks saw, while the document stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config.model import BackendKey
from . import drift, maps, observed, plan, state, writing


@dataclass(frozen=True)
class Followed:
    """What came of what health checks saw."""

    # Backends that the lookup tables leave out.
    out: frozenset[BackendKey]
    # Why the disk did not take all that is to outlive the process; nothing if it did.
    refusal: str


def follow(
    current: state.State,
    live_maps: maps.Maps,
    seen: observed.Observed,
    save: Callable[[state.State], None],
    news: writing.News = lambda: None,
) -> state.State:
    """Leave drift for a module to report, except where an interrupted change left nothing else to go by."""
    known, sizes = current.tables, current.program.sizes
    out = seen.out(current.config)
    if out == known.out and not known.following:
        return current
    found = drift.find(current, live_maps)
    repaired = found if known.following or drift.unfinished(current) else plan.Drift()
    live = live_maps.read_endpoints() if repaired.endpoints else None
    planned = writing.plan_out(current, repaired, known.out, out, live)
    save(replace(current, tables=replace(known, following=True)))
    if writing.swaps_rings_only(planned):
        written = writing.write_in_turns(current, planned, live_maps, news)
    else:
        packed = writing.endpoint_tables(planned, sizes) if repaired.endpoints else (None, None)
        written = writing.write(planned, live_maps, known, packed)
    if found.backends and not repaired.backends:
        written = replace(written, backends=known.backends)
    followed = replace(current, allocation=plan.settled(planned.allocation), tables=written)
    save(followed)
    return followed


def settled(current: state.State, live_maps: maps.Maps) -> state.State:
    """The state as it will be once an interrupted health update is complete, which is no change of the next run."""
    if not current.tables.following:
        return current
    allocation, live_rings = current.allocation, live_maps.ring_ids()
    rings = {index: live_rings[index] for index in allocation.rings.values() if index in live_rings}
    digest = drift.live_digest(live_maps, allocation)
    return replace(current, tables=replace(current.tables, rings=rings, backends=digest))
