# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the way of a native program on a veth: said beforehand, changed if asked for, put back if in vain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nic.conftest import Module, channels, run

SOURCE = Path(__file__).parents[2] / "files/bpf"
MODULE_UTILS = "ansible_collections.lbops.xdp.plugins.module_utils"
PINS, STATE = Path("/sys/fs/bpf/lbops"), Path("/var/lib/lbops")
LONG = "the MTU of the other end is 9000, and the driver refuses more than 3506"
HINT = "or have the engine do that, with prepare: true"


def make_veth(queues: int) -> None:
    """The other end may have four transmit queues."""
    pair = ["add", "v0", "numrxqueues", f"{queues}", "type", "veth", "peer", "name", "v1", "numtxqueues", "4"]
    run("ip", "link", *pair)
    for name in ("v0", "v1"):
        run("ip", "link", "set", name, "up")


@pytest.fixture(autouse=True)
def own_host(namespace: None) -> None:
    """A pair of interfaces, and pins, state and namespaces of one's own."""
    make_veth(4)


@pytest.fixture
def program(module: Module) -> Module:
    def call(check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {"interfaces": ["v0"], "mode": "native", "source": str(SOURCE), **arguments}
        return module("xdp_program", check, **given)

    return call


def link(name: str) -> dict[str, Any]:
    return json.loads(run("ip", "-d", "-j", "link", "show", "dev", name))[0]


def hook(name: str = "v0") -> str | None:
    return {1: "native", 2: "generic"}.get(link(name).get("xdp", {}).get("mode"))


def left() -> list[Path]:
    """What is remembered."""
    return list(STATE.glob("*"))


def of_interface(result: dict[str, Any]) -> dict[str, Any]:
    """What a module says of the program on its interface."""
    (found,) = result["program"]["interfaces"]
    return found


def move_the_other_end() -> None:
    run("ip", "netns", "add", "other")
    run("ip", "link", "set", "v1", "netns", "other")
    run("ip", "-n", "other", "link", "set", "v1", "up")


def test_an_mtu_of_the_other_end(program: Module, module: Module):
    run("ip", "link", "set", "v1", "mtu", "9000")
    for check in (True, False):
        refused = program(check)
        assert not PINS.exists() and left() == []
        assert refused["failed"] and refused["msg"].startswith(f"native XDP on v0 (driver veth): {LONG}; lower it")
        assert refused["msg"].endswith(HINT)

    foreseen = program(True, prepare=True)
    assert (link("v1")["mtu"], hook(), left()) == (9000, None, [])
    done = program(prepare=True)
    assert (link("v1")["mtu"], hook()) == (3506, "native")
    assert done["prepared"] == foreseen["prepared"]
    assert [entry["rollback"] for entry in done["prepared"]] == [{"interface": "v1", "mtu": 9000}]
    for result in (foreseen, done):
        assert "v1 mtu=9000" in result["diff"]["before"] and "v1 mtu=3506" in result["diff"]["after"]
    for check in (False, True):
        again = program(check, prepare=True)
        assert not again["changed"] and again["diff"]["before"] == again["diff"]["after"]


def test_what_a_killed_run_prepared_is_put_back_or_kept(program: Module):
    run("ip", "link", "set", "v1", "mtu", "3506")
    (STATE / "main").mkdir(parents=True)
    entry = {"interface": "v1", "group": "mtu", "before": {"mtu": 9000}, "after": {"mtu": 3506}}
    written_down = STATE / "main/preparing-v0.json"
    written_down.write_text(json.dumps([entry]), encoding="utf-8")
    assert LONG in program()["msg"]
    assert (link("v1")["mtu"], hook(), written_down.exists()) == (9000, None, False)
    program(prepare=True)
    written_down.write_text(json.dumps([entry]), encoding="utf-8")
    assert not program(prepare=True)["changed"]
    assert (link("v1")["mtu"], hook(), written_down.exists()) == (3506, "native", False)


def test_receive_queues(program: Module, module: Module):
    run("ethtool", "-L", "v0", "rx", "1")
    run("ethtool", "-L", "v1", "tx", "3")
    refused = program()
    assert "its receive queues (1) are fewer than the other end's transmit queues (3)" in refused["msg"]
    assert program(True, prepare=True)["changed"] and channels("v0")["rx"] == 1
    done = program(prepare=True)
    assert (channels("v0")["rx"], hook()) == (3, "native")
    assert "v0 rx=1" in done["diff"]["before"] and "v0 rx=3" in done["diff"]["after"]
    assert not program(prepare=True)["changed"]
    program(state="absent")
    [entry] = done["prepared"]
    assert module("nic_channels", **entry["rollback"])["changed"] and channels("v0")["rx"] == 1


def test_an_end_in_another_namespace(program: Module):
    move_the_other_end()
    run("ip", "-n", "other", "link", "set", "v1", "mtu", "9000")
    for prepare in (False, True):
        refused = program(prepare=prepare)["msg"]
        assert LONG in refused and HINT not in refused
    run("ip", "-n", "other", "link", "set", "v1", "mtu", "1500")
    run("ethtool", "-L", "v0", "rx", "1")
    run("ip", "netns", "exec", "other", "ethtool", "-L", "v1", "tx", "3")
    assert "are fewer than the other end's transmit queues, so" in program()["msg"]
    assert program(prepare=True)["prepared"][0]["after"] == {"rx": 4}


def test_what_was_in_vain_is_put_back(program: Module):
    """The other end has more queues than this one can have, which the kernel tells only when asked."""
    run("ip", "link", "del", "v0")
    make_veth(2)
    run("ethtool", "-L", "v0", "rx", "1")
    move_the_other_end()
    run("ip", "netns", "exec", "other", "ethtool", "-L", "v1", "tx", "4")
    foreseen = program(True, prepare=True)
    assert foreseen["prepared"][0]["after"] == {"rx": 2}
    refused = program(prepare=True)
    assert refused["failed"] and "XDP expects number of rx queues not less than peer tx queues" in refused["msg"]
    assert (channels("v0")["rx"], hook(), PINS.exists(), left()) == (1, None, False, [])
    taken = program(mode="auto", prepare=True)
    assert (of_interface(taken)["hook"], channels("v0")["rx"], taken["prepared"]) == ("tc", 1, [])


def test_without_native_support(program: Module):
    words = "native XDP on lo (driver virtual): the driver does not support XDP in native mode; use mode auto"
    for prepare in (False, True):
        assert words in program(interfaces=["lo"], prepare=prepare)["msg"]
    taken = program(interfaces=["lo"], mode="auto", prepare=True)
    found = of_interface(taken)
    assert found["hook"] == "tc" and words in found["why"] and taken["prepared"] == []
    assert not program(interfaces=["lo"], mode="auto", prepare=True)["changed"]


def test_auto_passes_native_over_until_it_may_prepare(program: Module):
    run("ip", "link", "set", "v1", "mtu", "9000")
    taken = of_interface(program(mode="auto"))
    assert taken["hook"] == "tc" and LONG in taken["why"] and HINT in taken["why"]
    assert not program(mode="auto")["changed"]
    better = of_interface(program(mode="auto", prepare=True))
    assert (better["hook"], better["why"]) == ("native", "the driver takes native XDP")
    assert (link("v1")["mtu"], hook()) == (3506, "native")
    for prepare, changed in ((True, False), (False, True), (False, False)):
        assert program(mode="auto", prepare=prepare)["changed"] is changed
        assert hook() == "native"


def test_a_program_for_shorter_frames_is_another_question(program: Module):
    run("ip", "link", "set", "v1", "mtu", "9000")
    long_frames = {"multi_buffer": True}
    assert program(**long_frames)["prepared"] == []
    first = of_interface(program(max_flows=1024, **long_frames))["program_id"]
    assert LONG in program(max_flows=1024)["msg"]
    assert of_interface(program(max_flows=1024, **long_frames))["program_id"] == first
    shorter = of_interface(program(max_flows=1024, prepare=True))
    assert shorter["hook"] == "native" and link("v1")["mtu"] == 3506


def test_a_reboot_brings_the_mtu_back_and_restoring_lowers_it_again(program: Module):
    run("ip", "link", "set", "v1", "mtu", "9000")
    program(prepare=True)
    run("ip", "link", "set", "v0", "xdp", "off")
    run("rm", "-r", str(PINS))
    run("ip", "link", "set", "v1", "mtu", "9000")
    restore = (sys.executable, "-m", f"{MODULE_UTILS}.balancer.restore", "main")
    assert "result=restored interface=v0 hook=native" in (said := run(*restore))
    assert said.endswith("prepared=mtu=3506\n")
    assert (link("v1")["mtu"], hook()) == (3506, "native")
    assert run(*restore).endswith("prepared=nothing\n")
