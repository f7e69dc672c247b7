# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ingress hook of tc (clsact): where the driver has no XDP, it costs less than generic XDP.

Others may have filters of their own there; ours is known by its place and its name.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import Any

from ..errors import EngineError
from . import netlink
from .link import HookRefused, driver, import_pyroute2, interface_index, kernel_words, route_socket

# include/uapi/linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
CLSACT = 0xFFFF0000
INGRESS = 0xFFFFFFF2
# Ours comes first; those behind it see what it passes.
PRIORITY = 1
HANDLE = 1
FILTER_NAME = "lbops_balancer"
ETH_P_ALL = 3

RTM_GETTFILTER = 46
# family, index, handle, parent, info
TCMSG = struct.Struct("=BxxxiIII")
TCA_OPTIONS, TCA_BPF_NAME, TCA_BPF_ID = 2, 7, 11


@contextmanager
def _refusals(interface: str):
    pyroute2 = import_pyroute2()
    try:
        yield
    except pyroute2.NetlinkError as error:
        what = f"tc ingress on {interface} (driver {driver(interface)})"
        raise HookRefused(f"{what}: {kernel_words(error)}") from None


def _options(message: Any) -> Any:
    options = message.get_attr("TCA_OPTIONS")
    return options if hasattr(options, "get_attr") else None


def _filters(route: Any, index: int) -> list[Any]:
    pyroute2 = import_pyroute2()
    try:
        return list(route.get_filters(index=index, parent=INGRESS))
    except pyroute2.NetlinkError:
        # There is no clsact.
        return []


def attached(interface: str) -> int | None:
    """The id of our program there."""
    request = TCMSG.pack(0, interface_index(interface), 0, INGRESS, 0)
    with netlink.Socket(netlink.NETLINK_ROUTE) as route:
        for reply in route.request(RTM_GETTFILTER, request, netlink.NLM_F_DUMP):
            found = dict(netlink.attributes(reply[TCMSG.size :]))
            options = dict(netlink.attributes(found.get(TCA_OPTIONS, b"")))
            if netlink.string(options.get(TCA_BPF_NAME, b"")) == FILTER_NAME and TCA_BPF_ID in options:
                return netlink.number(options[TCA_BPF_ID])
    return None


def _refuse_other(interface: str, filters: list[Any]) -> None:
    """Another's filter in our place would be replaced without a word."""
    for message in filters:
        options = _options(message)
        if options is None or message["info"] >> 16 != PRIORITY or message["handle"] != HANDLE:
            continue
        name = options.get_attr("TCA_BPF_NAME") or message.get_attr("TCA_KIND")
        if name != FILTER_NAME:
            raise HookRefused(
                f"tc ingress on {interface}: filter {name} has priority {PRIORITY} and handle {HANDLE} there; give it "
                "another priority"
            )


def attach(interface: str, program: int) -> None:
    """Put a program there in one step, in place of ours if there is one.

    Raises HookRefused with the kernel's words, or if another's filter is in its place.
    """
    index = interface_index(interface)
    with route_socket() as route:
        _refuse_other(interface, _filters(route, index))
        with _refusals(interface):
            if not any(qdisc.get_attr("TCA_KIND") == "clsact" for qdisc in route.get_qdiscs(index=index)):
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


def detach(interface: str) -> None:
    """Take away ours, and clsact with it if nobody else uses that."""
    index = interface_index(interface)
    pyroute2 = import_pyroute2()
    with route_socket() as route:
        try:
            route.tc("del-filter", "bpf", index, HANDLE, parent=INGRESS, prio=PRIORITY, protocol=ETH_P_ALL)
            egress = list(route.get_filters(index=index, parent=INGRESS + 1))
            if not _filters(route, index) and not egress:
                route.tc("del", "clsact", index)
        except pyroute2.NetlinkError as error:
            raise EngineError(f"detaching tc ingress from {interface}: {kernel_words(error)}") from None
