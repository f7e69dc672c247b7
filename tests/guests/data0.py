# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""data0 of a guest, which the role nic_tuning tunes and the balancer's program is on: what the kernel says of it."""

from __future__ import annotations

import json
import re

from tests.guests.conftest import Guests
from tests.vm.common import CHECKOUT

ASKER = str(CHECKOUT / "tests" / "integration" / "asker.py")
VIP, FLOWS = "10.77.0.10", 200
INPUTS = "grep $(basename $(readlink -f /sys/class/net/data0/device))-input /proc/interrupts"
# All that the role sets, from the kernel and ethtool: a section each.
STATE = {
    "channels": "ethtool -l data0",
    "rings": "ethtool -g data0",
    "features": "ethtool -k data0 | grep -oE '^(rx-gro-hw|large-receive-offload): (on|off)'",
    "table": "ethtool -x data0 | grep -E '^ +[0-9]+:'",
    "udp4": "ethtool -n data0 rx-flow-hash udp4",
    "udp6": "ethtool -n data0 rx-flow-hash udp6",
    "vectors": f"{INPUTS} | while read irq rest; do cat /proc/irq/${{irq%:}}/smp_affinity_list; done",
    "xps": "cat /sys/class/net/data0/queues/tx-?/xps_cpus",
    "sysctl": "sysctl -n net.core.netdev_budget net.ipv4.conf.data0.rp_filter net.core.bpf_jit_enable",
    "program": "bpftool net show dev data0 | grep -o driver || true",
}
# One queue has all the work, and one CPU.
SPOIL = f"""ethtool -X data0 equal 1 && ethtool -G data0 rx 256 && ethtool -K data0 rx-gro-hw on
    sysctl -qw net.ipv4.conf.data0.rp_filter=1
    {INPUTS} | while read irq rest; do echo 0 >/proc/irq/${{irq%:}}/smp_affinity_list; done"""


def state(guests: Guests, guest: str) -> dict[str, str]:
    sections = guests.ssh(guest, "; echo ----; ".join(STATE.values())).split("----")
    return dict(zip(STATE, (section.strip() for section in sections), strict=True))


def interrupts(guests: Guests, guest: str) -> list[list[int]]:
    """By queue of data0, by CPU."""
    lines = guests.ssh(guest, INPUTS).splitlines()
    found = {int(line.rpartition(".")[2]): [int(word) for word in line.split()[1:5]] for line in lines}
    return [found[queue] for queue in sorted(found)]


def packets(guests: Guests, guest: str) -> list[int]:
    """By queue of data0, what the program saw."""
    found = re.findall(r"rx(?:_queue_)?(\d+)_xdp_packets: (\d+)", guests.ssh(guest, "ethtool -S data0"))
    counts = {int(queue): int(count) for queue, count in found}
    return [counts[queue] for queue in sorted(counts)]


def answers(guests: Guests, guest: str) -> set[str]:
    """Who answers the client's new flows."""
    found = json.loads(guests.client(guest, "python3", ASKER, VIP, "7", "udp", str(FLOWS), "100", "0"))
    return {answer[0] for answer in found}


def spread(guests: Guests, guest: str) -> tuple[list[int], list[list[int]]]:
    """By queue, the packets of some flows, and the interrupts of each CPU for them."""
    before = packets(guests, guest), interrupts(guests, guest)
    assert answers(guests, guest) == {"be1", "be2"}
    after = packets(guests, guest), interrupts(guests, guest)
    counts = [now - then for now, then in zip(after[0], before[0])]
    moved = [[now - then for now, then in zip(*queue)] for queue in zip(after[1], before[1])]
    print(f"{guest}: packets by queue {counts}, interrupts by queue and CPU {moved}")
    return counts, moved
