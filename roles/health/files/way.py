# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way that the program takes to a backend: its Ethernet address for `dsr`, headers in front for tunnels."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

from engine.config.addresses import Address
from engine.kernel.device import links
from engine.kernel.link import import_pyroute2, route_socket
from engine.kernel.neighbours import resolved

from .common import CannotCheck, Failed, Target, family_of
from .frames import ETHERTYPES, Flow, gue, ip_packet

IPIP, IPV6_IN_IP = 4, 41
# include/uapi/linux/in6.h
IPV6_HDRINCL = 36
# Seconds that what the kernel says is kept, for all checks together.
MAX_AGE = 1.0
T = TypeVar("T")


class Shared(Generic[T]):
    """What is read off the thread that checks, once for all checks that need it."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._reading: asyncio.Future[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        if self._reading is None or time.monotonic() > self._until:
            self._until = time.monotonic() + MAX_AGE
            self._reading = asyncio.get_running_loop().run_in_executor(None, self._read)
        # A check whose time is up must not end what others wait for.
        return await asyncio.shield(self._reading)


def _read_neighbours() -> dict[str, tuple[int, str]]:
    """Interface and Ethernet address by IP address: lbops-watch@ has the kernel verify them."""
    with route_socket() as route:
        try:
            return {entry.address: (entry.interface, mac) for entry, mac in resolved(route).items()}
        except import_pyroute2().NetlinkError as error:
            raise CannotCheck(f"cannot read the kernel's neighbour table: {error.args[-1]}") from None


def _read_links() -> set[str]:
    """The interfaces that frames can leave by."""
    return {found.name for found in links() if found.enabled and found.usable}


NEIGHBOURS = Shared(_read_neighbours)
LINKS = Shared(_read_links)


def source_of(target: Target) -> Address:
    """The address to which the backend answers for the VIP."""
    if target.health.source:
        return Address(target.health.source)
    if family_of(target.service.address) != target.family:
        raise CannotCheck("source is missing: the backend's address is not of the VIP's family")
    with socket.socket(target.family, socket.SOCK_DGRAM) as probe:
        probe.connect((target.address, 9))
        return Address(probe.getsockname()[0])


async def send(target: Target, flow: Flow, packet: bytes) -> None:
    if target.service.is_tunnel:
        _send_in_tunnel(target, flow, packet)
    else:
        await _send_to_neighbour(target, flow, packet)


async def _send_to_neighbour(target: Target, flow: Flow, packet: bytes) -> None:
    interface, mac = await _next_hop(target)
    _frames_out().sendto(packet, (interface, ETHERTYPES[flow.version], 0, 0, bytes.fromhex(mac.replace(":", ""))))


async def _next_hop(target: Target) -> tuple[str, str]:
    """Interface and Ethernet address."""
    if not target.backend.mac:
        known = await NEIGHBOURS.get()
        if target.address not in known:
            raise Failed("no neighbour with its address")
        index, mac = known[target.address]
        return socket.if_indextoname(index), mac
    # The program sends such a packet out of the interface that it came in on. The backend is on the segment of each.
    up = await LINKS.get()
    for interface in target.interfaces:
        if interface in up:
            return interface, target.backend.mac
    raise CannotCheck(f"no link of the balancer is up: {', '.join(target.interfaces)}")


@cache
def _frames_out() -> socket.socket:
    """One for all, never closed: that would take as long as with listeners. Of no protocol, it hears nothing."""
    out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    out.setblocking(False)
    return out


def _send_in_tunnel(target: Target, flow: Flow, packet: bytes) -> None:
    prefix = target.service.source_prefix
    if prefix is None:
        raise Failed("the service has no source")
    protocol = IPIP if flow.version == 4 else IPV6_IN_IP
    if target.service.tunnel_port is not None:
        packet = gue(target.service.tunnel_port, protocol, packet)
        protocol = socket.IPPROTO_UDP
    tunnelled = ip_packet(prefix.address, Address(target.address), protocol, packet)
    with socket.socket(target.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        if target.family == socket.AF_INET6:
            out.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        out.sendto(tunnelled, (target.address, 0))
