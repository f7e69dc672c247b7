# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ingress hook of tc (clsact): where the driver has no XDP, it costs less than generic XDP.

Others may have filters of their own there; ours is known by its priority, its handle and its name.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from . import attachments, bpf, netlink
from .link import HookRefused, driver, exists, import_pyroute2, interface_index, kernel_words, route_socket

# include/uapi/linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
CLSACT = 0xFFFF0000
INGRESS = 0xFFFFFFF2
EGRESS = INGRESS + 1
# Ours comes first; those behind it see what it passes.
PRIORITY = 1
HANDLE = 1
FILTER_NAME = "lbops_balancer"
ETH_P_ALL = 3

RTM_GETQDISC, RTM_GETTFILTER = 38, 46
# family, index, handle, parent, info
TCMSG = struct.Struct("=BxxxiIII")
TCA_KIND, TCA_OPTIONS, TCA_CHAIN = 1, 2, 11
TCA_BPF_NAME, TCA_BPF_ID = 7, 11


@dataclass(frozen=True)
class Filter:
    """A filter of tc; name and program are those of kind bpf."""

    priority: int
    protocol: int
    handle: int
    kind: str
    name: str = ""
    program_id: int | None = None

    @property
    def ours(self) -> bool:
        return self.name == FILTER_NAME and self.program_id is not None

    def __str__(self) -> str:
        program = f", {attachments.describe_program(self.program_id)}" if self.program_id else ""
        return (
            f"filter {self.name or self.kind} (priority {self.priority}, handle {self.handle:#x}, kind {self.kind}"
            f"{program})"
        )


def parse_filter(reply: bytes) -> Filter | None:
    """None for what is not reached from outside: other chains, and the head of a priority, which is no filter."""
    _family, _index, handle, _parent, info = TCMSG.unpack_from(reply)
    found = dict(netlink.attributes(reply[TCMSG.size :]))
    if TCA_OPTIONS not in found or netlink.number(found.get(TCA_CHAIN, b"")):
        return None
    kind = netlink.string(found[TCA_KIND])
    options = dict(netlink.attributes(found[TCA_OPTIONS])) if kind == "bpf" else {}
    return Filter(
        priority=info >> 16,
        protocol=socket.ntohs(info & 0xFFFF),
        handle=handle,
        kind=kind,
        name=netlink.string(options.get(TCA_BPF_NAME, b"")),
        program_id=netlink.number(options[TCA_BPF_ID]) if TCA_BPF_ID in options else None,
    )


def _dump(interface: str, kind: int, parent: int) -> list[bytes]:
    """Raises EngineError."""
    request = TCMSG.pack(0, interface_index(interface), 0, parent, 0)
    try:
        with netlink.Socket(netlink.NETLINK_ROUTE) as route:
            return route.request(kind, request, netlink.NLM_F_DUMP)
    except OSError as error:
        raise EngineError(f"tc on {interface}: the kernel does not list it: {error.strerror}; try again") from None


def filters(interface: str, parent: int = INGRESS) -> list[Filter]:
    """Those of clsact, in the order in which packets meet them; none without clsact. Raises EngineError."""
    return [found for found in map(parse_filter, _dump(interface, RTM_GETTFILTER, parent)) if found]


def _qdiscs(interface: str) -> set[str]:
    """The kinds of an interface's qdiscs."""
    index, found = interface_index(interface), set()
    for reply in _dump(interface, RTM_GETQDISC, 0):
        if TCMSG.unpack_from(reply)[1] == index:
            found.add(netlink.string(dict(netlink.attributes(reply[TCMSG.size :]))[TCA_KIND]))
    return found


def attached(interface: str) -> int | None:
    """The id of our program there."""
    return next((found.program_id for found in filters(interface) if found.ours), None)


def in_front(interface: str) -> list[str]:
    """What others attached so that packets meet it before our program, each with the command that takes it away.

    Any of it may keep packets from ours. Where ours is not there yet, it will be the first of clsact's filters.
    """
    index = interface_index(interface)
    tcx = attachments.tcx_programs(index)
    found = [attachments.describe_tcx(interface, index, program_id) for program_id in tcx]
    present = filters(interface)
    if any(entry.ours for entry in present):
        for entry in present[: [entry.ours for entry in present].index(True)]:
            place = f"pref {entry.priority} handle {entry.handle:#x} {entry.kind}"
            found.append(f"{entry} (tc filter del dev {interface} ingress {place}, and add it with a higher pref)")
    return found


def refusal(interface: str) -> str:
    """Why our program is not to be attached there, with the remedy; empty if nothing is known against it."""
    what = f"tc ingress on {interface}"
    front = in_front(interface)
    if front:
        return f"{what}: packets would meet something else before the balancer: {'; '.join(front)}"
    if "ingress" in _qdiscs(interface):
        return f"{what}: it has a qdisc ingress, beside which there is no clsact; tc qdisc del dev {interface} ingress"
    return _place_taken(interface)


def _place_taken(interface: str) -> str:
    """The filter of others in the place of ours, which the kernel would replace without a word, or refuse ours for."""
    for entry in filters(interface):
        if entry.ours or entry.priority != PRIORITY:
            continue
        if entry.handle == HANDLE or (entry.kind, entry.protocol) != ("bpf", ETH_P_ALL):
            return (
                f"tc ingress on {interface}: {entry} is in the balancer's place; give it another priority than "
                f"{PRIORITY}"
            )
    return ""


def attach(interface: str, program: int) -> None:
    """Put a program there in one step, in place of ours if there is one.

    Raises HookRefused with the kernel's words, or if a filter of others is in its place; EngineError if anything else
    fails. No clsact is left behind then.
    """
    index = interface_index(interface)
    what = f"tc ingress on {interface} (driver {driver(interface)})"
    taken = _place_taken(interface)
    if taken:
        raise HookRefused(taken)
    pyroute2 = import_pyroute2()
    added = False
    try:
        with route_socket() as route:
            if "clsact" not in _qdiscs(interface):
                added = True
                route.tc("add", "clsact", index)
            route.tc(
                "replace-filter",
                "bpf",
                index,
                HANDLE,
                fd=program,
                name=FILTER_NAME,
                parent=INGRESS,
                direct_action=True,
                prio=PRIORITY,
                protocol=ETH_P_ALL,
            )
    except BaseException as error:
        # The kernel may have done it, and only its answer is missing.
        if isinstance(error, OSError) and exists(interface) and attached(interface) == bpf.program_info(program).id:
            return
        if added:
            _remove_unused_clsact(interface)
        if isinstance(error, (pyroute2.NetlinkError, OSError)):
            raise _error(what, interface, error) from None
        raise


def detach(interface: str) -> None:
    """Take away ours, and clsact with it if nobody else uses that. Raises EngineError."""
    index = interface_index(interface)
    pyroute2 = import_pyroute2()
    try:
        with route_socket() as route:
            route.tc("del-filter", "bpf", index, HANDLE, parent=INGRESS, prio=PRIORITY, protocol=ETH_P_ALL)
    except (pyroute2.NetlinkError, OSError) as error:
        # The kernel may have done it, and only its answer is missing.
        if not exists(interface) or attached(interface) is not None:
            what = f"detaching tc ingress from {interface}"
            raise EngineError(str(_error(what, interface, error))) from None
    _remove_unused_clsact(interface)


def _remove_unused_clsact(interface: str) -> None:
    """Does nothing if the kernel refuses: an empty clsact costs nothing and is in nobody's way."""
    pyroute2 = import_pyroute2()
    try:
        if not filters(interface) and not filters(interface, EGRESS) and "clsact" in _qdiscs(interface):
            with route_socket() as route:
                route.tc("del", "clsact", interface_index(interface))
    except (EngineError, pyroute2.NetlinkError, OSError):
        pass


def _error(what: str, interface: str, error: Any) -> EngineError:
    if not exists(interface):
        return EngineError(f"{what}: {interface} went away, apply again once it is back")
    if isinstance(error, OSError):
        return EngineError(f"{what}: the kernel gives no answer: {error}; try again")
    words = f"{what}: {kernel_words(error)}"
    if error.code in (errno.EPERM, errno.EACCES):
        return EngineError(f"{words}; this needs CAP_NET_ADMIN and CAP_BPF, use become: true")
    return HookRefused(words)
