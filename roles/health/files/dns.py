# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS: a question is answered without an error (RFC 1035), over the protocol of the service."""

from __future__ import annotations

import asyncio
import os
import struct

from . import tcp, udp
from .common import Failed, Target

HEADER = struct.Struct(">6H")
IS_ANSWER = 0x8000
RECURSION_DESIRED = 0x0100
CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
TYPE_A, CLASS_IN = 1, 1


def question(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".") if label]
    packed = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return packed + struct.pack(">HH", TYPE_A, CLASS_IN)


def query(name: str) -> bytes:
    number = int.from_bytes(os.urandom(2), "big")
    return HEADER.pack(number, RECURSION_DESIRED, 1, 0, 0, 0) + question(name)


def verify(request: bytes, answer: bytes) -> None:
    """Raises Failed."""
    if len(answer) < HEADER.size:
        raise Failed("the answer is no DNS message")
    number, flags, *_counts = HEADER.unpack_from(answer)
    if number != HEADER.unpack_from(request)[0] or not flags & IS_ANSWER:
        raise Failed("the answer belongs to another question")
    code = flags & 15
    if code:
        raise Failed(f"the answer is {CODES.get(code, f'error {code}')}")


async def check(target: Target) -> None:
    request = query(target.health.name or ".")
    exchange = _exchange_over_tcp if target.service.protocol == "tcp" else udp.exchange
    verify(request, await exchange(target, request))


async def _exchange_over_tcp(target: Target, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(sock=await tcp.connect(target))
    try:
        writer.write(len(request).to_bytes(2, "big") + request)
        length = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise Failed("the connection was closed before an answer") from None
    finally:
        writer.transport.abort()
