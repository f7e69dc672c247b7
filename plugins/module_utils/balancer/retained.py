# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters of services and backends that were removed: should they come again, they go on from there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..config.model import BackendKey

K = TypeVar("K")
# The fields of struct counters.
Row = tuple[int, ...]
# Of each kind, the last ones to go.
LIMIT = 4096


def _after(retained: dict[K, Row], removed: dict[K, Row], present: Iterable[K]) -> dict[K, Row]:
    found = {key: row for key, row in retained.items() if key not in removed}
    found.update((key, row) for key, row in removed.items() if any(row))
    for key in present:
        found.pop(key, None)
    return dict(list(found.items())[-LIMIT:])


@dataclass(frozen=True)
class Retained:
    services: dict[str, Row] = field(default_factory=dict)
    backends: dict[BackendKey, Row] = field(default_factory=dict)

    def after(
        self,
        removed_services: dict[str, Row],
        removed_backends: dict[BackendKey, Row],
        services: Iterable[str],
        backends: Iterable[BackendKey],
    ) -> Retained:
        """With those that go now, without those that are there."""
        return Retained(
            _after(self.services, removed_services, services), _after(self.backends, removed_backends, backends)
        )

    def dump(self) -> dict[str, Any]:
        return {
            "services": [[name, *row] for name, row in self.services.items()],
            "backends": [[*key, *row] for key, row in self.backends.items()],
        }

    @staticmethod
    def load(document: dict[str, Any]) -> Retained:
        return Retained(
            {name: tuple(row) for name, *row in document.get("services", ())},
            {BackendKey(*entry[:3]): tuple(entry[3:]) for entry in document.get("backends", ())},
        )
