# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiled, compiler
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

CODE = bytes(range(256)) * 8


@pytest.fixture
def compilations(monkeypatch) -> list[compiler.Build]:
    """What is compiled."""
    done: list[compiler.Build] = []
    monkeypatch.setattr(compiler, "compile_program", lambda build: done.append(build) or CODE)
    return done


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
    assert compilations == [build]
    (path,) = kept(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"tc": True}, {"features": frozenset(("dsr",))}, {"sizes": Sizes(max_sessions=2)}])
def test_another_one_is_another_one(build, directory, compilations, change):
    compiled.program(build, directory)
    assert compiled.program(replace(build, **change), directory)[1]
    (build.source / "balancer.c").write_text("long balancer;")
    assert compiled.program(build, directory)[1]


@pytest.mark.parametrize("damage", [lambda found: found[:-8], lambda found: b"", lambda found: found + b"\0" * 8])
def test_what_is_damaged_is_compiled_again(build, directory, compilations, damage):
    compiled.program(build, directory)
    (path,) = kept(directory)
    path.write_bytes(damage(path.read_bytes()))
    assert compiled.program(build, directory) == (CODE, True)
    assert compiled.program(build, directory) == (CODE, False)


def test_where_nothing_can_be_kept_it_is_compiled_each_time(build, directory, compilations):
    directory.rmdir()
    assert compiled.program(build, directory) == compiled.program(build, directory) == (CODE, True)


def test_without_source_there_is_no_program(build, directory, compilations):
    compiled.program(build, directory)
    (build.source / "balancer.c").unlink()
    with pytest.raises(EngineError, match="does not exist"):
        compiled.program(build, directory)


def test_what_is_not_used_is_discarded(build, directory, compilations):
    other = replace(build, tc=True)
    for one in (build, other):
        compiled.program(one, directory)
    compiled.discard_unused(directory, {other.digest(), "of a program that is not kept"})
    assert [path.stem for path in kept(directory)] == [other.digest()]
