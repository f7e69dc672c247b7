# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Indirection tables: which receive queue each entry of a hash names. Pure functions."""

from __future__ import annotations

Table = tuple[int, ...]


def equal(size: int, queues: int) -> Table:
    """As the kernel fills a table by default (ethtool_rxfh_indir_default())."""
    return tuple(entry % queues for entry in range(size))


def weighted(size: int, weights: list[int]) -> Table:
    """Entries in proportion to the weights, queue after queue, as ethtool(8) does it."""
    total = sum(weights)
    table: list[int] = []
    reached = 0
    for queue, weight in enumerate(weights):
        reached += weight
        # The entries before size * reached / total are taken by this queue and those before it.
        table += [queue] * (size * reached // total - len(table))
    return tuple(table)


def blocks(size: int, queues: int) -> Table:
    """As igb fills a table by default."""
    return tuple(entry * queues // size for entry in range(size))


def is_default(table: Table, queues: int) -> bool:
    """Whether it is as the kernel or a driver fills it for so many queues."""
    return table in (equal(len(table), queues), blocks(len(table), queues))
