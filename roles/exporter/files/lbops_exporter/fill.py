# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How full the maps are."""

from __future__ import annotations

from collections.abc import Iterable

from .collector import Collector, Subject
from .exposition import Family, Page
from .source import Sources

ENTRIES = Family("lbops_map_entries", "gauge", "Entries of a map that are in use.", ("balancer", "map"))
CAPACITY = Family("lbops_map_capacity", "gauge", "Entries that a map has room for.", ("balancer", "map"))


class FillCollector(Collector):
    name = "maps"
    families = (ENTRIES, CAPACITY)

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def subjects(self) -> Iterable[Subject]:
        return map(Subject, self._sources.balancers())

    def collect(self, page: Page, subject: Subject) -> None:
        balancer = subject.balancer
        for name, (taken, places) in self._sources.read(balancer).fill.items():
            page.add(ENTRIES, taken, balancer=balancer, map=name)
            page.add(CAPACITY, places, balancer=balancer, map=name)
