# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled programs, kept by their digest: a boot and the next interface compile nothing, whatever kernel runs.

A file is the SHA-256 of the rest, a line of JSON that says what the rest is and where it was compiled, and the
instructions. The kernel's verifier judges kept instructions; only those that it refuses are compiled again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import EngineError
from ..kernel import bpf, files
from . import compiler

SUFFIX = ".program"
LOG_LINES = 12  # the verifier's last ones, which say what it refuses


@dataclass(frozen=True)
class Record:
    """What a kept program is, and where it was compiled."""

    digest: str
    other_hook: str  # digest of the same build for the other kind of hook
    release: str  # of the kernel
    compiled_with: str
    cpus: int

    @classmethod
    def of(cls, build: compiler.Build) -> Record:
        """The record of a program that was compiled just now."""
        return cls(build.digest(), build.for_other_hook().digest(), platform.release(), compiler.version(), build.cpus)


def _path(build: compiler.Build, directory: Path) -> Path:
    return directory / f"{build.digest()}{SUFFIX}"


def _read(path: Path) -> tuple[Record, bytes] | None:
    """Returns None if there is no such file, or if it is damaged or another program's."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        return None
    line, _newline, code = content[size:].partition(b"\n")
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError):
        # An earlier release wrote it.
        return None
    return (record, code) if record.digest == path.name[: -len(SUFFIX)] else None


def _write(path: Path, record: Record, code: bytes) -> None:
    content = json.dumps(asdict(record)).encode() + b"\n" + code
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(path, hashlib.sha256(content).digest() + content)
    except OSError:
        # Without the file the next boot takes longer.
        pass


def program(build: compiler.Build, directory: Path) -> tuple[bytes, bool]:
    """Returns its instructions as of compile_program(), and whether they were compiled now. Raises EngineError."""
    path = _path(build, directory)
    kept = _read(path)
    if kept is not None:
        return kept[1], False
    try:
        code = compiler.compile_program(build)
    except EngineError as error:
        raise EngineError(f"{error}{_why_not_kept(build, path)}") from None
    _write(path, Record.of(build), code)
    return code, True


def _why_not_kept(build: compiler.Build, path: Path) -> str:
    """Says why a host that keeps this program has to compile it all the same."""
    if path.exists():
        return f"\n{path} is damaged, so the program has to be compiled again"
    for kept in filter(None, map(_read, path.parent.glob(f"*{SUFFIX}"))):
        if replace(build, cpus=kept[0].cpus).digest() == kept[0].digest:
            return (
                f"\nThe kept program was compiled for {kept[0].cpus} possible CPUs and this kernel has {build.cpus}, "
                "so the program has to be compiled again"
            )
    return ""


def load(build: compiler.Build, directory: Path, load_code: Callable[[bytes], int]) -> tuple[int, bool]:
    """Returns the descriptor that load_code() gives, and whether the program was compiled now. Raises EngineError.

    A kept program that the verifier refuses is compiled again; it stays until the kernel has taken the new one.
    """
    code, compiled_now = program(build, directory)
    try:
        return load_code(code), compiled_now
    except bpf.VerifierError as error:
        refusal = error
    path = _path(build, directory)
    kept = _read(path)
    record = kept[0] if kept else Record.of(build)
    if compiled_now:
        raise EngineError(_refused(record, refusal))
    try:
        code = compiler.compile_program(build)
    except EngineError as error:
        raise EngineError(f"{_refused(record, refusal)}\nIt cannot be compiled again: {error}") from None
    record = Record.of(build)
    try:
        descriptor = load_code(code)
    except bpf.VerifierError as error:
        raise EngineError(_refused(record, error)) from None
    _write(path, record, code)
    return descriptor, True


def _refused(record: Record, refusal: bpf.VerifierError) -> str:
    log = "\n".join(refusal.log.strip().splitlines()[-LOG_LINES:])
    return (
        f"the verifier of kernel {platform.release()} refuses the program that was compiled under kernel "
        f"{record.release} with {record.compiled_with}: {refusal.strerror}; its last words:\n{log or '(none)'}"
    )


def discard_unused(directory: Path, used: set[str]) -> None:
    """Removes the programs whose digest is not in `used`.

    A program for the other kind of hook stays with its sibling: mode auto tries both kinds at every boot.
    """
    for path in directory.glob(f"*{SUFFIX}"):
        kept = _read(path)
        if kept is None or used.isdisjoint((kept[0].digest, kept[0].other_hook)):
            path.unlink(missing_ok=True)
