# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks by the way that packets take, to the VIP: what answers there answers clients, too.

Of TCP the handshake is checked, not what the server says after it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from engine.config.addresses import Address

from . import dns, udp
from .common import Failed, Target, family_of
from .frames import ICMP_OF, RST, SYN, Flow, echo, mark_of, syn_answer, tcp
from .frames import udp as udp_packet
from .icmp import TOKEN_BYTES
from .listeners import LISTENERS
from .way import send, source_of

KINDS = {socket.IPPROTO_TCP: socket.SOCK_STREAM, socket.IPPROTO_UDP: socket.SOCK_DGRAM}


async def check(target: Target) -> None:
    await CHECKS[target.health.check](target)


@dataclass(frozen=True)
class Exchange:
    """One flow to the VIP, over one backend."""

    target: Target
    flow: Flow
    answers: asyncio.Queue[bytes]

    async def send(self, packet: bytes) -> None:
        await send(self.target, self.flow, packet)

    async def answer(self) -> bytes:
        """The next one, from the header of its protocol on."""
        return await self.answers.get()


@contextmanager
def exchange_with(target: Target, protocol: int, token: bytes = b"") -> Iterator[Exchange]:
    flow = Flow(source_of(target), Address(target.service.address))
    with ExitStack() as held:
        if protocol in KINDS:
            # Nobody else may have the port meanwhile.
            port = held.enter_context(socket.socket(family_of(str(flow.source)), KINDS[protocol]))
            port.bind((str(flow.source), 0))
            flow = replace(flow, source_port=port.getsockname()[1], port=target.port)
        yield Exchange(target, flow, held.enter_context(LISTENERS.hearing(flow, mark_of(flow, protocol, token))))


async def _check_tcp(target: Target) -> None:
    sequence = random.getrandbits(32)
    with exchange_with(target, socket.IPPROTO_TCP) as exchange:
        await exchange.send(tcp(exchange.flow, sequence, SYN))
        accepted = None
        while accepted is None:
            accepted = syn_answer(await exchange.answer(), sequence)
        if not accepted:
            raise Failed(os.strerror(errno.ECONNREFUSED))
        # The server need not wait for the rest.
        await exchange.send(tcp(exchange.flow, (sequence + 1) & 0xFFFFFFFF, RST))


async def _exchange_datagrams(target: Target, request: bytes) -> bytes:
    with exchange_with(target, socket.IPPROTO_UDP) as exchange:
        await exchange.send(udp_packet(exchange.flow, request))
        return (await exchange.answer())[8:]


async def _check_udp(target: Target) -> None:
    udp.verify(target, await _exchange_datagrams(target, (target.health.request or "").encode()))


async def _check_dns(target: Target) -> None:
    request = dns.query(target.health.name or ".")
    dns.verify(request, await _exchange_datagrams(target, request))


async def _check_icmp(target: Target) -> None:
    token = os.urandom(TOKEN_BYTES)
    version = Address(target.service.address).family
    with exchange_with(target, ICMP_OF[version], token) as exchange:
        await exchange.send(echo(exchange.flow, token))
        await exchange.answer()


CHECKS = {"tcp": _check_tcp, "udp": _check_udp, "dns": _check_dns, "icmp": _check_icmp}
