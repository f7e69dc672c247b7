# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others may attach to an interface, in all the ways in which the kernel lets them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, tc

# include/uapi/linux/bpf.h: commands, then attach types
PROG_ATTACH, PROG_DETACH, LINK_CREATE, LINK_DETACH = 8, 9, 28, 34
XDP, TCX_INGRESS = 37, 46
XDP_FLAGS = {"native": 1 << 2, "generic": 1 << 1}


def load(kind: int, verdict: int, name: str = "foreign") -> int:
    """A program that gives every packet this verdict."""
    code = bpf.INSTRUCTION.pack(0xB7, 0, 0, verdict) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)
    return bpf.program_load(name, code, program_type=kind)


def id_of(descriptor: int) -> int:
    return bpf.program_info(descriptor).id


def described(descriptor: int) -> str:
    info = bpf.program_info(descriptor)
    return f"program {info.id} ({info.name}, tag {info.tag})"


@contextmanager
def linked(interface: str, program: int, attach_type: int, flags: int = 0) -> Iterator[int]:
    """The id of a BPF link that this process holds."""
    index = socket.if_nametoindex(interface)
    descriptor, _attributes = bpf.call(LINK_CREATE, struct.pack("=IIII", program, index, attach_type, flags))
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            (number,) = (int(line.split()[1]) for line in file if line.startswith("link_id:"))
        yield number
    finally:
        os.close(descriptor)


def detach_link(link_id: int) -> None:
    """What bpftool link detach does."""
    descriptor, _attributes = bpf.call(30, struct.pack("=I", link_id))
    bpf.call(LINK_DETACH, struct.pack("=I", descriptor))
    os.close(descriptor)


@contextmanager
def tcx(interface: str, program: int) -> Iterator[None]:
    """A TCX program without a link."""
    index = socket.if_nametoindex(interface)
    bpf.call(PROG_ATTACH, struct.pack("=IIII", index, program, TCX_INGRESS, 0))
    try:
        yield
    finally:
        # What bpftool net detach does.
        bpf.call(PROG_DETACH, struct.pack("=IIII", index, 0, TCX_INGRESS, 0))


def put_filter(interface: str, program: int, priority: int, handle: int) -> None:
    """In clsact, which is there already."""
    options = {"fd": program, "name": "foreign", "parent": tc.INGRESS, "direct_action": True, "protocol": tc.ETH_P_ALL}
    with link.route_socket() as route:
        route.tc("add-filter", "bpf", socket.if_nametoindex(interface), handle, prio=priority, **options)
