# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What VIPs answer, heard on the way to this host, whether the kernel takes it or not.

Closing a socket that hears frames takes the kernel as long as it takes all CPUs to look away, up to 30 ms in which no
check would go on. So all exchanges between a VIP and a source share one, which stays for a while.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from engine.config.addresses import Address

from .frames import ETHERTYPES, Flow, Mark, answer_in
from .udp import LONGEST

# include/uapi/asm-generic/socket.h
SO_ATTACH_FILTER = 26
# Classic BPF: load a word, jump if equal, return.
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
# struct sockaddr_ll: family, protocol, interface, and what is of no matter here.
ANY_INTERFACE = struct.Struct("=H2si12x")
# Seconds that one stays without an exchange.
IDLE = 60.0
# Packets that are taken before other checks have their turn, and that an exchange may have waiting.
AT_ONCE, WAITING = 100, 16

_libc = ctypes.CDLL(None, use_errno=True)


def listening(vip: Address, source: Address) -> socket.socket:
    """Hears what comes from the VIP to the source, by whatever interface."""
    # Of no protocol, so that nothing comes in before the filter is there.
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    try:
        heard.setblocking(False)
        _attach_filter(heard, 12 if vip.family == 4 else 8, vip.packed + source.packed)
        _bind(heard, ETHERTYPES[vip.family])
    except OSError:
        heard.close()
        raise
    return heard


def _attach_filter(channel: socket.socket, offset: int, wanted: bytes) -> None:
    """Everything else of what the host receives stays out of the queue."""
    words = struct.unpack(f">{len(wanted) // 4}I", wanted)
    steps = []
    for number, word in enumerate(words):
        steps.append((LOAD, 0, 0, offset + 4 * number))
        # To the end, which refuses, where it is another one.
        steps.append((EQUAL, 0, 2 * (len(words) - number) - 1, word))
    steps += [(RETURN, 0, 0, 0xFFFF), (RETURN, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    channel.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _bind(channel: socket.socket, ethertype: int) -> None:
    """To all interfaces, which Python's own bind() has no word for."""
    address = ANY_INTERFACE.pack(socket.AF_PACKET, ethertype.to_bytes(2, "big"), 0)
    if _libc.bind(channel.fileno(), address, len(address)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Listener:
    """The answers of one VIP to one source."""

    def __init__(self, vip: Address, source: Address) -> None:
        self._version = vip.family
        self._socket = listening(vip, source)
        self.exchanges: dict[Mark, asyncio.Queue[bytes]] = {}
        self.leaving: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        for _packet in range(AT_ONCE):
            try:
                packet = self._socket.recv(LONGEST)
            except OSError:
                # There is no more, or an interface went down, which is told so.
                return
            found = answer_in(self._version, packet)
            if found is None:
                continue
            mark, answer = found
            exchange = self.exchanges.get(mark)
            if exchange is not None and not exchange.full():
                exchange.put_nowait(answer)

    def close(self) -> None:
        """Elsewhere, since it takes its time."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        loop.run_in_executor(None, self._socket.close)


class Listeners:
    """Those that are open, by VIP and source."""

    def __init__(self) -> None:
        self._open: dict[tuple[Address, Address], Listener] = {}

    @contextmanager
    def hearing(self, flow: Flow, mark: Mark) -> Iterator[asyncio.Queue[bytes]]:
        """The answers that bear this mark."""
        pair = flow.vip, flow.source
        listener = self._open.get(pair)
        if listener is None:
            listener = self._open[pair] = Listener(*pair)
        if listener.leaving:
            listener.leaving.cancel()
        answers = listener.exchanges[mark] = asyncio.Queue(WAITING)
        try:
            yield answers
        finally:
            del listener.exchanges[mark]
            if not listener.exchanges:
                listener.leaving = asyncio.get_running_loop().call_later(IDLE, self._close, pair)

    def _close(self, pair: tuple[Address, Address]) -> None:
        self._open.pop(pair).close()


LISTENERS = Listeners()
