# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ioctl(SIOCETHTOOL): receive-side scaling, the driver's identity, the number of receive rings.

Commands and structures are those of include/uapi/linux/ethtool.h. Linux 6.17 has a netlink message to set receive-side
scaling, too. It is not used: it does not tell the driver of a table that is equal to what is read, which is what a
driver that forgot its table needs, and it looks for differences in the first quarter of the table only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass

from . import rss_table

SIOCETHTOOL = 0x8946

GDRVINFO = 0x03
GSTRINGS, GSTATS, GSSET_INFO = 0x1B, 0x1D, 0x37
GRXFH, SRXFH = 0x29, 0x2A
GRXRINGS = 0x2D
GRSSH, SRSSH = 0x46, 0x47

INDIRECTION_NO_CHANGE = 0xFFFFFFFF
HASH_FUNCTIONS = {"toeplitz": 1 << 0, "xor": 1 << 1, "crc32": 1 << 2}
# enum of flow types, *_FLOW
FLOW_TYPES = {"tcp4": 1, "udp4": 2, "sctp4": 3, "tcp6": 5, "udp6": 6, "sctp6": 7, "ip4": 16, "ip6": 17}
# RXH_*
HASH_FIELDS = {
    "l2_dst": 1 << 1,
    "vlan": 1 << 2,
    "l3_proto": 1 << 3,
    "ip_src": 1 << 4,
    "ip_dst": 1 << 5,
    "port_src": 1 << 6,
    "port_dst": 1 << 7,
}
# What struct ethtool_rxnfc has room for; the kernel reads all of it for some commands.
RXNFC_SIZE = 192
# cmd, rss_context, indir_size, key_size, hfunc, input_xfrm, reserved
RXFH = struct.Struct("=IIIIBB2xI")
DRIVER_INFO = struct.Struct("=I32s32s32s32s32s12s5I")
ETH_SS_STATS = 1
ETH_GSTRING_LEN = 32
# interface name, pointer to the command's structure
IFREQ = struct.Struct("16sP16x")


@dataclass(frozen=True)
class Rss:
    """Empty where the device has none or does not say."""

    table: tuple[int, ...]
    key: bytes
    hash_function: str | None
    input_transformation: int


@dataclass(frozen=True)
class DriverInfo:
    driver: str
    version: str
    firmware: str
    bus: str


def call(index: int, content: bytes) -> bytes:
    """One command about a device, found by its index. Raises OSError."""
    try:
        name = socket.if_indextoname(index)
    except OSError:
        raise OSError(errno.ENODEV, "No such device") from None
    buffer = ctypes.create_string_buffer(content, len(content))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, SIOCETHTOOL, IFREQ.pack(name.encode(), ctypes.addressof(buffer)))
    return buffer.raw


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="replace")


def driver_info(index: int) -> DriverInfo:
    reply = DRIVER_INFO.unpack(call(index, struct.pack("=I", GDRVINFO).ljust(DRIVER_INFO.size, b"\0")))
    return DriverInfo(*(_text(field) for field in reply[1:5]))


def statistics(index: int) -> dict[str, int]:
    """What the driver counts, by its own names; nothing if it counts nothing of its own."""
    reply = call(index, struct.pack("=IIQI", GSSET_INFO, 0, 1 << ETH_SS_STATS, 0))
    if not struct.unpack_from("=Q", reply, 8)[0]:
        return {}
    count = struct.unpack_from("=I", reply, 16)[0]
    names = call(index, struct.pack("=III", GSTRINGS, ETH_SS_STATS, count) + bytes(ETH_GSTRING_LEN * count))
    values = call(index, struct.pack("=II", GSTATS, count) + bytes(8 * count))
    fields = struct.iter_unpack(f"{ETH_GSTRING_LEN}s", names[12:])
    return dict(zip((_text(name) for (name,) in fields), struct.unpack_from(f"={count}Q", values, 8)))


def _rxnfc(index: int, command: int, flow_type: int = 0, data: int = 0) -> int:
    content = struct.pack("=IIQ", command, flow_type, data).ljust(RXNFC_SIZE, b"\0")
    number: int = struct.unpack_from("=IIQ", call(index, content))[2]
    return number


def rx_rings(index: int) -> int:
    """How many receive queues a table may point at."""
    return _rxnfc(index, GRXRINGS)


def hash_fields(index: int, flow_type: str) -> list[str]:
    """The header fields that are hashed for a type of flows."""
    bits = _rxnfc(index, GRXFH, FLOW_TYPES[flow_type])
    return [name for name, bit in HASH_FIELDS.items() if bits & bit]


def set_hash_fields(index: int, flow_type: str, fields: list[str]) -> None:
    _rxnfc(index, SRXFH, FLOW_TYPES[flow_type], sum(HASH_FIELDS[name] for name in fields))


def parse_rss(reply: bytes) -> Rss:
    _command, _context, entries, key_size, function, transformation, _reserved = RXFH.unpack_from(reply)
    table = struct.unpack_from(f"={entries}I", reply, RXFH.size)
    start = RXFH.size + 4 * entries
    names = {bit: name for name, bit in HASH_FUNCTIONS.items()}
    return Rss(table, reply[start : start + key_size], names.get(function), transformation)


def rss(index: int) -> Rss:
    sizes = call(index, RXFH.pack(GRSSH, 0, 0, 0, 0, 0, 0))
    entries, key_size = struct.unpack_from("=II", sizes, 8)
    request = RXFH.pack(GRSSH, 0, entries, key_size, 0, 0, 0)
    return parse_rss(call(index, request + bytes(4 * entries + key_size)))


def rss_request(
    current: Rss, table: tuple[int, ...] | None = None, key: bytes = b"", hash_function: str | None = None
) -> bytes:
    """Change what is given; an empty table makes the driver's own."""
    entries = INDIRECTION_NO_CHANGE if table is None else len(table)
    # What was read is written back: before Linux 6.8 the field must be 0, since then 0 takes a transformation away.
    function = HASH_FUNCTIONS.get(hash_function, 0) if hash_function else 0
    header = RXFH.pack(SRSSH, 0, entries, len(key), function, current.input_transformation, 0)
    return header + struct.pack(f"={len(table or ())}I", *(table or ())) + key


def set_rss(
    index: int, table: tuple[int, ...] | None = None, key: bytes = b"", hash_function: str | None = None
) -> None:
    call(index, rss_request(rss(index), table, key, hash_function))


def bring_rss_back(
    index: int, table: tuple[int, ...] | None = None, key: bytes = b"", hash_function: str | None = None
) -> None:
    """As set_rss(), but a table that is the default becomes that.

    One that is written counts as somebody's (IFF_RXFH_CONFIGURED): with that set, no driver spreads packets over new
    channels, and mlx5e_ethtool_set_channels() and bnxt_set_channels() refuse any other number of them.
    """
    if table and table == rss_table.equal(len(table), rx_rings(index)):
        set_rss(index, (), key, hash_function)
        if rss(index).table == table:
            return
    set_rss(index, table, key, hash_function)
