# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nic_tuning on data0, which carries the balancer's program natively: what the kernel says of it, before and
after a reboot, and when the host can no longer be reached. In the order of the file."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.guests.conftest import GUESTS, Guests
from tests.guests.data0 import FLOWS, SPOIL, answers, spread, state

IRQBALANCE_SECONDS = 10  # between two looks at the interrupts


@pytest.fixture(scope="module")
def as_applied(guests: Guests) -> dict[str, dict[str, str]]:
    """What the kernels say after the scenario has applied nic_tune.yml and site.yml, each of them twice."""
    return {guest: state(guests, guest) for guest in GUESTS}


def test_the_kernel_has_the_profile(as_applied: dict, guest: str):
    found = as_applied[guest]
    # virtio_net counts what XDP sends through, one queue for each of four CPUs.
    assert re.search(r"(?s)Current.*Combined:\s+8$", found["channels"])
    assert re.search(r"(?s)Current.*RX:\s+1024\n.*TX:\s+1024\n", found["rings"])
    assert found["features"] == "large-receive-offload: off\nrx-gro-hw: off"
    entries = re.findall(r"\d+(?!.*:)", found["table"])
    assert [int(entry) for entry in entries] == [0, 1, 2, 3] * 32
    for protocol in ("udp4", "udp6"):
        assert "src port" in found[protocol] and "dst port" in found[protocol]
    assert found["vectors"].split()[:4] == ["0", "1", "2", "3"]
    assert found["xps"].split()[:4] == ["1", "2", "4", "8"]
    assert found["sysctl"].split() == ["600", "0", "1"]
    assert found["program"] == "driver"


def test_flows_spread_over_queues_and_cpus(guests: Guests, as_applied: dict):
    guests.each(SPOIL)
    for guest in GUESTS:
        counts, moved = spread(guests, guest)
        assert counts[0] >= 2 * FLOWS and not any(counts[1:])
        assert moved[0][0] and not any(moved[0][1:])
    changed, output = guests.playbook("nic_tune.yml", "--check", "--diff")
    assert all(changed[guest] for guest in GUESTS), output
    for line in ("-rings.rx=256", "-rss.queues=1", "+rss.queues=4", "+rings.rx=1024"):
        assert output.count(f"\n{line}") == len(GUESTS), line
    assert {guest: state(guests, guest)["table"] for guest in GUESTS} != {
        guest: found["table"] for guest, found in as_applied.items()
    }
    # From now on somebody else moves vectors, but not these.
    guests.each("systemctl enable --now --quiet irqbalance")
    changed, output = guests.playbook("nic_tune.yml")
    assert all(changed[guest] for guest in GUESTS), output
    time.sleep(2 * IRQBALANCE_SECONDS)
    for guest in GUESTS:
        assert state(guests, guest) == as_applied[guest]
        counts, moved = spread(guests, guest)
        # Of 200 flows and their replies, a queue gets some 100; fewer than 40 once in a million runs.
        assert len(counts) >= 4 and min(counts[:4]) >= 2 * FLOWS / 10
        for queue, by_cpu in enumerate(moved[:4]):
            # The kernel moves a vector as its next interrupt comes, which is still the old CPU's.
            assert by_cpu[queue] >= sum(by_cpu) - 1 > 0


def test_a_reboot(guests: Guests, as_applied: dict):
    guests.reboot()
    for guest in GUESTS:
        failed = guests.ssh(guest, "systemctl --failed --no-legend; journalctl -b -u lbops-nic@data0 -o cat")
        assert "result=done" in failed and "●" not in failed
        assert state(guests, guest) == as_applied[guest]
        assert answers(guests, guest) == {"be1", "be2"}
    for name in ("nic_tune.yml", "site.yml"):
        for check in (["--check"], []):
            changed, output = guests.playbook(name, *check)
            assert not any(changed.values()), output
    guests.each("systemctl disable --now --quiet irqbalance")


def ring(guests: Guests) -> dict[str, str]:
    return guests.each("ethtool -g mgmt0 | sed -n '/Current/,$ s/^RX:\t*//p'")


def answers_again(guests: Guests, earlier: dict[str, str]) -> None:
    deadline = time.monotonic() + 120
    while any(guests.ssh(guest, "true; echo up", check=False) != "up" for guest in GUESTS) or ring(guests) != earlier:
        assert time.monotonic() < deadline, ring(guests)
        time.sleep(1)


# While mgmt0, which SSH goes through, has rings of 128, it is of no use: a driver or switch that does not take them.
TROUBLE = "systemd-run --quiet --collect --unit=trouble bash -c"
WHILE = (
    "while sleep 0.05; do if ethtool -g mgmt0 | tail -n +7 | grep -q '^RX:.*[^0-9]128$'; then {0}; else {1}; fi; done"
)


@pytest.fixture
def earlier(guests: Guests):
    yield ring(guests)
    guests.each("systemctl stop trouble; ip link set mgmt0 up; nft flush ruleset")


MGMT = ("-e", "nic_tuning_interface=mgmt0", "-e", "nic_tuning_profile=custom")
SMALL = ("-e", json.dumps({"nic_tuning_overrides": {"rings": {"rx": 128}}}))


def test_a_link_that_does_not_come_back(guests: Guests, earlier: dict):
    guests.each(f"{TROUBLE} '{WHILE.format('ip link set mgmt0 down', 'ip link set mgmt0 up')}'")
    result = guests.try_playbook("nic_tune.yml", *MGMT, *SMALL, "-e", "nic_tuning_revert_after=40")
    assert result.returncode and "Apply the profile" in result.stdout, result.stdout + result.stderr
    answers_again(guests, earlier)
    guests.each("! ls /etc/systemd/network/00-lbops-mgmt0.link && ! systemctl is-active lbops-nic-revert-mgmt0.timer")


def test_a_host_that_cannot_be_reached(guests: Guests, earlier: dict):
    chain = "{ type filter hook input priority 0 \\; policy drop \\; }"
    drop = f"nft add table inet trouble; nft add chain inet trouble in {chain}"
    guests.each(f"{TROUBLE} '{WHILE.format(drop, 'nft flush ruleset')}'")
    result = guests.try_playbook("nic_tune.yml", *MGMT, *SMALL, "-e", "nic_tuning_revert_after=20")
    assert result.returncode and "Apply the profile" in result.stdout, result.stdout + result.stderr
    answers_again(guests, earlier)
    guests.each("journalctl -b -u lbops-nic-revert-mgmt0 -o cat | grep 'operation=revert result=done'")


def test_restoring(guests: Guests):
    _changed, output = guests.playbook("nic_restore.yml")
    # virtio_net has none while a program is attached; it comes back with the program's end.
    # Ansible says once what all guests say.
    assert "features.gro_hw was True, and False is what the device makes of that now" in output
    guests.playbook("nic_restore.yml", *MGMT)
    for guest in GUESTS:
        found = state(guests, guest)
        # As test_untuned.py had spoilt it.
        assert re.search(r"(?s)Current.*RX:\s+256\n", found["rings"])
        assert not re.search(r"[1-9](?!.*:)", found["table"])
        assert set(found["vectors"].split()[:4]) == {"0"}
        assert found["sysctl"].split()[:2] == ["300", "1"]
    # The unit of all devices stays, like the engine.
    left = guests.each(
        r"find /etc /run /var/lib -xdev \( -name '*lbops-nic*' ! -name lbops-nic@.service \) "
        "-o -name '00-lbops-*' -o -path '*/nic-data0*'"
    )
    assert not any(left.values()), left
    changed, output = guests.playbook("nic_restore.yml")
    assert not any(changed.values()), output
