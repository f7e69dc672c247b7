# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of the engine: one change at a time on a host. It is on the state directory, and ends with its process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import EngineError

RETRY_INTERVAL = 0.02  # seconds
PROC = Path("/proc")


@contextmanager
def locked(directory: Path, *, create: bool, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock. Without `create` a missing directory stays missing, and there is nothing to lock.

    Raises EngineError that names the holder after `timeout` seconds; None waits for ever.
    """
    if create:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not directory.exists():
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, directory, timeout)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path, timeout: float | None) -> None:
    if timeout is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"{directory} is locked by {_holder(descriptor)} for more than {timeout:g} s; wait until that has "
                    "ended and run this again, or raise lock_timeout"
                ) from None
        time.sleep(RETRY_INTERVAL)


def _holder(descriptor: int) -> str:
    """The process that holds the lock, as proc_locks(5) shows it."""
    found = os.fstat(descriptor)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in (PROC / "locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK" and fields[5] == wanted:
            return _process(fields[4])
    return "a process that has just ended"


def _process(number: str) -> str:
    try:
        words = (PROC / number / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"process {number}"
    return f"process {number} ({' '.join(' '.join(words).split())[:100]})"
