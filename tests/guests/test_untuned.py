# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nic_tuning in check mode, on hosts that it has never touched. Leaves data0 spoilt, to be found that way by
the first real run, and in the end by a restore."""

from __future__ import annotations

from tests.guests.conftest import GUESTS, Guests
from tests.guests.data0 import SPOIL, state


def test_check_mode_says_what_and_why_and_touches_nothing(guests: Guests):
    guests.each(SPOIL)
    before = {guest: state(guests, guest) for guest in GUESTS}
    changed, output = guests.playbook("nic_tune.yml", "--check", "--diff")
    assert all(changed[guest] for guest in GUESTS)
    for line in (
        "-features.gro_hw=True",
        "+features.gro_hw=False  # packets that the device merges are too long for XDP",
        "-rings.rx=256",
        "-rss.queues=1",
        "+rss.queues=4  # as many as channels",
        "+irq_affinity.vectors=0-3  # one physical core for each queue",
        "+applied at boot=yes, with these values",
    ):
        assert output.count(f"\n{line}") == len(GUESTS), line
    assert {guest: state(guests, guest) for guest in GUESTS} == before
    paths = "/usr/lib/lbops /var/lib/lbops /etc/sysctl.d/*lbops* /etc/systemd/network/*lbops*"
    left = guests.each(f"ls -d {paths} 2>/dev/null || true")
    assert not any(left.values()), left
