# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile on a device of the kernel's: applied, confirmed, applied again, taken back by the service, restored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nic.conftest import Module, channels, features, run

OVERRIDES = {
    "channels": {"rx": 2},
    "features": {"rx_vlan_offload": False},
    "irq_affinity": {"vectors": "keep", "xps": "match", "rps": "0"},
}
MODULE_UTILS = "ansible_collections.lbops.xdp.plugins.module_utils"


@pytest.fixture
def own_state(namespace: None) -> Path:
    """Directories of one's own for state and locks."""
    for directory in ("/var/lib", "/run"):
        run("mount", "-t", "tmpfs", "tmpfs", directory)
    return Path("/var/lib/lbops")


def service(operation: str, interface: str) -> str:
    """As systemd runs it."""
    return run(sys.executable, "-m", f"{MODULE_UTILS}.nic_service", operation, interface)


def test_a_profile_from_check_to_restore(own_state: Path, veth: str, module: Module):
    arguments = {"interface": veth, "overrides": OVERRIDES}
    assert module("nic_profile", check=True, **arguments)["changed"]
    assert channels(veth)["rx"] == 4 and not own_state.exists()

    first = module("nic_profile", **arguments)
    assert first["changed"] and first["pending"], first
    assert "features.rx_vlan_offload=False  # as the overrides say" in first["diff"]["after"]
    assert channels(veth)["rx"] == 2 and not features(veth)["rx-vlan-offload"]

    assert module("nic_profile", interface=veth, state="confirmed")["changed"]
    for check in (False, True):
        again = module("nic_profile", check=check, **arguments)
        assert not again["changed"] and not again["pending"]
        assert again["diff"]["before"] == again["diff"]["after"]

    assert module("nic_profile", interface=veth, state="restored")["changed"]
    assert channels(veth)["rx"] == 4 and features(veth)["rx-vlan-offload"]
    assert not list(own_state.iterdir())
    assert not module("nic_profile", interface=veth, state="restored")["changed"]


def test_a_change_that_nobody_confirms(own_state: Path, veth: str, module: Module):
    module("nic_profile", interface=veth, overrides=OVERRIDES)
    assert "result=done" in service("revert", veth)
    assert channels(veth)["rx"] == 4 and features(veth)["rx-vlan-offload"]
    assert "nothing to confirm" in module("nic_profile", interface=veth, state="confirmed")["msg"]
    assert "result=nothing to do" in service("revert", veth)


def test_boot(own_state: Path, veth: str, module: Module):
    module("nic_profile", interface=veth, overrides=OVERRIDES)
    module("nic_profile", interface=veth, state="confirmed")
    run("ethtool", "-L", veth, "rx", "4")
    assert "result=done" in service("apply", veth)
    assert channels(veth)["rx"] == 2


def test_a_bond_is_its_members(own_state: Path, bond: str, module: Module):
    overrides = {"features": {"rx_vlan_offload": False}}
    result = module("nic_profile", interface=bond, profile="custom", overrides=overrides)
    assert sorted(result["plan"]) == ["m0", "m1"]
    assert not features("m0")["rx-vlan-offload"] and not features("m1")["rx-vlan-offload"]
    assert list(json.loads((own_state / f"nic-{bond}.json").read_text())["devices"]) == ["m0", "m1"]
    module("nic_profile", interface=bond, state="restored")
    assert features("m0")["rx-vlan-offload"] and features("m1")["rx-vlan-offload"]


def test_what_makes_no_sense_touches_nothing(own_state: Path, veth: str, module: Module):
    for overrides, words in (
        ({"rings": {"rx": 0}}, "rx=0 is not a number from 1"),
        ({"irq_affinity": {"vectors": "4096"}}, "this host has no CPU 4096"),
        ({"channel": {}}, "there is no 'channel'"),
    ):
        result = module("nic_profile", interface=veth, overrides={**overrides, "features": {"lro": False}})
        assert result["failed"] and words in result["msg"]
    assert not own_state.exists()


def test_the_timer_wants_systemd(own_state: Path, veth: str, module: Module):
    result = module("nic_profile", interface=veth, overrides=OVERRIDES, revert_after=60)
    assert result["failed"] and "revert_after needs systemd" in result["msg"]
    assert channels(veth)["rx"] == 4


def test_the_role(own_state: Path, veth: str, tmp_path: Path):
    """As far as it goes without systemd: check mode writes nothing and says why."""
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "COLUMNS": "400"}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(Path(__file__).parents[2] / "build/collections")
    variables = {
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "nic_tuning_hosts": "localhost",
        "nic_tuning_interface": veth,
    }
    playbook = Path(__file__).parents[2] / "playbooks/nic_tune.yml"
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", str(playbook)]
    options = ["--check", "--diff", "-e", json.dumps(variables)]
    result = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert not result.returncode, result.stdout + result.stderr
    assert f"{veth}: features.lro False: XDP needs packets as they came" in result.stdout
    assert f"+net/ipv4/conf/{veth}/rp_filter = 2" in result.stdout
    assert not own_state.exists()
