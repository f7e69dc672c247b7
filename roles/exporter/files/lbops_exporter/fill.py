# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How full the maps are."""

from __future__ import annotations

from collections.abc import Iterable

from .collector import Collector
from .exposition import Family, Page
from .source import Sources

ENTRIES = Family("lbops_map_entries", "gauge", "Places of a map that are taken.", ("interface", "map"))
CAPACITY = Family("lbops_map_capacity", "gauge", "Places of a map.", ("interface", "map"))


class FillCollector(Collector):
    name = "maps"
    families = (ENTRIES, CAPACITY)

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def subjects(self) -> Iterable[str]:
        return self._sources.interfaces()

    def collect(self, page: Page, interface: str) -> None:
        for name, (taken, places) in self._sources.read(interface).fill.items():
            page.add(ENTRIES, taken, interface=interface, map=name)
            page.add(CAPACITY, places, interface=interface, map=name)
