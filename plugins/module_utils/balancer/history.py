# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last documents of a balancer: /var/lib/lbops/<balancer>/history/<generation>.json."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..kernel import files
from .document import Document

KEPT = 10
SUFFIX = ".json"
HEAD_CHARACTERS = 4096


@dataclass(frozen=True)
class Entry:
    generation: int
    # Seconds since 1970.
    applied_at: float
    applied_by: str
    # What parse_document() takes.
    document: dict[str, Any]


def generations(directory: Path) -> list[int]:
    """The generations that are kept, the newest last."""
    return sorted(int(path.stem) for path in directory.glob(f"*{SUFFIX}") if path.stem.isdigit())


def save(directory: Path, generation: int, applied_at: float, applied_by: str, document: Document) -> None:
    """Write one and remove those beyond the last KEPT."""
    directory.mkdir(mode=0o700, exist_ok=True)
    facts = {"generation": generation, "applied_at": applied_at, "applied_by": applied_by}
    files.write(directory / f"{generation}{SUFFIX}", document.text_with(facts) + "\n")
    for old in generations(directory)[:-KEPT]:
        files.remove(directory / f"{old}{SUFFIX}")


def entries(directory: Path) -> list[dict[str, Any]]:
    """Generation, time and author of each document that is kept, the newest first; `damaged` where they are lost."""
    found = []
    for generation in reversed(generations(directory)):
        try:
            # What stands before the document, which may be long.
            with open(directory / f"{generation}{SUFFIX}", encoding="utf-8") as file:
                head, separator, _rest = file.read(HEAD_CHARACTERS).partition(',"document":')
            found.append(json.loads(f"{head}}}") if separator else {"generation": generation, "damaged": True})
        except (OSError, ValueError):
            found.append({"generation": generation, "damaged": True})
    return found


def applied_by() -> str:
    """Who runs this process: the user before sudo, and where that user logged in from, as far as they are known."""
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name
    client = os.environ.get("SSH_CONNECTION", "").split(" ")[0]
    return f"{user} from {client}" if client else user
