# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What health checks saw last, apart from the desired state: /var/lib/lbops/<balancer>/health.json.

It outlives a reboot: a backend that was down before it gets nothing until its checks succeed again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.model import BackendKey, Config
from ..kernel import files

SCHEMA = 1


@dataclass(frozen=True)
class Observed:
    """Backends that are not in `healthy` have not been checked."""

    healthy: dict[BackendKey, bool] = field(default_factory=dict)
    # Services that drop their packets when all of their backends are down.
    dropping: frozenset[str] = frozenset()

    def out(self, config: Config) -> frozenset[BackendKey]:
        """The backends that get nothing, whatever is desired."""
        if all(self.healthy.values()):
            return frozenset()
        found: set[BackendKey] = set()
        for name, members in config.backends_of().items():
            down = {backend.key for backend in members if self.healthy.get(backend.key) is False}
            if name in self.dropping or any(backend.share and backend.key not in down for backend in members):
                found |= down
        return frozenset(found)

    def dump(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "dropping": sorted(self.dropping),
            "backends": [{**key._asdict(), "healthy": healthy} for key, healthy in self.healthy.items()],
        }


def load(path: Path) -> Observed:
    """Nothing is known without a file, or with one that cannot be read: what is desired is all there is to go by."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return Observed()
        return Observed(
            {
                BackendKey(entry["service"], entry["address"], entry["port"]): bool(entry["healthy"])
                for entry in document["backends"]
            },
            frozenset(document["dropping"]),
        )
    except (FileNotFoundError, IsADirectoryError, KeyError, RecursionError, TypeError, ValueError):
        return Observed()


def save(path: Path, observed: Observed) -> None:
    files.write(path, json.dumps(observed.dump(), separators=(",", ":")) + "\n")
