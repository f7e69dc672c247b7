# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of metrics, one for all who ask while it is made."""

from __future__ import annotations

import gzip
import threading
import time

from engine import state

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


class Exporter:
    def __init__(self, paths: state.Paths = state.HOST_PATHS, per_cpu: bool = False) -> None:
        self._sources = Sources(paths)
        devices = Devices(paths)
        self._collectors = collectors(self._sources, devices, per_cpu)
        self._queues = Queues(devices)
        self._guard = Guard()
        self._process = Process()
        self._lock = threading.Lock()
        self._begun = 0.0
        self._page = b""
        self._packed = b""

    def metrics(self, packed: bool) -> bytes:
        """A page no older than the question, compressed if wanted."""
        asked = time.monotonic()
        with self._lock:
            if self._begun <= asked:
                self._begun = time.monotonic()
                self._page = self._packed = b""
                self._page = self._collect()
            if packed and not self._packed:
                self._packed = gzip.compress(self._page, 1)
            return self._packed if packed else self._page

    def _collect(self) -> bytes:
        started = time.perf_counter()
        self._forget()
        page = self._guard.run(self._collectors).content()
        self._process.scrapes.inc()
        self._process.seconds.observe(time.perf_counter() - started)
        return page + self._process.content()

    def _forget(self) -> None:
        try:
            self._sources.forget()
        except OSError:
            # Every collector that needs it says so.
            pass

    def document(self, name: str) -> tuple[bytes, bool]:
        """One of DOCUMENTS, and whether everything could be read."""
        with self._lock:
            if name == "queues":
                return self._queues.document()
            self._forget()
            return api.document(name, self._sources)
