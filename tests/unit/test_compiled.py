# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import hashlib
import platform
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiled, compiler
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

CODE = bytes(range(256)) * 8
OTHER_CODE = CODE[::-1]
DESCRIPTOR = 1234


class Compiler:
    """In place of BCC: what was compiled, what it gives for which release, and whether it is installed."""

    def __init__(self) -> None:
        self.done: list[compiler.Build] = []
        self.code = CODE
        self.missing = ""

    def __call__(self, build: compiler.Build) -> bytes:
        if self.missing:
            raise EngineError(self.missing)
        self.done.append(build)
        return self.code


@pytest.fixture
def compilations(monkeypatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(compiler, "compile_program", made)
    return made


class Verifier:
    """In place of the kernel's."""

    def __init__(self, *refused: bytes) -> None:
        self.refused = refused
        self.asked: list[bytes] = []

    def __call__(self, code: bytes) -> int:
        self.asked.append(code)
        if code in self.refused:
            log = "".join(f"{number}: (b7) r0 = {number}\n" for number in range(5000))
            raise bpf.VerifierError(errno.EACCES, f"{log}R1 invalid mem access\nprocessed 7 insns\n")
        return DESCRIPTOR


@pytest.fixture
def build(tmp_path) -> compiler.Build:
    source = tmp_path / "source"
    source.mkdir()
    (source / "balancer.c").write_text("int balancer;")
    return compiler.Build(source, frozenset(("dnat",)), Sizes())


@pytest.fixture
def directory(tmp_path) -> Path:
    directory = tmp_path / "compiled"
    directory.mkdir(mode=0o700)
    return directory


def kept(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.program"))


def test_the_same_program_is_compiled_once(build, directory, compilations):
    assert compiled.program(build, directory) == (CODE, True)
    assert compiled.program(build, directory) == (CODE, False)
    assert compilations.done == [build]
    (path,) = kept(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"tc": True}, {"features": frozenset(("dsr",))}, {"sizes": Sizes(max_sessions=2)}])
def test_another_one_is_another_one(build, directory, compilations, change):
    compiled.program(build, directory)
    assert compiled.program(replace(build, **change), directory)[1]
    (build.source / "balancer.c").write_text("long balancer;")
    assert compiled.program(build, directory)[1]


DAMAGES = {
    "truncated": lambda found: found[:-8],
    "empty": lambda found: b"",
    "longer": lambda found: found + b"\0" * 8,
    "one bit": lambda found: found[:-9] + bytes([found[-9] ^ 1]) + found[-8:],
    "the record": lambda found: found.replace(b'"digest"', b'"digesT"'),
    # What the first release kept.
    "without a record": lambda found: hashlib.sha256(CODE).digest() + CODE,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_compiled_again_and_never_loaded(build, directory, compilations, damage):
    compiled.program(build, directory)
    (path,) = kept(directory)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    compilations.missing = "BCC is missing"
    verifier = Verifier()
    with pytest.raises(EngineError, match=f"^BCC is missing\n{path} is damaged"):
        compiled.load(build, directory, verifier)
    assert not verifier.asked
    compilations.missing = ""
    assert compiled.program(build, directory) == (CODE, True)
    assert compiled.program(build, directory) == (CODE, False)


def test_another_programs_file_is_never_loaded(build, directory, compilations):
    compiled.program(build, directory)
    (path,) = kept(directory)
    other = replace(build, tc=True)
    path.rename(directory / f"{other.digest()}.program")
    assert compiled.program(other, directory) == (CODE, True)


def test_where_nothing_can_be_kept_it_is_compiled_each_time(build, directory, compilations):
    directory.rmdir()
    directory.touch()
    assert compiled.program(build, directory) == compiled.program(build, directory) == (CODE, True)


def test_the_directory_is_made_when_something_is_kept(build, directory, compilations):
    directory.rmdir()
    assert compiled.program(build, directory) == (CODE, True)
    assert compiled.program(build, directory) == (CODE, False)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_without_source_there_is_no_program(build, directory, compilations):
    compiled.program(build, directory)
    (build.source / "balancer.c").unlink()
    with pytest.raises(EngineError, match="does not exist"):
        compiled.program(build, directory)


def test_what_is_not_used_is_discarded(build, directory, compilations):
    other = replace(build, features=frozenset(("dsr",)))
    for one in (build, other):
        compiled.program(one, directory)
    compiled.discard_unused(directory, {other.digest(), "of a program that is not kept"})
    assert [path.stem for path in kept(directory)] == [other.digest()]


def test_the_same_build_for_the_other_hook_stays(build, directory, compilations):
    """Mode auto tries XDP before tc, at every boot."""
    for one in (build, replace(build, tc=True), replace(build, features=frozenset(("dsr",)))):
        compiled.program(one, directory)
    compiled.discard_unused(directory, {replace(build, tc=True).digest()})
    assert {path.stem for path in kept(directory)} == {build.digest(), replace(build, tc=True).digest()}


def test_damaged_files_are_discarded(build, directory, compilations):
    compiled.program(build, directory)
    kept(directory)[0].write_bytes(b"damaged")
    compiled.discard_unused(directory, {build.digest()})
    assert not kept(directory)


# --- another kernel


@pytest.fixture
def release(monkeypatch) -> Callable[[str], None]:
    """Another release of the kernel boots."""
    return lambda name: monkeypatch.setattr(platform, "release", lambda: name)


def test_what_another_release_compiled_is_loaded_without_a_compiler(build, directory, compilations, release):
    release("6.1.0-9-amd64")
    assert compiled.load(build, directory, Verifier()) == (DESCRIPTOR, True)
    release("6.1.0-33-amd64")
    compilations.missing = "BCC is missing"
    assert compiled.load(build, directory, Verifier()) == (DESCRIPTOR, False)


def test_what_the_verifier_refuses_is_compiled_again_and_kept(build, directory, compilations, release):
    release("6.1.0-9-amd64")
    compiled.load(build, directory, Verifier())
    release("6.1.0-33-amd64")
    compilations.code = OTHER_CODE
    verifier = Verifier(CODE)
    assert compiled.load(build, directory, verifier) == (DESCRIPTOR, True)
    assert verifier.asked == [CODE, OTHER_CODE]
    compilations.missing = "BCC is missing"
    assert compiled.load(build, directory, Verifier(CODE)) == (DESCRIPTOR, False)


def test_without_a_compiler_it_is_said_who_refuses_what(build, directory, compilations, release):
    release("6.1.0-9-amd64")
    compiled.load(build, directory, Verifier())
    (path,) = kept(directory)
    content = path.read_bytes()
    release("6.1.0-33-amd64")
    compilations.missing = "kernel headers are missing: run apt install linux-headers-6.1.0-33-amd64"
    with pytest.raises(EngineError) as raised:
        compiled.load(build, directory, Verifier(CODE))
    first, *log, last = str(raised.value).splitlines()
    assert first.startswith(
        "the verifier of kernel 6.1.0-33-amd64 refuses the program that was compiled under kernel 6.1.0-9-amd64 with "
    )
    assert "Permission denied" in first
    assert log[-2:] == ["R1 invalid mem access", "processed 7 insns"] and len(log) <= 20
    assert last == f"It cannot be compiled again: {compilations.missing}"
    assert path.read_bytes() == content


def test_the_previous_program_stays_until_the_kernel_takes_the_new_one(build, directory, compilations, release):
    release("6.1.0-9-amd64")
    compiled.load(build, directory, Verifier())
    (path,) = kept(directory)
    content = path.read_bytes()
    release("6.1.0-33-amd64")
    compilations.code = OTHER_CODE
    with pytest.raises(EngineError, match="of kernel 6.1.0-33-amd64 .* compiled under kernel 6.1.0-33-amd64"):
        compiled.load(build, directory, Verifier(CODE, OTHER_CODE))
    assert path.read_bytes() == content


def test_what_was_compiled_now_is_not_compiled_twice(build, directory, compilations, release):
    release("6.1.0-9-amd64")
    with pytest.raises(EngineError, match="of kernel 6.1.0-9-amd64 .* compiled under kernel 6.1.0-9-amd64"):
        compiled.load(build, directory, Verifier(CODE))
    assert len(compilations.done) == 1


def test_other_cpus_are_named_where_there_is_no_compiler(build, directory, compilations):
    compiled.program(replace(build, cpus=2), directory)
    compilations.missing = "BCC is missing"
    with pytest.raises(
        EngineError, match="^BCC is missing\nThe kept program was compiled for 2 possible CPUs and .* 4"
    ):
        compiled.program(replace(build, cpus=4), directory)
    with pytest.raises(EngineError, match="^BCC is missing$"):
        compiled.program(replace(build, features=frozenset(("dsr",))), directory)
