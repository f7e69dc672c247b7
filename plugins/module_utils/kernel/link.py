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
from . import attachments, bpf
from .device import Device, find, missing

# include/uapi/linux/if_link.h
FLAG_IF_NOEXIST = 1 << 0
FLAG_GENERIC = 1 << 1
FLAG_NATIVE = 1 << 2
FLAG_REPLACE = 1 << 4
FLAG_OFFLOAD = 1 << 3
HOOK_FLAGS = {"native": FLAG_NATIVE, "generic": FLAG_GENERIC, "offload": FLAG_OFFLOAD}
# What iproute2 calls the hooks.
OFF_WORDS = {"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}
# IFLA_XDP_ATTACHED: none, driver, generic, offload, several
HOOKS = {1: "native", 2: "generic", 3: "offload", 4: "several"}


@dataclass(frozen=True)
class Attached:
    """A program on a hook of an interface."""

    hook: str
    program_id: int


def import_pyroute2() -> Any:
    try:
        import pyroute2
        from pyroute2.netlink.rtnl import ifinfmsg
    except ImportError as error:
        raise EngineError(
            f"pyroute2 is missing ({error}); install the distribution's package python3-pyroute2, or apply the role "
            "lbops.xdp.bcc"
        ) from None
    # Before 0.9 the flags were encoded as two bytes in network order, which the kernel refuses with ERANGE.
    ifinfmsg.ifinfmsg.xdp.xdp_flags.fields = [("value", "I")]
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
    try:
        return find(interface).driver() or "virtual"
    except EngineError:
        # The request that the message is about tells better what is wrong with the interface.
        return "unknown"


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
    """In bytes, without the Ethernet header. Raises EngineError."""
    return Device(interface_index(interface), interface).link().mtu


def set_mtu(interface: str, size: int) -> None:
    """Raises EngineError with the kernel's words."""
    pyroute2 = import_pyroute2()
    try:
        with route_socket() as route:
            route.link("set", index=interface_index(interface), mtu=size)
    except pyroute2.NetlinkError as error:
        raise EngineError(f"{interface}: mtu={size}: the kernel refuses: {kernel_words(error)}") from None
    except OSError as error:
        # The kernel may have done it, and only its answer is missing.
        if mtu(interface) != size:
            raise EngineError(f"{interface}: mtu={size}: the kernel gives no answer: {error}; try again") from None


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

    # What was put back after it, in a sentence.
    put_back = ""


def attach(interface: str, program: int, hook: str, replaces: int | None) -> None:
    """Put a program on a hook in one step: in place of the program with the descriptor `replaces`, or of none.

    Raises HookRefused with the kernel's words if the hook does not take it, EngineError if anything else fails.
    """
    flags = HOOK_FLAGS[hook]
    attributes = [["IFLA_XDP_FD", program]]
    if replaces is None:
        flags |= FLAG_IF_NOEXIST
    else:
        flags |= FLAG_REPLACE
        attributes.append(["IFLA_XDP_EXPECTED_FD", replaces])
    attributes.insert(1, ["IFLA_XDP_FLAGS", flags])
    expected = bpf.program_info(replaces).id if replaces is not None else None
    wanted = Attached(hook, bpf.program_info(program).id)
    _set(interface, attributes, f"{hook} XDP on {interface} (driver {driver(interface)})", expected, wanted)


def detach(interface: str, hook: str, program: int) -> None:
    """Take away this very program, no other. Raises EngineError."""
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
        bpf.program_info(program).id,
        None,
    )


def off_command(interface: str, hook: str) -> str:
    """The command that detaches an XDP program which netlink attached."""
    return f"ip link set dev {interface} {OFF_WORDS.get(hook, 'xdp')} off"


def bpf_link(interface: str) -> attachments.BpfLink | None:
    """The BPF link by which the XDP program of an interface is attached; None if netlink attached it."""
    found = attached(interface)
    if found is None:
        return None
    try:
        return attachments.find_link(attachments.LINK_TYPE_XDP, interface_index(interface), found.program_id)
    except OSError as error:
        raise EngineError(
            f"{interface}: cannot read the BPF links of this host: {error.strerror}; run as root"
        ) from None


def _set(interface: str, attributes: list[list[Any]], what: str, expected: int | None, wanted: Attached | None) -> None:
    """`expected` is the id of the program that is to be on the hook before, `wanted` what is to be on it afterwards."""
    pyroute2 = import_pyroute2()
    index = interface_index(interface)
    try:
        with route_socket() as route:
            route.link("set", index=index, xdp={"attrs": attributes})
    except pyroute2.NetlinkError as error:
        raise _refusal(interface, f"{what}: {kernel_words(error)}", error.code, expected) from None
    except OSError as error:
        # The kernel may have done it, and only its answer is missing.
        if attached(interface) != wanted:
            raise EngineError(f"{what}: the kernel gives no answer: {error}; try again") from None


def _refusal(interface: str, words: str, code: int, expected: int | None) -> EngineError:
    """The error for the kernel's refusal to change an XDP hook, which says what the hook has to do with it."""
    if code == errno.ENODEV or not exists(interface):
        return EngineError(f"{words}; {interface} went away, apply again once it is back")
    if code in (errno.EPERM, errno.EACCES):
        return EngineError(f"{words}; this needs CAP_NET_ADMIN and CAP_BPF, use become: true")
    if code not in (errno.EEXIST, errno.EBUSY):
        return HookRefused(words)
    found = attached(interface)
    try:
        by_link = bpf_link(interface)
    except EngineError:
        # Without CAP_SYS_ADMIN; the kernel's words say as much as can be known.
        by_link = None
    if by_link:
        program = attachments.describe_program(by_link.program_id)
        return EngineError(f"{words}; {program} is attached by {by_link}: {by_link.remedy}, then apply again")
    if (found.program_id if found else None) != expected:
        program = attachments.describe_program(found.program_id) if found else "no program"
        on_hook = f"{program} is on the {found.hook} hook" if found else f"{program} is attached"
        return EngineError(f"{words}; the hook was changed meanwhile, {on_hook} now: apply again")
    return HookRefused(words)
