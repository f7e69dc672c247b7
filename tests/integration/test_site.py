# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles, through site.yml."""

from __future__ import annotations

import json
import re

import pytest


def test_check_mode_on_a_fresh_host_says_what_would_change(site):
    changed, output = site["check"]
    assert changed > 0
    assert "The program would be compiled and attached to data0, with 3 services and 9 backends" in output


def test_real_run_attaches_natively(site, lab):
    assert site["real"][0] > 0
    assert lab.program_id()
    program = lab.module("xdp_info")["program"]
    [found] = program["interfaces"]
    assert program["attached"] and found["hook"] == "native" and found["program_id"] == lab.program_id()


def test_only_the_features_in_use_are_compiled_in(site, lab):
    assert lab.module("xdp_info")["program"]["features"] == ["dnat", "dsr"]


def test_second_run_changes_nothing(site):
    assert site["again"][0] == 0


def test_check_mode_afterwards_changes_nothing(site):
    assert site["again_check"][0] == 0


def test_pins_and_state_are_private(site, lab):
    modes = lab.ssh("lb1", "stat -c %a /sys/fs/bpf/lbops /sys/fs/bpf/lbops/main /var/lib/lbops/main/state.json").split()
    assert modes == ["700", "700", "600"]


def test_exporter_listens_on_loopback_only(site, lab):
    assert lab.ssh("lb1", "ss -Hltn sport = :9477 | awk '{print $4}'") == "127.0.0.1:9477"


def test_status_shows_every_backend(site, lab):
    changed, output = lab.playbook("status.yml")
    assert changed == 0 and "PKTS/S" not in output
    for name in ("be1", "be2", "be3", "echo-udp", "echo-tcp", "echo-dsr", "on the native hook"):
        assert name in output
    rows = [line.split() for line in output.splitlines()]
    assert ["echo-udp", "10.77.0.10:7/udp", "dnat", "maglev"] in [row[:4] for row in rows]
    assert ["be3", "10.77.2.13:8080", "1", "enabled"] in [row[:4] for row in rows]


def test_status_shows_rates_on_request(site, lab):
    changed, output = lab.playbook("status.yml", "-e", "status_interval=0.5")
    assert changed == 0 and "PKTS/S" in output and "rates over 0." in output


def test_an_inventory_that_makes_no_sense_is_refused_in_words(site, lab):
    untouched = lab.fingerprint()
    services = (
        '{"balancer_services": [{"name": "dns", "address": "10.77.0.300", "protocol": "udp", "port": 53, '
        '"backends": "backends"}]}'
    )
    result = lab.ansible("ansible-playbook", "playbooks/site.yml", "-e", services)
    assert result.returncode != 0
    assert "services[0] (dns 10.77.0.300): address '10.77.0.300' is not an IPv4 address" in result.stdout
    services = (
        '{"balancer_services": [{"name": "dns", "address": "10.77.0.10", "protocol": "udp", "port": 53, '
        '"backends": "nobody"}]}'
    )
    result = lab.ansible("ansible-playbook", "playbooks/site.yml", "-e", services)
    assert "service dns: the inventory has no group 'nobody'" in result.stdout
    assert lab.fingerprint() == untouched


def test_backends_are_not_redirected_past_the_balancer(site, lab):
    """The kernel sends redirects if either setting says so."""
    paths = "/proc/sys/net/ipv4/conf/all/send_redirects /proc/sys/net/ipv4/conf/data0/send_redirects"
    assert lab.ssh("lb1", f"cat {paths}").split() == ["0", "0"]


def test_an_unchanged_run_has_few_tasks(site):
    """Each costs a third of a second; docs/design.md says what they are."""
    assert site["again"][1].count("\nTASK [") <= 20


def test_backends_are_written_in_one_task(site, lab):
    changed, output = lab.playbook("backends.yml")
    assert changed == 0 and output.count("\nTASK [") == 3
    assert lab.playbook("backends.yml", "-e", "limit_to=echo-udp")[0] == 0
    result = lab.ansible("ansible-playbook", "playbooks/backends.yml", "-e", "limit_to=nobody")
    assert "limit_to is nobody, which is no service; there are echo-udp, echo-tcp, echo-dsr" in result.stdout


def test_an_interface_that_does_not_exist_is_refused_with_nothing_written(site, lab):
    before = lab.fingerprint(), lab.ssh("lb1", "ls -l /usr/lib/lbops /etc/sysctl.d /etc/systemd/system")
    result = lab.ansible("ansible-playbook", "playbooks/site.yml", "-e", '{"balancer_interfaces": ["data0", "eth9"]}')
    assert result.returncode != 0 and "interface eth9 does not exist on this host; it has data0, lo" in result.stdout
    assert (lab.fingerprint(), lab.ssh("lb1", "ls -l /usr/lib/lbops /etc/sysctl.d /etc/systemd/system")) == before


@pytest.mark.parametrize("name", ["site.yml", "backends.yml"])
def test_a_dead_host_is_named_with_what_to_do_and_stops_nobody(site, lab, tmp_path, name):
    inventory = tmp_path / "dead.yml"
    # TEST-NET-1 of RFC 5737: nobody answers.
    host = {"ansible_host": "192.0.2.77", "ansible_ssh_common_args": "-o ConnectTimeout=1"}
    inventory.write_text(json.dumps({"balancers": {"hosts": {"dead": host}}}))
    result = lab.ansible("ansible-playbook", "-i", str(inventory), f"playbooks/{name}")
    output = " ".join(result.stdout.split())
    assert "dead: left out of this run after an error above" in output and "--limit dead" in output
    assert re.search(r"lb1 +: ok=\d+ +changed=0 +unreachable=0 +failed=0 ", result.stdout)
