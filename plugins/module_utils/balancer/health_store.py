# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health store: what health checks save, the health view and the lookup tables that follow it.

A full disk must not keep an unhealthy backend in its lookup table: what cannot be saved is kept and saved later.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import observed, state
from .observed import Observed
from .state import State

# What tells one content of a file that is replaced, never rewritten, from another.
Version = tuple[int, int]


def version_of(path: Path) -> Version | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


class HealthStore:
    """Of one process, under the engine's lock."""

    def __init__(self, state_file: Path, health_file: Path) -> None:
        self._state_file, self._health_file = state_file, health_file
        # The version of somebody else's that was read last, and what it became here.
        self._versions: tuple[Version | None, Version | None] = (None, None)
        self._unsaved: State | None = None
        self._refusals: dict[Path, str] = {}
        # Nothing before the first.
        self._seen: tuple[Version | None] | None = None

    @property
    def refusal(self) -> str:
        """Why the disk did not take all of it; nothing if it did."""
        return next(iter(self._refusals.values()), "")

    def configured(self) -> Version | None:
        """Whose configuration is live: it changes with the state file, but not by what is written here."""
        found, (origin, own) = version_of(self._state_file), self._versions
        return origin if found == own else found

    def load(self) -> State | None:
        """The state as it is, or as it would be had the disk taken it."""
        found = version_of(self._state_file)
        if found != self._versions[1]:
            self._versions, self._unsaved = (found, found), None
            self._refusals.pop(self._state_file, None)
        elif self._unsaved is not None:
            self.save(self._unsaved)
        return self._unsaved or state.load(self._state_file)

    def save(self, current: State) -> None:
        self._unsaved = current
        try:
            state.save(self._state_file, current)
        except OSError as error:
            self._refusals[self._state_file] = f"{self._state_file}: {error.strerror}"
            return
        self._unsaved = None
        self._refusals.pop(self._state_file, None)
        self._versions = self._versions[0], version_of(self._state_file)

    def save_seen(self, seen: Observed) -> None:
        try:
            observed.save(self._health_file, seen)
        except OSError as error:
            self._refusals[self._health_file] = f"{self._health_file}: {error.strerror}"
        else:
            self._refusals.pop(self._health_file, None)
        self._seen = (version_of(self._health_file),)

    def forgotten(self) -> bool:
        """Whether what was seen is there no more, as it was written down here."""
        return self._seen is not None and self._seen != (version_of(self._health_file),)
