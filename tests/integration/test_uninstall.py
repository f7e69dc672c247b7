# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles with state absent, in the last file of this directory: the other tests need what it removes."""

from __future__ import annotations

import os

import pytest
import yaml
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf

from tests.integration.conftest import CHECKOUT, INTERFACE, Lab

# Whatever the roles and modules leave on a host, found without asking them. The kernel's own files are *.debug.
TRACES = f"""
find / -xdev -not -path '/proc/*' -iname '*lbops*'
find /sys/fs/bpf -mindepth 1 -not -name '*.debug'
systemctl list-units --all --plain --no-legend 'lbops*'
systemctl list-unit-files --no-legend 'lbops*'
systemctl --failed --plain --no-legend
ip -d link show | grep -o 'prog/xdp.*'
ss -Hltn sport = :9477
grep 1 /proc/sys/net/ipv4/conf/{INTERFACE}/forwarding
grep 0 /proc/sys/net/ipv4/conf/{INTERFACE}/send_redirects
id lbops-exporter
"""
# As the README says.
ABSENT = ("--tags", "balancer,health,exporter", "-e", "balancer_state=absent", "-e", "exporter_state=absent")


def traces(lab: Lab) -> list[str]:
    return lab.ssh("lb1", TRACES, check=False).splitlines()


def test_absent_leaves_nothing(lab, site):
    services = yaml.safe_load((CHECKOUT / "inventory/lab/group_vars/balancers/balancer.yml").read_text())
    lab.services([{**service, "health": {"check": "icmp"}} for service in services["balancer_services"]])
    program = lab.program_id()
    before = traces(lab)
    assert program and len(before) > 20
    os.close(bpf.program_fd(program))
    assert lab.playbook("site.yml", "--check", "--diff", *ABSENT)[0] > 0
    assert traces(lab) == before
    assert lab.playbook("site.yml", *ABSENT)[0] > 0
    assert traces(lab) == []
    # Nobody holds the program any more: the kernel has forgotten it.
    with pytest.raises(FileNotFoundError):
        bpf.program_fd(program)
    assert lab.playbook("site.yml", *ABSENT)[0] == 0
    assert lab.playbook("site.yml", "--check", *ABSENT)[0] == 0
