# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program knows of the interfaces that packets arrive on and leave by."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernel import device
from ..tables.layout import INTERFACE, MAC, MAX_INTERFACES


def pack_mac(address: str) -> bytes:
    """An Ethernet address in colon notation; of an interface without one, zeros."""
    return MAC.pack(bytes.fromhex(address.replace(":", "")))


@dataclass(frozen=True)
class Interface:
    """struct interface."""

    index: int
    mtu: int  # in bytes, without the Ethernet header
    address: str  # Ethernet, in colon notation; empty if there is none
    master: int = 0  # the index of the bond or bridge that it is a port of; 0: none

    def pack(self) -> bytes:
        return INTERFACE.pack(self.index, self.mtu, pack_mac(self.address), self.master)


def known_interfaces(names: tuple[str, ...]) -> list[Interface]:
    """Those of these that exist, and the bonds and members that belong to them, as many as the program knows."""
    chosen = device.with_bonds(names)[:MAX_INTERFACES]
    links = {found.name: found for found in device.links()}
    return [
        Interface(found.index, found.mtu, found.address, found.master or 0)
        for found in (links[name] for name in chosen if name in links)
    ]
