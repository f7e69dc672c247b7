# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of metrics and documents. What was begun for one serves all who asked before."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from functools import partial

from engine.balancer import state

from . import api
from .balancer import BalancerCollector
from .collector import Collector, Guard
from .devices import Devices
from .driver import DriverCollector
from .fill import FillCollector
from .interface import InterfaceCollector
from .nic import NicCollector
from .process import Process
from .program import ProgramCollector, StatisticsCollector
from .queues import Queues
from .softnet import SoftnetCollector
from .source import Sources

# Of the JSON API.
DOCUMENTS = (*api.DOCUMENTS, "queues")


def collectors(sources: Sources, devices: Devices, per_cpu: bool = False) -> list[Collector]:
    return [
        ProgramCollector(sources),
        StatisticsCollector(),
        BalancerCollector(sources),
        FillCollector(sources),
        InterfaceCollector(devices),
        DriverCollector(devices),
        NicCollector(devices),
        SoftnetCollector(per_cpu),
    ]


class Shared:
    """Something that is made when somebody asks, compressed if wanted. Made under a lock by one for all who wait."""

    def __init__(self, lock: threading.Lock, make: Callable[[], tuple[bytes, bool]]) -> None:
        self._lock, self._make = lock, make
        self._begun = 0.0
        self._content = self._packed = b""
        self._complete = False

    def get(self, packed: bool) -> tuple[bytes, bool]:
        """No older than the question, and whether everything could be read."""
        asked = time.monotonic()
        with self._lock:
            if self._begun <= asked:
                begun = time.monotonic()
                self._content, self._complete = self._make()
                self._begun, self._packed = begun, b""
            if packed and not self._packed:
                self._packed = gzip.compress(self._content, 1)
            return self._packed if packed else self._content, self._complete


class Exporter:
    def __init__(self, paths: state.Paths = state.HOST_PATHS, per_cpu: bool = False) -> None:
        self._sources = Sources(paths)
        devices = Devices(self._sources)
        self._collectors = collectors(self._sources, devices, per_cpu)
        self._queues = Queues(devices)
        self._guard = Guard()
        self._process = Process()
        # The collectors and what they share know of one thread only.
        lock = threading.Lock()
        self._metrics = Shared(lock, self._collect)
        self._documents = {name: Shared(lock, partial(self._document, name)) for name in api.DOCUMENTS}
        self._documents["queues"] = Shared(lock, self._queues.document)

    def metrics(self, packed: bool) -> bytes:
        """A page no older than the question, compressed if wanted."""
        return self._metrics.get(packed)[0]

    def document(self, name: str, packed: bool) -> tuple[bytes, bool]:
        """One of DOCUMENTS, no older than the question, and whether everything could be read."""
        return self._documents[name].get(packed)

    def _collect(self) -> tuple[bytes, bool]:
        started = time.perf_counter()
        self._forget()
        page = self._guard.run(self._collectors).content()
        self._process.scrapes.inc()
        self._process.seconds.observe(time.perf_counter() - started)
        return page + self._process.content(), True

    def _forget(self) -> None:
        try:
            self._sources.forget()
        except OSError:
            # Every collector that needs it says so.
            pass

    def _document(self, name: str) -> tuple[bytes, bool]:
        self._forget()
        return api.document(name, self._sources)
