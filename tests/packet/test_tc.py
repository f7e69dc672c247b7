# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program on a real hook of tc, with packets as only the kernel makes them: merged, in fragments, tag taken off."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from tests.packet import foreign
from tests.packet.faults import has_clsact, on_hooks
from tests.packet.frames import CLIENT, tcp, udp
from tests.packet.network import FRONT, FRONT_MAC, NARROW, NARROW_MTU, ROUTER_MAC, ip
from tests.support import balancer as support
from tests.support.balancer import declared, settings

VIP = "203.0.113.10"
SERVICES = [
    {"name": "dns", "address": VIP, "protocol": "udp", "port": 53},
    {"name": "far", "address": VIP, "protocol": "udp", "port": 54},
    {"name": "tunnel", "address": VIP, "protocol": "tcp", "port": 80, "forwarding": "ipip", "source": "10.0.0.254"},
    {"name": "gue", "address": VIP, "protocol": "tcp", "port": 82, "forwarding": "gue", "source": "10.0.0.254"},
    {"name": "narrow", "address": VIP, "protocol": "tcp", "port": 81},
    {"name": "narrow-udp", "address": VIP, "protocol": "udp", "port": 81},
]
BACKENDS = [
    {"service": "dns", "address": "10.0.0.1"},
    {"service": "far", "address": "10.0.1.1"},
    {"service": "tunnel", "address": "10.0.0.2"},
    {"service": "gue", "address": "10.0.0.2"},
    {"service": "narrow", "address": NARROW},
    {"service": "narrow-udp", "address": NARROW},
]
PEER, BACK_PEER = "front-peer", "back-peer"
# linux/if_packet.h, linux/virtio_net.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15
VNET_HEADER = struct.Struct("=BBHHHH")  # flags, kind, headers' length, size of a piece, checksum's start and offset
NEEDS_CHECKSUM, TCP4 = 1, 1


FEATURES = frozenset(("dnat", "ipip", "gue"))


@pytest.fixture(scope="module", autouse=True)
def balancer(net) -> Iterator[Balancer]:
    for name in (FRONT, PEER):
        ip(f"link set {name} mtu 9000")
    with support.balancer() as made:
        made.apply(declared(settings(FRONT, mode="tc"), SERVICES, BACKENDS), check=False)
        yield made


def packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((interface, 0))
    made.settimeout(0.5)
    return made


def send(frame: bytes, header: bytes = b"") -> None:
    with packet_socket(PEER) as sender:
        if header:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.send(header + frame)


def heard(receiver: socket.socket, seconds: float = 0.3) -> list[Ether]:
    """Frames that came from the balancer."""
    found, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            frame, (_interface, _protocol, kind, *_address) = receiver.recvfrom(10000)
        except TimeoutError:
            break
        if kind != socket.PACKET_OUTGOING and IP in (packet := Ether(frame)):
            found.append(packet)
    return found


def test_a_packet_of_which_only_the_ethernet_header_is_in_one_piece():
    frame = udp(CLIENT, 40000, VIP, 53, bytes(5000))
    with packet_socket(PEER) as receiver:
        send(frame, VNET_HEADER.pack(0, 0, 14, 0, 0, 0))
        (packet,) = heard(receiver)
    assert (packet[IP].dst, len(packet)) == ("10.0.0.1", len(frame))


def test_a_tagged_frame_leaves_where_it_came_in():
    frame = Ether(udp(CLIENT, 40000, VIP, 54))
    tagged = Ether(src=ROUTER_MAC, dst=FRONT_MAC) / Dot1Q(vlan=5) / frame[IP]
    with packet_socket(PEER) as front, packet_socket(BACK_PEER) as back:
        send(bytes(frame))
        assert [packet[IP].dst for packet in heard(back)] == ["10.0.1.1"]
        send(bytes(tagged))
        assert [packet[IP].dst for packet in heard(front)] == ["10.0.1.1"]
        assert not heard(back)


def test_a_program_behind_another_one_is_not_called_attached(balancer):
    program = foreign.load(bpf.PROG_TYPE_SCHED_CLS, 2)
    wanted = settings(FRONT, mode="tc")
    with foreign.tcx(FRONT, program), packet_socket(PEER) as receiver:
        send(udp(CLIENT, 40000, VIP, 53))
        assert not heard(receiver)
        (facts,) = balancer.info()["program"]["interfaces"]
        assert (facts["attached"], facts["hook"]) == (False, "tc")
        assert facts["shadowed_by"] == [
            f"TCX {foreign.described(program)} (bpftool net detach tcx_ingress dev {FRONT})"
        ]
        for check in (True, False):
            with pytest.raises(EngineError, match="packets would meet something else before the balancer: TCX"):
                balancer.apply_program(wanted, check=check)
    os.close(program)
    (facts,) = balancer.info()["program"]["interfaces"]
    assert facts["attached"] and "shadowed_by" not in facts
    assert not balancer.apply_program(wanted, check=False).changed


def exchange_merged(frame: bytes, segment: int) -> list[Ether]:
    """What comes back for segments of this size that came as one frame."""
    for name in (FRONT, PEER):
        ip(f"link set {name} mtu 1500")
    subprocess.run(
        ["ethtool", "-K", FRONT, "tx", "off", "tso", "off", "gso", "off"], check=True, stdout=subprocess.DEVNULL
    )
    # The sum of the pseudo header, to be completed for each piece.
    pseudo = frame[26:34] + struct.pack(">HH", 6, len(frame) - 34)
    total = sum(struct.unpack(">6H", pseudo))
    frame = frame[:50] + struct.pack(">H", (total & 0xFFFF) + (total >> 16)) + frame[52:]
    with packet_socket(PEER) as receiver:
        send(frame, VNET_HEADER.pack(NEEDS_CHECKSUM, TCP4, 54, segment, 34, 16))
        return heard(receiver)


def test_merged_packets_are_cut_behind_their_tunnel_headers():
    """Two segments of 1400 bytes that came as one go through a tunnel whose MTU takes one of them."""
    segment = 1400
    frame = tcp(CLIENT, 40000, VIP, 80, bytes(range(250)) * 11 + bytes(50), tcp_flags="A")
    packets = exchange_merged(frame, segment)
    assert [(packet[IP].proto, packet[IP].dst, packet[IP].len) for packet in packets] == [(4, "10.0.0.2", 1460)] * 2
    inner = [packet[IP].payload for packet in packets]
    assert [piece[TCP].seq - inner[0][TCP].seq for piece in inner] == [0, segment]
    payload = b"".join(bytes(piece[TCP].payload) for piece in inner)
    assert payload == bytes(frame[54:])
    for piece in inner:
        checksum = piece[TCP].chksum
        del piece[TCP].chksum
        assert IP(bytes(piece))[TCP].chksum == checksum


def test_merged_packets_leave_behind_udp_headers_of_their_own():
    segment = 1428
    frame = tcp(CLIENT, 40000, VIP, 82, bytes(range(256)) * 11 + bytes(40), tcp_flags="A")
    packets = exchange_merged(frame, segment)
    outer = [(packet[IP].proto, packet[IP].len, packet[UDP].dport, packet[UDP].len) for packet in packets]
    assert outer == [(17, 1500, 6080, 1480)] * 2
    assert len({packet[UDP].sport for packet in packets}) == 1
    inner = []
    for packet in packets:
        datagram = bytes(packet[UDP].payload)
        assert (packet[UDP].chksum, datagram[:4]) == (0, bytes((0, 4, 0, 0)))
        inner.append(IP(datagram[4:]))
    assert b"".join(bytes(piece[TCP].payload) for piece in inner) == frame[54:]
    for piece in inner:
        checksum = piece[TCP].chksum
        del piece[TCP].chksum
        assert IP(bytes(piece))[TCP].chksum == checksum


def test_merged_packets_are_as_long_as_the_longest_of_them():
    segment = NARROW_MTU - 40
    frame = tcp(CLIENT, 40000, VIP, 81, bytes(2 * segment), tcp_flags="A", flags="DF")
    packets = exchange_merged(frame, segment)
    assert [(packet[IP].dst, packet[IP].len) for packet in packets] == [(NARROW, NARROW_MTU)] * 2
    (answer,) = exchange_merged(frame, segment + 1)
    assert (answer[IP].src, answer[IP].dst, answer[IP].len) == (VIP, CLIENT, 20 + 8 + 68)
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, NARROW_MTU)
    assert bytes(answer[ICMP].payload)[:20] == frame[14:34]


def test_the_kernel_fragments_what_exceeds_the_mtu_of_its_next_hop():
    payload = bytes(range(250)) * 5 + bytes(200)
    with packet_socket(PEER) as receiver:
        send(udp(CLIENT, 40000, VIP, 81, payload))
        packets = [packet for packet in heard(receiver) if packet[IP].dst == NARROW]
    assert [(packet[IP].src, packet[IP].ttl, packet[IP].frag, packet[IP].flags.MF) for packet in packets] == [
        (CLIENT, 63, 0, True),
        (CLIENT, 63, (NARROW_MTU - 20) // 8, False),
    ]
    assert b"".join(bytes(packet[IP].payload)[: packet[IP].len - 20] for packet in packets)[8:] == payload


def test_what_is_behind_xdp_of_others_is_removed_all_the_same(balancer):
    program = foreign.load(bpf.PROG_TYPE_XDP, 2)
    link.attach(FRONT, program, "generic", None)
    (facts,) = balancer.info()["program"]["interfaces"]
    assert not facts["attached"]
    assert facts["shadowed_by"] == [
        f"XDP {foreign.described(program)} on the generic hook (ip link set dev {FRONT} xdpgeneric off)"
    ]
    for check in (True, False):
        with pytest.raises(EngineError, match=f"not ours: program {foreign.id_of(program)} .* on the generic hook"):
            balancer.apply_program(settings(FRONT, mode="tc"), check=check)
    assert balancer.remove(check=False).changed
    assert on_hooks(FRONT) == {"generic": foreign.id_of(program)} and not has_clsact(FRONT)
    link.detach(FRONT, "generic", program)
    os.close(program)
