# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's generic netlink family "ethtool": rings, channels, coalescing and features of a device.

Commands and attributes are those of include/uapi/linux/ethtool_netlink.h. All of them are in Linux 5.15, and a refusal
comes with the kernel's words. Receive-side scaling is in ethtool_ioctl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from . import netlink
from .netlink import attribute, attributes, nested, number, string, text, u8, u32

FAMILY = "ethtool"

MSG_LINKMODES_GET = 4
MSG_FEATURES_GET, MSG_FEATURES_SET = 11, 12
MSG_RINGS_GET, MSG_RINGS_SET = 15, 16
MSG_CHANNELS_GET, MSG_CHANNELS_SET = 17, 18
MSG_COALESCE_GET, MSG_COALESCE_SET = 19, 20

# The header is the first attribute of every request.
A_HEADER = 1
A_HEADER_DEV_INDEX = 1

A_RINGS = {"rx": 6, "tx": 9}
A_RINGS_MAXIMUM = {"rx": 2, "tx": 5}
A_CHANNELS = {"rx": 6, "tx": 7, "combined": 9}
A_CHANNELS_MAXIMUM = {"rx": 2, "tx": 3, "combined": 5}
A_COALESCE = {"rx_usecs": 2, "rx_frames": 3, "tx_usecs": 6, "tx_frames": 7, "adaptive_rx": 11, "adaptive_tx": 12}
COALESCE_SWITCHES = frozenset(("adaptive_rx", "adaptive_tx"))
A_FEATURES_HW, A_FEATURES_WANTED, A_FEATURES_ACTIVE, A_FEATURES_NOCHANGE = 2, 3, 4, 5
A_BITSET_NOMASK, A_BITSET_SIZE, A_BITSET_BITS = 1, 2, 3
A_BITSET_BIT = 1
A_BIT_NAME, A_BIT_VALUE = 2, 3
A_LINKMODES_SPEED, A_LINKMODES_DUPLEX = 5, 6
DUPLEX = {0: "half", 1: "full"}
SPEED_UNKNOWN = 0xFFFFFFFF

Value = Union[int, bool]


@dataclass(frozen=True)
class Amount:
    """A number that a device is set to, and the largest it takes where it says so."""

    value: Value
    maximum: int | None = None


@dataclass(frozen=True)
class Feature:
    active: bool
    changeable: bool


def bitset_names(payload: bytes) -> dict[str, bool]:
    """Names and values of a bitset in its verbose form. Without a mask only bits that are set are there, all true."""
    members = dict(attributes(payload))
    no_mask = A_BITSET_NOMASK in members
    found = {}
    for kind, content in attributes(members.get(A_BITSET_BITS, b"")):
        if kind == A_BITSET_BIT:
            bit = dict(attributes(content))
            found[string(bit[A_BIT_NAME])] = no_mask or A_BIT_VALUE in bit
    return found


def bitset(kind: int, values: dict[str, bool]) -> bytes:
    """These bits, and leave the others as they are."""
    bits = [
        nested(A_BITSET_BIT, text(A_BIT_NAME, name), *([attribute(A_BIT_VALUE, b"")] if value else []))
        for name, value in values.items()
    ]
    return nested(kind, nested(A_BITSET_BITS, *bits))


def amounts(reply: dict[int, bytes], kinds: dict[str, int], maxima: dict[str, int]) -> dict[str, Amount]:
    """The kernel leaves out what the device does not have."""
    return {
        name: Amount(number(reply[kind]), number(reply[maxima[name]]) if maxima.get(name) in reply else None)
        for name, kind in kinds.items()
        if kind in reply
    }


class Ethtool(netlink.GenericSocket):
    """Requests about one device, by its index, which stays the same when the device is renamed.

    Every method raises NetlinkError; EOPNOTSUPP means that the driver has nothing of the kind.
    """

    def __init__(self, index: int) -> None:
        super().__init__(FAMILY)
        self._header = nested(A_HEADER, u32(A_HEADER_DEV_INDEX, index))

    def _get(self, command: int) -> dict[int, bytes]:
        return self.call(command, [self._header])

    def _set(self, command: int, kinds: dict[str, int], values: dict[str, Value]) -> None:
        members = [u32(kinds[name], int(value)) for name, value in values.items() if name not in COALESCE_SWITCHES]
        members += [u8(kinds[name], int(value)) for name, value in values.items() if name in COALESCE_SWITCHES]
        self.call(command, [self._header, *members])

    def rings(self) -> dict[str, Amount]:
        return amounts(self._get(MSG_RINGS_GET), A_RINGS, A_RINGS_MAXIMUM)

    def set_rings(self, values: dict[str, Value]) -> None:
        self._set(MSG_RINGS_SET, A_RINGS, values)

    def channels(self) -> dict[str, Amount]:
        return amounts(self._get(MSG_CHANNELS_GET), A_CHANNELS, A_CHANNELS_MAXIMUM)

    def set_channels(self, values: dict[str, Value]) -> None:
        self._set(MSG_CHANNELS_SET, A_CHANNELS, values)

    def coalesce(self) -> dict[str, Amount]:
        found = amounts(self._get(MSG_COALESCE_GET), A_COALESCE, {})
        return {
            name: Amount(bool(amount.value)) if name in COALESCE_SWITCHES else amount for name, amount in found.items()
        }

    def set_coalesce(self, values: dict[str, Value]) -> None:
        self._set(MSG_COALESCE_SET, A_COALESCE, values)

    def features(self) -> dict[str, Feature]:
        """By the kernel's names (net/ethtool/common.c, netdev_features_strings); internal bits have none."""
        reply = self._get(MSG_FEATURES_GET)
        hardware = bitset_names(reply[A_FEATURES_HW])
        active = bitset_names(reply[A_FEATURES_ACTIVE])
        fixed = bitset_names(reply[A_FEATURES_NOCHANGE])
        return {
            name: Feature(active.get(name, False), changeable and not fixed.get(name, False))
            for name, changeable in hardware.items()
            if name
        }

    def set_features(self, values: dict[str, bool]) -> None:
        self.call(MSG_FEATURES_SET, [self._header, bitset(A_FEATURES_WANTED, values)])

    def link_modes(self) -> tuple[int | None, str | None]:
        """Speed in Mbit/s and duplex, None while unknown."""
        reply = self._get(MSG_LINKMODES_GET)
        speed = number(reply[A_LINKMODES_SPEED]) if A_LINKMODES_SPEED in reply else SPEED_UNKNOWN
        duplex = number(reply[A_LINKMODES_DUPLEX]) if A_LINKMODES_DUPLEX in reply else None
        return (None if speed == SPEED_UNKNOWN else speed), None if duplex is None else DUPLEX.get(duplex)
