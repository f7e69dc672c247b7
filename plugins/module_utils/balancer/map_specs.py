# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of a balancer: type, size of a value and number of entries of each, in the order of files/bpf/maps.h."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..config.vocabulary import MAX_SOURCE_RANGES
from ..kernel import bpf
from ..tables import memory
from ..tables.layout import (
    BACKEND,
    BACKEND_COUNTERS,
    BUDGET,
    CLIENT_NEXT_HOP,
    CLIENT_NEXT_HOPS,
    CONTROL,
    COUNTERS,
    FILTER_COUNTERS,
    FILTER_LINE,
    FLOW_BUCKET,
    FRAGMENT_BUCKETS,
    INDEX,
    LATENCY,
    LIMIT,
    LINK,
    MAX_LINKS,
    MAX_POOLS,
    MAX_REASONS,
    POOL,
    PREVIOUS_HEADER,
    REASON,
    SESSION,
    SOURCE_RANGE,
    TABLE_ROOMS,
    Sizes,
    table_bytes,
)


@dataclass(frozen=True)
class MapSpec:
    """One pinned map. For an array of maps, value_size and inner_entries are those of each inner array."""

    name: str
    type: int
    value_size: int
    max_entries: int
    per_cpu: bool = False
    inner_entries: int = 1
    inner_flags: int = 0
    key_size: int = 4
    flags: int = 0

    @property
    def holds_maps(self) -> bool:
        return self.type == bpf.MAP_TYPE_ARRAY_OF_MAPS

    @property
    def any_length(self) -> bool:
        """Whether the maps in an array of maps may differ in length."""
        return bool(self.inner_flags & bpf.MAP_FLAG_INNER_MAP)


# The option that a map's number of values comes from; other maps are the same for all options.
OPTIONS = {
    "backends": "max_backends",
    "backend_counters": "max_backends",
    "service_counters": "max_services",
    "round_robin": "max_services",
    "previous": "max_services",
    **{f"lookup_{room}": "max_services" for room in TABLE_ROOMS},
    "sessions": "max_sessions",
    "filter_counters": "max_filters",
    "filter_limits": "max_filters",
}

# The arrays of the next program, by whether it takes frames of several buffers.
NEXT_PROGRAM_MAPS = {False: "next_program", True: "next_program_frags"}


def memory_of(specs: Iterable[MapSpec], cpus: int) -> memory.Needs:
    """The kernel's memory that these maps take by the option that sizes them, without the tables in them."""
    needs = memory.Needs()
    for spec in specs:
        if spec.flags & bpf.MAP_FLAG_NO_PREALLOC:
            # Taken with each entry.
            size = 0
        elif spec.holds_maps:
            size = memory.pointers(spec.max_entries)
        elif spec.per_cpu:
            size = memory.per_cpu_array(spec.value_size, spec.max_entries, cpus)
        else:
            size = memory.array(spec.value_size, spec.max_entries)
        needs[OPTIONS.get(spec.name, "")] += size
    return needs


def lookup_map(room: int) -> str:
    """The name of the map of lookup tables with room for so many slots."""
    return f"lookup_{room}"


def map_specs(sizes: Sizes) -> tuple[MapSpec, ...]:
    """The maps in the order of their numbers in maps.h."""

    def array(name: str, value_size: int, max_entries: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_ARRAY, value_size, max_entries)

    def per_cpu(name: str, value_size: int, max_entries: int) -> MapSpec:
        return MapSpec(name, bpf.MAP_TYPE_PERCPU_ARRAY, value_size, max_entries, per_cpu=True)

    def tables(
        name: str, value_size: int, max_entries: int = 1, *, inner_entries: int = 1, inner_flags: int = 0
    ) -> MapSpec:
        return MapSpec(
            name,
            bpf.MAP_TYPE_ARRAY_OF_MAPS,
            value_size,
            max_entries,
            inner_entries=inner_entries,
            inner_flags=inner_flags,
        )

    def lookup(room: int) -> MapSpec:
        return tables(lookup_map(room), table_bytes(room), sizes.max_services)

    return (
        array("control", CONTROL.size, 1),
        tables("endpoints", sizes.endpoint_table_bytes),
        lookup(TABLE_ROOMS[0]),
        array("backends", BACKEND.size, sizes.max_backends),
        per_cpu("service_counters", COUNTERS.size, sizes.max_services),
        per_cpu("backend_counters", BACKEND_COUNTERS.size, sizes.max_backends),
        per_cpu("reasons", REASON.size, MAX_REASONS),
        per_cpu("round_robin", INDEX.size, sizes.max_services),
        per_cpu("client_next_hops", CLIENT_NEXT_HOP.size, CLIENT_NEXT_HOPS),
        tables("endpoints6", sizes.endpoint6_table_bytes),
        # Mapped memory begins at a page, so that a bucket or line is one cache line.
        tables(
            "flows",
            FLOW_BUCKET.size,
            bpf.possible_cpus(),
            inner_entries=sizes.flow_buckets,
            inner_flags=bpf.MAP_FLAG_MMAPABLE,
        ),
        per_cpu("fragments", FLOW_BUCKET.size, FRAGMENT_BUCKETS),
        per_cpu("budget", BUDGET.size, 1),
        array("sessions", SESSION.size, sizes.max_sessions),
        array("pools", POOL.size, MAX_POOLS),
        MapSpec("links", bpf.MAP_TYPE_DEVMAP_HASH, LINK.size, MAX_LINKS),
        tables("filters", FILTER_LINE, inner_entries=sizes.filter_lines, inner_flags=bpf.MAP_FLAG_MMAPABLE),
        per_cpu("filter_counters", FILTER_COUNTERS.size, sizes.max_filters),
        array("filter_limits", LIMIT.size, sizes.max_filters),
        per_cpu("latency", LATENCY.size, 1),
        *map(lookup, sorted(TABLE_ROOMS[1:])),
        tables("previous", PREVIOUS_HEADER.size, sizes.max_services, inner_flags=bpf.MAP_FLAG_INNER_MAP),
        # Old and new ranges are there together while services change.
        MapSpec(
            "source_ranges",
            bpf.MAP_TYPE_LPM_TRIE,
            1,
            2 * MAX_SOURCE_RANGES,
            key_size=SOURCE_RANGE.size,
            flags=bpf.MAP_FLAG_NO_PREALLOC,
        ),
        *(MapSpec(name, bpf.MAP_TYPE_PROG_ARRAY, INDEX.size, 1) for name in NEXT_PROGRAM_MAPS.values()),
    )
