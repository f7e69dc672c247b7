# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiled, compiler, state
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
def paths(tmp_path) -> state.Paths:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return state.Paths(tmp_path / "pins", directory)


def kept(paths: state.Paths) -> list:
    return sorted(paths.state.glob("*.program"))


def test_the_same_program_is_compiled_once(build, paths, compilations):
    assert compiled.program(build, paths) == (CODE, True)
    assert compiled.program(build, paths) == (CODE, False)
    assert compilations == [build]
    (path,) = kept(paths)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"tc": True}, {"features": frozenset(("dsr",))}, {"sizes": Sizes(max_sessions=2)}])
def test_another_one_is_another_one(build, paths, compilations, change):
    compiled.program(build, paths)
    assert compiled.program(replace(build, **change), paths)[1]
    (build.source / "balancer.c").write_text("long balancer;")
    assert compiled.program(build, paths)[1]


@pytest.mark.parametrize("damage", [lambda found: found[:-8], lambda found: b"", lambda found: found + b"\0" * 8])
def test_what_is_damaged_is_compiled_again(build, paths, compilations, damage):
    compiled.program(build, paths)
    (path,) = kept(paths)
    path.write_bytes(damage(path.read_bytes()))
    assert compiled.program(build, paths) == (CODE, True)
    assert compiled.program(build, paths) == (CODE, False)


def test_where_nothing_can_be_kept_it_is_compiled_each_time(build, paths, compilations):
    paths.state.rmdir()
    assert compiled.program(build, paths) == compiled.program(build, paths) == (CODE, True)


def test_without_source_there_is_no_program(build, paths, compilations):
    compiled.program(build, paths)
    (build.source / "balancer.c").unlink()
    with pytest.raises(EngineError, match="does not exist"):
        compiled.program(build, paths)


def test_what_no_interface_uses_is_discarded(build, paths, compilations):
    other = replace(build, tc=True)
    for one in (build, other):
        compiled.program(one, paths)
    program = state.ProgramState(True, "auto", "tc", "", [], [], "", other.digest(), Sizes())
    state.save(paths.state_file("eth0"), state.State(program))
    paths.state_file("eth1").write_text("damaged")
    compiled.discard_unused(paths)
    assert [path.stem for path in kept(paths)] == [other.digest()]
