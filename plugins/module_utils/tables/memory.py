# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's memory that maps and tables take, in bytes. Pure functions.

As array_map_alloc() in kernel/bpf/arraymap.c and bpf_map_area_alloc() in kernel/bpf/syscall.c have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..config.model import Service
from .layout import FILTER_LINE, FLOW_BUCKET, IDS_PER_LINE, PREVIOUS_HEADER, Sizes, table_bytes, table_room

PAGE = 4096
# struct bpf_array before its elements, at the most.
HEADER = 512
POINTER = 8
# Up to here kmalloc() makes room, a power of two; beyond, vmalloc() makes it from pages.
KMALLOC = 8 * PAGE
# Bytes by the option that they depend on; "" stands for what no option changes.
Needs = Counter[str]


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to


def array(value_size: int, entries: int) -> int:
    """An array."""
    size = HEADER + _aligned(value_size, 8) * entries
    return 1 << (size - 1).bit_length() if size <= KMALLOC else _aligned(size, PAGE)


def per_cpu_array(value_size: int, entries: int, cpus: int) -> int:
    """An array with a value for each CPU."""
    return pointers(entries) + _aligned(value_size, 8) * entries * cpus


def pointers(entries: int) -> int:
    """An array of maps, without those."""
    return array(POINTER, entries)


def flow_tables(sizes: Sizes, cpus: int) -> Needs:
    """One for each CPU."""
    return Needs({"max_flows": cpus * array(FLOW_BUCKET.size, sizes.flow_buckets)})


def filter_table(sizes: Sizes) -> Needs:
    return Needs({"max_filters": array(FILTER_LINE, sizes.filter_lines)})


def endpoint_tables(sizes: Sizes, ipv6: bool) -> Needs:
    """One for each family; that of IPv6 only if an address needs it."""
    size = array(sizes.endpoint_table_bytes, 1) + (array(sizes.endpoint6_table_bytes, 1) if ipv6 else 0)
    return Needs({"max_endpoints": size})


def lookup_tables(services: Iterable[Service]) -> Needs:
    """One for each of these services."""
    return Needs({"table_size": sum(array(table_bytes(table_room(service.table_size)), 1) for service in services)})


def previous_tables(services: Iterable[Service]) -> Needs:
    """One for each of these services, at the most."""
    lines = (1 + -(-service.table_size // IDS_PER_LINE) for service in services)
    return Needs({"table_size": sum(array(PREVIOUS_HEADER.size, count) for count in lines)})
