# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What collectors have in common: whatever one of them meets, the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from engine.errors import EngineError

from .exposition import Family, Page
from .log import log

_LABELS = ("balancer", "collector", "interface")
SUCCESS = Family("lbops_collector_success", "gauge", "Whether a collector could read everything.", _LABELS)
DURATION = Family("lbops_collector_duration_seconds", "gauge", "How long a collector took.", _LABELS)


class Subject(NamedTuple):
    """What a collector looks at: a balancer, an interface, which may belong to a balancer, or the host."""

    balancer: str = ""
    interface: str = ""


class Collector:
    """One concern."""

    name: str
    families: tuple[Family, ...]

    def subjects(self) -> Iterable[Subject]:
        return [Subject()]

    def collect(self, page: Page, subject: Subject) -> None:
        raise NotImplementedError


class Guard:
    """Runs collectors. What goes wrong is a metric, and a line in the journal when it begins and when it ends."""

    families = (SUCCESS, DURATION)

    def __init__(self) -> None:
        self._failures: dict[tuple[str, Subject], str] = {}

    def run(self, collectors: Iterable[Collector]) -> Page:
        page = Page()
        for collector in collectors:
            for subject in self._subjects(collector, page):
                self._run(collector, subject, page)
        return page

    def _subjects(self, collector: Collector, page: Page) -> list[Subject]:
        try:
            return list(collector.subjects())
        except Exception as error:
            self._note(collector.name, Subject(), error)
            page.add(SUCCESS, 0, collector=collector.name, **Subject()._asdict())
            return []

    def _run(self, collector: Collector, subject: Subject, page: Page) -> None:
        started = time.perf_counter()
        part, failure = Page(), None
        try:
            collector.collect(part, subject)
        except Exception as error:
            failure = error
        self._note(collector.name, subject, failure)
        if failure is None:
            page.merge(part)
        labels = {"collector": collector.name, **subject._asdict()}
        page.add(SUCCESS, int(failure is None), **labels)
        page.add(DURATION, round(time.perf_counter() - started, 6), **labels)

    def _note(self, collector: str, subject: Subject, error: Exception | None) -> None:
        named = {key: value for key, value in subject._asdict().items() if value}
        if error is None:
            if self._failures.pop((collector, subject), None) is not None:
                log("recovered", collector=collector, **named)
            return
        known = isinstance(error, (EngineError, OSError))
        text = str(error) if known else f"{type(error).__name__}: {error}"
        if self._failures.get((collector, subject)) != text:
            self._failures[(collector, subject)] = text
            log("failed", collector=collector, **named, error=text)
