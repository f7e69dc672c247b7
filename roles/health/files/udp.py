# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP: a request is answered, with a text if one is asked for."""

from __future__ import annotations

import asyncio
import socket

from .common import Failed, Target, open_socket

LONGEST = 65535


async def check(target: Target) -> None:
    answer = await exchange(target, (target.health.request or "").encode())
    verify(target, answer)


def verify(target: Target, answer: bytes) -> None:
    if target.health.response and target.health.response.encode() not in answer:
        raise Failed("the answer does not hold the response")


async def exchange(target: Target, request: bytes) -> bytes:
    """The first datagram that comes back."""
    loop = asyncio.get_running_loop()
    with open_socket(target, socket.SOCK_DGRAM) as channel:
        # A connected socket takes datagrams from nobody else, and is told of ICMP errors.
        channel.connect((target.address, target.port))
        await loop.sock_sendall(channel, request)
        return await loop.sock_recv(channel, LONGEST)
