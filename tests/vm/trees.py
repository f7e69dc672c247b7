# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees of Debian packages, and the cache that keeps what is built from them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm.common import CACHE, HERE, run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = os.environ.get("VM_MIRROR", "http://deb.debian.org/debian")
SECURITY_MIRROR = os.environ.get("VM_SECURITY_MIRROR", "http://deb.debian.org/debian-security")


def sources(suite: str) -> str:
    """The lines of apt's sources.list."""
    archives = ((MIRROR, suite), (MIRROR, f"{suite}-updates"), (SECURITY_MIRROR, f"{suite}-security"))
    return "".join(f"deb [signed-by={KEYRING}] {uri} {name} main\n" for uri, name in archives)


def mmdebstrap(suite: str, tree: Path, *options: str) -> None:
    command = ["mmdebstrap", "--mode=root", '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io", *options]
    # Without the last word it takes archives of its own choice.
    run(*command, suite, tree, "-", input=sources(suite))


def digest(files: Iterable[Path], *words: str) -> str:
    """Of these files' names, modes and contents, of these words, and of how trees are made."""
    content = hashlib.sha256("\n".join([*words, MIRROR, SECURITY_MIRROR]).encode())
    for path in sorted([*files, Path(__file__)]):
        data = path.read_bytes()
        content.update(f"{path.relative_to(HERE)} {path.stat().st_mode:o} {len(data)}\n".encode() + data)
    return content.hexdigest()[:12]


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory that `build` fills, from the cache if it was built from the same inputs.

    It appears in one step; what was built from other inputs goes away then.
    """
    wanted = CACHE / f"{name}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = os.open(CACHE / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            partial = CACHE / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(wanted)
            for other in CACHE.glob(f"{name}-*"):
                if other != wanted:
                    shutil.rmtree(other)
        return wanted
    finally:
        os.close(lock)
