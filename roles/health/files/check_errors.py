# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What on this host keeps backends from being checked: told when it begins and when it ends, once a service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from engine.config.model import BackendKey


class CheckErrors:
    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._reasons: dict[BackendKey, str] = {}
        self._backends: Counter[tuple[str, str]] = Counter()

    def note(self, key: BackendKey, reason: str) -> None:
        """No reason: it could be checked."""
        before = self._reasons.pop(key, "")
        if reason:
            self._reasons[key] = reason
        if reason == before:
            return
        if reason:
            self._count(key.service, reason, 1)
        if before:
            self._count(key.service, before, -1)

    def _count(self, service: str, reason: str, change: int) -> None:
        had = self._backends[service, reason]
        self._backends[service, reason] += change
        if not had or not self._backends[service, reason]:
            self._log("can_check" if had else "cannot_check", service=service, reason=reason)
        # Reasons that are over are not kept.
        self._backends += Counter()

    def keep(self, keys: Collection[BackendKey]) -> None:
        """Others are not checked any more."""
        for key in self._reasons.keys() - keys:
            self.note(key, "")
