# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live maps of a balancer: what is in them, read and written."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..kernel import bpf
from ..tables.layout import (
    BACKEND,
    BACKEND_COUNTERS,
    CONTROL,
    COUNTERS,
    FILTER_COUNTERS,
    LATENCY,
    LIMIT,
    POOL,
    REASON,
    REASONS,
    SESSION,
    SESSION_WORD_SEEN,
    SESSION_WORD_TIMEOUT,
    TABLE_ROOMS,
    Sizes,
    index,
    table_bytes,
    ticks_now,
)
from ..tables.tables import Endpoints, retired, unpack_endpoint6_table, unpack_endpoint_table
from .interfaces import Interface, pack_mac
from .map_specs import MapSpec, lookup_map, map_specs

# How much of a per-CPU map is read in one call.
READ_BYTES = 1 << 20


@dataclass
class Maps:
    """Descriptors by name, in the order of maps.h; closed with close()."""

    sizes: Sizes
    descriptors: dict[str, int]
    write_seconds: float = 0.0  # spent in writing, so far
    former_control: tuple[int, int] = (0, 0)  # see map_set.open_shareable()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.write_seconds += time.perf_counter() - started

    def __getitem__(self, name: str) -> int:
        return self.descriptors[name]

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # --- tables, each a map of its own that is swapped in whole

    def swap_table(self, name: str, table: bytes | None, place: int = 0) -> int:
        """Replace a table in one step, or leave the map without one in this place; the id of the new one."""
        if table is None:
            with self._writing():
                self._remove(name, place)
            return 0
        with self._writing():
            descriptor, number = _table(self.spec(name), table)
            try:
                bpf.map_update(self[name], index(place), index(descriptor))
            finally:
                os.close(descriptor)
        return number

    def _remove(self, name: str, place: int) -> None:
        try:
            bpf.map_delete(self[name], index(place))
        except FileNotFoundError:
            # There was nothing before.
            pass

    def write_rings(self, rings: dict[int, bytes | None], table_ids: dict[int, int]) -> None:
        """Replace each of these lookup tables in one step, or leave its service without one, and note their ids."""
        with self._writing():
            for room in TABLE_ROOMS:
                fitting = {ring: data for ring, data in rings.items() if data and len(data) == table_bytes(room)}
                if fitting:
                    table_ids.update(self._swap_lookup_tables(lookup_map(room), fitting))
                    self._leave_other_rooms(lookup_map(room), fitting)
            for ring in (ring for ring, data in rings.items() if data is None):
                table_ids.pop(ring, None)
                for room in TABLE_ROOMS:
                    self._remove(lookup_map(room), ring)

    def _swap_lookup_tables(self, name: str, packed: dict[int, bytes]) -> dict[int, int]:
        """The ids of the new ones."""
        spec = self.spec(name)
        made = {ring: _table(spec, data) for ring, data in packed.items()}
        try:
            # User space writes an array of maps with descriptors and reads ids from it.
            descriptors = b"".join(index(descriptor) for descriptor, _number in made.values())
            bpf.map_update_batch(self[name], b"".join(map(index, made)), descriptors, len(made))
        finally:
            for descriptor, _number in made.values():
                os.close(descriptor)
        return {ring: number for ring, (_descriptor, number) in made.items()}

    def _leave_other_rooms(self, name: str, rings: Collection[int]) -> None:
        """Remove the tables of another size that these services had until now."""
        others = [lookup_map(room) for room in TABLE_ROOMS if lookup_map(room) != name]
        left = [(other, ring) for ring in rings for other in others if self._holds_table(other, ring)]
        if not left:
            return
        # A packet that looked here before the new table was here has to find the old one. A write of one entry returns
        # when no such packet is under way (maybe_wait_bpf_programs() in the kernel); a batch does not wait.
        last = left[-1][1]
        descriptor = bpf.map_fd(int.from_bytes(bpf.map_lookup(self[name], index(last), 4), "little"))
        try:
            bpf.map_update(self[name], index(last), index(descriptor))
        finally:
            os.close(descriptor)
        for other, ring in left:
            self._remove(other, ring)

    def _holds_table(self, name: str, ring: int) -> bool:
        try:
            bpf.map_lookup(self[name], index(ring), 4)
        except FileNotFoundError:
            return False
        return True

    def table_id(self, name: str) -> int:
        """The live table's id, 0 if there is none."""
        return self.table_ids(name).get(0, 0)

    def read_endpoints(self) -> Endpoints:
        """What packets find in the live endpoint tables of both families."""
        found: Endpoints = {}
        for name, unpack in (("endpoints", unpack_endpoint_table), ("endpoints6", unpack_endpoint6_table)):
            number = self.table_id(name)
            if number:
                descriptor = bpf.map_fd(number)
                try:
                    found.update(unpack(bpf.map_lookup(descriptor, index(0), self.spec(name).value_size)))
                finally:
                    os.close(descriptor)
        return found

    def ring_ids(self) -> dict[int, int]:
        """The ids of the live lookup tables by service; of two, the one that the program finds first."""
        found: dict[int, int] = {}
        for room in reversed(TABLE_ROOMS):
            found.update(self.table_ids(lookup_map(room)))
        return found

    def table_ids(self, name: str) -> dict[int, int]:
        """The ids of the tables in a map of them, by place."""
        keys, values = bpf.map_lookup_batch(self[name], self.spec(name).max_entries, 4)
        return dict(zip(_integers(keys), _integers(values)))

    # --- backends

    def write_backends(self, backends: dict[int, bytes]) -> None:
        """struct backend by id."""
        with self._writing():
            bpf.map_update_batch(
                self["backends"], b"".join(map(index, backends)), b"".join(backends.values()), len(backends)
            )

    def retire_backends(self, places: Collection[int]) -> None:
        """Flows that are remembered with these are chosen anew; nothing else of the entries changes."""
        self.write_backends(
            {place: retired(bpf.map_lookup(self["backends"], index(place), BACKEND.size)) for place in places}
        )

    def write_pools(self, pools: dict[int, bytes]) -> None:
        """struct pool by id."""
        with self._writing():
            bpf.map_update_batch(self["pools"], b"".join(map(index, pools)), b"".join(pools.values()), len(pools))

    def read_pool(self, place: int) -> bytes:
        """struct pool."""
        return bpf.map_lookup(self["pools"], index(place), POOL.size)

    def read_backends(self, count: int | None = None) -> bytes:
        """struct backend, one after the other, by id; the first `count` of them."""
        spec = self.spec("backends")
        entries = spec.max_entries if count is None else min(count, spec.max_entries)
        return bpf.map_lookup_batch(self["backends"], entries, spec.value_size)[1] if entries else b""

    # --- counters

    def zero_counters(self, name: str, positions: Iterable[int]) -> None:
        positions = list(positions)
        size = self.spec(name).value_size * bpf.possible_cpus()
        with self._writing():
            bpf.map_update_batch(
                self[name], b"".join(map(index, positions)), bytes(size * len(positions)), len(positions)
            )

    def reset_limits(self, places: Iterable[int]) -> None:
        """Let these filters' limits begin anew."""
        places = list(places)
        with self._writing():
            keys = b"".join(map(index, places))
            bpf.map_update_batch(self["filter_limits"], keys, bytes(LIMIT.size * len(places)), len(places))

    def set_counters(self, name: str, rows: dict[int, tuple[int, ...]]) -> None:
        """Start from these totals; they are accounted to the first CPU."""
        form = self._counter(name)
        padding = bytes(form.size * (bpf.possible_cpus() - 1))
        values = b"".join(form.pack(*row) + padding for row in rows.values())
        bpf.map_update_batch(self[name], b"".join(map(index, rows)), values, len(rows))

    @staticmethod
    def _counter(name: str) -> struct.Struct:
        return {"backend_counters": BACKEND_COUNTERS, "filter_counters": FILTER_COUNTERS}.get(name, COUNTERS)

    def read_counters(self, name: str, count: int | None = None) -> list[tuple[int, ...]]:
        """The fields of struct counters or filter_counters by position, summed over the CPUs.

        `count`: of that many places only.
        """
        form, cpus = self._counter(name), bpf.possible_cpus()
        fields, words = len(form.unpack(bytes(form.size))), form.size // 8
        rows: list[tuple[int, ...]] = []
        for values in self._read_places(name, count):
            numbers = memoryview(values).cast("Q")
            # A row at a time is many times as slow as a column.
            columns = [
                [sum(row) for row in zip(*(numbers[field + words * cpu :: words * cpus] for cpu in range(cpus)))]
                for field in range(fields)
            ]
            rows += zip(*columns)
        return rows

    def _read_places(self, name: str, count: int | None) -> Iterator[bytes]:
        """The values of the first `count` places, some at a time, since each is there once for every CPU."""
        spec, cpus = self.spec(name), bpf.possible_cpus()
        end = spec.max_entries if count is None else min(count, spec.max_entries)
        at_once = max(1, READ_BYTES // (spec.value_size * cpus))
        for start in range(0, end, at_once):
            after = index(start - 1) if start else None
            number = min(at_once, end - start)
            yield bpf.map_lookup_batch(self[name], number, spec.value_size * cpus, after=after)[1]

    def read_reasons(self) -> list[int]:
        """Packets by reason, in the order of layout.REASONS."""
        cpus = bpf.possible_cpus()
        values = bpf.map_lookup_batch(self["reasons"], len(REASONS), REASON.size * cpus)[1]
        return [sum(row) for row in struct.iter_unpack(f"<{cpus}Q", values)]

    def read_latency(self) -> tuple[int, ...]:
        """The fields of struct latency, summed over the CPUs."""
        values = bpf.map_lookup(self["latency"], index(0), LATENCY.size * bpf.possible_cpus())
        return tuple(map(sum, zip(*LATENCY.iter_unpack(values))))

    def set_latency(self, row: tuple[int, ...]) -> None:
        """Start from these totals; they are accounted to the first CPU."""
        padding = bytes(LATENCY.size * (bpf.possible_cpus() - 1))
        bpf.map_update(self["latency"], index(0), LATENCY.pack(*row) + padding)

    def set_reasons(self, packets: list[int]) -> None:
        """Start from these totals; they are accounted to the first CPU."""
        padding = bytes(REASON.size * (bpf.possible_cpus() - 1))
        values = b"".join(REASON.pack(number) + padding for number in packets)
        bpf.map_update_batch(self["reasons"], b"".join(map(index, range(len(packets)))), values, len(packets))

    # --- flows

    def create_flow_tables(self) -> None:
        """One for each CPU, where there is none yet."""
        spec = self.spec("flows")
        for cpu in set(range(spec.max_entries)) - self.table_ids("flows").keys():
            descriptor = inner_map(spec)
            try:
                bpf.map_update(self["flows"], index(cpu), index(descriptor))
            finally:
                os.close(descriptor)

    def end_sessions(self, first: int, count: int) -> None:
        """Free these places for sessions of another pool."""
        with self._writing():
            keys = b"".join(map(index, range(first, first + count)))
            bpf.map_update_batch(self["sessions"], keys, bytes(SESSION.size * count), count)

    def live_sessions(self) -> int:
        """How many have a port at the moment, as is_alive() in sessions.h has it."""
        spec = self.spec("sessions")
        values = bpf.map_lookup_batch(self["sessions"], spec.max_entries, spec.value_size)[1]
        words, now = memoryview(values).cast("I"), ticks_now()
        seen, timeouts = (words[word :: SESSION.size // 4] for word in (SESSION_WORD_SEEN, SESSION_WORD_TIMEOUT))
        return sum(now - tick <= timeout for tick, timeout in zip(seen, timeouts))

    def packets_by_cpu(self, services: int) -> list[int]:
        """Packets that the program saw on each CPU: of the first so many services, and those it named a reason for."""
        cpus, words = bpf.possible_cpus(), COUNTERS.size // 8
        found = [0] * cpus
        for values in self._read_places("service_counters", services):
            numbers = memoryview(values).cast("Q")
            for cpu in range(cpus):
                found[cpu] += sum(sum(numbers[words * cpu + field :: words * cpus]) for field in (0, 2))
        values = bpf.map_lookup_batch(self["reasons"], len(REASONS), REASON.size * cpus)[1]
        for (_reason, verdict), row in zip(REASONS, struct.iter_unpack(f"<{cpus}Q", values)):
            # Those that were forwarded have been counted by service.
            if verdict != "forward":
                found = list(map(sum, zip(found, row)))
        return found

    def links(self) -> int:
        """How many interfaces are up that redirect may use."""
        return len(bpf.map_keys(self["links"])) // 4

    def number(self, name: str) -> int:
        """The kernel's id of a map: another one if the maps were made anew."""
        return bpf.map_info(self[name]).id

    # --- links that redirect may use

    def set_links(self, interfaces: set[int], keep: bool = False) -> None:
        """The indexes of the interfaces whose link is up; others get no packets, unless those there are to `keep`."""
        present = set(_integers(bpf.map_keys(self["links"])))
        for interface in interfaces - present:
            bpf.map_update(self["links"], index(interface), index(interface))
        for interface in set() if keep else present - interfaces:
            bpf.map_delete(self["links"], index(interface))

    # --- control

    def update_control(self, interfaces: Iterable[Interface]) -> None:
        """Make the program ask the kernel's tables again, and know these interfaces and no others."""
        version, generation, seed, _interfaces, virtual_macs = self._control()
        packed = b"".join(found.pack() for found in interfaces)
        control = CONTROL.pack(version, generation % 0xFFFFFFFF + 1, seed, packed, virtual_macs)
        bpf.map_update(self["control"], index(0), control)

    def set_virtual_macs(self, macs: Iterable[str]) -> None:
        """Frames for these Ethernet addresses, in colon notation, are for the host as well."""
        control = CONTROL.pack(*self._control()[:-1], b"".join(map(pack_mac, macs)))
        bpf.map_update(self["control"], index(0), control)

    def _control(self) -> tuple[Any, ...]:
        return CONTROL.unpack(bpf.map_lookup(self["control"], index(0), CONTROL.size))

    def layout_version(self) -> int:
        version: int = self._control()[0]
        return version

    def spec(self, name: str) -> MapSpec:
        return next(spec for spec in map_specs(self.sizes) if spec.name == name)


def _integers(data: bytes) -> list[int]:
    return [int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data), 4)]


def inner_map(spec: MapSpec, entries: int = 0) -> int:
    """An empty map that goes into this one; its descriptor. `entries`: where maps of any length do."""
    return bpf.map_create(
        spec.name, bpf.MAP_TYPE_ARRAY, spec.value_size, entries or spec.inner_entries, flags=spec.inner_flags
    )


def _table(spec: MapSpec, value: bytes) -> tuple[int, int]:
    """A frozen map: nobody can change it, so its id stands for its content."""
    entries = len(value) // spec.value_size
    descriptor = inner_map(spec, entries if spec.any_length else 0)
    try:
        if entries == 1:
            bpf.map_update(descriptor, index(0), value)
        else:
            bpf.map_update_batch(descriptor, b"".join(map(index, range(entries))), value, entries)
        bpf.map_freeze(descriptor)
        return descriptor, bpf.map_info(descriptor).id
    except OSError:
        os.close(descriptor)
        raise
