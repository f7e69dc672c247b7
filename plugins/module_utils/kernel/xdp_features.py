# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a network device can do with native XDP (include/uapi/linux/netdev.h, kernel 6.3)."""

from __future__ import annotations

import errno

from . import netlink
from .netlink import number, u32

FAMILY, DEV_GET = "netdev", 1
A_DEV_IFINDEX, A_DEV_XDP_FEATURES = 1, 3
# enum netdev_xdp_act, without its prefix
NAMES = ("basic", "redirect", "ndo_xmit", "xsk_zerocopy", "hw_offload", "rx_sg", "ndo_xmit_sg")


def xdp_features(index: int) -> list[str] | None:
    """What the driver says; None where the kernel cannot say (before 6.3). Raises OSError."""
    try:
        with netlink.GenericSocket(FAMILY) as family:
            reply = family.call(DEV_GET, [u32(A_DEV_IFINDEX, index)])
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    bits = number(reply[A_DEV_XDP_FEATURES])
    return [name for position, name in enumerate(NAMES) if bits >> position & 1]
