# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's neighbours on the way to backends: resolved before packets need them, and kept so.

The program forwards without the kernel, so the kernel would never look at these neighbours again by itself.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from . import netlink
from .link import import_pyroute2

# include/uapi/linux/neighbour.h
NTF_USE = 0x01
NUD_NONE = 0x00
NUD_FAILED = 0x20
# INCOMPLETE, FAILED and NONE have no Ethernet address.
NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
# family, index of the interface, state, flags, type
NDMSG = struct.Struct("=BxxxiHBB")
NDA_DST, NDA_LLADDR = 1, 2
# include/uapi/linux/rtnetlink.h, if_addr.h
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETADDR = 22
IFADDRMSG_SIZE = 8  # begins with the family
IFA_ADDRESS, IFA_LOCAL = 1, 2
POLL_INTERVAL = 0.02  # seconds
AF_INET, AF_INET6 = 2, 10


@dataclass(frozen=True)
class Neighbour:
    interface: int  # index
    address: str


@dataclass(frozen=True)
class Ways:
    """The neighbours on the way to addresses, each with one of them, and why others have none."""

    neighbours: dict[Neighbour, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def neighbours(route: Any, addresses: Iterable[str]) -> tuple[dict[Neighbour, str], dict[str, str]]:
    """The neighbours on the way to these addresses, each with one of them, and why others have none."""
    pyroute2 = import_pyroute2()
    found: dict[Neighbour, str] = {}
    problems = {}
    for address in addresses:
        try:
            answer = route.route("get", dst=address)[0]
        except pyroute2.NetlinkError as error:
            problems[address] = f"no route ({error.args[-1]})"
            continue
        gateway = answer.get_attr("RTA_GATEWAY") or address
        found.setdefault(Neighbour(answer.get_attr("RTA_OIF"), gateway), address)
    return found, problems


def ways(addresses: Collection[str]) -> Ways:
    if not addresses:
        return Ways()
    with import_pyroute2().IPRoute() as route:
        return Ways(*neighbours(route, addresses))


def dump() -> list[bytes]:
    """All neighbours of both families, each as the payload of RTM_NEWNEIGH. Raises OSError.

    The kernel walks a hash table, some 300 entries at a time. If the table changes in between, entries may be missed.
    """
    with netlink.Socket(netlink.NETLINK_ROUTE) as route:
        return route.request(RTM_GETNEIGH, NDMSG.pack(0, 0, 0, 0, 0), netlink.NLM_F_DUMP)


def verify(route: Any, found: Iterable[Neighbour]) -> None:
    """Have the kernel resolve or verify these neighbours, unless their addresses are static; this does not wait."""
    static = set()
    for payload in dump():
        _family, interface, state, _flags, _type = NDMSG.unpack_from(payload)
        if state & (NUD_PERMANENT | NUD_NOARP):
            static.add((interface, dict(netlink.attributes(payload[NDMSG.size :])).get(NDA_DST)))
    for neighbour in found:
        family = AF_INET6 if ":" in neighbour.address else AF_INET
        if (neighbour.interface, socket.inet_pton(family, neighbour.address)) not in static:
            use(route, neighbour)


def use(route: Any, neighbour: Neighbour) -> None:
    """Have the kernel resolve a neighbour, or verify it if that was long ago; this does not wait.

    Not for one that is permanent: since 5.16 the kernel makes it forget that and its Ethernet address
    (NEIGH_UPDATE_F_USE in __neigh_update()).
    """
    route.neigh("replace", dst=neighbour.address, ifindex=neighbour.interface, state=NUD_NONE, flags=NTF_USE)


def resolved(route: Any) -> dict[Neighbour, str]:
    """Ethernet addresses of the neighbours that have one."""
    return {
        Neighbour(entry["ifindex"], entry.get_attr("NDA_DST")): entry.get_attr("NDA_LLADDR")
        for family in (AF_INET, AF_INET6)
        for entry in route.get_neighbours(family=family)
        if entry["state"] & NUD_VALID and entry.get_attr("NDA_LLADDR")
    }


def resolve(found: Ways, timeout: float) -> dict[str, str]:
    """Wait until all neighbours are resolved; what is wrong with the others after `timeout` seconds."""
    problems = dict(found.problems)
    if not found.neighbours:
        return problems
    with import_pyroute2().IPRoute() as route:
        deadline = time.monotonic() + timeout
        missing = found.neighbours.keys() - resolved(route).keys()
        for neighbour in missing:
            use(route, neighbour)
        while missing and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
            missing = missing - resolved(route).keys()
    for neighbour in missing:
        address = found.neighbours[neighbour]
        problems[address] = f"neighbour {neighbour.address} does not answer ARP or neighbour discovery"
    return problems


def local_addresses() -> set[str]:
    """The addresses of this host, as inet_ntop(3) writes them. Without pyroute2, which takes 0.1 s to import."""
    found = set()
    with netlink.Socket(netlink.NETLINK_ROUTE) as route:
        for reply in route.request(RTM_GETADDR, bytes(IFADDRMSG_SIZE), netlink.NLM_F_DUMP):
            if reply[0] not in (AF_INET, AF_INET6):
                continue
            given = dict(netlink.attributes(reply[IFADDRMSG_SIZE:]))
            # Of a link to one peer IFA_ADDRESS is the peer's; an address of IPv6 may have no IFA_LOCAL.
            found.add(socket.inet_ntop(reply[0], given.get(IFA_LOCAL) or given[IFA_ADDRESS]))
    return found
