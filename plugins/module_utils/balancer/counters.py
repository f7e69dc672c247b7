# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was counted goes on when places in the maps change."""

from __future__ import annotations

from typing import Any

from ..config.filters import FilterKey
from . import maps, plan, state
from .retained import Retained


def carry(
    current: state.State,
    allocation: plan.Allocation,
    filter_ids: dict[FilterKey, int],
    old: maps.Maps,
    new: maps.Maps,
) -> None:
    """From maps that are given up to those with indexes as in `allocation`; maps that both share go on counting."""
    places: list[tuple[str, dict[Any, int], dict[Any, int]]] = [
        ("service_counters", current.allocation.service_counters, allocation.service_counters),
        ("backend_counters", current.allocation.backend_counters, allocation.backend_counters),
        ("filter_counters", current.filter_ids, filter_ids),
    ]
    for name, before, after in places:
        if old.number(name) != new.number(name):
            rows = old.read_counters(name)
            new.set_counters(name, {after[key]: rows[index] for key, index in before.items() if key in after})
    # The map of a former layout is not shared, so its reasons begin again at 0.
    if "reasons" in old.descriptors and old.number("reasons") != new.number("reasons"):
        new.set_reasons(old.read_reasons())
        new.set_latency(old.read_latency())


def resume(current: state.State, planned: plan.Plan, live_maps: maps.Maps) -> None:
    """Let what comes again go on counting where it was."""
    places: list[tuple[str, dict[Any, tuple[int, ...]], dict[Any, int], dict[Any, int]]] = [
        (
            "service_counters",
            current.retained.services,
            current.allocation.service_counters,
            planned.allocation.service_counters,
        ),
        (
            "backend_counters",
            current.retained.backends,
            current.allocation.backend_counters,
            planned.allocation.backend_counters,
        ),
    ]
    for name, gone, before, after in places:
        live_maps.set_counters(
            name, {after[key]: row for key, row in gone.items() if key in after and key not in before}
        )


def retained(current: state.State, planned: plan.Plan, live_maps: maps.Maps) -> Retained:
    """With the counters of what this plan removes."""

    def rows(name: str, places: dict[Any, int], removed: list[Any]) -> dict[Any, tuple[int, ...]]:
        counted = live_maps.read_counters(name) if removed else []
        return {key: counted[places[key]] for key in removed}

    return current.retained.after(
        rows("service_counters", current.allocation.service_counters, planned.services.removed),
        rows("backend_counters", current.allocation.backend_counters, planned.backends.removed),
        planned.desired.services,
        planned.desired.backends,
    )
