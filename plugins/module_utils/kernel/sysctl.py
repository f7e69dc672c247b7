# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings below /proc/sys. A key has slashes: names of interfaces may have dots."""

from __future__ import annotations

from pathlib import Path

from ..errors import EngineError, errno_name

ROOT = Path("/proc/sys")


def read(key: str, root: Path = ROOT) -> str | None:
    """None if the kernel does not have it, as the settings of an interface that is gone."""
    try:
        return (root / key).read_text(encoding="ascii").rstrip("\n")
    except FileNotFoundError:
        return None


def write(key: str, value: str, root: Path = ROOT) -> None:
    """Raises EngineError if the kernel does not take it."""
    try:
        # Not created where it does not exist, in tests either.
        with (root / key).open("r+", encoding="ascii") as file:
            file.write(f"{value}\n")
    except OSError as error:
        raise EngineError(
            f"kernel setting {key}: cannot set it to {value}: {errno_name(error.errno)} ({error.strerror}); "
            "the process needs CAP_NET_ADMIN and a writable /proc/sys"
        ) from None
    found = read(key, root)
    if found != value:
        raise EngineError(f"kernel setting {key}: the kernel has {found} instead of {value}; see what else sets it")
