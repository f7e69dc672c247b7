# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP: a connection is accepted."""

from __future__ import annotations

import asyncio
import socket

from .common import Target, open_socket


async def connect(target: Target) -> socket.socket:
    """A connected socket."""
    connection = open_socket(target, socket.SOCK_STREAM)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (target.address, target.port))
    except BaseException:
        connection.close()
        raise
    return connection


async def check(target: Target) -> None:
    (await connect(target)).close()
