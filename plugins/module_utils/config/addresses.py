# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""IPv4 and IPv6 addresses and prefixes, as people write them and as packets hold them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cached_property

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
BITS = {4: 32, 6: 128}


def family_of(text: str) -> int:
    """4 or 6."""
    return 6 if ":" in text else 4


@dataclass(frozen=True)
class Address:
    """An address in the one form that inet_ntop(3) writes."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def family(self) -> int:
        """4 or 6."""
        return family_of(self.text)

    @cached_property
    def packed(self) -> bytes:
        """4 or 16 bytes, as in a packet."""
        return socket.inet_pton(FAMILIES[self.family], self.text)

    @cached_property
    def words(self) -> bytes:
        """As the maps hold it: 16 bytes, IPv4 in the first four."""
        return self.packed.ljust(16, b"\0")


def _packed(text: str) -> bytes:
    try:
        return socket.inet_pton(FAMILIES[family_of(text)], text)
    except (OSError, ValueError):
        raise ValueError("is not an IPv4 address such as 192.0.2.10 or an IPv6 address such as 2001:db8::10") from None


def _text(packed: bytes) -> str:
    return socket.inet_ntop(FAMILIES[4 if len(packed) == 4 else 6], packed)


def canonical(text: str) -> str:
    """parse_address(), as text."""
    packed = _packed(text)
    if len(packed) == 4:
        usable = packed[0] not in (0, 127) and packed[0] < 224
    else:
        # Not unspecified, loopback, IPv4 in disguise, multicast or of a single link.
        usable = any(packed[:10]) and packed[0] != 0xFF and not (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)
    if not usable:
        raise ValueError("is not a unicast address of a host on a network")
    return _text(packed)


def parse_address(text: str) -> Address:
    """The address of a host. Raises ValueError that completes a sentence beginning with the value."""
    return Address(canonical(text))


@dataclass(frozen=True)
class Prefix:
    """The first `length` bits of an address; the others are zero."""

    address: Address
    length: int

    def __str__(self) -> str:
        if self.length == BITS[self.family]:
            return str(self.address)
        return f"{self.address}/{self.length}"

    @property
    def family(self) -> int:
        return self.address.family

    @property
    def number(self) -> int:
        """The bits as a number, the first one the most significant."""
        return int.from_bytes(self.address.packed, "big")

    @property
    def host_mask(self) -> int:
        """The bits that are not part of it."""
        return (1 << BITS[self.family] - self.length) - 1


def parse_prefix(text: str) -> Prefix:
    """An address, or a prefix such as 198.51.100.0/24. Raises ValueError as parse_address() does."""
    address, slash, length = text.partition("/")
    packed = _packed(address)
    bits = len(packed) * 8
    if slash and not (length.isdecimal() and length.isascii() and len(length) <= 3 and int(length) <= bits):
        raise ValueError(f"has no length from 0 to {bits} behind the slash")
    prefix = Prefix(Address(_text(packed)), int(length) if slash else bits)
    if prefix.number & prefix.host_mask:
        whole = (prefix.number & ~prefix.host_mask).to_bytes(len(packed), "big")
        raise ValueError(f"has bits behind its length; write {_text(whole)}/{prefix.length}")
    return prefix
