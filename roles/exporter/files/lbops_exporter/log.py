# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines for the journal: one for each event, key=value."""

from __future__ import annotations

import sys


def _quoted(value: object) -> str:
    text = str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{text}"' if not text or set(text) & set(' ="') else text


def log(event: str, **values: object) -> None:
    text = " ".join(f"{key}={_quoted(value)}" for key, value in values.items())
    sys.stdout.write(f"exporter event={event} {text}".rstrip() + "\n")
    sys.stdout.flush()
