# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ICMP: an echo request is answered."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from .common import Target, open_socket

# Type, code, checksum, identifier, sequence number.
HEADER = struct.Struct(">BBHHH")
TOKEN_BYTES = 16
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


def checksum(data: bytes) -> int:
    """Of the Internet (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(version: int, token: bytes) -> bytes:
    """The kernel fills in the checksum of ICMPv6, which covers addresses."""
    number = int.from_bytes(token[:2], "big")
    unsummed = HEADER.pack(REQUEST[version], 0, 0, number, 1) + token
    return HEADER.pack(REQUEST[version], 0, checksum(unsummed) if version == 4 else 0, number, 1) + token


def is_reply(version: int, packet: bytes, token: bytes) -> bool:
    """A raw socket of IPv4 gives the IP header, too."""
    start = (packet[0] & 15) * 4 if version == 4 and packet else 0
    return packet[start : start + 1] == bytes([REPLY[version]]) and packet[start + HEADER.size :] == token


async def check(target: Target) -> None:
    loop = asyncio.get_running_loop()
    version = 4 if target.family == socket.AF_INET else 6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    token = os.urandom(TOKEN_BYTES)
    # Ping sockets would need a setting of the kernel's, net.ipv4.ping_group_range.
    with open_socket(target, socket.SOCK_RAW, protocol) as channel:
        # Nothing is sent by this, so it does not wait.
        channel.connect((target.address, 0))
        await loop.sock_sendall(channel, request(version, token))
        while not is_reply(version, await loop.sock_recv(channel, 4096), token):
            pass
