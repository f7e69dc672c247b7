# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of this host, as /proc/net shows them: who would no longer get packets for an address and port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
# TCP_LISTEN and, for UDP, TCP_CLOSE (include/net/tcp_states.h).
LISTENING = {"tcp": "0A", "udp": "07"}


def listeners(address: bytes, protocol: str, first_port: int, last_port: int) -> list[str]:
    """The processes that listen on this address, or on any, and one of these ports: "sshd on port 22", in order.

    `address`: 4 or 16 bytes in network order.
    """
    inodes = {}
    for family in ("", "6"):
        for local, port, inode in _sockets(f"{protocol}{family}", LISTENING[protocol]):
            if first_port <= port <= last_port and (not any(local) or local == address):
                inodes[inode] = port
    found = {(port, _owner(inode)) for inode, port in inodes.items()}
    return [f"{owner} on port {port}" for port, owner in sorted(found)]


def _sockets(table: str, state: str) -> Iterator[tuple[bytes, int, str]]:
    """Local address, port and inode of the sockets in this state; proc_net_tcp.rst in the kernel's documentation."""
    try:
        lines = (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if fields[3] != state:
            continue
        words, port = fields[1].split(":")
        # Words of 32 bits in the byte order of this machine.
        local = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
        yield local, int(port, 16), fields[9]


def _owner(inode: str) -> str:
    for process in PROC.glob("[0-9]*"):
        try:
            if any(os.readlink(entry) == f"socket:[{inode}]" for entry in (process / "fd").iterdir()):
                return (process / "comm").read_text(encoding="utf-8").strip()
        except OSError:
            # The process has ended.
            continue
    return "a process"
