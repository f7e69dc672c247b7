# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames as a client or a backend would send them, made by scapy, which fills in lengths and checksums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import reference
from tests.packet.network import FRONT_MAC, NEIGHBOURS, ROUTER_MAC, neighbour_mac

CLIENT, CLIENT_PORT = "198.51.100.7", 40000


@dataclass(frozen=True)
class Case:
    """`expected` None: the frame comes out as it went in. `reason` None: the packet was forwarded."""

    description: str
    frame: bytes
    verdict: int
    expected: bytes | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return self.description


def passed(description: str, frame: bytes, reason: str, expected: bytes | None = None) -> Case:
    return Case(description, frame, reference.PASS, expected, reason)


def dropped(description: str, frame: bytes, reason: str) -> Case:
    return Case(description, frame, reference.DROP, None, reason)


def sent(description: str, frame: bytes, expected: bytes) -> Case:
    return Case(description, frame, reference.TX, expected)


def sender(source: str) -> str:
    """The Ethernet address that packets from this one come from in front."""
    network, _separator, host = source.rpartition(".")
    return neighbour_mac(0, int(host)) if network == "10.0.0" and int(host) <= NEIGHBOURS else ROUTER_MAC


def _frame(layer: Any, source: str, destination: str, payload: bytes, macs: tuple[str, str], fields: dict) -> bytes:
    packet = Ether(src=macs[0], dst=macs[1]) / IP(src=source, dst=destination, **fields) / layer
    return bytes(packet / Raw(payload) if payload else packet)


def udp(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    payload: bytes = b"payload",
    *,
    macs: tuple[str, str] | None = None,
    checksum: int | None = None,
    **ip_fields: Any,
) -> bytes:
    layer = UDP(sport=source_port, dport=destination_port, chksum=checksum)
    return _frame(layer, source, destination, payload, macs or (sender(source), FRONT_MAC), ip_fields)


def tcp(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    payload: bytes = b"payload",
    *,
    macs: tuple[str, str] | None = None,
    tcp_flags: str = "S",
    options: list | None = None,
    **ip_fields: Any,
) -> bytes:
    layer = TCP(sport=source_port, dport=destination_port, flags=tcp_flags, seq=0x12345678, options=options or [])
    return _frame(layer, source, destination, payload, macs or (sender(source), FRONT_MAC), ip_fields)


def icmp(
    source: str,
    destination: str,
    payload: bytes = b"payload",
    *,
    macs: tuple[str, str] | None = None,
    type: int = 8,
    code: int = 0,
    **ip_fields: Any,
) -> bytes:
    layer = ICMP(type=type, code=code, id=0x1234, seq=7)
    return _frame(layer, source, destination, payload, macs or (sender(source), FRONT_MAC), ip_fields)


# ICMP and ICMPv6 errors by what they say.
ERRORS: dict[str, tuple[Any, Any]] = {
    "too big": (ICMP(type=3, code=4, nexthopmtu=1400), ICMPv6PacketTooBig(mtu=1400)),
    "unreachable": (ICMP(type=3, code=3), ICMPv6DestUnreach(code=4)),
    "time exceeded": (ICMP(type=11, code=0), ICMPv6TimeExceeded(code=0)),
    "parameter problem": (ICMP(type=12, code=0, ptr=8), ICMPv6ParamProblem(code=0, ptr=8)),
}


def quoted(
    source: str, destination: str, transport: Any, size: int | None = 8, *, layers: tuple = (), **ip_fields: Any
) -> bytes:
    """The beginning of a packet up to so many bytes of its TCP or UDP (None: all); the layers are in front of that."""
    packet = (IPv6 if ":" in source else IP)(src=source, dst=destination, **ip_fields)
    transport = transport / Raw(b"payload of the packet")
    for layer in layers:
        packet = packet / layer
    data = bytes(packet / transport)
    return data if size is None else data[: len(data) - len(transport) + size]


def icmp_error(
    source: str,
    destination: str,
    quote: bytes,
    kind: str = "too big",
    *,
    macs: tuple[str, str] = (ROUTER_MAC, FRONT_MAC),
    layers: tuple = (),
    **ip_fields: Any,
) -> bytes:
    """An error about the packet that the quote begins; the layers are between its IP header and ICMPv6."""
    network, error = (IPv6, ERRORS[kind][1]) if ":" in source else (IP, ERRORS[kind][0])
    packet = Ether(src=macs[0], dst=macs[1]) / network(src=source, dst=destination, **ip_fields)
    for layer in layers:
        packet = packet / layer
    return bytes(packet / error / Raw(quote))


BUILDERS = {"udp": udp, "tcp": tcp}


def with_bytes(frame: bytes, position: int, value: bytes) -> bytes:
    """The frame with some bytes replaced, whatever its checksums say then."""
    return frame[:position] + value + frame[position + len(value) :]


def padded(frame: bytes, size: int = 60) -> bytes:
    """As a network card sends a short frame; what the padding holds must not matter."""
    return frame + bytes(range(0xA0, 0xA0 + max(0, size - len(frame))))
