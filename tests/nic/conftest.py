# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace of one's own with its own sysfs, the modules as Ansible runs them, and ethtool as the referee."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.namespace import own_host

MODULES = "ansible_collections.lbops.xdp.plugins.modules"
Module = Callable[..., dict[str, Any]]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/nic makes and tunes network devices: run it as root", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def python_path() -> Iterator[None]:
    """pytest's own pythonpath is not that of the programs it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture
def namespace() -> Iterator[None]:
    """This thread on a host of its own, so that /sys shows the devices made here."""
    with own_host():
        yield


@pytest.fixture
def veth(namespace: None) -> str:
    """Four queues each way, and the link up."""
    run("ip", "link", "add", "v0", "numrxqueues", "4", "numtxqueues", "4", "type", "veth", "peer", "name", "v1")
    for name in ("v0", "v1"):
        run("ip", "link", "set", name, "up")
    return "v0"


def add_link(name: str, kind: str) -> None:
    """Skips the test on a kernel without devices of this kind."""
    if subprocess.run(["ip", "link", "add", name, "type", kind], check=False, capture_output=True).returncode:
        pytest.skip(f"this kernel has no {kind} devices")


@pytest.fixture
def bond(namespace: None) -> str:
    """With two members, veths of four queues each."""
    add_link("bond9", "bond")
    for member in ("m0", "m1"):
        run("ip", "link", "add", member, "numrxqueues", "4", "numtxqueues", "4", "type", "veth", "peer", f"{member}p")
        run("ip", "link", "set", f"{member}p", "up")
        run("ip", "link", "set", member, "master", "bond9")
    run("ip", "link", "set", "bond9", "type", "bond", "miimon", "50")
    run("ip", "link", "set", "bond9", "up")
    return "bond9"


@pytest.fixture
def module() -> Module:
    """Runs a module; a failure comes back as its result."""

    def call(name: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
        command = [sys.executable, "-m", f"{MODULES}.{name}"]
        output = subprocess.run(command, input=json.dumps(given), check=False, capture_output=True, text=True)
        assert output.stdout, output.stderr
        return json.loads(output.stdout)

    return call


@pytest.fixture
def four_runs(module: Module) -> Module:
    """Check, real, again, again in check: what all of these must say; returns the second."""

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        results = [module(name, check, **arguments) for check in (True, False, False, True)]
        assert [result.get("msg") for result in results] == [None] * 4
        assert [result["changed"] for result in results] == [True, True, False, False]
        assert results[0]["before"] == results[1]["before"]
        assert results[0]["after"] == results[1]["after"] == results[2]["before"] == results[2]["after"]
        assert results[0]["diff"] == results[1]["diff"]
        assert results[2]["diff"]["before"] == results[2]["diff"]["after"]
        return results[1]

    return call


def channels(name: str) -> dict[str, int]:
    """What ethtool says is set."""
    current = run("ethtool", "-l", name).split("Current hardware settings:")[1]
    return {key.lower(): int(value) for key, value in re.findall(r"(\w+):\s+(\d+)", current)}


def features(name: str) -> dict[str, bool]:
    return {key: value == "on" for key, value in re.findall(r"\s*([\w-]+): (on|off)", run("ethtool", "-k", name))}
