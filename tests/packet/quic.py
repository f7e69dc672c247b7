# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QUIC for the model and for the frames that it is compared on: headers of packets, and what connection ids say.

RFC 8999 and RFC 9000, section 17, for the headers; draft-ietf-quic-load-balancers for the ids.
"""

from __future__ import annotations

import struct
from typing import Any

INITIAL, ZERO_RTT, HANDSHAKE, RETRY = range(4)
VERSION_1, VERSION_2 = 1, 0x6B3343CF
# What version 2 calls the types of version 1 (RFC 9369, section 3.2).
TYPES = {VERSION_1: (0, 1, 2, 3), VERSION_2: (1, 2, 3, 0)}
UNROUTABLE = 7
# The shortest datagram in which the data plane looks for an id, by the form of its header.
LEAST_SHORT, LEAST_LONG = 10, 15


def connection_id(server_id: str, config_id: int = 0, nonce: bytes = b"\x99" * 4, first: int = 0x0B) -> bytes:
    """The id of a connection that the server with this id has chosen."""
    return bytes((config_id << 5 | first & 0x1F,)) + bytes.fromhex(server_id) + nonce


def short(destination: bytes, rest: bytes = bytes(24)) -> bytes:
    """A packet of an established connection."""
    return b"\x40" + destination + rest


def long(
    kind: int, destination: bytes, version: int = VERSION_1, source: bytes = b"client", rest: bytes = bytes(24)
) -> bytes:
    """A packet with a long header; `kind` is one of version 1, whatever the version."""
    first = 0xC0 | TYPES.get(version, TYPES[VERSION_1])[kind] << 4
    ids = bytes((len(destination),)) + destination + bytes((len(source),)) + source
    return bytes((first,)) + struct.pack(">I", version) + ids + rest


def server_choice(datagram: bytes, length: int) -> bytes | None:
    """The destination connection id if no client can have chosen it and it has room for a server id of this length."""
    if len(datagram) < LEAST_SHORT:
        return None
    if datagram[0] < 0x80:
        return datagram[1:]
    (version,) = struct.unpack_from(">I", datagram, 1)
    if len(datagram) < LEAST_LONG or version not in TYPES or datagram[0] >> 4 & 3 != TYPES[version][HANDSHAKE]:
        return None
    return datagram[6:] if datagram[5] >= 1 + length else None


def named_server(service: dict[str, Any], datagram: bytes) -> str | None:
    """The server id in a datagram for a service, empty for one of another config; None if there is none to look for."""
    length = service["quic_server_id_length"]
    found = server_choice(datagram, length)
    if found is None or found[0] >> 5 == UNROUTABLE:
        return None
    return found[1 : 1 + length].hex() if found[0] >> 5 == service.get("quic_config_id", 0) else ""
