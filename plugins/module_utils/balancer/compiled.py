# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that were compiled, kept by their digest: after a boot, and on the next interface, nothing is compiled."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..kernel import files
from . import compiler

SUFFIX = ".program"


def _path(build: compiler.Build, directory: Path) -> Path:
    return directory / f"{build.digest()}{SUFFIX}"


def _read(path: Path) -> bytes | None:
    """Returns None if there is no such file, or if it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    return content[size:] if hashlib.sha256(content[size:]).digest() == content[:size] else None


def program(build: compiler.Build, directory: Path) -> tuple[bytes, bool]:
    """Returns its instructions as of compile_program(), and whether they were compiled now. Raises EngineError."""
    path = _path(build, directory)
    kept = _read(path)
    if kept is not None:
        return kept, False
    code = compiler.compile_program(build)
    try:
        files.write(path, hashlib.sha256(code).digest() + code)
    except OSError:
        # Without it the next boot takes longer.
        pass
    return code, True


def discard_unused(directory: Path, used: set[str]) -> None:
    """Removes the programs whose digest is not in `used`."""
    for path in directory.glob(f"*{SUFFIX}"):
        if path.stem not in used:
            path.unlink(missing_ok=True)
