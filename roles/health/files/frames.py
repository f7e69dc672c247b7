# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets made by hand, for ways that no socket of the kernel's takes. Pure functions."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from engine.config.addresses import Address

from .icmp import REPLY, REQUEST, checksum

ETHERTYPES = {4: 0x0800, 6: 0x86DD}
TTL = 64
SYN, RST, ACK = 0x02, 0x04, 0x10
WINDOW = 1024
# The first of the ports that the program sends GUE from.
GUE_SOURCE_PORT = 49152
ICMP_OF = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
# What answers of one exchange have in common: the protocol, with the ports as answers bear them, or an echo's token.
Mark = tuple[int, bytes]


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


def gue(port: int, protocol: int, packet: bytes) -> bytes:
    """The packet behind headers of UDP, without a checksum, and of GUE (draft-ietf-intarea-gue-09, variant 0)."""
    return struct.pack(">HHHHBBH", GUE_SOURCE_PORT, port, 12 + len(packet), 0, 0, protocol, 0) + packet


def mark_of(flow: Flow, protocol: int, token: bytes = b"") -> Mark:
    """That of the flow's answers; the token is that of an echo."""
    return protocol, token or struct.pack(">HH", flow.port, flow.source_port)


def answer_in(version: int, packet: bytes) -> tuple[Mark, bytes] | None:
    """Whose answer it is, and what is in it from the header of TCP, UDP or ICMP on; None if it is something else."""
    if not packet or packet[0] >> 4 != version:
        return None
    if version == 4:
        header, total, protocol = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big"), packet[9:10]
    else:
        header, total, protocol = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[6:7]
    segment = packet[header:total]
    if protocol in (bytes([socket.IPPROTO_TCP]), bytes([socket.IPPROTO_UDP])):
        return (protocol[0], segment[:4]), segment
    if protocol == bytes([ICMP_OF[version]]) and segment[:1] == bytes([REPLY[version]]):
        return (protocol[0], segment[8:]), segment
    return None


def syn_answer(segment: bytes, sequence: int) -> bool | None:
    """Whether a connection was accepted or refused; None if the segment says neither."""
    if len(segment) < 20 or int.from_bytes(segment[8:12], "big") != (sequence + 1) & 0xFFFFFFFF:
        return None
    flags = segment[13]
    if flags & RST:
        return False
    return True if flags & (SYN | ACK) == SYN | ACK else None
