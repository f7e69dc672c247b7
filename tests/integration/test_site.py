# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles, through site.yml."""

from __future__ import annotations


def test_check_mode_on_a_fresh_host_says_what_would_change(site):
    changed, output = site["check"]
    assert changed > 0
    assert "The program would be compiled and attached to data0, with 3 services and 9 backends" in output


def test_real_run_attaches_natively(site, lab):
    assert site["real"][0] > 0
    assert lab.program_id()
    facts = lab.module("xdp_info", interface="data0")["program"]
    assert facts["attached"] and facts["hook"] == "native" and facts["program_id"] == lab.program_id()


def test_only_the_features_in_use_are_compiled_in(site, lab):
    assert lab.module("xdp_info", interface="data0")["program"]["features"] == ["dnat", "dsr"]


def test_second_run_changes_nothing(site):
    assert site["again"][0] == 0


def test_check_mode_afterwards_changes_nothing(site):
    assert site["again_check"][0] == 0


def test_pins_and_state_are_private(site, lab):
    modes = lab.ssh("lb1", "stat -c %a /sys/fs/bpf/lbops /sys/fs/bpf/lbops/data0 /var/lib/lbops/data0.json").split()
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
