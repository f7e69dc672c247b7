# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each module in the form check, real, again, again in check."""

from __future__ import annotations

import pytest

SERVICES = [
    {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53},
    {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": "8000-8003"},
    {"name": "log", "address": "192.0.2.11", "protocol": "udp", "port": 514, "scheduler": "round_robin"},
]
# With an Ethernet address nobody is asked for a neighbour, so these need not exist.
BACKENDS = [
    {"service": "dns", "address": "198.51.100.1", "port": 5353, "mac": "02:00:00:00:01:01"},
    {"service": "dns", "address": "198.51.100.2", "port": 5353, "mac": "02:00:00:00:01:02", "weight": 3},
    {"service": "web", "address": "198.51.100.1", "mac": "02:00:00:00:01:01"},
]


@pytest.fixture
def program(lab, spare_interface):
    lab.module("xdp_program", interface=spare_interface)
    return spare_interface


def test_program_is_attached_detached_and_removed(lab, spare_interface):
    attached = lab.four_runs("xdp_program", interface=spare_interface)
    assert attached["before"] == {"attached": False}
    assert attached["compiled"] and attached["after"]["hook"] == "native"
    assert attached["after"]["why"] == "the driver takes native XDP"
    assert lab.program_id(spare_interface) == attached["after"]["program_id"]

    detached = lab.four_runs("xdp_program", interface=spare_interface, state="detached")
    assert lab.program_id(spare_interface) is None
    assert detached["compiled"] is False and detached["after"]["program_id"] == attached["after"]["program_id"]

    again = lab.four_runs("xdp_program", interface=spare_interface)
    assert again["compiled"] is False and again["after"]["program_id"] == attached["after"]["program_id"]

    lab.four_runs("xdp_program", interface=spare_interface, state="absent")
    assert lab.program_id(spare_interface) is None
    assert "t0" not in lab.ssh("lb1", "ls /sys/fs/bpf/lbops /var/lib/lbops")


def test_other_features_and_sizes_give_another_program(lab, program):
    narrow = lab.four_runs("xdp_program", interface=program, features=["dnat"])
    assert narrow["compiled"] and not narrow["new_maps"]
    larger = lab.four_runs("xdp_program", interface=program, features=["dnat"], max_backends=20000)
    assert larger["new_maps"]
    assert lab.program_id(program) == larger["after"]["program_id"] != narrow["after"]["program_id"]


def test_generic_mode_is_taken_when_asked_for(lab, program):
    generic = lab.four_runs("xdp_program", interface=program, mode="generic")
    assert generic["after"]["hook"] == "generic"
    assert "xdpgeneric" in lab.ssh("lb1", f"ip link show {program}")


def test_without_native_support_auto_takes_tc_and_says_why(lab, site):
    refused = lab.module("xdp_program", interface="lo", mode="native")
    assert refused["failed"] and "native XDP on lo" in refused["msg"]
    assert "does not support XDP in native mode" in refused["msg"]
    taken = lab.four_runs("xdp_program", interface="lo", mode="auto")
    assert taken["after"]["hook"] == "tc"
    assert "does not support XDP in native mode" in taken["after"]["why"]
    assert "lbops_balancer direct-action" in lab.ssh("lb1", "tc filter show dev lo ingress")
    lab.module("xdp_program", interface="lo", state="absent")
    assert "clsact" not in lab.ssh("lb1", "tc qdisc show dev lo")


def test_every_hook_after_every_other(lab, site):
    """Four runs each: between XDP and tc nothing is lost, so a change of hook is a change like others."""
    for mode in ("tc", "generic", "tc", "generic"):
        taken = lab.four_runs("xdp_program", interface="lo", mode=mode)
        assert (taken["after"]["hook"], taken["after"]["attached"]) == (mode, True)
        xdp, tc = lab.ssh("lb1", "ip link show dev lo"), lab.ssh("lb1", "tc filter show dev lo ingress")
        assert ("xdpgeneric" in xdp, "lbops_balancer" in tc) == (mode == "generic", mode == "tc")
    lab.module("xdp_program", interface="lo", state="absent")


def test_what_tc_cannot_do_goes_on_to_the_next_hook(lab, site):
    refused = lab.module("xdp_program", interface="lo", mode="tc", features=["redirect"])
    assert refused["failed"] and "tc ingress on lo: redirect is possible with XDP only" in refused["msg"]
    taken = lab.module("xdp_program", interface="lo", mode="auto", features=["redirect"])
    assert taken["after"]["hook"] == "generic"
    assert "redirect is possible with XDP only" in taken["after"]["why"]
    lab.module("xdp_program", interface="lo", state="absent")


def test_a_card_that_takes_no_programs_is_named_with_its_driver(lab, site):
    refused = lab.module("xdp_program", interface="lo", mode="offload")
    assert refused["failed"]
    assert "offload XDP on lo (driver virtual): the device takes no programs: " in refused["msg"]


def test_services_are_created_changed_and_purged(lab, program):
    created = lab.four_runs("xdp_services", interface=program, services=SERVICES)
    assert created["created"] == ["dns", "web", "log"] and created["before"] == []
    assert "name=web address=192.0.2.10 protocol=tcp port=8000-8003" in created["diff"]["after"]

    moved = [{**SERVICES[0], "port": 54}, *SERVICES[1:]]
    changed = lab.four_runs("xdp_services", interface=program, services=moved)
    assert changed["modified"] == ["dns"]

    merged = lab.four_runs("xdp_services", interface=program, services=[SERVICES[0]], purge=False)
    assert len(merged["after"]) == 3
    purged = lab.four_runs("xdp_services", interface=program, services=[SERVICES[0]])
    assert purged["removed"] == ["web", "log"]


def test_backends_are_created_changed_and_purged(lab, program):
    lab.module("xdp_services", interface=program, services=SERVICES)
    created = lab.four_runs("xdp_backends", interface=program, backends=BACKENDS)
    assert created["created"] == ["dns 198.51.100.1:5353", "dns 198.51.100.2:5353", "web 198.51.100.1"]

    weighted = [{**BACKENDS[0], "weight": 2}, *BACKENDS[1:]]
    changed = lab.four_runs("xdp_backends", interface=program, backends=weighted)
    assert changed["modified"] == ["dns 198.51.100.1:5353"] and not changed["created"] and not changed["removed"]

    merged = lab.four_runs(
        "xdp_backends", interface=program, backends=[{**BACKENDS[2], "state": "drained"}], purge=False
    )
    assert merged["modified"] == ["web 198.51.100.1"] and len(merged["after"]) == 3

    own = {key: value for key, value in BACKENDS[1].items() if key != "service"}
    sliced = lab.four_runs("xdp_backends", interface=program, service="dns", backends=[own])
    assert sliced["removed"] == ["dns 198.51.100.1:5353"]
    live = lab.module("xdp_info", interface=program)["backends"]
    assert [(entry["service"], entry["address"]) for entry in live] == [
        ("web", "198.51.100.1"),
        ("dns", "198.51.100.2"),
    ]

    everything = lab.four_runs("xdp_services", interface=program, services=[SERVICES[1]])
    assert everything["removed"] == ["dns", "log"]
    assert [entry["service"] for entry in lab.module("xdp_info", interface=program)["backends"]] == ["web"]


def test_a_feature_in_use_stays_until_its_service_is_gone(lab, program):
    dsr = {"name": "d", "address": "192.0.2.12", "protocol": "udp", "port": 53, "forwarding": "dsr"}
    lab.module("xdp_services", interface=program, services=[dsr])
    kept = lab.module("xdp_program", interface=program, features=["dnat"])
    assert kept["after"]["features"] == ["dnat", "dsr"]
    lab.module("xdp_services", interface=program, services=[])
    assert lab.module("xdp_program", interface=program, features=["dnat"])["after"]["features"] == ["dnat"]
    refused = lab.module("xdp_services", interface=program, services=[dsr])
    assert refused["msg"] == (
        f"the program on {program} was compiled without dsr; add it to the features of xdp_program"
    )
