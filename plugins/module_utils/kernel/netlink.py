# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Netlink messages, attributes and sockets with nothing but the standard library.

Numbers are those of include/uapi/linux/netlink.h and genetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

NETLINK_ROUTE, NETLINK_GENERIC = 0, 16
SOL_NETLINK = 270
# include/uapi/asm-generic/socket.h
SO_RCVBUFFORCE = 33
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 1 << 15
NLA_TYPE_MASK = 0x3FFF

GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

# length, type, flags, sequence number, port
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
# command, version, reserved
GENERIC_HEADER = struct.Struct("=BBH")
RECEIVE_SIZE = 1 << 18


class NetlinkError(OSError):
    """A refusal: the errno and, where the kernel gives them, its words (extended ack)."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(number, words or os.strerror(number))
        self.words = words


def _padded(size: int) -> int:
    return size + 3 & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    size = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(size, kind) + payload + bytes(_padded(size) - size)


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *members: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(members))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each, in order; arrays repeat a kind."""
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, offset)
        if size < ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[offset + ATTRIBUTE.size : offset + size]
        offset += _padded(size)


def number(payload: bytes) -> int:
    """An unsigned integer of any width."""
    return int.from_bytes(payload, sys.byteorder)


def string(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode()


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and payload of each message of a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        size, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
        if size < HEADER.size:
            return
        yield kind, flags, sequence, data[offset + HEADER.size : offset + size]
        offset += _padded(size)


def error_of(flags: int, payload: bytes) -> NetlinkError | None:
    """What a NLMSG_ERROR says; None for an acknowledgement."""
    code = struct.unpack_from("=i", payload)[0]
    if not code:
        return None
    words = ""
    if flags & NLM_F_ACK_TLVS:
        # Behind the code comes the header of the request, and the request itself unless it was capped.
        request = HEADER.unpack_from(payload, 4)[0]
        start = 4 + (HEADER.size if flags & NLM_F_CAPPED else _padded(request))
        words = string(dict(attributes(payload[start:])).get(NLMSGERR_ATTR_MSG, b""))
    return NetlinkError(-code, words)


_Self = TypeVar("_Self", bound="Socket")


class Socket:
    """Requests one after the other."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, payload: bytes, flags: int = NLM_F_ACK) -> list[bytes]:
        """The payloads of the kernel's replies. Raises NetlinkError."""
        self._sequence += 1
        self._socket.send(message(kind, NLM_F_REQUEST | flags, self._sequence, payload))
        replies: list[bytes] = []
        while True:
            for reply, reply_flags, sequence, content in messages(self._socket.recv(RECEIVE_SIZE)):
                if sequence != self._sequence or reply == NLMSG_NOOP:
                    continue
                if reply in (NLMSG_ERROR, NLMSG_DONE):
                    error = error_of(reply_flags, content) if reply == NLMSG_ERROR else None
                    if error:
                        raise error
                    return replies
                replies.append(content)


class Listener:
    """Receives what the kernel multicasts to groups of NETLINK_ROUTE, from when it is made.

    `groups`: bits RTMGRP_* of include/uapi/linux/rtnetlink.h. `buffer`: bytes that the kernel keeps while nobody
    receives; this needs CAP_NET_ADMIN. Raises OSError.
    """

    def __init__(self, groups: int, buffer: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
        self._datagram = memoryview(bytearray(RECEIVE_SIZE))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        self._socket.bind((0, groups))

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, limit: int) -> list[tuple[int, bytes]]:
        """Type and payload of the messages of the next datagrams, `limit` at most; none if none waits.

        Raises OSError with ENOBUFS if the kernel has dropped messages. It then drops all that follow until the last
        datagram has been received (NETLINK_S_CONGESTED), and does not say so again: make another listener.
        """
        found: list[tuple[int, bytes]] = []
        try:
            for _datagram in range(limit):
                size = self._socket.recv_into(self._datagram)
                received = messages(bytes(self._datagram[:size]))
                found += [(kind, payload) for kind, _flags, _sequence, payload in received]
        except BlockingIOError:
            pass
        return found


class GenericSocket(Socket):
    """A family of generic netlink. Raises NetlinkError with ENOENT if the kernel has none of this name."""

    def __init__(self, family: str, version: int = 1) -> None:
        super().__init__(NETLINK_GENERIC)
        self._version = version
        try:
            request = GENERIC_HEADER.pack(CTRL_CMD_GETFAMILY, 1, 0) + text(CTRL_ATTR_FAMILY_NAME, family)
            (reply,) = self.request(GENL_ID_CTRL, request)
        except OSError:
            self.close()
            raise
        self._family = number(dict(attributes(reply[GENERIC_HEADER.size :]))[CTRL_ATTR_FAMILY_ID])

    def call(self, command: int, members: Iterable[bytes]) -> dict[int, bytes]:
        """The attributes of the one reply, or none if the kernel only acknowledges. Raises NetlinkError."""
        replies = self.request(self._family, GENERIC_HEADER.pack(command, self._version, 0) + b"".join(members))
        return dict(attributes(replies[0][GENERIC_HEADER.size :])) if replies else {}
