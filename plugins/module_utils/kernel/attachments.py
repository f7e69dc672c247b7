# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who attached which BPF program to an interface, and how: XDP by a BPF link, or tc by TCX.

A program attached by netlink is seen in the link message; see link.py. Numbers are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import bpf

# Kernel 5.8; XDP links are of kernel 5.9.
LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID = 30, 31
LINK_TYPE_XDP = 6
# Kernel 6.6.
LINK_TYPE_TCX = 11
# Kernel 6.6. Programs there run before the filters of clsact.
TCX_INGRESS = 46
# The kernel allows 64 programs per interface and direction (BPF_MPROG_MAX).
MAX_TCX_PROGRAMS = 64

# struct bpf_link_info: type, id, program id, then a union, in which XDP and TCX links have the interface's index first.
LINK_INFO = struct.Struct("=III4xI")
LINK_INFO_SIZE = 128


@dataclass(frozen=True)
class BpfLink:
    """What attaches a program: netlink can neither replace nor detach an XDP program that has one."""

    id: int
    program_id: int
    # Of processes that hold a descriptor of the link: their ids and names.
    holders: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        processes = ", ".join(f"process {pid} ({name})" for pid, name in self.holders)
        return f"BPF link {self.id} (held by {processes or 'no process that is seen here, perhaps by a pin'})"

    @property
    def remedy(self) -> str:
        """What detaches the program."""
        stop = "stop that process or " if self.holders else ""
        return f"{stop}run bpftool link detach id {self.id}"


def _link_ids() -> Iterator[int]:
    last = 0
    while True:
        try:
            _result, attributes = bpf.call(LINK_GET_NEXT_ID, struct.pack("=II", last, 0))
        except FileNotFoundError:
            return
        last = struct.unpack_from("=I", attributes, 4)[0]
        yield last


def _link_info(link_id: int) -> tuple[int, ...] | None:
    """Type, id, program id, index of the interface; None if the link went away meanwhile."""
    try:
        descriptor, _attributes = bpf.call(LINK_GET_FD_BY_ID, struct.pack("=I", link_id))
    except FileNotFoundError:
        return None
    try:
        info = ctypes.create_string_buffer(LINK_INFO_SIZE)
        bpf.call(bpf.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
        return LINK_INFO.unpack_from(info.raw)
    finally:
        os.close(descriptor)


def holders(link_id: int) -> tuple[tuple[int, str], ...]:
    """Ids and names of the processes that hold a descriptor of a BPF link."""
    found = []
    wanted = f"link_id:\t{link_id}\n"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(wanted in file.read_text(errors="replace") for file in (process / "fdinfo").iterdir()):
                found.append((int(process.name), (process / "comm").read_text(errors="replace").strip()))
        except OSError:
            # The process ended, or closed the descriptor.
            continue
    return tuple(sorted(found))


def find_link(kind: int, index: int, program_id: int) -> BpfLink | None:
    """The BPF link by which a program is attached to the interface with this index; None if there is none.

    The program is asked for too, since an interface of another network namespace may have the same index.
    Raises OSError; the kernel gives links to CAP_SYS_ADMIN only.
    """
    for link_id in _link_ids():
        if _link_info(link_id) == (kind, link_id, program_id, index):
            return BpfLink(link_id, program_id, holders(link_id))
    return None


def describe_tcx(interface: str, index: int, program_id: int) -> str:
    """A TCX program with the command that detaches it; without CAP_SYS_ADMIN its BPF link is unknown."""
    try:
        by_link = find_link(LINK_TYPE_TCX, index, program_id)
    except PermissionError:
        by_link = None
    if by_link:
        return f"TCX {describe_program(program_id)} by {by_link} ({by_link.remedy})"
    return f"TCX {describe_program(program_id)} (bpftool net detach tcx_ingress dev {interface})"


def tcx_programs(index: int) -> list[int]:
    """Ids of the TCX programs on the ingress of an interface, in the order in which they run.

    Empty on kernels without TCX (before 6.6), and for a caller without CAP_NET_ADMIN.
    """
    ids = (ctypes.c_uint32 * MAX_TCX_PROGRAMS)()
    try:
        _result, attributes = bpf.call(
            bpf.PROG_QUERY,
            struct.pack("=IIIIQII", index, TCX_INGRESS, 0, 0, ctypes.addressof(ids), len(ids), 0),
        )
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENODEV):
            return []
        raise
    return list(ids[: struct.unpack_from("=I", attributes, 24)[0]])


def describe_program(program_id: int) -> str:
    """Id, name and tag, for messages."""
    try:
        descriptor = bpf.program_fd(program_id)
    except OSError:
        return f"program {program_id}"
    try:
        info = bpf.program_info(descriptor)
    finally:
        os.close(descriptor)
    return f"program {program_id} ({info.name or 'without a name'}, tag {info.tag})"
