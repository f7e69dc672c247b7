# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def text_of(value: Any) -> str:
    """In one line, for people."""
    if isinstance(value, dict):
        return " ".join(f"{key}:{text_of(entry)}" for key, entry in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Outcome:
    changed: bool
    # None: not returned.
    before: Any
    after: Any
    details: dict[str, Any]
    warnings: list[str]
    # Makes what a difference shows, if not before and after themselves.
    diff: Callable[[], tuple[Any, Any]] | None = None
