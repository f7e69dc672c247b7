# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Previous lookup tables in the maps, for connections that no flow table knows and that may be older than a change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..config.model import BackendKey
from ..tables.layout import ticks, ticks_now
from ..tables.previous_table import pack_previous_table
from . import fill
from .document import Document
from .maps import Maps
from .plan import Allocation
from .previous import Previous, follow, in_force
from .state import State


@dataclass(frozen=True)
class Plan:
    """Which previous tables there are to be, and which of them have to be written."""

    wanted: dict[str, Previous]
    written: list[str]


def plan_handover(current: State, after: Document, allocation: Allocation, missing: frozenset[int] | None) -> Plan:
    """Of a change that is made now. `missing`: services' indexes whose table is not there; None: all."""
    ids, known_ids, known = allocation.backends, current.allocation.backends, current.previous
    wanted = follow(current.document, after, current.tables.out, known, time.time())
    written = [
        name
        for name, previous in wanted.items()
        if missing is None
        or allocation.rings[name] in missing
        or known.get(name) != previous
        or previous.ids(ids) != previous.ids(known_ids)
    ]
    return Plan(wanted, written)


def write(
    planned: Plan, live_maps: Maps, services: Mapping[str, int], backends: dict[BackendKey, int], known: dict[int, int]
) -> dict[int, int]:
    """Put the tables that are written in place, one after the other; returns the ids of all that are wanted.

    `services` and `backends` are indexes by name and by key, `known` the ids of the tables by index of the service.
    Nothing changes for packets until another lookup table takes the place of the one in use.
    """
    ids = {services[name]: known.get(services[name], 0) for name in planned.wanted}
    now = time.time()
    for name in planned.written:
        previous = planned.wanted[name]
        until = ticks_now() + ticks(max(0.0, previous.until - now))
        seed = int(previous.hash_seed or "0", 16)
        table = pack_previous_table(previous.service, previous.members, backends, seed, until, fill.FASTEST)
        ids[services[name]] = live_maps.swap_table("previous", table, services[name])
    return ids


def remove_others(live_maps: Maps, wanted: Iterable[int]) -> None:
    """Remove the previous tables of all services but these."""
    for place in live_maps.table_ids("previous").keys() - set(wanted):
        live_maps.swap_table("previous", None, place)


def discard_lapsed(current: State, live_maps: Maps, save: Callable[[State], None]) -> State:
    """Remove the tables whose time is up, which is no change of the next run."""
    known = in_force(current.previous, time.time())
    wanted = {current.allocation.rings[name] for name in known}
    remove_others(live_maps, wanted)
    ids = {place: number for place, number in current.tables.previous.items() if place in wanted}
    current = replace(current, previous=known, tables=replace(current.tables, previous=ids))
    save(current)
    return current


def has_lapsed(current: State) -> bool:
    """Whether the time of a table is up."""
    return len(in_force(current.previous, time.time())) < len(current.previous)
