# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

# Where the engine keeps what has to outlive a reboot.
STATE = Path("/var/lib/lbops")
# What nic_profile keeps there; see tuned.py.
NIC_PREFIX = "nic-"


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Replace the file as a whole: after a crash it holds the old state or the new one."""
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _temporary(path: Path) -> Path:
    """Always the same, so that what a killed run left is overwritten by the next; the lock keeps others out."""
    return path.with_name(f".{path.name}.new")


def remove(path: Path) -> None:
    for file in (path, _temporary(path)):
        file.unlink(missing_ok=True)
