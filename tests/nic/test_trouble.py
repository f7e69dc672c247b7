# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that go away, are renamed or do not do what they say, while they are worked on."""

from __future__ import annotations

import subprocess

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import device
from ansible_collections.lbops.xdp.plugins.module_utils.nic import tuned, tuning
from ansible_collections.lbops.xdp.plugins.module_utils.nic.channels import Channels
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuner import Rules
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuners import Features

from tests.nic.conftest import channels, features, run


class Disturbed(Channels):
    """Somebody does something after planning, before or after writing."""

    def __init__(self, options: dict, before: list[str] | None = None, after: list[str] | None = None) -> None:
        super().__init__(options)
        self.disturb_before, self.disturb_after = before, after

    def write(self, *arguments, **others):
        if self.disturb_before:
            run(*self.disturb_before)
        refused = super().write(*arguments, **others)
        if self.disturb_after:
            run(*self.disturb_after)
        return refused


def test_gone_before_it_was_written_to(veth: str):
    tuner = Disturbed({"rx": 2}, before=["ip", "link", "del", veth])
    with pytest.raises(EngineError, match="v0 went away while it was worked on"):
        tuning.apply(veth, tuner, Rules(), check=False)


def test_gone_after_it_was_written_to(veth: str):
    tuner = Disturbed({"rx": 2}, after=["ip", "link", "del", veth])
    with pytest.raises(EngineError, match="v0 went away while it was worked on"):
        tuning.apply(veth, tuner, Rules(), check=False)


def test_renamed_and_another_one_in_its_place(veth: str):
    run("ip", "link", "add", "other", "numrxqueues", "4", "type", "veth", "peer", "other-peer")
    run("ip", "link", "set", veth, "down")
    rename = "ip link set v0 name v9 && ip link set other name v0"
    tuner = Disturbed({"rx": 2}, before=["sh", "-c", rename])
    with pytest.raises(EngineError, match="v0 was renamed to v9 while it was worked on"):
        tuning.apply(veth, tuner, Rules(), check=False)
    assert (channels("v9")["rx"], channels("v0")["rx"]) == (2, 4)


def test_renamed_between_two_groups_of_a_profile(veth: str, monkeypatch: pytest.MonkeyPatch):
    run("ip", "link", "add", "other", "numrxqueues", "4", "type", "veth", "peer", "other-peer")
    run("ip", "link", "set", veth, "down")
    rename = "ip link set v0 name v9 && ip link set other name v0"
    apply = tuned.tuning.apply_to

    def disturbed(*arguments, **others):
        found = apply(*arguments, **others)
        run("sh", "-c", rename)
        return found

    monkeypatch.setattr(tuned.tuning, "apply_to", disturbed)
    values = {"channels": {"rx": 2}, "features": {"rx_vlan_offload": False}}
    [(group, error)] = tuned.apply(device.find(veth), values)
    assert group == "features" and "v0 was renamed to v9" in str(error)
    assert features("v0")["rx-vlan-offload"] and features("v9")["rx-vlan-offload"]


def test_read_back(veth: str):
    tuner = Disturbed({"rx": 2}, after=["ethtool", "-L", veth, "rx", "3"])
    with pytest.raises(EngineError, match="rx=2 was written without an objection, but it reads back as 3") as failure:
        tuning.apply(veth, tuner, Rules(), check=False)
    assert failure.value.result["changed"] is True
    assert failure.value.result["rollback"] == [{"interface": veth, "rx": 4}]


def test_a_link_that_does_not_come_back(veth: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "LINK_TIMEOUT", 0.3)
    tuner = Disturbed({"rx": 2}, after=["ip", "link", "set", "v1", "down"])
    with pytest.raises(EngineError, match="the link of v0 did not come up within 0 s"):
        tuning.apply(veth, tuner, Rules(), check=False)


class DisturbedFeatures(Features):
    def write(self, *arguments, **others):
        refused = super().write(*arguments, **others)
        subprocess.Popen(["sh", "-c", "sleep 0.2; ip link set v1 down"])
        return refused


def test_a_link_that_goes_down_a_while_after_a_change_of_features(veth: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "LINK_TIMEOUT", 0.3)
    with pytest.raises(EngineError, match="the link of v0 did not come up"):
        tuning.apply(veth, DisturbedFeatures({"rx_vlan_offload": False}), Rules(), check=False)


def test_a_member_whose_link_stays_down_ends_the_work_on_a_bond(bond: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "LINK_TIMEOUT", 0.5)
    tuner = Disturbed({"rx": 2}, after=["ip", "link", "set", "m0p", "down"])
    with pytest.raises(EngineError, match="the link of m0 did not come up") as failure:
        tuning.apply(bond, tuner, Rules(), check=False)
    assert channels("m1")["rx"] == 4
    assert failure.value.result["rollback"][0] == {"interface": "m0", "rx": 4}
