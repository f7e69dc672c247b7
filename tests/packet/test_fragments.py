# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Later fragments follow the first of their own packet and of no other."""

from __future__ import annotations

import itertools
import struct

from tests.packet import network as net
from tests.packet.frames import CLIENT, udp
from tests.packet.fuzz import packed
from tests.packet.reference import DROP, ICMPV6, TCP, TX, UDP

DESTINATION_OPTIONS = 60
# Each differs from the others in a way that another one differs from its neighbour, in both halves of the address.
VIPS = ["2001:db8:1::10", "2001:db8:1::11", "2001:db8:1:1::10", "2001:db8:1:1::11"]
CLIENTS = ["2001:db8:7::20", "2001:db8:7::21", "2001:db8:7:1::20", "2001:db8:7:1::21"]
SERVICES = [{"name": f"dns-{n}", "address": vip, "protocol": "udp", "port": 53} for n, vip in enumerate(VIPS)]
BACKENDS = [{"service": service["name"], "address": f"fd00::{n}"} for n, service in enumerate(SERVICES, 1)]


NAT = "10.0.0.250"
WEB = {"name": "web", "address": "203.0.113.10", "protocol": "udp", "port": 80}
DNS = {"name": "dns", "address": "203.0.113.10", "protocol": "udp", "port": 53, "forwarding": "full_nat", "source": NAT}


def fragment(client: str, vip: str, identification: int, offset: int) -> bytes:
    """The first one, with ports, if the offset is 0."""
    data = struct.pack(">HHHH", 40000, 53, 1400, 0x1234) + bytes(16)
    header = struct.pack(">BBHI", UDP, 0, offset << 3 | 1, identification)
    ip = struct.pack(">IHBB", 6 << 28, len(header + data), 44, 64) + packed(client) + packed(vip)
    return net.mac(net.FRONT_MAC) + net.mac(net.ROUTER_MAC) + b"\x86\xdd" + ip + header + data


def after_options(identification: int, offset: int, kind: int) -> bytes:
    """A fragment of a packet that has destination options behind the fragment header; the kind is its next header."""
    options = struct.pack(">BB", UDP, 0) + b"\x01\x04" + bytes(4)
    datagram = struct.pack(">HHHH", 40000, 53, 1400, 0x1234) + bytes(24)
    data = options + datagram if offset == 0 else bytes(24)
    header = struct.pack(">BBHI", kind, 0, offset << 3 | 1, identification)
    ip = struct.pack(">IHBB", 6 << 28, len(header + data), 44, 64) + packed(CLIENTS[0]) + packed(VIPS[0])
    return net.mac(net.FRONT_MAC) + net.mac(net.ROUTER_MAC) + b"\x86\xdd" + ip + header + data


def test_fragments_follow_whatever_their_next_header(make_rig):
    """RFC 8200, section 4.5: that of the first fragment counts."""
    rig = make_rig(SERVICES, BACKENDS)
    for identification, kind in enumerate((DESTINATION_OPTIONS, UDP, TCP, 59, ICMPV6), 1):
        assert rig.send(after_options(identification, 5, kind))[0] == DROP
        assert rig.send(after_options(identification, 0, DESTINATION_OPTIONS))[0] == TX
        verdict, output = rig.send(after_options(identification, 5, kind))
        assert verdict == TX and output[38:54] == packed(BACKENDS[0]["address"])
    rig.check_counters()


def test_only_fragments_of_the_same_packet_follow(make_rig):
    rig = make_rig(SERVICES, BACKENDS)
    flows = list(itertools.product(CLIENTS, VIPS))
    for identification, (client, vip) in enumerate(flows, 1):
        assert rig.send(fragment(client, vip, identification, 0))[0] == TX
        for flow in flows:
            verdict, _frame = rig.send(fragment(*flow, identification, 3))
            assert verdict == (TX if flow == (client, vip) else DROP), f"{flow} after {client} {vip}"
    rig.check_counters()


def test_a_reply_to_the_port_of_a_session_of_another_backend_is_not_of_that_session(make_rig):
    rig = make_rig([WEB, DNS], [{"service": "web", "address": "10.0.0.1"}, {"service": "dns", "address": "10.0.0.2"}])
    verdict, request = rig.send(udp(CLIENT, 40000, WEB["address"], 53, bytes(18)))
    assert verdict == TX
    port = int.from_bytes(request[34:36], "big")
    for flags, offset in (("MF", 0), (0, 3)):
        reply = udp("10.0.0.1", 80, NAT, port, bytes(18), id=77, flags=flags, frag=offset)
        _verdict, output = rig.send(reply)
        assert output[26:30] == packed(WEB["address"])
        assert output[30:34] == packed(NAT)
