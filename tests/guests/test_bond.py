# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bond of two unlike cards: what is asked of it is done to its members, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.guests.conftest import GUESTS, Guests
from tests.support.batch import Task, shell

MEMBERS = ("igb0", "vmx0")
RINGS = "for i in igb0 vmx0; do ethtool -g $i | sed -n '/Current/,$ s/^RX:\t*//p'; done"


@pytest.fixture
def bond(guests: Guests) -> Iterator[str]:
    join = "ip link set {0} down; ip link set {0} master bond9; ip link set {0} up"
    guests.each(
        "ip link add bond9 type bond mode active-backup miimon 50; "
        + "; ".join(join.format(member) for member in MEMBERS)
        + "; ip link set bond9 up; sleep 1; cat /sys/class/net/bond9/operstate | grep up"
    )
    yield "bond9"
    guests.each("ip link del bond9; ip link set igb0 up; ip link set vmx0 up")


def test_a_module(guests: Guests, bond: str):
    rings = Task("nic_rings", {"interface": bond, "rx": 2048})
    back = Task("nic_rings", "{{ item }}", keywords={"loop": "{{ result_1.rollback }}"})
    found = guests.run(shell(RINGS), rings, shell(RINGS), rings, back, shell(RINGS))
    for before, real, during, again, _back, after in found.values():
        assert real["changed"] and real["link_bounced"] and not again["changed"]
        assert sorted(real["after"]) == sorted(MEMBERS)
        assert [arguments["interface"] for arguments in real["rollback"]] == list(real["after"])
        assert during["stdout_lines"] == ["2048"] * 2
        assert after["stdout"] == before["stdout"]


def test_the_role(guests: Guests, bond: str):
    before = guests.each(RINGS)
    options = ("-e", f"nic_tuning_interface={bond}")
    changed, output = guests.playbook("nic_tune.yml", *options)
    assert all(changed.values()), output
    assert all(text == "512\n512" for text in guests.each(RINGS).values())
    for guest in GUESTS:
        devices = json.loads(guests.ssh(guest, f"cat /var/lib/lbops/nic-{bond}.json"))["devices"]
        assert sorted(devices) == sorted(MEMBERS)
        links = guests.ssh(guest, "grep -h PermanentMACAddress /etc/systemd/network/00-lbops-{igb,vmx}0.link")
        assert len(set(links.split())) == 2
    changed, output = guests.playbook("nic_tune.yml", *options)
    assert not any(changed.values()), output
    # What the boot does, after somebody else has set it otherwise.
    guests.each(f"ethtool -G igb0 rx 256; ethtool -G vmx0 rx 256; systemctl restart lbops-nic@{bond}")
    assert all(text == "512\n512" for text in guests.each(RINGS).values())
    guests.playbook("nic_restore.yml", *options)
    assert guests.each(RINGS) == before
