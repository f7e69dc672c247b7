# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of a balancer as a set: created, pinned, opened, shared with the set that takes its place."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ..errors import EngineError
from ..kernel import bpf
from ..tables.layout import CONTROL, INDEX, LAYOUT_VERSION, Sizes, index
from .map_specs import MapSpec, map_specs
from .maps import Maps, inner_map

# Maps that packets write to.
SHARED = frozenset(
    (
        "control",
        "service_counters",
        "backend_counters",
        "reasons",
        "round_robin",
        "client_next_hops",
        "flows",
        "fragments",
        "budget",
        "sessions",
        "pools",
        "links",
        "filter_counters",
        "filter_limits",
        "latency",
    )
)

# Not shared with a former layout: control holds the layout version, and the others have another size.
NOT_TAKEN_OVER = frozenset(("budget", "control", "reasons"))
# struct control by layout version. 2: layout_version, next_hop_generation, mtu, unused, seed. 3: layout_version,
# next_hop_generation, seed, index and MTU of 16 interfaces.
FORMER_CONTROLS = {2: struct.Struct("<II8xQ"), 3: struct.Struct("<IIQ128x")}


def _create(spec: MapSpec) -> int:
    if not spec.holds_maps:
        return bpf.map_create(
            spec.name, spec.type, spec.value_size, spec.max_entries, key_size=spec.key_size, flags=spec.flags
        )
    inner = inner_map(spec)
    try:
        return bpf.map_create(spec.name, spec.type, 4, spec.max_entries, inner=inner)
    finally:
        os.close(inner)


def unshared(sizes: Sizes, old: Sizes | None) -> list[MapSpec]:
    """Those that create() makes anew beside maps of the sizes `old`."""
    shared = {spec.name: spec for spec in map_specs(old) if spec.name in SHARED} if old else {}
    return [spec for spec in map_specs(sizes) if shared.get(spec.name) != spec]


def create(sizes: Sizes, old: Maps | None = None) -> Maps:
    """New, empty maps that belong to nobody yet; of `old` those are shared whose content is not the document's.

    So flows, sessions and counters go on where only the sizes of other maps change.
    """
    maps = Maps(sizes, {})
    made = unshared(sizes, old.sizes if old else None)
    try:
        for spec in map_specs(sizes):
            if old and spec not in made and spec.name in old.descriptors:
                maps.descriptors[spec.name] = os.dup(old[spec.name])
                continue
            try:
                maps.descriptors[spec.name] = _create(spec)
            except OSError as error:
                raise EngineError(
                    f"the kernel makes no map {spec.name} of {spec.max_entries} values of {spec.value_size} bytes: "
                    f"{error.strerror}; lower the sizes of the balancer (max_endpoints, max_backends, max_flows, ...)"
                ) from None
        if not old or "control" not in old.descriptors:
            # The next hops and flows that the shared maps remember were written under the former ones.
            generation, seed = old.former_control if old else (0, int.from_bytes(os.urandom(8), "little"))
            control = CONTROL.pack(LAYOUT_VERSION, generation % 0xFFFFFFFF + 1, seed, b"", b"")
            bpf.map_update(maps["control"], index(0), control)
    except (EngineError, OSError):
        maps.close()
        raise
    return maps


def pin(maps: Maps, directory: Path) -> None:
    for name, descriptor in maps.descriptors.items():
        bpf.object_pin(descriptor, str(directory / name))


def open_pinned(directory: Path, sizes: Sizes, read_only: bool = False) -> Maps:
    """The pinned maps. Raises OtherLayout if they are not what this engine writes."""
    maps = Maps(sizes, {})
    try:
        for spec in map_specs(sizes):
            maps.descriptors[spec.name] = _open(directory, spec, read_only)
        version = maps.layout_version()
        if version != LAYOUT_VERSION:
            raise _other_layout(directory, f"their layout version is {version}, this engine's is {LAYOUT_VERSION}")
    except (EngineError, OSError):
        maps.close()
        raise
    return maps


def open_shareable(directory: Path, sizes: Sizes) -> Maps:
    """The pinned maps for create(); of a former layout, those that new ones may share. Raises OtherLayout."""
    try:
        return open_pinned(directory, sizes)
    except OtherLayout:
        maps = Maps(sizes, {}, former_control=_former_control(directory))
    try:
        for spec in map_specs(sizes):
            if spec.name in SHARED - NOT_TAKEN_OVER:
                maps.descriptors[spec.name] = _open(directory, spec)
    except (EngineError, OSError):
        maps.close()
        raise
    return maps


def _former_control(directory: Path) -> tuple[int, int]:
    """The generation of next hops, and the seed of the flow table."""
    descriptor = _get(directory, "control", read_only=True)
    try:
        control = bpf.map_lookup(descriptor, index(0), bpf.map_info(descriptor).value_size)
    finally:
        os.close(descriptor)
    (version,) = INDEX.unpack_from(control)
    packing = FORMER_CONTROLS.get(version)
    if packing is None or packing.size != len(control):
        raise _other_layout(directory, f"their layout version is {version}")
    _version, generation, seed = packing.unpack(control)
    return generation, seed


def _get(directory: Path, name: str, read_only: bool = False) -> int:
    try:
        return bpf.object_get(str(directory / name), read_only)
    except FileNotFoundError:
        raise _other_layout(directory, f"{name} is not pinned") from None


def _open(directory: Path, spec: MapSpec, read_only: bool = False) -> int:
    descriptor = _get(directory, spec.name, read_only)
    info = bpf.map_info(descriptor)
    value_size = 4 if spec.holds_maps else spec.value_size
    found = (info.type, info.value_size, info.max_entries)
    if found != (spec.type, value_size, spec.max_entries):
        os.close(descriptor)
        raise _other_layout(
            directory,
            f"{spec.name} has type {found[0]} with {found[2]} values of {found[1]} bytes, "
            f"not type {spec.type} with {spec.max_entries} of {value_size}",
        )
    return descriptor


class OtherLayout(EngineError):
    """Pinned maps were made by another version of the engine."""


def _other_layout(directory: Path, problem: str) -> OtherLayout:
    return OtherLayout(
        f"the maps pinned in {directory} have another layout ({problem}); apply the balancer with the current "
        "collection, which moves the configuration into new maps without losing a packet"
    )
