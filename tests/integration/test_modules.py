# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each module in the form check, real, again, again in check."""

from __future__ import annotations

import pytest

from tests.integration.conftest import SPARE

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
ON_LO = {"interfaces": ["lo"]}


def module(lab, name, **arguments):
    return lab.module(name, balancer=SPARE, **arguments)


def four_runs(lab, name, **arguments):
    return lab.four_runs(name, balancer=SPARE, **arguments)


def on(result):
    """Where the program is on the balancer's only interface."""
    (entry,) = result["program"]["interfaces"]
    return entry


@pytest.fixture
def program(lab, spare_interface):
    module(lab, "xdp_program", interfaces=[spare_interface])
    return {"interfaces": [spare_interface]}


@pytest.fixture
def loopback(lab, site):
    """A balancer of lo may be declared; it is gone afterwards."""
    yield ON_LO
    module(lab, "xdp_program", state="absent", force=True)


def test_program_is_attached_detached_and_removed(lab, spare_interface):
    spare = {"interfaces": [spare_interface]}
    attached = four_runs(lab, "xdp_program", **spare)
    assert attached["diff"]["before"] == "" and "interfaces=t0\n" in attached["diff"]["after"]
    assert attached["changes"]["interfaces"] == {"created": ["t0"], "modified": [], "removed": []}
    assert attached["compiled"] and attached["program"]["attached"]
    assert (on(attached)["interface"], on(attached)["hook"]) == ("t0", "native")
    assert on(attached)["why"] == "the driver takes native XDP"
    assert lab.program_id(spare_interface) == on(attached)["program_id"]

    detached = four_runs(lab, "xdp_program", state="detached", **spare)
    assert lab.program_id(spare_interface) is None
    assert detached["compiled"] is False and on(detached)["program_id"] == on(attached)["program_id"]
    assert not detached["program"]["attached"]

    again = four_runs(lab, "xdp_program", **spare)
    assert again["compiled"] is False and on(again)["program_id"] == on(attached)["program_id"]
    assert lab.program_id(spare_interface) == on(attached)["program_id"]

    four_runs(lab, "xdp_program", state="absent")
    assert lab.program_id(spare_interface) is None
    assert SPARE not in lab.ssh("lb1", "ls /sys/fs/bpf/lbops /var/lib/lbops").split()


def test_other_features_and_sizes_give_another_program(lab, program):
    wider = four_runs(lab, "xdp_program", latency=True, **program)
    assert wider["compiled"] and not wider["new_maps"]
    assert wider["program"]["features"] == ["latency"]
    larger = four_runs(lab, "xdp_program", latency=True, max_backends=20000, **program)
    assert larger["new_maps"]
    assert lab.program_id("t0") == on(larger)["program_id"] != on(wider)["program_id"]


def test_generic_mode_is_taken_when_asked_for(lab, program):
    generic = four_runs(lab, "xdp_program", mode="generic", **program)
    assert on(generic)["hook"] == "generic"
    assert "xdpgeneric" in lab.ssh("lb1", "ip link show t0")


def test_without_native_support_auto_takes_tc_and_says_why(lab, loopback):
    refused = module(lab, "xdp_program", mode="native", **loopback)
    assert refused["failed"] and "native XDP on lo" in refused["msg"]
    assert "does not support XDP in native mode" in refused["msg"]
    taken = four_runs(lab, "xdp_program", mode="auto", **loopback)
    assert on(taken)["hook"] == "tc"
    assert "does not support XDP in native mode" in on(taken)["why"]
    assert "lbops_balancer direct-action" in lab.ssh("lb1", "tc filter show dev lo ingress")
    module(lab, "xdp_program", state="absent")
    assert "clsact" not in lab.ssh("lb1", "tc qdisc show dev lo")


def test_every_hook_after_every_other(lab, loopback):
    """Four runs each: between XDP and tc nothing is lost, so a change of hook is a change like others."""
    for mode in ("tc", "generic", "tc", "generic"):
        taken = four_runs(lab, "xdp_program", mode=mode, **loopback)
        assert (on(taken)["hook"], on(taken)["attached"]) == (mode, True)
        xdp, tc = lab.ssh("lb1", "ip link show dev lo"), lab.ssh("lb1", "tc filter show dev lo ingress")
        assert ("xdpgeneric" in xdp, "lbops_balancer" in tc) == (mode == "generic", mode == "tc")


REDIRECT = [{"name": "r", "address": "192.0.2.10", "protocol": "udp", "port": "any", "forwarding": "redirect"}]


def test_what_tc_cannot_do_goes_on_to_the_next_hook(lab, loopback):
    refused = module(lab, "xdp_balancer", mode="tc", services=REDIRECT, **loopback)
    assert refused["failed"] and "tc ingress on lo: redirect is possible with XDP only" in refused["msg"]
    taken = four_runs(lab, "xdp_balancer", services=REDIRECT, **loopback)
    assert on(taken)["hook"] == "generic"
    assert "redirect is possible with XDP only" in on(taken)["why"]


def test_a_service_that_tc_cannot_do_moves_the_program_to_the_next_hook(lab, loopback):
    assert on(module(lab, "xdp_program", **loopback))["hook"] == "tc"
    four_runs(lab, "xdp_services", services=REDIRECT)
    after = module(lab, "xdp_info")
    assert on(after)["hook"] == "generic" and on(after)["attached"]
    assert "redirect is possible with XDP only" in on(after)["why"]


def test_a_card_that_takes_no_programs_is_named_with_its_driver(lab, loopback):
    refused = module(lab, "xdp_program", mode="offload", unserved="pass", **loopback)
    assert refused["failed"]
    assert "offload XDP on lo (driver virtual): the device takes no programs: " in refused["msg"]


def test_services_are_created_changed_and_purged(lab, program):
    created = four_runs(lab, "xdp_services", services=SERVICES)
    assert created["created"] == ["dns", "web", "log"] and created["before"] == []
    assert "name=web address=192.0.2.10 protocol=tcp port=8000-8003" in created["diff"]["after"]

    moved = [{**SERVICES[0], "port": 54}, *SERVICES[1:]]
    changed = four_runs(lab, "xdp_services", services=moved)
    assert changed["modified"] == ["dns"]

    merged = four_runs(lab, "xdp_services", services=[SERVICES[0]], purge=False)
    assert len(merged["after"]) == 3
    purged = four_runs(lab, "xdp_services", services=[SERVICES[0]])
    assert purged["removed"] == ["web", "log"]


def test_backends_are_created_changed_and_purged(lab, program):
    module(lab, "xdp_services", services=SERVICES)
    created = four_runs(lab, "xdp_backends", backends=BACKENDS)
    assert created["created"] == ["dns 198.51.100.1:5353", "dns 198.51.100.2:5353", "web 198.51.100.1"]

    weighted = [{**BACKENDS[0], "weight": 2}, *BACKENDS[1:]]
    changed = four_runs(lab, "xdp_backends", backends=weighted)
    assert changed["modified"] == ["dns 198.51.100.1:5353"] and not changed["created"] and not changed["removed"]

    merged = four_runs(lab, "xdp_backends", backends=[{**BACKENDS[2], "state": "drained"}], purge=False)
    assert merged["modified"] == ["web 198.51.100.1"] and len(merged["after"]) == 3

    own = {key: value for key, value in BACKENDS[1].items() if key != "service"}
    sliced = four_runs(lab, "xdp_backends", service="dns", backends=[own])
    assert sliced["removed"] == ["dns 198.51.100.1:5353"]
    live = module(lab, "xdp_info")["backends"]
    assert [(entry["service"], entry["address"]) for entry in live] == [
        ("web", "198.51.100.1"),
        ("dns", "198.51.100.2"),
    ]

    everything = four_runs(lab, "xdp_services", services=[SERVICES[1]])
    assert everything["removed"] == ["dns", "log"]
    assert [entry["service"] for entry in module(lab, "xdp_info")["backends"]] == ["web"]


def test_features_come_and_go_with_the_services_that_need_them(lab, program):
    def features():
        return module(lab, "xdp_info")["program"]["features"]

    dsr = {"name": "d", "address": "192.0.2.12", "protocol": "udp", "port": 53, "forwarding": "dsr"}
    four_runs(lab, "xdp_services", services=[dsr])
    assert features() == ["dsr"]
    four_runs(lab, "xdp_services", services=[dsr, SERVICES[0]])
    assert features() == ["dnat", "dsr"]
    settled = module(lab, "xdp_program", **program)
    assert settled["changed"] is False and settled["program"]["features"] == ["dnat", "dsr"]
    four_runs(lab, "xdp_services", services=[SERVICES[0]])
    assert features() == ["dnat"]
    four_runs(lab, "xdp_services", services=[])
    assert features() == []


def test_services_that_do_not_fit_their_backends_are_refused(lab, program):
    module(lab, "xdp_services", services=SERVICES)
    module(lab, "xdp_backends", backends=BACKENDS)
    before = lab.fingerprint()
    moved = [{**SERVICES[0], "address": "2001:db8::10"}, *SERVICES[1:]]
    for check in (True, False):
        refused = module(lab, "xdp_services", services=moved, check=check)
        assert refused["failed"], refused
        assert refused["msg"] == "; ".join(
            f"backend {address} of service dns: dnat cannot go from IPv6, the VIP's family, to IPv4"
            for address in ("198.51.100.1", "198.51.100.2")
        )
    assert lab.fingerprint() == before
    # Both at once.
    addresses = {"198.51.100.1": "2001:db8:1::1", "198.51.100.2": "2001:db8:1::2"}
    backends = [
        {**entry, "address": addresses[entry["address"]]} if entry["service"] == "dns" else entry for entry in BACKENDS
    ]
    applied = four_runs(lab, "xdp_balancer", services=moved, backends=backends, **program)
    assert applied["changes"]["services"]["modified"] == ["dns"]
    assert applied["changes"]["backends"]["created"] == ["dns 2001:db8:1::1:5353", "dns 2001:db8:1::2:5353"]
    assert applied["changes"]["backends"]["removed"] == ["dns 198.51.100.1:5353", "dns 198.51.100.2:5353"]


def test_parts_need_a_balancer(lab, site):
    for name, part in (("xdp_services", "services"), ("xdp_backends", "backends"), ("xdp_filters", "filters")):
        for check in (True, False):
            assert module(lab, name, **{part: []}, check=check)["msg"] == (
                "there is no balancer spare on this host; declare it with xdp_balancer or xdp_program first"
            )
    assert SPARE not in lab.ssh("lb1", "ls /sys/fs/bpf/lbops /var/lib/lbops").split()
