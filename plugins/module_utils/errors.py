# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that the engine raises on purpose."""

from __future__ import annotations

from typing import Any


class EngineError(Exception):
    """What is wrong with which object, and the remedy, in words an operator understands."""

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        # What a module returns besides the message: how far it came, and the way back.
        self.result = result or {}
