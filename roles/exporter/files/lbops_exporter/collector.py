# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What collectors have in common: whatever one of them meets, the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.errors import EngineError

from .exposition import Family, Page
from .log import log

SUCCESS = Family(
    "lbops_collector_success", "gauge", "Whether a collector could read everything.", ("collector", "interface")
)
DURATION = Family("lbops_collector_duration_seconds", "gauge", "How long a collector took.", ("collector", "interface"))


class Collector:
    """One concern."""

    name: str
    families: tuple[Family, ...]

    def subjects(self) -> Iterable[str]:
        """The interfaces it looks at; an empty name stands for the host."""
        return [""]

    def collect(self, page: Page, interface: str) -> None:
        raise NotImplementedError


class Guard:
    """Runs collectors. What goes wrong is a metric, and a line in the journal when it begins and when it ends."""

    families = (SUCCESS, DURATION)

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], str] = {}

    def run(self, collectors: Iterable[Collector]) -> Page:
        page = Page()
        for collector in collectors:
            for interface in self._subjects(collector, page):
                self._run(collector, interface, page)
        return page

    def _subjects(self, collector: Collector, page: Page) -> list[str]:
        try:
            return list(collector.subjects())
        except Exception as error:
            self._note(collector.name, "", error)
            page.add(SUCCESS, 0, collector=collector.name, interface="")
            return []

    def _run(self, collector: Collector, interface: str, page: Page) -> None:
        started = time.perf_counter()
        part, failure = Page(), None
        try:
            collector.collect(part, interface)
        except Exception as error:
            failure = error
        self._note(collector.name, interface, failure)
        if failure is None:
            page.merge(part)
        labels = {"collector": collector.name, "interface": interface}
        page.add(SUCCESS, int(failure is None), **labels)
        page.add(DURATION, round(time.perf_counter() - started, 6), **labels)

    def _note(self, collector: str, interface: str, error: Exception | None) -> None:
        if error is None:
            if self._failures.pop((collector, interface), None) is not None:
                log("recovered", collector=collector, interface=interface)
            return
        known = isinstance(error, (EngineError, OSError))
        text = str(error) if known else f"{type(error).__name__}: {error}"
        if self._failures.get((collector, interface)) != text:
            self._failures[(collector, interface)] = text
            log("failed", collector=collector, interface=interface, error=text)
