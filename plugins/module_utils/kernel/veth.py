# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other end of a veth, which may be in another network namespace (include/uapi/linux/if_link.h)."""

from __future__ import annotations

from typing import Any

from . import netlink
from .device import IFINFOMSG, RTM_GETLINK, Device, parse_link
from .ethtool import Ethtool

IFLA_LINK, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 5, 37, 46


def _request(index: int, *members: bytes) -> bytes:
    with netlink.Socket(netlink.NETLINK_ROUTE) as route:
        return route.request(RTM_GETLINK, IFINFOMSG.pack(0, 0, index, 0, 0) + b"".join(members))[0]


def other_end(device: Device) -> dict[str, Any] | None:
    """Its MTU; its name and the number of its transmit queues in this namespace only. None if nothing can be known."""
    link = dict(netlink.attributes(_request(device.index)[IFINFOMSG.size :]))
    index, namespace = netlink.number(link.get(IFLA_LINK, b"")), link.get(IFLA_LINK_NETNSID)
    if namespace is None:
        peer = parse_link(_request(index))
        with Ethtool(index) as ethtool:
            return {"interface": peer.name, "mtu": peer.mtu, "tx": ethtool.channels()["tx"].value}
    try:
        peer = parse_link(_request(index, netlink.attribute(IFLA_TARGET_NETNSID, namespace)))
    except OSError:
        # The kernel has no number for that namespace, or this is not root there.
        return None
    return {"interface": None, "mtu": peer.mtu, "tx": None}
