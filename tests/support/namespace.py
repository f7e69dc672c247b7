# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces for one thread, the threads that it starts afterwards, and their processes."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# CLONE_NEWNS, CLONE_NEWNET
KINDS = {"mnt": 0x00020000, "net": 0x40000000}
# linux/mount.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000
BPF = "/sys/fs/bpf"
THREADS_END = 10.0  # seconds

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


def _mount(kind: str | None, target: str, flags: int = 0) -> None:
    try:
        _check(_libc.mount(kind and kind.encode(), target.encode(), kind and kind.encode(), flags, None))
    except OSError as error:
        raise OSError(error.errno, f"cannot mount {kind or 'privately'}: {error.strerror}", target) from None


def _return(home: int, kind: int) -> None:
    """A thread that was joined may still be on its way out of the kernel, or an executor's about to end."""
    deadline = time.monotonic() + THREADS_END
    while True:
        try:
            _check(_libc.setns(home, kind))
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if time.monotonic() > deadline:
                names = ", ".join(thread.name for thread in threading.enumerate())
                raise OSError(error.errno, f"cannot leave the namespace while threads run: {names}") from None
        time.sleep(0.02)


@contextmanager
def private(kind: str) -> Iterator[None]:
    """Enter a new namespace, which vanishes with everything in it on return.

    Nothing that is mounted in a new mount namespace is seen outside it, nor the other way round. The kernel refuses to
    leave one while threads run that were started in it.
    """
    directory = os.getcwd()
    with _opened("thread-self", kind) as home:
        _check(_libc.unshare(KINDS[kind]))
        try:
            if kind == "mnt":
                _mount(None, "/", MS_REC | MS_PRIVATE)
            yield
        finally:
            _return(home, KINDS[kind])
            if kind == "mnt":
                # The kernel has moved this thread to the root of the namespace.
                os.chdir(directory)


def mount_bpf() -> None:
    """Mount an empty BPF file system where pins belong, over the one that the machine may have."""
    _mount("bpf", BPF)


@contextmanager
def own_pins() -> Iterator[None]:
    """Enter a mount namespace with an empty BPF file system."""
    with private("mnt"):
        mount_bpf()
        yield


@contextmanager
def own_host() -> Iterator[None]:
    """Enter network and mount namespaces in which modules run as on a host that nothing has been applied to.

    They have their own network devices, which /sys shows, an empty BPF file system, and empty directories for state,
    locks and kernel settings.
    """
    with private("net"), private("mnt"):
        _mount("sysfs", "/sys")
        mount_bpf()
        for directory in ("/var/lib", "/run", "/etc/sysctl.d"):
            os.makedirs(directory, exist_ok=True)
            _mount("tmpfs", directory)
        yield
