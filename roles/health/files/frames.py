# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets made by hand, for ways that no socket of the kernel's takes. Pure functions."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from engine.addresses import Address

from .icmp import REPLY, REQUEST, checksum

ETHERTYPES = {4: 0x0800, 6: 0x86DD}
TTL = 64
SYN, RST, ACK = 0x02, 0x04, 0x10
WINDOW = 1024
ICMP_OF = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


@dataclass(frozen=True)
class Flow:
    """From here to the VIP; ports are 0 for ICMP."""

    source: Address
    vip: Address
    source_port: int = 0
    port: int = 0

    @property
    def version(self) -> int:
        return self.vip.family


def ip_packet(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    if destination.family == 6:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, TTL) + source.packed + destination.packed + payload
    head = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0x4000, TTL, protocol)
    addresses = source.packed + destination.packed
    return head + checksum(head + bytes(2) + addresses).to_bytes(2, "big") + addresses + payload


def _summed(flow: Flow, protocol: int, segment: bytes, place: int) -> bytes:
    """With the checksum over segment and addresses at `place`."""
    pseudo = flow.source.packed + flow.vip.packed + struct.pack(">II", len(segment), protocol)
    total = checksum(pseudo + segment)
    if protocol == socket.IPPROTO_UDP and not total:
        total = 0xFFFF
    return segment[:place] + total.to_bytes(2, "big") + segment[place + 2 :]


def udp(flow: Flow, payload: bytes) -> bytes:
    segment = struct.pack(">HHHH", flow.source_port, flow.port, 8 + len(payload), 0) + payload
    protocol = socket.IPPROTO_UDP
    return ip_packet(flow.source, flow.vip, protocol, _summed(flow, protocol, segment, 6))


def tcp(flow: Flow, sequence: int, flags: int) -> bytes:
    segment = struct.pack(">HHIIBBHHH", flow.source_port, flow.port, sequence, 0, 5 << 4, flags, WINDOW, 0, 0)
    protocol = socket.IPPROTO_TCP
    return ip_packet(flow.source, flow.vip, protocol, _summed(flow, protocol, segment, 16))


def echo(flow: Flow, token: bytes) -> bytes:
    message = struct.pack(">BBHHH", REQUEST[flow.version], 0, 0, int.from_bytes(token[:2], "big"), 1) + token
    protocol = ICMP_OF[flow.version]
    if flow.version == 6:
        return ip_packet(flow.source, flow.vip, protocol, _summed(flow, protocol, message, 2))
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    return ip_packet(flow.source, flow.vip, protocol, message)


def answer_of(flow: Flow, protocol: int, packet: bytes) -> bytes | None:
    """What the VIP sent back on this flow, from the header of TCP, UDP or ICMP on; None if it is something else."""
    if not packet or packet[0] >> 4 != flow.version:
        return None
    if flow.version == 4:
        header, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        found, addresses = packet[9:10], packet[12:20]
    else:
        header, total = 40, 40 + int.from_bytes(packet[4:6], "big")
        found, addresses = packet[6:7], packet[8:40]
    if found != bytes([protocol]) or addresses != flow.vip.packed + flow.source.packed:
        return None
    segment = packet[header:total]
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        if segment[:4] != struct.pack(">HH", flow.port, flow.source_port):
            return None
    return segment


def is_echo_reply(flow: Flow, message: bytes, token: bytes) -> bool:
    return message[:1] == bytes([REPLY[flow.version]]) and message[8:] == token


def syn_answer(segment: bytes, sequence: int) -> bool | None:
    """Whether a connection was accepted or refused; None if the segment says neither."""
    if len(segment) < 20 or int.from_bytes(segment[8:12], "big") != (sequence + 1) & 0xFFFFFFFF:
        return None
    flags = segment[13]
    if flags & RST:
        return False
    return True if flags & (SYN | ACK) == SYN | ACK else None
