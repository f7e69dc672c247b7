# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map of source ranges, which is written entry by entry: what is new comes first, what is not wanted goes last."""

from __future__ import annotations

from collections.abc import Collection

from ..kernel import bpf
from ..tables.layout import SOURCE_RANGE
from ..tables.source_ranges import service_of
from .maps import Maps


def read(live_maps: Maps) -> set[bytes]:
    """struct source_range."""
    keys, size = bpf.map_keys(live_maps["source_ranges"], SOURCE_RANGE.size), SOURCE_RANGE.size
    return {keys[start : start + size] for start in range(0, len(keys), size)}


def write(live_maps: Maps, ranges: Collection[bytes], unseen: Collection[int] | None = None) -> None:
    """Have these and no others; with `unseen`, others stay but for services with these places of lookup tables."""
    present = read(live_maps)
    for key in sorted(set(ranges) - present):
        bpf.map_update(live_maps["source_ranges"], key, b"\1")
    for key in sorted(present.difference(ranges)):
        if unseen is None or service_of(key) in unseen:
            bpf.map_delete(live_maps["source_ranges"], key)
