# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the next hops and the interfaces of a balancer right: python3 -m engine.balancer.watch <balancer>.

The program caches what the kernel's FIB and neighbour tables said. This service listens to the kernel and makes the
program forget when a route, a link or a neighbour's Ethernet address changed; and it has the kernel verify the
neighbours on the way to backends, since the kernel sees none of the traffic that would make it do so. Without it the
program goes on with what it has cached.

An interface that is removed and created again, as a driver or a virtual machine does, or that is renamed and gets its
name back, has the program put back; the other interfaces forward meanwhile.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from typing import Any

from ..errors import EngineError
from ..kernel import neighbours as kernel_neighbours
from ..kernel.link import import_pyroute2
from ..kernel.neighbours import AF_INET, AF_INET6, NUD_VALID, neighbours
from . import reader, state
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
        kernel_neighbours.verify(route, neighbours(route, balancer.next_hop_addresses())[0])


class Interfaces:
    """The interfaces that a document names. A device that comes back has another index, and no program."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._indexes: dict[str, int] = {}
        # Those that came back and do not have what the document says yet.
        self._due: set[str] = set()
        self._refusal = ""

    def start(self) -> None:
        """An interface may have come back while nobody was listening."""
        current = state.load(self._balancer.state_file)
        if current is not None:
            self._indexes = _present(current)
            self._due = self._indexes.keys() & set(current.document.interfaces)

    def look(self) -> None:
        """Log which interfaces went, and put back the program on those that came."""
        current = state.load(self._balancer.state_file)
        if current is None:
            return
        before, self._indexes = self._indexes, _present(current)
        for name in sorted((before.keys() - self._indexes.keys()) & _named(current)):
            self._log("interface_gone", interface=name)
        self._due |= {name for name, index in self._indexes.items() if before.get(name) != index}
        self._due &= self._indexes.keys()
        if self._due:
            self._put_back(current)

    def _put_back(self, current: state.State) -> None:
        try:
            changed = self._lacks_program(current) and self._balancer.restore().changed
        except (EngineError, OSError) as error:
            # It is tried again: another interface may be missing, or this one may not be ready.
            if str(error) != self._refusal:
                self._log("not_restored", interface=",".join(sorted(self._due)), reason=error)
            self._refusal = str(error)
            return
        for name in sorted(self._due) if changed else ():
            self._log("interface_restored", interface=name)
        self._due, self._refusal = set(), ""

    def _lacks_program(self, current: state.State) -> bool:
        """Whether there is something to put back: the program, or the index of an interface of redirect."""
        ours = self._due.intersection(current.document.interfaces)
        facts = [reader.interface_facts(self._balancer.places, current, name) for name in ours]
        missing = current.document.settings.attached and not all(entry["attached"] for entry in facts)
        return missing or ours != self._due

    def _log(self, event: str, **fields: object) -> None:
        log(self._balancer.name, event, **fields)


def _named(current: state.State) -> set[str]:
    return {*current.document.interfaces, *current.config.redirect_interfaces()}


def _present(current: state.State) -> dict[str, int]:
    """By name, the indexes of the interfaces that exist."""
    named = _named(current)
    return {name: index for index, name in socket.if_nameindex() if name in named}


def log(balancer: str, event: str, reason: object = "", **fields: object) -> None:
    words = "".join(f" {key}={value}" for key, value in fields.items())
    sys.stdout.write(f"watch balancer={balancer} event={event}{words}{f': {reason}' if reason else ''}\n")
    sys.stdout.flush()


def run(balancer: Balancer) -> None:
    watch, interfaces = Watch(), Interfaces(balancer)
    with import_pyroute2().IPRoute() as route:
        route.bind(groups=GROUPS)
        # Whatever happened while nobody was listening.
        balancer.forget_next_hops()
        interfaces.start()
        log(balancer.name, "started")
        due = time.monotonic()
        while True:
            started = time.monotonic()
            if started >= due:
                interfaces.look()
                verify(balancer)
                finished = time.monotonic()
                due = finished + max(VERIFY_INTERVAL, (finished - started) / VERIFY_SHARE)
            readable, _writable, _failed = select.select([route], [], [], max(0.0, due - time.monotonic()))
            if not readable:
                continue
            time.sleep(SETTLE)
            messages = list(route.get())
            if any(message["event"] in ("RTM_NEWLINK", "RTM_DELLINK") for message in messages):
                interfaces.look()
            # Every message counts, for each changes what is known.
            changed = [watch.changes_next_hop(message) for message in messages]
            if any(changed):
                balancer.forget_next_hops()
                log(balancer.name, "next_hops_changed")


def main() -> int:
    name = sys.argv[1]
    try:
        run(Balancer(name))
    except (EngineError, OSError) as error:
        sys.stderr.write(f"watch balancer={name} event=failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
