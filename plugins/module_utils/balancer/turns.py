# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose ring is computed next. No I/O."""

from __future__ import annotations

from collections.abc import Iterable


class Turns:
    """By turns the service that waits longest and the one that came last: neither waits for all of the others."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._last = False

    def set(self, services: Iterable[str]) -> None:
        """Those that are to be done from now on; who waited keeps the place."""
        wanted = dict.fromkeys(services)
        kept = [service for service in self._waiting if service in wanted]
        self._waiting = list(dict.fromkeys([*kept, *wanted]))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> str:
        service = self._waiting.pop(-1 if self._last else 0)
        self._last = not self._last
        return service
