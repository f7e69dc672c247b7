# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer on two interfaces of which one goes, comes back, is down or does not forward."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.frames import CLIENT, tcp
from tests.packet.network import write_setting
from tests.packet.reference import PASS, TX
from tests.packet.watching import make, until, watching
from tests.support import balancer as support
from tests.support import namespace
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

VIP = "203.0.113.10"
WEB = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}
# Its next hop is known, so that no neighbour is needed.
BACKEND = {"service": "web", "address": "10.0.0.1", "mac": "02:00:00:00:00:01"}
ARMS = ("arm0", "arm1")


@pytest.fixture
def balancer(root) -> Iterator[Balancer]:
    with namespace.private("net"):
        for arm in ARMS:
            make(arm)
        with support.balancer() as made:
            made.apply(declared(settings(*ARMS), [WEB], [BACKEND]), check=False)
            yield made


def program(balancer: Balancer) -> dict:
    return balancer.info()["program"]


def problems(balancer: Balancer) -> list[str]:
    return program(balancer)["problems"]


def verdict(arm: str) -> int:
    """Of the program that is on the arm's hook for a packet to the service; none, and the kernel gets it."""
    attached = link.attached(arm)
    if attached is None:
        return PASS
    descriptor = bpf.program_fd(attached.program_id)
    try:
        return bpf.test_run(descriptor, tcp(CLIENT, 20000, VIP, 80), 1, link.interface_index(arm))[0]
    finally:
        os.close(descriptor)


def test_what_forwards_on_all_interfaces_has_no_problems(balancer):
    found = program(balancer)
    assert found["attached"] and found["problems"] == []
    assert [(entry["interface"], entry["present"], entry["up"]) for entry in found["interfaces"]] == [
        (arm, True, True) for arm in ARMS
    ]
    assert len(found["tables_digest"]) == 64
    assert [verdict(arm) for arm in ARMS] == [TX, TX]


def test_an_interface_that_comes_back_has_the_program_put_back(balancer, tmp_path):
    applied = program(balancer)
    with watching(balancer, tmp_path / "log") as service:
        subprocess.run("ip link delete arm1".split(), check=True)
        until(lambda: service.events("interface_gone"))
        found = program(balancer)
        assert not found["attached"]
        assert found["problems"] == [
            "interface arm1 does not exist: it was removed or renamed; lbops-watch@main attaches the program once it "
            "is back"
        ]
        # The other one goes on.
        assert [(entry["interface"], entry["attached"]) for entry in found["interfaces"]] == [
            ("arm0", True),
            ("arm1", False),
        ]
        assert verdict("arm0") == TX
        make("arm1")
        until(lambda: service.events("interface_restored"))
        assert service.events("interface_restored") == ["watch balancer=main event=interface_restored interface=arm1"]
        assert program(balancer)["attached"] and problems(balancer) == []
        assert [verdict(arm) for arm in ARMS] == [TX, TX]
        # Packets of the new device are not refused for their size.
        with map_set.open_pinned(balancer.places.maps, SIZES) as live_maps:
            control = bpf.map_lookup(live_maps["control"], layout.index(0), layout.CONTROL.size)
        found = layout.INTERFACE.iter_unpack(layout.CONTROL.unpack(control)[3])
        assert {index: mtu for index, mtu, _address, _master in found}[link.interface_index("arm1")] == 1500
    # The document is the same one.
    assert [program(balancer)[key] == applied[key] for key in ("generation", "applied_at", "applied_by")] == [True] * 3


def test_one_that_came_back_while_nobody_listened(balancer, tmp_path):
    subprocess.run("ip link delete arm0".split(), check=True)
    make("arm0")
    assert verdict("arm0") == PASS
    with watching(balancer, tmp_path / "log") as service:
        until(lambda: service.events("interface_restored"))
        assert [verdict(arm) for arm in ARMS] == [TX, TX]


def test_a_renamed_interface_is_missing_until_it_has_its_name_again(balancer, tmp_path):
    with watching(balancer, tmp_path / "log") as service:
        subprocess.run("ip link set arm1 down".split(), check=True)
        subprocess.run("ip link set arm1 name other".split(), check=True)
        until(lambda: service.events("interface_gone"))
        assert problems(balancer)[0].startswith("interface arm1 does not exist")
        subprocess.run("ip link set other name arm1".split(), check=True)
        subprocess.run("ip link set arm1 up".split(), check=True)
        until(lambda: not problems(balancer))
        assert [verdict(arm) for arm in ARMS] == [TX, TX]


def test_a_program_that_somebody_took_off_is_not_put_back(balancer, tmp_path):
    """Whoever does that has a reason."""
    with watching(balancer, tmp_path / "log") as service:
        subprocess.run("ip link set arm1 xdp off".split(), check=True)
        # What wakes the service, and is seen in its log.
        subprocess.run("ip link set arm0 mtu 1400".split(), check=True)
        until(lambda: service.events("next_hops_changed"))
        time.sleep(0.5)
        assert verdict("arm1") == PASS and not service.events("interface_restored")
    assert problems(balancer) == [
        "interface arm1: the program is not attached; systemctl restart lbops-restore@main puts it back"
    ]


def test_an_interface_without_a_link_is_a_problem(balancer):
    subprocess.run("ip link set arm1 down".split(), check=True)
    assert problems(balancer) == ["interface arm1 is down; bring up its link"]
    subprocess.run("ip link set arm1 up".split(), check=True)
    until(lambda: not problems(balancer))
    subprocess.run("ip link set arm1-peer down".split(), check=True)
    until(lambda: problems(balancer) == ["interface arm1 is down; bring up its link"])


def test_an_interface_that_does_not_forward_is_a_problem_where_the_kernel_is_asked(balancer):
    expected = [
        "interface arm1: net.ipv4.conf.arm1.forwarding is not 1, so the kernel names no next hop for packets that "
        "arrive there; sysctl -w net.ipv4.conf.arm1.forwarding=1"
    ]
    # Of dnat, the next hop of clients.
    write_setting("ipv4/conf/arm1/forwarding", 0)
    assert problems(balancer) == expected
    balancer.apply(declared(settings(*ARMS), [{**WEB, "forwarding": "dsr"}], [BACKEND]), check=False)
    assert problems(balancer) == []
    of_kernel = [{key: value for key, value in BACKEND.items() if key != "mac"}]
    balancer.apply(declared(settings(*ARMS), [{**WEB, "forwarding": "dsr"}], of_kernel), check=False)
    assert problems(balancer) == expected
    balancer.apply(declared(settings(*ARMS, attached=False), [WEB], [BACKEND]), check=False)
    # It forwards nothing on purpose.
    assert problems(balancer) == []
