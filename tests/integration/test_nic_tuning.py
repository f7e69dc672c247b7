# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nic_tuning on a host with systemd: kept when it is confirmed, taken back by the timer when it is not."""

from __future__ import annotations

import time

import pytest

from tests.integration.conftest import INTERFACE, Lab

ONE_HOST = ("--limit", "lb1")
OFF = {"features": {"rx_vlan_offload": False}}
# The unit file goes with the engine, which the balancer needs.
FIND = "find /etc /run /var -xdev -name '*lbops-nic*' -o -path '/var/lib/lbops/nic-*'"
TIMER = f"systemctl is-active lbops-nic-revert-{INTERFACE}.timer"


@pytest.fixture
def tuned(lab: Lab):
    lab.playbook("nic_tune.yml", *ONE_HOST)
    yield lab
    lab.playbook("nic_restore.yml", *ONE_HOST)


def vlan_offload(lab: Lab) -> bool:
    return lab.module("nic_info", interface=INTERFACE)["features"]["rx_vlan_offload"]


def test_a_second_run_changes_nothing(tuned: Lab):
    assert tuned.playbook("nic_tune.yml", *ONE_HOST)[0] == 0
    assert tuned.playbook("nic_tune.yml", *ONE_HOST, "--check")[0] == 0
    assert tuned.ssh("lb1", f"systemctl is-enabled lbops-nic@{INTERFACE}") == "enabled"
    assert tuned.ssh("lb1", TIMER, check=False) == "inactive"


def test_what_nobody_confirms_is_taken_back(tuned: Lab):
    result = tuned.module("nic_profile", interface=INTERFACE, overrides=OFF, revert_after=5)
    assert result.get("pending"), result
    assert not vlan_offload(tuned)
    deadline = time.monotonic() + 20
    while not vlan_offload(tuned):
        assert time.monotonic() < deadline, tuned.ssh("lb1", f"journalctl -u lbops-nic-revert-{INTERFACE}")
    assert "was taken back" in tuned.module("nic_profile", interface=INTERFACE, state="confirmed")["msg"]


def test_a_confirmed_change_stays_and_comes_back_at_boot(tuned: Lab):
    tuned.module("nic_profile", interface=INTERFACE, overrides=OFF, revert_after=60)
    assert tuned.ssh("lb1", TIMER) == "active"
    assert tuned.module("nic_profile", interface=INTERFACE, state="confirmed")["changed"]
    assert tuned.ssh("lb1", TIMER, check=False) == "inactive"
    assert tuned.module("nic_features", interface=INTERFACE, rx_vlan_offload=True)["changed"]
    # What the boot does.
    tuned.ssh("lb1", f"systemctl restart lbops-nic@{INTERFACE}")
    assert not vlan_offload(tuned)


def test_restoring_leaves_no_trace(lab: Lab):
    lab.playbook("nic_tune.yml", *ONE_HOST)
    lab.playbook("nic_restore.yml", *ONE_HOST)
    assert lab.ssh("lb1", f"{FIND} | grep -v ^/etc/systemd/system/lbops-nic@.service$", check=False) == ""
    # The balancer keeps the engine.
    assert lab.ssh("lb1", "ls /usr/lib/lbops/current/engine/nic/service.py")
    assert lab.playbook("nic_restore.yml", *ONE_HOST)[0] == 0
