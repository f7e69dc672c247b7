# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vectors that a running irqbalance leaves alone, through its socket.

irqbalance forgets them when it is restarted.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

SOCKETS = Path("/run/irqbalance")
PROC = Path("/proc")
# It reads a request into a buffer of 500 bytes, newer releases into one of 256 behind the command's name.
LONGEST = 240
_BANNED = re.compile(r"\bIRQ (\d+) ")
# It answers between two scans, and after a change of the list it scans for several seconds.
_TIMEOUT = 60.0  # seconds


def parse_setup(reply: str) -> set[int]:
    """The interrupts it leaves alone, from its answer to the request "setup"."""
    return {int(irq) for irq in _BANNED.findall(reply)}


def _list(irqs: Iterable[int]) -> str:
    return " ".join(map(str, sorted(irqs))) or "NONE"


def fits(irqs: Iterable[int]) -> bool:
    """Whether it takes so long a list."""
    return len(_list(irqs)) <= LONGEST


def ban_request(irqs: Iterable[int]) -> str:
    """The whole list, which takes the place of the one before."""
    return f"settings ban irqs {_list(irqs)}"


def _ask(path: Path, request: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_TIMEOUT)
        channel.connect(str(path))
        credentials = struct.pack("=iII", os.getpid(), os.getuid(), os.getgid())
        channel.sendmsg([request.encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
        reply = b""
        while True:
            received = channel.recv(65536)
            if not received:
                return reply.decode(errors="replace")
            reply += received


def running() -> Path | None:
    """The socket of a running irqbalance, which is named after its process.

    Do not try by connecting: who hangs up before the answer, or without a question, makes it die of SIGPIPE.
    """
    for path in SOCKETS.glob("irqbalance*.sock"):
        process = PROC / path.stem[len("irqbalance") :] / "comm"
        try:
            if process.read_text(encoding="ascii").strip() == "irqbalance":
                return path
        except OSError:
            # It was killed and left its socket behind.
            continue
    return None


def banned(path: Path) -> set[int]:
    return parse_setup(_ask(path, "setup"))


def ban(path: Path, irqs: Iterable[int]) -> None:
    _ask(path, ban_request(irqs))
