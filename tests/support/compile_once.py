# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program takes BCC up to 10 s, and hundreds of tests want the same few: each is compiled once for all processes."""

from __future__ import annotations

import fcntl
import hashlib
from functools import cache
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import files

SOURCE = Path(__file__).resolve().parents[2] / "files" / "bpf"
_compile = compiler.compile_program


def _directory() -> Path:
    """Of what this compiler.py made: its own changes are no part of a build's digest."""
    version = hashlib.sha256(Path(compiler.__file__).read_bytes()).hexdigest()[:16]
    path = SOURCE.parents[1] / "build/cache/programs" / version
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def compile_program(build: compiler.Build) -> bytes:
    """As compiler.compile_program()."""
    path = _directory() / build.digest()
    with path.with_suffix(".lock").open("w") as lock:
        # Another process may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            files.write(path, _compile(build))
        return path.read_bytes()
