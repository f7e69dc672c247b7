# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter itself, by prometheus-client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest


class Process:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.scrapes = Counter("lbops_exporter_scrapes", "Pages of metrics made.", registry=self._registry)
        self.seconds = Histogram(
            "lbops_exporter_scrape_seconds",
            "How long making a page took.",
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
        )

    def content(self) -> bytes:
        return generate_latest(self._registry)
