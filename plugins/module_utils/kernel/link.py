# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The XDP hook of an interface, through pyroute2."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, errno_name
from .device import Device, find, missing

# include/uapi/linux/if_link.h
FLAG_IF_NOEXIST = 1 << 0
FLAG_GENERIC = 1 << 1
FLAG_NATIVE = 1 << 2
FLAG_REPLACE = 1 << 4
FLAG_OFFLOAD = 1 << 3
HOOK_FLAGS = {"native": FLAG_NATIVE, "generic": FLAG_GENERIC, "offload": FLAG_OFFLOAD}
# IFLA_XDP_ATTACHED: none, driver, generic, offload, several
HOOKS = {1: "native", 2: "generic", 3: "offload", 4: "several"}


@dataclass(frozen=True)
class Attached:
    hook: str
    program_id: int


def import_pyroute2() -> Any:
    try:
        import pyroute2
        from pyroute2.netlink.rtnl import ifinfmsg
        from pyroute2.netlink.rtnl.tcmsg import sched_bpf
    except ImportError as error:
        raise EngineError(
            f"pyroute2 is missing ({error}); install the distribution's package python3-pyroute2, or apply the role "
            "lbops.xdp.bcc"
        ) from None
    # Before 0.9 the flags were encoded as two bytes in network order, which the kernel refuses with ERANGE.
    ifinfmsg.ifinfmsg.xdp.xdp_flags.fields = [("value", "I")]
    # It does not know the attributes that came last, the program's id among them.
    if "TCA_BPF_ID" not in dict(sched_bpf.options.nla_map):
        sched_bpf.options.nla_map += (
            ("TCA_BPF_FLAGS_GEN", "uint32"),
            ("TCA_BPF_TAG", "hex"),
            ("TCA_BPF_ID", "uint32"),
        )
    return pyroute2


@contextmanager
def route_socket() -> Iterator[Any]:
    pyroute2 = import_pyroute2()
    with pyroute2.IPRoute(ext_ack=True) as route:
        yield route


def interface_index(interface: str) -> int:
    """The kernel's index. Raises EngineError if there is no such interface."""
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError):
        raise missing(interface) from None


def exists(interface: str) -> bool:
    """In the network namespace of this process, of which /sys may know nothing."""
    return interface in (name for dummy, name in socket.if_nameindex())


def index_or_0(interface: str | None) -> int:
    """0, which is no interface's, for one that is not there: the others of its service stand in."""
    return interface_index(interface) if interface and exists(interface) else 0


def driver(interface: str) -> str:
    """For messages: the name of the interface's driver."""
    return find(interface).driver() or "virtual"


def attached(interface: str) -> Attached | None:
    """The program on the hook, whoever put it there."""
    found = Device(interface_index(interface), interface).link()
    hook = HOOKS.get(found.xdp_attached)
    return Attached(hook, found.xdp_program or 0) if hook else None


def kernel_words(error: Any) -> str:
    """What the kernel said against a request."""
    name = errno_name(error.code)
    words = error.args[1] if len(error.args) > 1 else name
    return f"{words} ({name})"


def mtu(interface: str) -> int:
    """In bytes, without the Ethernet header."""
    with route_socket() as route:
        return route.link("get", index=interface_index(interface))[0].get_attr("IFLA_MTU")


def set_mtu(interface: str, size: int) -> None:
    pyroute2 = import_pyroute2()
    try:
        with route_socket() as route:
            route.link("set", index=interface_index(interface), mtu=size)
    except pyroute2.NetlinkError as error:
        raise EngineError(f"{interface}: mtu={size}: the kernel refuses: {kernel_words(error)}") from None


def links_up(interfaces: Iterable[str]) -> set[int]:
    """The indexes of those that exist and whose link is up."""
    wanted = set(interfaces)
    if not wanted:
        return set()
    with route_socket() as route:
        return {
            message["index"]
            for message in route.get_links()
            if message.get_attr("IFLA_IFNAME") in wanted and message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN")
        }


class HookRefused(EngineError):
    """The kernel or the driver does not take the program on this hook."""


def attach(interface: str, program: int, hook: str, replaces: int | None) -> None:
    """Put a program on a hook in one step: in place of the program with the descriptor `replaces`, or of none.

    Raises HookRefused with the kernel's words if the hook does not take it.
    """
    flags = HOOK_FLAGS[hook]
    attributes = [["IFLA_XDP_FD", program]]
    if replaces is None:
        flags |= FLAG_IF_NOEXIST
    else:
        flags |= FLAG_REPLACE
        attributes.append(["IFLA_XDP_EXPECTED_FD", replaces])
    attributes.insert(1, ["IFLA_XDP_FLAGS", flags])
    _set(interface, attributes, f"{hook} XDP on {interface} (driver {driver(interface)})")


def detach(interface: str, hook: str, program: int) -> None:
    """Take away this very program, no other."""
    if hook not in HOOK_FLAGS:
        raise EngineError(f"{interface} carries a program on the {hook} hook; detach that one by hand")
    _set(
        interface,
        [
            ["IFLA_XDP_FD", -1],
            ["IFLA_XDP_FLAGS", HOOK_FLAGS[hook] | FLAG_REPLACE],
            ["IFLA_XDP_EXPECTED_FD", program],
        ],
        f"detaching {hook} XDP from {interface}",
    )


def _set(interface: str, attributes: list, what: str) -> None:
    pyroute2 = import_pyroute2()
    index = interface_index(interface)
    try:
        with route_socket() as route:
            route.link("set", index=index, xdp={"attrs": attributes})
    except pyroute2.NetlinkError as error:
        if error.code in (errno.EEXIST, errno.EBUSY):
            raise EngineError(f"{what}: {kernel_words(error)}; the hook was changed meanwhile, try again") from None
        raise HookRefused(f"{what}: {kernel_words(error)}") from None
