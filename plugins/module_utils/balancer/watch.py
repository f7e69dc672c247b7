# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the next hops and the interfaces of a balancer right: python3 -m engine.balancer.watch <balancer>.

The program caches what the kernel's FIB and neighbour tables said. This service listens to the kernel and makes the
program forget when a route or a link changed, or when a neighbour has another Ethernet address than the program may
have cached; and it has the kernel verify the neighbours on the way to backends, since the kernel sees none of the
traffic that would make it do so. Without it the program goes on with what it has cached.

An interface that is removed and created again, as a driver or a virtual machine does, or that is renamed and gets its
name back, has the program put back; the other interfaces forward meanwhile. A next program is put in once it is pinned.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time

from ..errors import EngineError
from ..kernel import device, netlink
from ..kernel import neighbours as kernel_neighbours
from ..kernel.device import RTM_DELLINK, RTM_NEWLINK
from ..kernel.link import import_pyroute2
from ..kernel.neighbours import AF_INET, AF_INET6, RTM_DELNEIGH, RTM_NEWNEIGH
from . import next_program, reader, state
from .balancer import Balancer

# include/uapi/linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
GROUPS = 0x1 | 0x4 | 0x40 | 0x400
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
# Bytes for messages that wait; one takes about 800 of the kernel's memory.
BUFFER = 4 << 20
# So many datagrams are looked at before the program is made to forget.
DATAGRAMS = 4096
# Seconds between two requests to verify; the kernel itself decides whether a neighbour is due.
VERIFY_INTERVAL = 5.0
# With thousands of backends, verifying takes at most this share of a CPU.
VERIFY_SHARE = 0.05
# Seconds within which changes count as one.
SETTLE = 0.005
# Seconds between two times that the program forgets just because neighbours were lost, or messages about them. Whoever
# scans a network makes the kernel resolve and delete neighbours as fast as it can.
LOST_INTERVAL = 1.0
# As many lost neighbours are remembered; with more the program forgets at once.
MAX_LOST = 16384

# Flags, Ethernet address, MTU, state and bond or bridge of an interface.
LinkState = tuple[int, bytes, bytes, bytes, bytes]
# Index of the interface and IP address.
NeighbourKey = tuple[int, bytes]


class Watch:
    """What the program may have cached: the links, and the Ethernet addresses of neighbours.

    The program caches a next hop only of a neighbour that has an Ethernet address. So one that gets its first address
    changes nothing, and one that never has any is not kept. One that loses its address, or is deleted by the kernel, is
    kept until the program has forgotten: it may come back with another address.
    """

    def __init__(self) -> None:
        self._links: dict[int, LinkState] = {}
        # What the kernel has now.
        self._addresses: dict[NeighbourKey, bytes] = {}
        # What it had, since the program was made to forget.
        self._lost: dict[NeighbourKey, bytes] = {}

    @property
    def lost(self) -> bool:
        """Whether the program may have cached an address that the kernel no longer knows or verifies."""
        return bool(self._lost)

    def read_tables(self) -> None:
        """Take what the kernel has: before the program is made to forget, and after messages are listened to."""
        for payload in device.dump():
            self.changes_next_hop(RTM_NEWLINK, payload)
        # What one dump misses because the table changes meanwhile, the other has.
        for payload in kernel_neighbours.dump() + kernel_neighbours.dump():
            self.changes_next_hop(RTM_NEWNEIGH, payload)

    def forgotten(self) -> None:
        """The program was made to forget after the last message."""
        self._lost.clear()

    def changes_next_hop(self, kind: int, payload: bytes) -> bool:
        """Whether a message of the kernel, RTM_*, means that packets have to go elsewhere at once."""
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return True
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            return self._link_changes(kind, payload)
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return self._neighbour_changes(kind, payload)
        return False

    def _link_changes(self, kind: int, payload: bytes) -> bool:
        family, _type, index, flags, _change = device.IFINFOMSG.unpack_from(payload)
        if family == socket.AF_UNSPEC and kind == RTM_DELLINK:
            self._links.pop(index, None)
            return True
        if family != socket.AF_UNSPEC:
            # What a bridge says of its port.
            return False
        found = dict(netlink.attributes(payload[device.IFINFOMSG.size :]))
        kinds = device.IFLA_ADDRESS, device.IFLA_MTU, device.IFLA_OPERSTATE, device.IFLA_MASTER
        address, mtu, operstate, master = (found.get(kind, b"") for kind in kinds)
        before, self._links[index] = self._links.get(index), (flags, address, mtu, operstate, master)
        return self._links[index] != before

    def _neighbour_changes(self, kind: int, payload: bytes) -> bool:
        family, index, state, _flags, _type = kernel_neighbours.NDMSG.unpack_from(payload)
        if family not in (AF_INET, AF_INET6):
            return False
        found = dict(netlink.attributes(payload[kernel_neighbours.NDMSG.size :]))
        key = index, found.get(kernel_neighbours.NDA_DST, b"")
        before = self._addresses.pop(key, None) or self._lost.pop(key, None)
        usable = kind == RTM_NEWNEIGH and state & kernel_neighbours.NUD_VALID
        # Empty where the link has no addresses.
        address = found.get(kernel_neighbours.NDA_LLADDR) if usable else None
        if address:
            self._addresses[key] = address
            return address != before if before else self._resolves_silently(index)
        if before:
            self._lost[key] = before
        return len(self._lost) >= MAX_LOST

    def _resolves_silently(self, index: int) -> bool:
        """Whether the kernel makes up addresses of the link's neighbours, and tells nobody (arp_constructor())."""
        return index in self._links and bool(self._links[index][0] & device.IFF_NOARP)


def verify(balancer: Balancer) -> None:
    """Have the kernel look at the neighbours on the way to the backends."""
    with import_pyroute2().IPRoute() as route:
        kernel_neighbours.verify(route, kernel_neighbours.neighbours(route, balancer.next_hop_addresses())[0])


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


class NextProgramPin:
    """The program that is pinned as the next one: called once it is there, and when another one takes its place."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._refusal = ""

    def look(self) -> None:
        """Have the balancer call the program that is pinned now."""
        current = state.load(self._balancer.state_file)
        if current is None or not next_program.is_due(self._balancer.places, current):
            return
        try:
            self._balancer.restore()
        except (EngineError, OSError) as error:
            # It is tried again.
            if str(error) != self._refusal:
                log(self._balancer.name, "next_program_not_called", error)
            self._refusal = str(error)
            return
        self._refusal = ""
        log(self._balancer.name, "next_program_called", path=current.document.settings.next_program)


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
    interfaces = Interfaces(balancer)
    interfaces.start()
    while True:
        with netlink.Listener(GROUPS, BUFFER) as listener:
            watch = Watch()
            watch.read_tables()
            # Whatever happened while nobody was listening.
            balancer.forget_next_hops()
            watch.forgotten()
            log(balancer.name, "started")
            _follow(balancer, interfaces, watch, listener)
        log(balancer.name, "messages_lost")
        time.sleep(LOST_INTERVAL)


def _follow(balancer: Balancer, interfaces: Interfaces, watch: Watch, listener: netlink.Listener) -> None:
    """Act on what the kernel says, until it had to drop messages."""
    pin = NextProgramPin(balancer)
    verify_due = lost_due = time.monotonic()
    while True:
        started = time.monotonic()
        if started >= verify_due:
            interfaces.look()
            pin.look()
            # Only verifying is to take a small share of the time.
            started = time.monotonic()
            verify(balancer)
            finished = time.monotonic()
            verify_due = finished + max(VERIFY_INTERVAL, (finished - started) / VERIFY_SHARE)
        due = min(verify_due, lost_due) if watch.lost else verify_due
        if select.select([listener], [], [], max(0.0, due - time.monotonic()))[0]:
            time.sleep(SETTLE)
        try:
            messages = listener.receive(DATAGRAMS)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return
        if any(kind in (RTM_NEWLINK, RTM_DELLINK) for kind, _payload in messages):
            interfaces.look()
        # Every message counts, for each changes what is known.
        changed = [watch.changes_next_hop(kind, payload) for kind, payload in messages]
        if any(changed) or watch.lost and time.monotonic() >= lost_due:
            balancer.forget_next_hops()
            watch.forgotten()
            lost_due = time.monotonic() + LOST_INTERVAL
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
