# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the next hops of a balancer right: python3 -m engine.balancer.watch <balancer>.

The program remembers what the kernel's FIB and neighbour tables said. This service listens to the kernel and makes the
program forget when a route, a link or a neighbour's Ethernet address changed; and it has the kernel verify the
neighbours on the way to backends, since the kernel sees none of the traffic that would make it do so. Without it the
program goes on with what it remembers.
"""

from __future__ import annotations

import select
import sys
import time
from typing import Any

from ..errors import EngineError
from ..kernel.link import import_pyroute2
from ..kernel.neighbours import AF_INET, AF_INET6, NUD_VALID, neighbours, use
from .balancer import Balancer

# include/uapi/linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
GROUPS = 0x1 | 0x4 | 0x40 | 0x400
# Seconds between two requests to verify; the kernel itself decides whether a neighbour is due.
VERIFY_INTERVAL = 5.0
# With thousands of backends, verifying takes at most this share of a CPU.
VERIFY_SHARE = 0.05
# Seconds within which changes count as one.
SETTLE = 0.005

# Event, flags, Ethernet address, MTU and state of an interface.
LinkState = tuple[object, ...]


class Watch:
    """What the kernel said last of each neighbour, to tell a change from a mere confirmation."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], str | None] = {}
        self._links: dict[int, LinkState] = {}

    def changes_next_hop(self, message: Any) -> bool:
        """Whether a message of the kernel means that packets may have to go elsewhere."""
        event = message["event"]
        if event in ("RTM_NEWROUTE", "RTM_DELROUTE"):
            return True
        if event in ("RTM_NEWLINK", "RTM_DELLINK"):
            index = message["index"]
            state = (
                event,
                message["flags"],
                message.get_attr("IFLA_ADDRESS"),
                message.get_attr("IFLA_MTU"),
                message.get_attr("IFLA_OPERSTATE"),
            )
            changed = self._links.get(index) != state
            self._links[index] = state
            return changed
        if event in ("RTM_NEWNEIGH", "RTM_DELNEIGH") and message["family"] in (AF_INET, AF_INET6):
            key = (message["ifindex"], message.get_attr("NDA_DST"))
            usable = event == "RTM_NEWNEIGH" and message["state"] & NUD_VALID
            address = message.get_attr("NDA_LLADDR") if usable else None
            changed = self._known.get(key) != address
            self._known[key] = address
            return changed
        return False


def verify(balancer: Balancer) -> None:
    """Have the kernel look at the neighbours on the way to the backends."""
    with import_pyroute2().IPRoute() as route:
        for neighbour in neighbours(route, balancer.next_hop_addresses())[0]:
            use(route, neighbour)


def run(name: str) -> None:
    balancer = Balancer(name)
    watch = Watch()
    with import_pyroute2().IPRoute() as route:
        route.bind(groups=GROUPS)
        # Whatever happened while nobody was listening.
        balancer.forget_next_hops()
        sys.stdout.write(f"watch balancer={name} event=started\n")
        sys.stdout.flush()
        due = time.monotonic()
        while True:
            started = time.monotonic()
            if started >= due:
                verify(balancer)
                finished = time.monotonic()
                due = finished + max(VERIFY_INTERVAL, (finished - started) / VERIFY_SHARE)
            readable, _writable, _failed = select.select([route], [], [], max(0.0, due - time.monotonic()))
            if not readable:
                continue
            time.sleep(SETTLE)
            # Every message counts, for each changes what is known.
            changed = [watch.changes_next_hop(message) for message in route.get()]
            if any(changed):
                balancer.forget_next_hops()
                sys.stdout.write(f"watch balancer={name} event=next_hops_changed\n")
                sys.stdout.flush()


def main() -> int:
    name = sys.argv[1]
    try:
        run(name)
    except (EngineError, OSError) as error:
        sys.stderr.write(f"watch balancer={name} event=failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
