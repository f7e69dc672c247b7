# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer UDP datagrams and TCP lines on port 8080 with `<hostname> <peer address>:<peer port> <request>`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

PORT = 8080
BURST = 64
IP_PKTINFO = 8
NAME = socket.gethostname()


def greeting(peer: tuple) -> bytes:
    address = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"{NAME} {address}:{peer[1]} ".encode()


def reply_source(ancillary: list) -> list:
    """Send the reply from the address the request went to: the kernel would choose the host's own, not the VIP."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return [(level, kind, struct.pack("=i4s4x", 0, data[8:12]))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            # A link-local address means nothing without its interface.
            interface = data[16:20] if data[:2] == b"\xfe\x80" else bytes(4)
            return [(level, kind, data[:16] + interface)]
    return []


def answer_datagrams(udp: socket.socket) -> None:
    for _datagram in range(BURST):
        try:
            request, ancillary, _flags, peer = udp.recvmsg(65535, 128)
        except BlockingIOError:
            return
        except OSError:
            # An ICMP error for an earlier reply; the next datagram is fine.
            continue
        with contextlib.suppress(OSError):
            udp.sendmsg([greeting(peer), request], reply_source(ancillary), 0, peer)


def udp_socket(family: socket.AddressFamily) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if family == socket.AF_INET6:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    udp.bind(("", PORT))
    return udp


async def answer_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    start = greeting(writer.get_extra_info("peername"))
    with contextlib.suppress(OSError, ValueError):
        while line := await reader.readline():
            writer.write(start + line.rstrip(b"\r\n") + b"\n")
            await writer.drain()
    writer.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    for family in (socket.AF_INET, socket.AF_INET6):
        udp = udp_socket(family)
        loop.add_reader(udp, answer_datagrams, udp)
    server = await asyncio.start_server(answer_lines, None, PORT, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
