# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets, bytes and flows by service, backend, filter and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from engine.balancer.live import Reading, Row
from engine.balancer.state import State
from engine.config.filters import FilterKey
from engine.config.model import Backend
from engine.tables.layout import LATENCY_BOUNDS, REASONS

from .collector import Collector, Subject
from .exposition import Family, Page, pairs
from .source import Sources

_SERVICE = ("balancer", "service")
_BACKEND = ("address", "backend", "balancer", "port", "service")
SERVICE_PACKETS = Family(
    "lbops_service_packets_total", "counter", "Packets by service.", ("balancer", "direction", "service")
)
SERVICE_BYTES = Family(
    "lbops_service_bytes_total", "counter", "Bytes of frames by service.", ("balancer", "direction", "service")
)
SERVICE_FLOWS = Family(
    "lbops_service_new_flows_total", "counter", "Flows remembered or sessions started, by service.", _SERVICE
)
SERVICE_HITS = Family(
    "lbops_service_flow_table_hits_total", "counter", "Packets of flows that were remembered, by service.", _SERVICE
)
SERVICE_MISSES = Family(
    "lbops_service_flow_table_misses_total", "counter", "Packets that began a flow to remember, by service.", _SERVICE
)
_DIRECTED = ("address", "backend", "balancer", "direction", "port", "service")
BACKEND_PACKETS = Family("lbops_backend_packets_total", "counter", "Packets by backend.", _DIRECTED)
BACKEND_BYTES = Family("lbops_backend_bytes_total", "counter", "Bytes of frames by backend.", _DIRECTED)
BACKEND_FLOWS = Family(
    "lbops_backend_new_flows_total", "counter", "Flows remembered or sessions started, by backend.", _BACKEND
)
BACKEND_HITS = Family(
    "lbops_backend_flow_table_hits_total", "counter", "Packets of flows that were remembered, by backend.", _BACKEND
)
BACKEND_MISSES = Family(
    "lbops_backend_flow_table_misses_total", "counter", "Packets that began a flow to remember, by backend.", _BACKEND
)
WEIGHT = Family("lbops_backend_weight", "gauge", "Share of new packets a backend gets, 0 when drained.", _BACKEND)
ENABLED = Family("lbops_backend_enabled", "gauge", "Whether a backend is enabled, not drained.", _BACKEND)
HEALTHY = Family(
    "lbops_backend_healthy", "gauge", "Whether health checks find a backend well; only where there are any.", _BACKEND
)
READY = Family(
    "lbops_service_ready_backends", "gauge", "Backends that are enabled, have a weight and are not unhealthy.", _SERVICE
)
REASON_PACKETS = Family(
    "lbops_reason_packets_total",
    "counter",
    "Packets that were passed to the kernel, dropped, answered, or forwarded with a loss of affinity, by reason.",
    ("balancer", "reason", "verdict"),
)
FILTER_PACKETS = Family(
    "lbops_filter_packets_total",
    "counter",
    "Packets a filter decided on, by what it did.",
    ("balancer", "prefix", "protocol", "verdict"),
)


LATENCY = Family(
    "lbops_program_latency_seconds",
    "histogram",
    "Time in the program of one packet in 256, only with the feature latency.",
    ("balancer", "le"),
)


class Hits:
    """Packets without new flows: what that grew by from one reading to the next. It may shrink, since a flow is counted
    when a backend is chosen, and a packet when there is a way to it."""

    def __init__(self) -> None:
        # By key, packets and the difference last time, and the hits so far.
        self._counted: dict[Any, tuple[int, int, int]] = {}

    def of(self, rows: dict[Any, tuple[int, ...]]) -> list[int]:
        """In the order of the rows; what is not among them is forgotten."""
        counted = {}
        for key, row in rows.items():
            beyond = row[0] - row[4]
            packets, last, hits = self._counted.get(key, (0, 0, 0))
            if row[0] < packets:
                last = 0  # Counters began anew.
            counted[key] = row[0], beyond, hits + max(0, beyond - last)
        self._counted = counted
        return [hits for _packets, _beyond, hits in counted.values()]


class Passed:
    """Packets that filters let through. One may be counted between the reading of all and that of the dropped ones."""

    def __init__(self) -> None:
        # By filter, all packets, and the most that was shown.
        self._shown: dict[FilterKey, tuple[int, int]] = {}

    def of(self, rows: dict[FilterKey, tuple[int, ...]]) -> list[int]:
        """In the order of the rows; what is not among them is forgotten."""
        shown = {}
        for key, (packets, dropped) in rows.items():
            before, passed = self._shown.get(key, (0, 0))
            # Counters may have begun anew.
            shown[key] = packets, max(passed if packets >= before else 0, packets - dropped)
        self._shown = shown
        return [passed for _packets, passed in shown.values()]


class Labels:
    """The labels of one configuration, before and after the direction, and what stays as long as it does."""

    def __init__(self, balancer: str, current: State) -> None:
        self.current = current
        config = current.config
        head = pairs({"balancer": balancer}) + ","
        self.services = [(head, pairs({"service": name})) for name in config.services]
        tails: dict[str, str] = {}
        self.backends: list[tuple[str, str]] = []
        for backend in config.backends.values():
            head, tail = _backend_labels(balancer, backend)
            # Few different ones, each kept once.
            self.backends.append((head, tails.setdefault(tail, tail)))
        self.constant = Page()
        backends = config.backends.values()
        self.constant.add_lines(WEIGHT, _plain(WEIGHT, self.backends, (backend.share for backend in backends)))
        enabled = (int(backend.state == "enabled") for backend in backends)
        self.constant.add_lines(ENABLED, _plain(ENABLED, self.backends, enabled))


def _backend_labels(balancer: str, backend: Backend) -> tuple[str, str]:
    port = "" if backend.port is None else backend.port
    return (
        pairs({"address": backend.target, "backend": backend.name or backend.target, "balancer": balancer}) + ",",
        pairs({"port": port, "service": backend.service}),
    )


def _directed(family: Family, labels: Iterable[tuple[str, str]], rows: Iterable[Row], place: int) -> Iterator[str]:
    name = family.name
    for (head, tail), row in zip(labels, rows):
        yield f'{name}{{{head}direction="to_backend",{tail}}} {row[place]}'
        yield f'{name}{{{head}direction="to_client",{tail}}} {row[place + 2]}'


def _plain(family: Family, labels: Iterable[tuple[str, str]], values: Iterable[int]) -> Iterator[str]:
    name = family.name
    for (head, tail), value in zip(labels, values):
        yield f"{name}{{{head}{tail}}} {value}"


def _histogram(name: str, labels: str, row: tuple[int, ...]) -> Iterator[str]:
    """Of struct latency: what a bucket has includes those below."""
    nanoseconds, *packets = row
    bounds = [*(f"{bound / 1e9:.9f}".rstrip("0") for bound in LATENCY_BOUNDS), "+Inf"]
    for bound, count in zip(bounds, accumulate(packets)):
        yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
    yield f"{name}_sum{{{labels}}} {nanoseconds / 1e9}"
    yield f"{name}_count{{{labels}}} {sum(packets)}"


class BalancerCollector(Collector):
    name = "balancer"
    families = (
        SERVICE_PACKETS,
        SERVICE_BYTES,
        SERVICE_FLOWS,
        SERVICE_HITS,
        SERVICE_MISSES,
        BACKEND_PACKETS,
        BACKEND_BYTES,
        BACKEND_FLOWS,
        BACKEND_HITS,
        BACKEND_MISSES,
        WEIGHT,
        ENABLED,
        HEALTHY,
        READY,
        REASON_PACKETS,
        FILTER_PACKETS,
        LATENCY,
    )

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._labels: dict[str, Labels] = {}
        self._service_hits: dict[str, Hits] = {}
        self._backend_hits: dict[str, Hits] = {}
        self._passed: dict[str, Passed] = {}

    def subjects(self) -> Iterable[Subject]:
        return map(Subject, self._sources.balancers())

    def collect(self, page: Page, subject: Subject) -> None:
        balancer = subject.balancer
        reading = self._sources.read(balancer)
        if reading.current is None:
            return
        known = self._labels.get(balancer)
        if known is None or known.current is not reading.current:
            known = self._labels[balancer] = Labels(balancer, reading.current)
        self._services(page, balancer, reading, known)
        self._backends(page, balancer, reading, known)
        filters = reading.current.filters
        passed = self._passed.setdefault(balancer, Passed()).of(dict(zip(filters, reading.filters)))
        for item, (_packets, dropped), others in zip(filters.values(), reading.filters, passed):
            labels = {"balancer": balancer, "prefix": item.prefix, "protocol": item.protocol}
            page.add(FILTER_PACKETS, dropped, verdict="drop", **labels)
            page.add(FILTER_PACKETS, others, verdict="pass", **labels)
        for (reason, verdict), packets in zip(REASONS, reading.reasons):
            page.add(REASON_PACKETS, packets, balancer=balancer, reason=reason, verdict=verdict)
        if reading.latency:
            page.add_lines(LATENCY, _histogram(LATENCY.name, pairs({"balancer": balancer}), reading.latency))

    def _services(self, page: Page, balancer: str, reading: Reading, known: Labels) -> None:
        labels, rows, services = known.services, reading.services, known.current.config.services
        page.add_lines(SERVICE_PACKETS, _directed(SERVICE_PACKETS, labels, rows, 0))
        page.add_lines(SERVICE_BYTES, _directed(SERVICE_BYTES, labels, rows, 1))
        page.add_lines(SERVICE_FLOWS, _plain(SERVICE_FLOWS, labels, (row[4] for row in rows)))
        self._remembered(
            page,
            (SERVICE_HITS, SERVICE_MISSES),
            self._service_hits.setdefault(balancer, Hits()),
            [
                (label, name, row)
                for label, (name, service), row in zip(labels, services.items(), rows)
                if service.flow_table
            ],
        )

    def _backends(self, page: Page, balancer: str, reading: Reading, known: Labels) -> None:
        labels, rows, config = known.backends, reading.backends, known.current.config
        page.add_lines(BACKEND_PACKETS, _directed(BACKEND_PACKETS, labels, rows, 0))
        page.add_lines(BACKEND_BYTES, _directed(BACKEND_BYTES, labels, rows, 1))
        page.add_lines(BACKEND_FLOWS, _plain(BACKEND_FLOWS, labels, (row[4] for row in rows)))
        page.merge(known.constant)
        checked = [(label, key) for label, key in zip(labels, config.backends) if key in reading.healthy]
        healthy = (int(reading.healthy[key]) for _label, key in checked)
        page.add_lines(HEALTHY, _plain(HEALTHY, (label for label, _key in checked), healthy))
        ready = Counter(
            key.service for key, backend in config.backends.items() if backend.share and reading.healthy.get(key, True)
        )
        page.add_lines(READY, _plain(READY, known.services, (ready[name] for name in config.services)))
        remembering = {name for name, service in config.services.items() if service.flow_table}
        self._remembered(
            page,
            (BACKEND_HITS, BACKEND_MISSES),
            self._backend_hits.setdefault(balancer, Hits()),
            [(label, key, row) for label, key, row in zip(labels, config.backends, rows) if key.service in remembering],
        )

    @staticmethod
    def _remembered(
        page: Page, families: tuple[Family, Family], hits: Hits, found: list[tuple[tuple[str, str], Any, Row]]
    ) -> None:
        labels = [label for label, _key, _row in found]
        page.add_lines(families[0], _plain(families[0], labels, hits.of({key: row for _label, key, row in found})))
        page.add_lines(families[1], _plain(families[1], labels, (row[4] for _label, _key, row in found)))
