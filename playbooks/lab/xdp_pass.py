# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach a program that only returns XDP_PASS: a veth drops XDP_TX frames unless its peer runs XDP, too."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_XDP = 6
XDP_PASS = 2
XDP_FLAGS_DRV_MODE = 1 << 2

RTM_SETLINK = 19
NLMSG_ERROR = 2
NLM_F_REQUEST_ACK = 1 | 4
IFLA_XDP = 43
IFLA_XDP_FD = 1
IFLA_XDP_FLAGS = 3
NLA_F_NESTED = 1 << 15


# r0 = XDP_PASS; exit
RETURN_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, XDP_PASS, 0x95, 0, 0, 0)


def load(code: bytes) -> int:
    """Return a descriptor of the program."""
    instructions = ctypes.create_string_buffer(code)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIQQIIQI",
            BPF_PROG_TYPE_XDP,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            0,
            0,
            0,
            0,
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_BPF[platform.machine()], BPF_PROG_LOAD, attributes, ctypes.sizeof(attributes) - 1)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"bpf(BPF_PROG_LOAD): {os.strerror(ctypes.get_errno())}")
    return descriptor


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload


def attach(interface: str, code: bytes = RETURN_PASS) -> None:
    """Attach the program natively to `interface`."""
    program = load(code)
    try:
        xdp = _attribute(
            IFLA_XDP | NLA_F_NESTED,
            _attribute(IFLA_XDP_FD, struct.pack("=i", program))
            + _attribute(IFLA_XDP_FLAGS, struct.pack("=I", XDP_FLAGS_DRV_MODE)),
        )
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(interface), 0, 0) + xdp
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST_ACK, 1, 0) + body)
            _length, kind, _flags, _sequence, _port, error = struct.unpack_from("=IHHIIi", netlink.recv(65536))
        if kind != NLMSG_ERROR or error:
            raise OSError(-error, f"XDP on {interface}: {os.strerror(-error)}")
    finally:
        os.close(program)
