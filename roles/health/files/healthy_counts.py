# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many backends each service has left that take packets. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from engine.config.model import BackendKey

from .common import Target
from .states import Status


class HealthyCounts:
    def __init__(self) -> None:
        self._left: Counter[str] = Counter()

    def set(self, targets: Mapping[BackendKey, Target], statuses: Mapping[BackendKey, Status]) -> None:
        """What a drained backend is matters to no packet."""
        self._left = Counter(
            key.service
            for key, target in targets.items()
            if target.backend.share and statuses[key].healthy is not False
        )

    def note(self, target: Target, before: bool | None, healthy: bool | None) -> bool:
        """Take in what a backend became; whether its service has none left by that."""
        name = target.service.name
        change = (healthy is not False) - (before is not False) if target.backend.share else 0
        self._left[name] += change
        return change < 0 and not self._left[name]
