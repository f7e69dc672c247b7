# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a plan: what packets see at every step is the old configuration or the new one, never a mix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Optional

from ..config import model
from ..kernel import link
from ..tables import tables
from ..tables.layout import BACKEND, BACKEND_FORWARDING_BYTE, Sizes
from ..tables.source_ranges import pack_source_ranges
from . import fill, maps, plan, source_ranges, state
from .drift import live_digest
from .observed import Observed
from .turns import Turns

# How long replies of a removed backend may still be under way.
REPLY_LINGER = 0.2  # seconds
# Rings of new services are computed and written in batches, a quarter of a megabyte each.
RINGS_AT_ONCE = 100
# What health checks saw since they were asked last, or None.
News = Callable[[], Optional[Observed]]
# The final tables of both families and the interim ones, where the plan has them.
Packed = Optional[tuple[bytes, Optional[bytes]]]
EndpointTables = tuple[Packed, Packed]


def endpoint_tables(planned: plan.Plan, sizes: Sizes) -> EndpointTables:
    """Raises EngineError for what does not fit."""

    def pack(found: tables.Endpoints | None) -> Packed:
        return None if found is None else tables.pack_endpoint_tables(found, sizes)

    return pack(planned.endpoints), pack(planned.interim_endpoints)


def plan_out(
    current: state.State,
    drift: plan.Drift,
    was_out: frozenset[model.BackendKey],
    out: frozenset[model.BackendKey],
    live: tables.Endpoints | None = None,
) -> plan.Plan:
    """Of the same configuration, without other backends than before."""
    config, sizes = current.config, current.program.sizes
    return plan.make(config, current.allocation, config, sizes, drift, was_out=was_out, out=out, live=live)


def swaps_rings_only(planned: plan.Plan) -> bool:
    retiring = planned.removed_rings or planned.allocation.retiring_backends
    return planned.endpoints is None and not planned.new_rings and not retiring


def write(
    planned: plan.Plan, live_maps: maps.Maps, known: state.Tables, packed: EndpointTables, in_use: bool = True
) -> state.Tables:
    """Carry out a plan; each step leaves packets with the old or the new configuration, never with a mix.

    Unless `in_use` no packet can see these maps yet: there is nothing to wait for, and nothing to take away.
    Interfaces that redirect used before stay among the links.
    """
    allocation, desired = planned.allocation, planned.desired
    members = desired.backends_of()
    table_ids = dict(known.rings)
    endpoint_ids = (known.endpoints, known.endpoints6)

    def swap(packed_tables: tuple[bytes, bytes | None]) -> tuple[int, int]:
        # A packet is of one family, so one table after the other is one step for each.
        return (
            live_maps.swap_table("endpoints", packed_tables[0]),
            live_maps.swap_table("endpoints6", packed_tables[1]),
        )

    def pack(names: list[str]) -> dict[int, bytes | None]:
        return _pack_rings(planned, members, names)

    # Everything that takes time to compute is ready before packets see the first change.
    # Entries that are repaired may be of backends that go out now: their rings come first.
    leaving = _in_use(planned, live_maps, planned.out.intersection(planned.written_backends))
    entries = _entries(planned, planned.out - leaving)
    swapped = pack(planned.swapped_rings)
    final, interim = packed

    live_maps.write_backends(entries)
    _write_pools(planned, live_maps)
    # Clients of the old and of the new document are known while lookup tables change over. At a place that no packet
    # sees yet, what a killed run has left would let in others.
    ranges = pack_source_ranges(desired, allocation.rings)
    source_ranges.write(live_maps, ranges, {allocation.rings[name] for name in planned.new_rings})
    links = link.links_up(desired.redirect_interfaces())
    # Lookup tables that are live still may send packets over others.
    live_maps.set_links(links, keep=True)
    for start in range(0, len(planned.new_rings), RINGS_AT_ONCE):
        live_maps.write_rings(pack(planned.new_rings[start : start + RINGS_AT_ONCE]), table_ids)
    if interim is not None:
        swap(interim)
    elif final is not None:
        endpoint_ids = swap(final)
    live_maps.write_rings(swapped, table_ids)
    if interim is not None and final is not None:
        if planned.replies_linger and in_use:
            time.sleep(REPLY_LINGER)
        endpoint_ids = swap(final)
    if in_use:
        live_maps.write_rings(dict.fromkeys(planned.removed_rings), table_ids)
        gone = [allocation.backends[key] for key in (*planned.suspended_backends, *leaving)]
        live_maps.retire_backends(allocation.retiring_backends.union(gone))
        live_maps.set_links(links)
        source_ranges.write(live_maps, ranges)
    digest = live_digest(live_maps, allocation)
    return replace(
        known,
        endpoints=endpoint_ids[0],
        endpoints6=endpoint_ids[1],
        rings=table_ids,
        backends=digest,
        out=planned.out,
        following=False,
    )


def _in_use(planned: plan.Plan, live_maps: maps.Maps, keys: frozenset[model.BackendKey]) -> frozenset[model.BackendKey]:
    """Those of these backends whose entries are not retired: rings may point at them."""
    entries = live_maps.read_backends() if keys else b""
    return frozenset(
        key for key in keys if entries[planned.allocation.backends[key] * BACKEND.size + BACKEND_FORWARDING_BYTE]
    )


def write_in_turns(current: state.State, planned: plan.Plan, live_maps: maps.Maps, news: News) -> state.Tables:
    """One service after the other, since a ring takes its time: who is the first need not wait for the last.

    A run that is killed on the way leaves rings that are told from those known by their ids.
    """
    table_ids, out, drift = dict(current.tables.rings), current.tables.out, planned.drift
    members, turns = current.config.backends_of(), Turns()
    _write_pools(planned, live_maps)
    _write_entries_in(planned, live_maps)
    turns.set(_services_that_change(planned, out))
    while turns:
        name = turns.take()
        _swap(planned, name, members, live_maps, table_ids)
        out = frozenset(key for key in out if key.service != name).union(
            key for key in planned.out if key.service == name
        )
        drift = plan.Drift(rings=drift.rings - {planned.allocation.rings[name]})
        seen = news() if turns else None
        if seen is not None:
            back = out.intersection(planned.written_backends)
            planned = plan_out(current, drift, out, seen.out(current.config))
            # Those that had come back, but are down again before their service's turn.
            live_maps.retire_backends([planned.allocation.backends[key] for key in back & planned.out])
            _write_entries_in(planned, live_maps)
            turns.set(_services_that_change(planned, out))
    digest = live_digest(live_maps, current.allocation)
    return replace(current.tables, rings=table_ids, backends=digest, out=out, following=False)


def _services_that_change(planned: plan.Plan, was_out: frozenset[model.BackendKey]) -> list[str]:
    """With a ring to swap, or with backends that leave or come back without being in it."""
    return [*planned.swapped_rings, *sorted({key.service for key in planned.out ^ was_out})]


def _write_entries_in(planned: plan.Plan, live_maps: maps.Maps) -> None:
    """Those that come back are ready before their rings; those that leave go on until theirs are there."""
    leaving = frozenset(planned.suspended_backends)
    live_maps.write_backends(_entries(planned, planned.out - leaving))


def _swap(
    planned: plan.Plan,
    name: str,
    members: dict[str, list[model.Backend]],
    live_maps: maps.Maps,
    table_ids: dict[int, int],
) -> None:
    if name in planned.swapped_rings:
        live_maps.write_rings(_pack_rings(planned, members, [name]), table_ids)
    live_maps.retire_backends(
        [planned.allocation.backends[key] for key in planned.suspended_backends if key.service == name]
    )


def _write_pools(planned: plan.Plan, live_maps: maps.Maps) -> None:
    pools = planned.allocation.pools
    entries = {pools[pool].id: tables.pack_pool(pool, pools[pool]) for pool in planned.written_pools}
    for pool in planned.written_pools:
        # A repair writes all of them; sessions of one that is right go on.
        if live_maps.read_pool(pools[pool].id) != entries[pools[pool].id]:
            live_maps.end_sessions(pools[pool].first_session, pool.ports)
    live_maps.write_pools(entries)


def _entries(planned: plan.Plan, out: frozenset[model.BackendKey]) -> dict[int, bytes]:
    """Those that are written, by index; of backends that are out as they are then."""
    services, backends, indexes = planned.desired.services, planned.desired.backends, planned.allocation.backends
    packers = {name: tables.BackendPacker(services[name]) for name in {key.service for key in planned.written_backends}}
    entries = {}
    for key in planned.written_backends:
        backend = backends[key]
        place = planned.backend_place(key, link.index_or_0(backend.interface))
        entry = packers[key.service].pack(backend, place)
        entries[indexes[key]] = tables.retired(entry) if key in out else entry
    return entries


def _pack_rings(
    planned: plan.Plan, members: dict[str, list[model.Backend]], names: Iterable[str]
) -> dict[int, bytes | None]:
    """Those of the services with these names, by place."""
    allocation, services = planned.allocation, planned.desired.services
    return {
        allocation.rings[name]: tables.pack_ring(
            services[name], members[name], allocation.backends, planned.out, fill.FASTEST
        )
        for name in names
    }
