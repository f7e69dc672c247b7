# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exceptions that the engine raises on purpose."""

from __future__ import annotations

import errno
from typing import Any

# 95 has two names, of which Python gives the one that the kernel does not use.
_ERRNO_NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}


def errno_name(number: int | None) -> str:
    return str(number) if number is None else _ERRNO_NAMES.get(number, str(number))


class EngineError(Exception):
    """What is wrong with which object, and the remedy, in words an operator understands."""

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        # What a module returns besides the message: how far it came, and the way back.
        self.result = result or {}


class Problems(EngineError):
    """Several of them, a sentence each; the first ten as one text."""

    def __init__(self, problems: list[str]) -> None:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        super().__init__("; ".join(problems[:10]) + more)
        self.problems = problems
