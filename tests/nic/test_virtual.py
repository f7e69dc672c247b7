# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules for network devices on those that every kernel can make: veth, dummy, bond."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.nic.conftest import Module, add_link, channels, features, run

QUEUES = Path("/sys/class/net/v0/queues")


def test_channels(veth: str, four_runs: Module):
    result = four_runs("nic_channels", interface=veth, rx=2, tx=3)
    assert result["before"] == {"rx": 4, "tx": 4}
    assert result["link_bounced"] is True
    assert channels(veth) == {"rx": 2, "tx": 3}


def test_rollback(veth: str, module: Module):
    before = channels(veth)
    result = module("nic_channels", interface=veth, rx=1, tx=2)
    assert channels(veth) != before
    for arguments in result["rollback"]:
        assert module("nic_channels", **arguments)["changed"]
    assert channels(veth) == before


def test_nothing_is_written_when_nothing_differs(veth: str, module: Module):
    result = module("nic_channels", interface=veth, rx=4)
    assert (result["changed"], result["link_bounced"]) == (False, False)


def test_too_many(veth: str, module: Module, four_runs: Module):
    failed = module("nic_channels", interface=veth, rx=9)
    assert failed["failed"] and "maximum of 4" in failed["msg"]
    module("nic_channels", interface=veth, rx=2)
    result = four_runs("nic_channels", interface=veth, rx=9, on_exceed="clamp")
    assert result["clamped"] == {"rx": {"asked": 9, "given": 4}}
    assert channels(veth)["rx"] == 4


def test_the_kernels_own_words(veth: str, module: Module):
    result = module("nic_channels", interface=veth, rx=0, tx=1)
    assert result["failed"] and not result["changed"]
    assert "v0: channels rx=0 tx=1: the kernel refuses: " in result["msg"]
    assert "would result in no RX or TX channel" in result["msg"]


def test_features(veth: str, four_runs: Module):
    result = four_runs("nic_features", interface=veth, tx_checksum=False, rx_checksum=False, tx_vlan_offload=False)
    assert result["rollback"] == [
        {"interface": veth, "tx_checksum": True, "rx_checksum": True, "tx_vlan_offload": True}
    ]
    found = features(veth)
    assert not any(found[name] for name in ("tx-checksum-ip-generic", "rx-checksumming", "tx-vlan-offload"))


def test_a_fixed_feature(veth: str, module: Module):
    assert not module("nic_features", interface=veth, lro=False)["changed"]
    failed = module("nic_features", interface=veth, lro=True)
    assert "lro is fixed at off" in failed["msg"]
    assert "lro" in module("nic_features", interface=veth, lro=True, on_unsupported="skip")["unsupported"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nic_rings", {"rx": 512}),
        ("nic_rss", {"queues": 2}),
        ("nic_coalesce", {"rx_usecs": 8}),
        ("nic_irq_affinity", {}),
        ("nic_features", {"lro": True}),
    ],
)
def test_virtual_devices_are_an_error_unless_skipped(namespace: None, module: Module, name: str, arguments: dict):
    add_link("d0", "dummy")
    assert "device has no" in (failed := module(name, interface="d0", **arguments)["msg"]) or "fixed" in failed
    result = module(name, interface="d0", on_unsupported="skip", **arguments)
    assert result["changed"] is False
    assert result["unsupported"]


def test_steering(veth: str, four_runs: Module):
    result = four_runs("nic_irq_affinity", interface=veth, on_unsupported="skip", rps="0", rfs=1000)
    assert (QUEUES / "rx-3/rps_cpus").read_text(encoding="ascii").strip().endswith("1")
    assert (QUEUES / "rx-3/rps_flow_cnt").read_text(encoding="ascii").strip() == "256"
    assert result["after"]["xps"]["tx-0"] == "0"
    assert result["rollback"][0]["rps"]["rx-0"] == "none"


def test_steering_back(veth: str, module: Module):
    result = module("nic_irq_affinity", interface=veth, on_unsupported="skip", xps={"tx-1": "0"}, rps={"rx-2": "0"})
    assert result["changed"]
    (arguments,) = result["rollback"]
    assert module("nic_irq_affinity", **arguments)["after"] == result["before"]


def test_a_device_that_does_not_exist(namespace: None, module: Module):
    result = module("nic_rings", interface="nope", rx=1)
    assert result["failed"] and "'nope' does not exist; this host has lo" in result["msg"]


def test_an_alternative_name(veth: str, module: Module):
    run("ip", "link", "property", "add", "dev", veth, "altname", "a-rather-long-name-of-a-device")
    result = module("nic_channels", interface="a-rather-long-name-of-a-device", rx=2)
    assert result["rollback"] == [{"interface": veth, "rx": 4}]


def test_info(veth: str, module: Module):
    info = module("nic_info", interface=veth)
    assert info["driver"] == "veth"
    assert info["channels"] == {"rx": 4, "tx": 4}
    assert info["features"]["rx_checksum"] is features(veth)["rx-checksumming"]
    assert info["link"]["state"] == "up"
    assert info["members"] == []


def test_read_only_sysfs(veth: str, module: Module):
    run("mount", "-o", "remount,bind,ro", "/sys")
    result = module("nic_irq_affinity", interface=veth, on_unsupported="skip", rps="0")
    assert result["failed"] and "is read-only here; in a container" in result["msg"]


def test_sysfs_of_another_namespace(veth: str, module: Module):
    run("umount", "--recursive", "/sys")
    result = module("nic_irq_affinity", interface=veth, on_unsupported="skip", rps="0")
    assert result["failed"] and "another network namespace" in result["msg"]


def test_a_bond_is_tuned_through_its_members(bond: str, four_runs: Module, module: Module):
    result = four_runs("nic_channels", interface=bond, rx=2)
    assert result["before"] == {"m0": {"rx": 4, "tx": 4}, "m1": {"rx": 4, "tx": 4}}
    assert [channels(member)["rx"] for member in ("m0", "m1")] == [2, 2]
    assert result["rollback"] == [{"interface": "m0", "rx": 4}, {"interface": "m1", "rx": 4}]
    assert [member["interface"] for member in module("nic_info", interface=bond)["members"]] == ["m0", "m1"]


def test_all_members_are_checked_before_one_is_touched(bond: str, module: Module):
    run("ip", "link", "set", "m1", "nomaster")
    run("ip", "link", "del", "m1")
    run("ip", "link", "add", "m1", "numrxqueues", "2", "numtxqueues", "2", "type", "veth", "peer", "m1p")
    run("ip", "link", "set", "m1", "master", bond)
    assert "m1: rx=3 is more than" in module("nic_channels", interface=bond, rx=3)["msg"]
    assert channels("m0")["rx"] == 4


def test_a_bond_without_members(namespace: None, module: Module):
    add_link("bond9", "bond")
    assert "bond without members" in module("nic_channels", interface="bond9", rx=2)["msg"]


def test_ethtool_agrees_that_veth_has_no_rings(veth: str):
    result = subprocess.run(["ethtool", "-g", veth], check=False, capture_output=True, text=True)
    assert result.returncode
