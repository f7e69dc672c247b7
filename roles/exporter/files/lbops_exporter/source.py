# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine says of the balancers of this host; one reading serves all collectors of a scrape."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engine.balancer import state
from engine.balancer.balancer import Balancer
from engine.balancer.live import Reading
from engine.kernel import files

SUFFIX = ".json"
STATE_FILE = "state.json"
# How long a change may keep the state before it is read in the midst of one.
MAX_AGE = 30.0  # seconds


def _entries(paths: state.Paths) -> list[str]:
    """The names in the state directory. Raises OSError if it cannot be read."""
    try:
        return sorted(os.listdir(paths.state))
    except FileNotFoundError:
        return []


def balancers(paths: state.Paths) -> list[str]:
    """The names of this host's balancers. Raises OSError if the state directory cannot be read."""
    return [name for name in _entries(paths) if (paths.state / name / STATE_FILE).exists()]


def tuned_interfaces(paths: state.Paths) -> list[str]:
    prefix = files.NIC_PREFIX
    return [
        name[len(prefix) : -len(SUFFIX)]
        for name in _entries(paths)
        if name.startswith(prefix) and name.endswith(SUFFIX)
    ]


class Floors:
    """Packets that the old maps count while new ones take their place are lost to these: wait until they catch up."""

    def __init__(self) -> None:
        self._last: Reading | None = None
        self._floors: dict[Any, tuple[int, ...]] = {}

    @staticmethod
    def _rows(reading: Reading) -> Iterator[tuple[Any, tuple[int, ...]]]:
        current = reading.current
        if current:
            yield from zip((("service", name) for name in current.config.services), reading.services)
            yield from zip((("backend", key) for key in current.config.backends), reading.backends)
            yield from zip((("filter", key) for key in current.filters), reading.filters)
        yield from ((("reason", place), (packets,)) for place, packets in enumerate(reading.reasons))
        yield ("latency",), reading.latency

    def raised(self, reading: Reading) -> Reading:
        last, self._last = self._last, reading
        if not last or not last.current or not reading.current:
            return reading
        if last.current.counting_since != reading.current.counting_since:
            self._floors = {}
            return reading
        if last.maps != reading.maps:
            self._floors = dict(self._rows(last))
        if not self._floors:
            return reading
        counted = list(self._rows(reading))
        rows = [tuple(map(max, row, self._floors.get(key) or row)) for key, row in counted]
        # What has caught up, or is there no more, needs no floor.
        self._floors = {key: row for (key, now), row in zip(counted, rows) if row != now}
        services, backends, filters = len(reading.services), len(reading.backends), len(reading.filters)
        self._last = replace(
            reading,
            services=rows[:services],
            backends=rows[services : services + backends],
            filters=rows[services + backends : services + backends + filters],
            reasons=[packets for (packets,) in rows[services + backends + filters : -1]],
            latency=rows[-1],
        )
        return self._last


class Source:
    """One balancer. The state file is parsed when it was replaced, the maps are read each time."""

    def __init__(self, balancer: str, paths: state.Paths) -> None:
        self._balancer = Balancer(balancer, paths)
        self._paths = paths
        self._signature: tuple[int, ...] = ()
        self._current: state.State | None = None
        self._floors = Floors()
        self._reading: Reading | None = None
        self._read_at = 0.0
        # When the last reading was made, seconds since 1970.
        self.timestamp = 0.0

    def _state(self) -> state.State | None:
        try:
            found = os.stat(self._balancer.state_file)
        except FileNotFoundError:
            return None
        signature = (found.st_ino, found.st_mtime_ns, found.st_size)
        if signature != self._signature:
            # Nobody takes the one before for right if this fails.
            self._signature, self._current = (), None
            self._current = state.load(self._balancer.state_file)
            self._signature = signature
        return self._current

    def interfaces(self) -> tuple[str, ...]:
        """Raises EngineError or OSError."""
        current = self._state()
        return current.document.interfaces if current else ()

    @contextmanager
    def _unchanged(self) -> Iterator[bool]:
        """Whether nobody is changing anything; nobody begins to, either, for as long as this takes."""
        descriptor = os.open(self._paths.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def read(self) -> Reading:
        """Raises EngineError or OSError."""
        with self._unchanged() as unchanged:
            now = time.monotonic()
            if not unchanged and self._reading and now - self._read_at < MAX_AGE:
                return self._reading
            self._reading = None
            self._reading, self._read_at = self._floors.raised(self._balancer.read(self._state())), now
            self.timestamp = time.time()
            return self._reading


class Sources:
    def __init__(self, paths: state.Paths = state.HOST_PATHS) -> None:
        self.paths = paths
        self._sources: dict[str, Source] = {}
        self._readings: dict[str, Reading] = {}

    def forget(self) -> None:
        """Read anew from here on."""
        self._readings.clear()
        present = balancers(self.paths)
        self._sources = {balancer: source for balancer, source in self._sources.items() if balancer in present}

    def balancers(self) -> list[str]:
        """Raises OSError if the state directory cannot be read."""
        return balancers(self.paths)

    def read(self, balancer: str) -> Reading:
        """Raises EngineError or OSError."""
        if balancer not in self._readings:
            self._readings[balancer] = self._source(balancer).read()
        return self._readings[balancer]

    def timestamp(self, balancer: str) -> float:
        """When what read() returned was read, seconds since 1970."""
        return self._sources[balancer].timestamp

    def interfaces(self, balancer: str) -> tuple[str, ...]:
        """The interfaces of its document, without reading any map. Raises EngineError or OSError."""
        return self._source(balancer).interfaces()

    def _source(self, balancer: str) -> Source:
        if balancer not in self._sources:
            self._sources[balancer] = Source(balancer, self.paths)
        return self._sources[balancer]
