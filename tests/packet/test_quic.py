# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services whose backend follows from the server id in connection ids of QUIC."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import REASONS
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import frames, reference
from tests.packet.frames import CLIENT, icmp_error, padded, quoted
from tests.packet.network import FRONT_MAC, ROUTER_MAC
from tests.packet.quic import HANDSHAKE, INITIAL, RETRY, VERSION_1, VERSION_2, ZERO_RTT, connection_id, long, short

VIP, VIP6, MAC = "203.0.113.10", "2001:db8:f::10", "52:54:00:00:00:01"
CLIENT6 = "2001:db8:7::7"
HOSTS = range(1, 10)
DRAINED = 9
PORTS = range(1024, 1064)
LENGTHS = range(1, 9)
FEW = frozenset(("dnat", "ipv6", "quic"))
UNKNOWN_ID = REASONS.index(("quic_unknown_id", "forward"))


def service(length: int, family: int = 4, **more: Any) -> dict[str, Any]:
    """Its port says how long its server ids are."""
    return {
        "name": f"quic{length}-{family}",
        "address": VIP if family == 4 else VIP6,
        "protocol": "udp",
        "port": 440 + length,
        # Its table is filled in no time.
        "scheduler": "hash",
        "affinity": "quic",
        "quic_server_id_length": length,
        **more,
    }


def server_id(host: int, length: int = 4) -> str:
    return f"{host:02x}".ljust(2 * length, "a")


def backends(length: int, family: int = 4, **more: Any) -> list[dict[str, Any]]:
    network = "10.0.0." if family == 4 else "2001:db8::"
    return [
        {
            "service": f"quic{length}-{family}",
            "address": f"{network}{host}",
            "mac": MAC,
            "server_id": server_id(host, length),
            **({"state": "drained"} if host == DRAINED else {}),
            **more,
        }
        for host in HOSTS
    ]


def packet(datagram: bytes, length: int = 4, family: int = 4, port: int = 1024, client: str = CLIENT) -> bytes:
    if family == 4:
        return frames.udp(client, port, VIP, 440 + length, datagram)
    network = IPv6(src=CLIENT6, dst=VIP6) / UDP(sport=port, dport=440 + length) / Raw(datagram)
    return bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / network)


def host(rig, frame: bytes) -> int:
    """The number of the backend that gets it, which is the model's, too."""
    _verdict, output = rig.send(frame)
    assert rig.model.last_reason is None
    sent = reference.take_apart(output, rig.model.features)
    return sent.destination[-1]


def unknown(rig) -> int:
    return rig.model.reasons["quic_unknown_id", "forward"]


@pytest.fixture(scope="module")
def every_rig(make_rig):
    """By hook and family, with server ids of every length."""
    services = [service(length, family) for length in LENGTHS for family in (4, 6)]
    members = [entry for length in LENGTHS for family in (4, 6) for entry in backends(length, family)]
    return {"xdp": make_rig(services, members), "tc": make_rig(services, members, tc=True)}


@pytest.fixture(params=["xdp", "tc"])
def rig(request, every_rig):
    return every_rig[request.param]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_server_id_chooses_whatever_the_flow(rig, family, length):
    before = unknown(rig)
    for number in HOSTS:
        name = connection_id(server_id(number, length))
        for port in (1024, 5003, 40009):
            assert host(rig, packet(short(name), length, family, port)) == number
        assert host(rig, packet(long(HANDSHAKE, name), length, family)) == number
        assert host(rig, packet(long(HANDSHAKE, name, VERSION_2), length, family)) == number
    assert unknown(rig) == before
    rig.check_counters()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "kind, version",
    [
        *((kind, version) for kind in (INITIAL, ZERO_RTT, RETRY) for version in (VERSION_1, VERSION_2)),
        # Types of other versions are not known.
        (HANDSHAKE, 0x1A2A3A4A),
    ],
)
def test_an_id_that_the_client_may_have_chosen_does_not_count(rig, family, kind, version):
    """So nobody names the backend of a new connection, and a drained one gets none."""
    before, used = unknown(rig), set()
    name = connection_id(server_id(DRAINED))
    for port in PORTS:
        used.add(host(rig, packet(long(kind, name, version), 4, family, port)))
    assert len(used) > 4 and DRAINED not in used
    assert unknown(rig) == before


@pytest.mark.parametrize(
    "datagram, is_counted",
    [
        (short(connection_id("ffffffff")), True),
        (long(HANDSHAKE, connection_id("ffffffff")), True),
        (short(connection_id(server_id(3), 1)), True),
        # Says itself that it names no server.
        (short(connection_id(server_id(3), 7)), False),
        # An id with no room for one of a server.
        (long(HANDSHAKE, connection_id(server_id(3))[:4]), False),
        (long(HANDSHAKE, b""), False),
        # Shorter than any QUIC packet, whatever the frame is padded with.
        (short(connection_id(server_id(3)), b"")[:9], False),
        (long(HANDSHAKE, connection_id(server_id(3)))[:14], False),
        (b"", False),
    ],
)
def test_ids_of_no_server_go_by_the_flow(rig, datagram, is_counted):
    before, used = unknown(rig), set()
    for port in PORTS:
        used.add(host(rig, padded(packet(datagram, port=port))))
    assert len(used) > 4 and DRAINED not in used
    assert unknown(rig) == before + (len(PORTS) if is_counted else 0)
    rig.check_counters()


def test_an_id_belongs_to_one_service(rig):
    """That of another service, of the same length, says nothing."""
    services = [service(4), service(4, 6)]
    assert services[0]["port"] == services[1]["port"]
    name = connection_id(server_id(2, 5)[:8])
    before = unknown(rig)
    assert host(rig, packet(short(name))) == 2
    host(rig, packet(short(name), 5))
    assert unknown(rig) == before + 1


def test_a_packet_in_fragments_goes_where_its_id_says(rig):
    name = connection_id(server_id(5))
    first = frames.udp(CLIENT, 1024, VIP, 444, short(name, bytes(47)), flags="MF", id=77)
    assert host(rig, first) == 5
    later = frames.udp(CLIENT, 1024, VIP, 444, short(name, bytes(47)), frag=8, id=77)
    assert host(rig, later) == 5


def test_an_error_about_a_packet_of_a_backend_goes_by_the_flow(rig):
    """It quotes the id that the client has chosen."""
    flow = host(rig, packet(long(INITIAL, b"whatever")))
    quote = quoted(VIP, CLIENT, UDP(sport=444, dport=1024) / Raw(short(connection_id(server_id(flow % 8 + 1)))), None)
    assert host(rig, icmp_error(CLIENT, VIP, quote)) == flow


def test_the_client_picks_a_backend_with_its_id_and_no_other_way(rig):
    """As docs/threat-model.md says: an established connection's id may be forged, that of a new one is no choice."""
    name = connection_id(server_id(7))
    assert {host(rig, packet(short(name), port=port)) for port in PORTS} == {7}
    assert len({host(rig, packet(long(INITIAL, name), port=port)) for port in PORTS}) > 4


def test_backends_that_are_out_are_not_reached(make_rig):
    """Health checks and removals retire a backend's entry before they are done; its id may be there for longer."""
    rig = make_rig([service(4)], backends(4), features=FEW)
    name = connection_id(server_id(3))
    assert host(rig, packet(short(name))) == 3
    key = next(key for key in rig.program.backend_ids if key.address == "10.0.0.3")
    rig.program.maps.retire_backends([rig.program.backend_ids[key]])
    members = [entry for entry in rig.program.config.backends.values() if entry.key != key and entry.share]
    rig.program.replace_ring("quic4-4", members)
    before = rig.program.maps.read_reasons()[UNKNOWN_ID]
    for port in PORTS:
        verdict, output, _duration = rig.program.run(packet(short(name), port=port), interface=rig.interface)
        assert verdict == reference.TX and output[33] != 3
    assert rig.program.maps.read_reasons()[UNKNOWN_ID] == before + len(PORTS)


def test_a_service_whose_backends_are_all_drained_keeps_its_connections(make_rig):
    rig = make_rig([service(4)], backends(4, state="drained"), features=FEW)
    assert host(rig, packet(short(connection_id(server_id(3))))) == 3
    rig.send(packet(long(INITIAL, b"whatever")))
    assert rig.model.last_reason == ("no_backend", "drop")
    rig.check_counters()


def test_with_a_flow_table_the_id_comes_first(make_rig):
    """What no id says the flow table does; packets with an id neither ask it nor teach it."""
    rig = make_rig([service(4, flow_table=True, scheduler="round_robin")], backends(4))
    first = host(rig, packet(long(INITIAL, b"whatever")))
    other = first % 8 + 1
    assert host(rig, packet(short(connection_id(server_id(other))))) == other
    assert host(rig, packet(long(INITIAL, b"whatever"))) == first
    assert host(rig, packet(short(connection_id("ffffffff")))) == first
    rig.check_counters()


def test_other_ways_of_forwarding(make_rig):
    services, members = [], []
    for length, mode in enumerate(("dsr", "ipip", "gue"), 1):
        services.append(service(length, forwarding=mode, **({} if mode == "dsr" else {"source": "10.0.0.254"})))
        members += [{**entry, "mac": f"52:54:00:00:00:{number:02x}"} for number, entry in zip(HOSTS, backends(length))]
    rig = make_rig(services, members)
    for length in (1, 2, 3):
        for number in HOSTS:
            _verdict, output = rig.send(packet(short(connection_id(server_id(number, length))), length))
            assert rig.model.last_reason is None and output[5] == number
    rig.check_counters()


def test_many_servers_are_all_found(make_rig):
    """So many that some are not at the first slot where they are looked for."""
    for family in (4, 6):
        members = []
        for number in range(1, 301):
            address = f"10.1.{number >> 8}.{number & 255}" if family == 4 else f"2001:db8::{number:x}"
            members.append({"service": f"quic4-{family}", "address": address, "mac": MAC, "server_id": f"{number:08x}"})
        rig = make_rig([service(4, family)], members, features=FEW)
        for number, entry in enumerate(members, 1):
            _verdict, output = rig.send(packet(short(connection_id(f"{number:08x}")), family=family))
            sent = reference.take_apart(output, rig.model.features).destination
            assert sent == socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, entry["address"])
        assert not unknown(rig)
