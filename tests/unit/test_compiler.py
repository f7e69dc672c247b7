# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program is compiled with, and when it has to be compiled again."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils import adapter
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, document, hooks
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

BPF = Path(__file__).resolve().parents[2] / "files" / "bpf"
SOURCE = re.sub(r"/\*.*?\*/", "", "".join(path.read_text() for path in sorted(BPF.glob("*.[ch]"))), flags=re.DOTALL)


@pytest.fixture
def build(tmp_path) -> compiler.Build:
    for name in ("balancer.c", "parse.h", "count.h"):
        (tmp_path / name).write_text(f"/* {name} */\n")
    return compiler.Build(tmp_path, frozenset(("dnat", "dsr")), Sizes())


def definitions(build: compiler.Build) -> dict[str, str]:
    """NAME=value of every -D; without a value it is 1, as compilers have it."""
    words = [flag.removeprefix("-D") for flag in build.flags if flag.startswith("-D")]
    return {name: value or "1" for name, _equals, value in (word.partition("=") for word in words)}


# --- flags


def test_every_size_is_a_definition(build):
    sizes = Sizes(
        max_services=3,
        max_backends=5,
        max_endpoints=7,
        max_flows=100,
        max_sessions=11,
        max_filters=13,
        max_new_flows=17,
    )
    assert definitions(replace(build, sizes=sizes, features=frozenset())) == {
        "MAX_SESSIONS": "11",
        "MAX_NEW_FLOWS": "17",
        # 4 * 7 slots, 2 * 100 flows in eights, 16 + 8 * 13 lines; powers of two.
        "ENDPOINT_SLOTS": "32",
        "FLOW_SHIFT": "59",
        "CPUS": str(bpf.possible_cpus()),
    }


@pytest.mark.parametrize("max_flows", [1, 8, 9, 1000, 262144, document.SIZE_LIMITS["max_flows"]])
def test_shift_finds_every_bucket_of_flows_and_no_other(build, max_flows):
    sizes = Sizes(max_flows=max_flows)
    assert 2**64 - 1 >> int(definitions(replace(build, sizes=sizes))["FLOW_SHIFT"]) == sizes.flow_buckets - 1
    assert sizes.flow_buckets * 8 >= 2 * max_flows


def test_features_and_hook_are_definitions(build):
    names = {name for name in definitions(build) if name.startswith(("FEATURE_", "HOOK_"))}
    assert names == {"FEATURE_DNAT", "FEATURE_DSR"}
    names = {name for name in definitions(replace(build, features=frozenset(), tc=True)) if "HOOK" in name}
    assert names == {"HOOK_TC"}


def test_features_are_those_of_the_source():
    assert set(re.findall(r"\bFEATURE_\w+", SOURCE)) == set(compiler.FEATURES.values())


def test_the_module_offers_what_the_engine_has():
    assert set(adapter.PROGRAM_ARGUMENTS["mode"]["choices"]) == set(document.MODES) == set(hooks.HOOKS_OF_MODE)
    assert adapter.SIZES == vars(Sizes())
    assert adapter.PROGRAM_ARGUMENTS["source"]["default"] == document.SOURCE
    assert set(document.SIZE_LIMITS) == {field.name for field in fields(Sizes)}
    assert compiler.NOT_ON_TC < set(compiler.FEATURES)


# --- the digest


def test_the_same_program_has_the_same_digest(build, tmp_path):
    before = build.digest()
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (tmp_path / "README").write_text("not compiled")
    (tmp_path / "balancer.c~").write_text("not compiled either")
    again = compiler.Build(tmp_path, frozenset(("dsr", "dnat")), Sizes())
    assert again.digest() == before


def test_another_directory_is_no_other_program(build, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in build.files():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert replace(build, source=elsewhere).digest() == build.digest()


def changed_source(build):
    (build.source / "parse.h").write_text("/* parse.h */\n\n")
    return build


def renamed_source(build):
    (build.source / "parse.h").rename(build.source / "parser.h")
    return build


def new_source(build):
    (build.source / "more.h").touch()
    return build


def moved_line(build):
    """The sources one after the other are the same bytes."""
    (build.source / "count.h").write_text("/* count.h */\n/* parse.h */\n")
    (build.source / "parse.h").write_text("")
    return build


CHANGES = {
    "a source": changed_source,
    "a name": renamed_source,
    "a new source": new_source,
    "where a line is": moved_line,
    "one feature more": lambda build: replace(build, features=build.features | {"ipv6"}),
    "one feature less": lambda build: replace(build, features=frozenset(("dnat",))),
    "the hook": lambda build: replace(build, tc=True),
    "the possible CPUs": lambda build: replace(build, cpus=build.cpus + 1),
    **{
        name: lambda build, name=name: replace(
            build, sizes=replace(build.sizes, **{name: 2 * getattr(build.sizes, name)})
        )
        for name in ("max_endpoints", "max_flows", "max_sessions", "max_new_flows")
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_program_has_another_digest(build, change):
    before = build.digest()
    assert CHANGES[change](build).digest() != before


@pytest.mark.parametrize("name", ["max_services", "max_backends", "max_filters"])
def test_sizes_that_only_the_maps_have_leave_the_program_as_it_is(build, name):
    sizes = replace(build.sizes, **{name: 2 * getattr(build.sizes, name)})
    assert replace(build, sizes=sizes).digest() == build.digest()


def test_another_release_of_the_kernel_is_no_other_program(build, monkeypatch):
    before = build.digest()
    monkeypatch.setattr(platform, "release", lambda: "5.15.0-other")
    assert build.digest() == before


def test_the_source_depends_on_the_stable_user_space_api_alone():
    """Hence the digest has no release of the kernel."""
    included = re.findall(r"#\s*include\s*<(.*)>", SOURCE)
    assert included and all(name.startswith("uapi/linux/") for name in included)
    assert not re.findall(r"LINUX_VERSION_CODE|KERNEL_VERSION|\bCONFIG_\w+|preserve_access_index", SOURCE)


def test_the_other_hook_of_the_other_hook_is_the_first(build):
    assert build.for_other_hook() == replace(build, tc=True)
    assert build.for_other_hook().for_other_hook() == build


def test_all_that_the_compiler_lacks_is_said_at_once(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "bcc", None)
    monkeypatch.setattr(platform, "release", lambda: "5.15.0-other")
    with pytest.raises(
        EngineError, match="^BCC is missing .*; kernel headers are missing: .*linux-headers-5.15.0-other"
    ):
        compiler.compile_program(build)


def test_a_missing_source_is_said_with_the_role_that_installs_it(build):
    (build.source / "balancer.c").unlink()
    for ask in (build.digest, build.files):
        with pytest.raises(EngineError, match=f"{build.source}/balancer.c does not exist; the role lbops.xdp.balancer"):
            ask()
