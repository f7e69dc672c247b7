# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces for one thread and the processes that it starts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# CLONE_NEWNS, CLONE_NEWNET
KINDS = {"mnt": 0x00020000, "net": 0x40000000}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def _opened(process: str, kind: str) -> Iterator[int]:
    descriptor = os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enter(process: int, kind: str) -> None:
    """That of another process, for good."""
    with _opened(str(process), kind) as descriptor:
        _check(_libc.setns(descriptor, KINDS[kind]))


@contextmanager
def private(kind: str) -> Iterator[None]:
    """A new one, which vanishes with everything in it on return."""
    with _opened("thread-self", kind) as home:
        _check(_libc.unshare(KINDS[kind]))
        try:
            yield
        finally:
            _check(_libc.setns(home, KINDS[kind]))
