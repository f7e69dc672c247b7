# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One check of one backend, whatever its kind."""

from __future__ import annotations

import asyncio

from . import dns, end_to_end, icmp, tcp, udp, web
from .common import CannotCheck, Target, is_local, reason

CHECKS = {
    "tcp": tcp.check,
    "http": web.check,
    "https": web.check,
    "udp": udp.check,
    "dns": dns.check,
    "icmp": icmp.check,
}


async def problem_of(target: Target) -> str:
    """Why the backend fails its check; nothing if it does not. Raises CannotCheck."""
    try:
        by_the_way = target.health.end_to_end and not target.backend.local
        check = end_to_end.check if by_the_way else CHECKS[target.health.check]
        await asyncio.wait_for(check(target), target.health.timeout)
    except CannotCheck:
        raise
    except Exception as error:
        if is_local(error):
            raise CannotCheck(reason(error)) from None
        # One check that nobody thought of must not end those of all others.
        return reason(error)
    return ""
