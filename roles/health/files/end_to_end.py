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
from contextlib import ExitStack

from engine.addresses import Address

from . import dns, udp
from .common import Failed, Target, family_of
from .frames import ICMP_OF, RST, SYN, Flow, answer_of, echo, is_echo_reply, syn_answer, tcp
from .frames import udp as udp_packet
from .icmp import TOKEN_BYTES
from .way import listener, send, source_of


async def check(target: Target) -> None:
    await CHECKS[target.health.check](target)


class Exchange:
    """One flow to the VIP, over one backend."""

    def __init__(self, target: Target, protocol: int) -> None:
        self._target, self._protocol = target, protocol
        self._open = ExitStack()

    def __enter__(self) -> Exchange:
        target = self._target
        source, vip = source_of(target), Address(target.service.address)
        self.flow = Flow(source, vip)
        if self._protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            kind = socket.SOCK_STREAM if self._protocol == socket.IPPROTO_TCP else socket.SOCK_DGRAM
            # Nobody else may have the port meanwhile.
            held = self._open.enter_context(socket.socket(family_of(str(source)), kind))
            held.bind((str(source), 0))
            self.flow = Flow(source, vip, held.getsockname()[1], target.port)
        self._heard = self._open.enter_context(listener(self.flow))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    async def send(self, packet: bytes) -> None:
        await send(self._target, self.flow, packet)

    async def answer(self) -> bytes:
        """The next one of this flow."""
        loop = asyncio.get_running_loop()
        while True:
            found = answer_of(self.flow, self._protocol, await loop.sock_recv(self._heard, udp.LONGEST))
            if found is not None:
                return found


async def _check_tcp(target: Target) -> None:
    sequence = random.getrandbits(32)
    with Exchange(target, socket.IPPROTO_TCP) as exchange:
        await exchange.send(tcp(exchange.flow, sequence, SYN))
        accepted = None
        while accepted is None:
            accepted = syn_answer(await exchange.answer(), sequence)
        if not accepted:
            raise Failed(os.strerror(errno.ECONNREFUSED))
        # The server need not wait for the rest.
        await exchange.send(tcp(exchange.flow, (sequence + 1) & 0xFFFFFFFF, RST))


async def _exchange_datagrams(target: Target, request: bytes) -> bytes:
    with Exchange(target, socket.IPPROTO_UDP) as exchange:
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
    with Exchange(target, ICMP_OF[version]) as exchange:
        await exchange.send(echo(exchange.flow, token))
        while not is_echo_reply(exchange.flow, await exchange.answer(), token):
            pass


CHECKS = {"tcp": _check_tcp, "udp": _check_udp, "dns": _check_dns, "icmp": _check_icmp}
