# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is live of a balancer, with its counters, as modules and the exporter show it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ..config.model import BackendKey
from ..tables.layout import MAX_LINKS, MAX_POOLS, REASONS
from .document import public
from .maps import Maps
from .state import State

COUNTERS = ("packets", "bytes", "reply_packets", "reply_bytes", "new_flows")
Row = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """One moment. Counters lie in the order of the state's services, backends and filters."""

    program: dict[str, Any]
    current: State | None = None
    services: list[Row] = field(default_factory=list)
    backends: list[Row] = field(default_factory=list)
    filters: list[Row] = field(default_factory=list)
    reasons: list[int] = field(default_factory=list)
    # By map, how many of how many places are taken.
    fill: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Packets that each CPU's program saw.
    cpus: list[int] = field(default_factory=list)
    # The kernel's id of a map: another one if the maps were made anew.
    maps: int = 0
    # Of struct latency, while the program measures it.
    latency: Row = ()
    # By backend, what health checks say.
    healthy: dict[BackendKey, bool] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        """What xdp_info returns."""
        filters = self.current.filters.values() if self.current else ()
        return {
            "program": self.program,
            "services": self.service_entries(),
            "backends": self.backend_entries(),
            "filters": [
                {**public(item), **dict(zip(("packets", "dropped"), row))} for item, row in zip(filters, self.filters)
            ],
            "reasons": [
                {"reason": reason, "verdict": verdict, "packets": packets}
                for (reason, verdict), packets in zip(REASONS, self.reasons)
            ],
        }

    def service_entries(self) -> list[dict[str, Any]]:
        services = self.current.config.services.values() if self.current else ()
        return [{**public(entry), **dict(zip(COUNTERS, row))} for entry, row in zip(services, self.services)]

    def backend_entries(self) -> list[dict[str, Any]]:
        backends = self.current.config.backends.items() if self.current else ()
        return [
            {**public(entry), **dict(zip(COUNTERS, row)), "healthy": self.healthy.get(key)}
            for (key, entry), row in zip(backends, self.backends)
        ]


def _rows(live_maps: Maps, name: str, places: Collection[int]) -> list[Row]:
    rows = live_maps.read_counters(name, max(places, default=-1) + 1)
    return [rows[place] for place in places]


def read(program: dict[str, Any], current: State, live_maps: Maps, healthy: dict[BackendKey, bool]) -> Reading:
    allocation, sizes = current.allocation, current.program.sizes
    fill = {
        "services": (len(current.config.services), sizes.max_services),
        # There is no backend 0.
        "backends": (len(current.config.backends), sizes.max_backends - 1),
        "filters": (len(current.filters), sizes.max_filters),
        "pools": (len(allocation.pools), MAX_POOLS),
        "links": (live_maps.links(), MAX_LINKS),
    }
    if allocation.pools:
        fill["sessions"] = (live_maps.live_sessions(), sum(pool.ports for pool in allocation.pools))
    service_places = [allocation.service_counters[name] for name in current.config.services]
    return Reading(
        program,
        current,
        _rows(live_maps, "service_counters", service_places),
        _rows(live_maps, "backend_counters", [allocation.backend_counters[key] for key in current.config.backends]),
        _rows(live_maps, "filter_counters", [current.filter_ids[key] for key in current.filters]),
        live_maps.read_reasons(),
        fill,
        live_maps.packets_by_cpu(max(service_places, default=-1) + 1),
        live_maps.number("reasons"),
        live_maps.read_latency() if "latency" in current.program.features else (),
        healthy,
    )
