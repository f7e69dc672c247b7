# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One line an event for the journal: key=value, values with blanks in quotes."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

PLAIN_PATTERN = re.compile(r"[^\s\"=]+")


def line(balancer: str, event: str, fields: dict[str, Any]) -> str:
    pairs = {"balancer": balancer, "event": event, **fields}
    return "health " + " ".join(f"{key}={_text(value)}" for key, value in pairs.items() if value is not None)


def _text(value: Any) -> str:
    text = str(value)
    return text if PLAIN_PATTERN.fullmatch(text) else json.dumps(text)


class Log:
    def __init__(self, balancer: str) -> None:
        self._balancer = balancer

    def __call__(self, event: str, **fields: Any) -> None:
        sys.stdout.write(line(self._balancer, event, fields) + "\n")
        sys.stdout.flush()
