# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of an offloaded program, which are in the network card.

All functions raise OSError with the kernel's errno.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..kernel import bpf
from ..tables.layout import Sizes, index
from ..tables.lookup import HASH_SLOTS
from ..tables.offload import CONTROL, HALVES, OFFLOAD_COUNTERS, Shape
from . import compiler
from .interfaces import Interface, pack_mac

Row = tuple[int, int]  # packets, bytes


def build(source: Path, shape: Shape, hash_seed: str) -> compiler.Build:
    """The program over maps of this shape. It never asks the kernel whether it serves an address, hence the feature."""
    return compiler.Build(source, frozenset(("unserved_pass",)), Sizes(), cpus=1, hash_seed=hash_seed, shape=shape)


def _records(shape: Shape) -> dict[str, tuple[int, int, int]]:
    """By map that has records: bytes of one, how many a half has, and halves; in the order of offload_layout.h."""
    halves = {name: (size, getattr(shape, name), 2) for name, size in HALVES.items()}
    return {**halves, "counters": (OFFLOAD_COUNTERS.size, shape.counters, 1)}


def arrays(shape: Shape) -> dict[str, tuple[int, int]]:
    """By map, bytes of a value and number of values, in the order of offload_layout.h."""
    found = {"control": (CONTROL.size, 1)}
    for name, (size, count, halves) in _records(shape).items():
        found[name] = (size * count, halves) if shape.whole else (size, halves * count)
    return found


class OffloadMaps:
    """Descriptors of control, endpoints, slots, backends and counters, in the order of offload_layout.h."""

    def __init__(self, shape: Shape, descriptors: dict[str, int]) -> None:
        self.shape, self.descriptors = shape, descriptors

    def __enter__(self) -> OffloadMaps:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def number(self) -> int:
        """The kernel's id of the counters: another one if the maps were made anew."""
        return bpf.map_info(self.descriptors["counters"]).id

    def read_control(self) -> tuple[int, bytes]:
        """The half that packets see, and what the program knows of the interface."""
        found = bpf.map_lookup(self.descriptors["control"], index(0), CONTROL.size)
        return int.from_bytes(found[:4], "little"), found[4:]

    def write_control(self, half: int, interface: Interface) -> None:
        """Have packets see this half; one write."""
        bpf.map_update(self.descriptors["control"], index(0), half.to_bytes(4, "little") + known_of(interface))

    def read_half(self, half: int) -> dict[str, bytes]:
        """The records of each map of HALVES, as pack_half() makes them."""
        return {name: self._read(name, half) for name in HALVES}

    def write_half(self, half: int, content: dict[str, bytes]) -> None:
        """Write what differs from what is there."""
        for name, wanted in content.items():
            self._write(name, half, wanted)

    def read_counters(self) -> list[Row]:
        """Of reasons, then of services and backends."""
        return list(OFFLOAD_COUNTERS.iter_unpack(self._read("counters", 0)))

    def set_counters(self, rows: dict[int, Row]) -> None:
        """With one value for all counters, packets that are counted meanwhile are lost."""
        if not rows:
            return
        content = bytearray(self._read("counters", 0))
        for number, row in rows.items():
            OFFLOAD_COUNTERS.pack_into(content, number * OFFLOAD_COUNTERS.size, *row)
        self._write("counters", 0, bytes(content), rows)

    def _values(self, name: str) -> tuple[int, int]:
        """Bytes of a value, and how many values a half has."""
        size, count, _halves = _records(self.shape)[name]
        return (size * count, 1) if self.shape.whole else (size, count)

    def _read(self, name: str, half: int) -> bytes:
        size, count = self._values(name)
        descriptor = self.descriptors[name]
        return b"".join(bpf.map_lookup(descriptor, index(half * count + place), size) for place in range(count))

    def _write(self, name: str, half: int, wanted: bytes, places: Iterable[int] | None = None) -> None:
        """`places`: the only records that may differ."""
        size, count = self._values(name)
        before = self._read(name, half)
        for place in range(count) if self.shape.whole or places is None else places:
            value = wanted[place * size : (place + 1) * size]
            if value != before[place * size : (place + 1) * size]:
                bpf.map_update(self.descriptors[name], index(half * count + place), value)


def known_of(interface: Interface) -> bytes:
    """What struct offload_control has of the interface."""
    return interface.mtu.to_bytes(4, "little") + pack_mac(interface.address)


def create(shape: Shape, device: int) -> OffloadMaps:
    """New maps in the device with this index; 0: in the kernel."""
    descriptors: dict[str, int] = {}
    try:
        for name, (size, entries) in arrays(shape).items():
            descriptors[name] = bpf.map_create(name, bpf.MAP_TYPE_ARRAY, size, entries, device=device)
    except BaseException:
        OffloadMaps(shape, descriptors).close()
        raise
    return OffloadMaps(shape, descriptors)


def of_program(program: int) -> OffloadMaps:
    """Those that a program uses. Raises FileNotFoundError if it is not of offload.c."""
    found: dict[str, int] = {}
    infos: dict[str, bpf.MapInfo] = {}
    for number in bpf.program_info(program).map_ids:
        descriptor = bpf.map_fd(number)
        info = bpf.map_info(descriptor)
        found[info.name], infos[info.name] = descriptor, info
    names = ("control", *HALVES, "counters")
    if set(found) != set(names):
        for descriptor in found.values():
            os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "the program has other maps")
    return OffloadMaps(_shape_of(infos), {name: found[name] for name in names})


def _shape_of(infos: dict[str, bpf.MapInfo]) -> Shape:
    def records(name: str, size: int, halves: int) -> int:
        return infos[name].value_size // size * infos[name].max_entries // halves

    halves = {name: records(name, size, 2) for name, size in HALVES.items()}
    counters = records("counters", OFFLOAD_COUNTERS.size, 1)
    whole = infos["counters"].max_entries == 1
    return Shape(halves["endpoints"], halves["slots"] // HASH_SLOTS, halves["backends"], counters, whole)
