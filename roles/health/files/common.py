# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all kinds of checks have in common."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from asyncio import TimeoutError as AsyncTimeout
from dataclasses import dataclass

from engine.config.health import Health
from engine.config.model import Backend, Service


class Failed(Exception):
    """Why a check failed, in words; never what a server sent, which may be secret."""


class CannotCheck(Exception):
    """What this host lacks for a check, in words: it says nothing of the backend."""


# No address, port, descriptor or memory is to be had here, or a packet is not let out.
LOCAL_ERRORS = frozenset(
    (
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EAGAIN,
        errno.EMFILE,
        errno.EMSGSIZE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EPERM,
    )
)
# include/uapi/linux/in.h
IP_BIND_ADDRESS_NO_PORT = 24


@dataclass(frozen=True)
class Target:
    """A backend of a service, and how it is checked."""

    health: Health
    service: Service
    backend: Backend
    # Those of the balancer; end-to-end checks of a backend whose Ethernet address is declared leave by one of them.
    interfaces: tuple[str, ...]

    @property
    def address(self) -> str:
        """A local backend is this host, which gets its packets at the VIP."""
        return self.service.address if self.backend.local else self.backend.target

    @property
    def source(self) -> str | None:
        """Of a local backend the VIP, too: a check from another address would leave a host that has lost the VIP."""
        return self.service.address if self.backend.local else self.health.source

    @property
    def port(self) -> int:
        return self.health.port or self.backend.port or self.service.first_port

    @property
    def checked(self) -> tuple[object, ...]:
        """What a check goes by; a change of anything else, such as a weight, is none of its business."""
        service, backend = self.service, self.backend
        return (
            self.health,
            (
                service.address,
                service.protocol,
                service.first_port,
                service.forwarding,
                service.source,
                service.tunnel_port,
            ),
            (backend.target, backend.port, backend.mac, backend.local),
            self.interfaces,
        )

    @property
    def family(self) -> socket.AddressFamily:
        return family_of(self.address)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def open_socket(target: Target, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """Bound to the source, if there is one."""
    made = socket.socket(target.family, kind, protocol)
    made.setblocking(False)
    try:
        if target.source:
            if kind == socket.SOCK_STREAM:
                # The port is chosen as the connection is made, and need be free for this backend only.
                made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            made.bind((target.source, 0))
    except OSError as error:
        made.close()
        if target.backend.local and error.errno == errno.EADDRNOTAVAIL:
            raise Failed(f"the VIP {target.source} is no address of this host") from None
        raise CannotCheck(f"source {target.source}: {error.strerror}") from None
    return made


def is_local(error: Exception) -> bool:
    """Whether it lies on this host. TLS has numbers of its own in the same place."""
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in LOCAL_ERRORS


def reason(error: Exception) -> str:
    """Why it failed, for the log."""
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, (AsyncTimeout, TimeoutError)):
        return "timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        # Those that asyncio raises itself have no reason.
        return f"TLS: {getattr(error, 'reason', None) or 'error'}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, ConnectionError):
        # asyncio's own have no number.
        return os.strerror(errno.ECONNRESET)
    return f"unexpected {type(error).__name__}"
