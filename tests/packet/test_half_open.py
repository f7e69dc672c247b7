# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who sends from an address that is not his sees no answer: what he begins, or ends, does not outweigh what both sides
have agreed on."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import replace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.frames import CLIENT, tcp, udp
from tests.packet.reference import DROP, TX
from tests.packet.test_remembered import STICKY, Memories, session
from tests.support.program import SIZES, Program

VIP, SOURCE = "203.0.113.10", "10.0.0.250"
NAT = {"name": "nat", "address": VIP, "protocol": "tcp", "port": 80, "forwarding": "full_nat", "source": SOURCE}
OTHER = {**NAT, "name": "other", "port": 81}
BACKENDS = [{"service": "nat", "address": "10.0.0.1"}, {"service": "other", "address": "10.0.0.2"}]
# Ticks of 2^30 ns: 30 s, the default idle_timeout of 900 s, 120 s.
HALF_OPEN, ESTABLISHED, CLOSING = 28, 839, 112
TIMEOUT = 32  # in struct session, files/bpf/layout.h
FLOOD = 5000


@pytest.fixture
def make(net):
    made: list[Program] = []

    def make(services, backends, **sizes) -> Program:
        """With the features in use, which is compiled soon."""
        made.append(Program(services, backends, None, replace(SIZES, **sizes)))
        return made[-1]

    yield make
    for program in made:
        program.close()


class Connection:
    def __init__(self, program: Program, net, client: str = CLIENT, port: int = 40000, service_port: int = 80) -> None:
        self.program, self.net, self.client, self.port, self.service_port = program, net, client, port, service_port
        self.backend, self.source_port = "", 0

    def send(self, flags: str, payload: bytes = b"") -> int:
        frame = tcp(self.client, self.port, VIP, self.service_port, payload, tcp_flags=flags)
        verdict, output, _time = self.program.run(frame, interface=self.net.front)
        if verdict == TX:
            self.backend, self.source_port = socket.inet_ntoa(output[30:34]), int.from_bytes(output[34:36], "big")
        return verdict

    def reply(self, flags: str, payload: bytes = b"") -> int:
        frame = tcp(self.backend, self.service_port, SOURCE, self.source_port, payload, tcp_flags=flags)
        return self.program.run(frame, interface=self.net.front)[0]

    def open(self) -> Connection:
        assert [self.send("S"), self.reply("SA"), self.send("A")] == [TX] * 3
        return self

    def timeout(self) -> int:
        place = session(self.program, self.source_port)
        return struct.unpack_from(
            "<I", bpf.map_lookup(self.program.maps["sessions"], place, layout.SESSION.size), TIMEOUT
        )[0]


def flood(program: Program, net, first: int, port: int = 80) -> list[int]:
    """Verdicts for one SYN of each of so many clients that do not exist. The program does not look at checksums."""
    base = int(ipaddress.ip_address("198.18.0.0")) + first
    frame = tcp(CLIENT, 1024, VIP, port, tcp_flags="S")
    clients = (struct.pack(">I", base + number) for number in range(FLOOD))
    return [program.run(frame[:26] + client + frame[30:], interface=net.front)[0] for client in clients]


def test_a_session_lasts_when_both_sides_have_sent(make, net):
    connection = Connection(make([NAT, OTHER], BACKENDS), net)
    connection.send("S")
    assert connection.timeout() == HALF_OPEN
    connection.send("S")
    connection.reply("SA")
    connection.send("S")
    assert connection.timeout() == HALF_OPEN
    connection.send("A")
    assert connection.timeout() == ESTABLISHED


def test_a_datagram_without_an_answer_holds_its_port_for_a_short_time(make, net):
    service = {**NAT, "protocol": "udp", "port": 53}
    program = make([service], BACKENDS[:1])
    connection = Connection(program, net, service_port=53)
    request = udp(CLIENT, 40000, VIP, 53)
    output = program.run(request, interface=net.front)[1]
    connection.source_port = int.from_bytes(output[34:36], "big")
    program.run(request, interface=net.front)
    assert connection.timeout() == HALF_OPEN
    program.run(udp("10.0.0.1", 53, SOURCE, connection.source_port), interface=net.front)
    program.run(request, interface=net.front)
    assert connection.timeout() == layout_ticks(300)


def layout_ticks(seconds: int) -> int:
    """Whole ticks of 2^30 ns that cover the time."""
    return -(-seconds * 10**9 // 2**30)


@pytest.mark.parametrize("flags", ["RA", "FA", "R"])
def test_data_takes_back_an_end_that_may_be_forged(make, net, flags):
    connection = Connection(make([NAT, OTHER], BACKENDS), net).open()
    for data in (connection.send, connection.reply):
        connection.send(flags)
        assert connection.timeout() == CLOSING
        connection.send("A")
        connection.reply("A")
        assert connection.timeout() == CLOSING
        assert data("PA", b"data") == TX
        assert connection.timeout() == ESTABLISHED
    connection.reply(flags)
    assert connection.timeout() == CLOSING


def test_a_forged_syn_does_not_shorten_an_established_session(make, net):
    connection = Connection(make([NAT, OTHER], BACKENDS), net).open()
    connection.send("S")
    assert connection.timeout() == ESTABLISHED


def test_a_flood_recycles_its_own_sessions(make, net):
    services = [{**service, "source_ports": "10000-10511"} for service in (NAT, OTHER)]
    program = make(services, BACKENDS)
    established = [Connection(program, net, port=41000 + number).open() for number in range(100)]
    ports = [connection.source_port for connection in established]
    assert set(flood(program, net, 0)) == {TX}
    late = Connection(program, net, service_port=81)
    assert late.send("S") == TX
    assert set(flood(program, net, FLOOD)) == {TX}
    assert late.reply("SA") == TX
    assert set(flood(program, net, 2 * FLOOD)) == {TX}
    before = late.source_port
    assert late.send("A") == TX and late.source_port == before and late.timeout() == ESTABLISHED
    for connection in established:
        assert connection.send("A") == TX and connection.reply("PA", b"data") == TX
    assert [connection.source_port for connection in established] == ports


def test_no_session_begins_when_all_are_established(make, net):
    program = make([{**NAT, "source_ports": "10000-10063"}], BACKENDS[:1])
    size = 64 // bpf.possible_cpus()
    for number in range(20 * size):
        connection = Connection(program, net, port=41000 + number)
        if connection.send("S") == TX:
            connection.reply("SA")
            connection.send("A")
    assert program.maps.live_sessions() == size
    assert Connection(program, net).send("S") == DROP


def test_each_service_has_its_own_share_of_new_flows(make, net):
    program = make([NAT, OTHER], BACKENDS, max_new_flows=100)
    verdicts = flood(program, net, 0)
    assert 100 <= verdicts.count(TX) <= 400
    assert Connection(program, net, service_port=81).send("S") == TX


# --- flow table

STICKY_BACKENDS = [{"service": "sticky", "address": f"10.0.0.{host}"} for host in (1, 2)]


def elsewhere(program: Program, backend: str) -> None:
    """New flows go to the other backend."""
    members = [item for item in program.config.backends.values() if item.address != backend]
    program.replace_ring("sticky", members)


def established_while_new_ones_go_elsewhere(make, net) -> tuple[Connection, str]:
    """A connection that is established, and its backend."""
    program = make([STICKY], STICKY_BACKENDS)
    connection = Connection(program, net, service_port=22)
    connection.send("S")
    connection.send("A")
    elsewhere(program, connection.backend)
    return connection, connection.backend


def test_new_flows_do_not_push_out_established_ones(make, net):
    program = make([STICKY], STICKY_BACKENDS, max_flows=1024)
    connections = [Connection(program, net, port=41000 + number, service_port=22) for number in range(100)]
    for connection in connections:
        connection.send("S")
        connection.send("A")
    before = [connection.backend for connection in connections]
    flood(program, net, 0, 22)
    for backend in ("10.0.0.1", "10.0.0.2"):
        elsewhere(program, backend)
        for connection in connections:
            assert connection.send("A") == TX
        assert [connection.backend for connection in connections] == before


@pytest.mark.parametrize("flags", ["S", "R", "RA", "FA"])
def test_a_forged_flag_does_not_move_a_flow(make, net, flags):
    connection, backend = established_while_new_ones_go_elsewhere(make, net)
    connection.send(flags)
    connection.send("PA", b"data")
    assert connection.backend == backend
    connection.send("S")
    assert connection.backend == backend


@pytest.mark.parametrize("flags", ["R", "FA"])
def test_a_new_connection_after_the_end_is_chosen_for_anew(make, net, flags):
    connection, backend = established_while_new_ones_go_elsewhere(make, net)
    connection.send(flags)
    connection.send("A")
    assert connection.backend == backend
    connection.send("S")
    assert connection.backend != backend
    connection.send("A")
    assert connection.backend != backend


@pytest.mark.parametrize("age", [0, 1, 5])
@pytest.mark.parametrize("state", [0, 1])
def test_a_new_connection_goes_where_another_cpu_knows_the_flow(make, net, age, state):
    """Or that CPU would go on with its backend, should the rest of the connection arrive there."""
    program = make([STICKY], STICKY_BACKENDS)
    connection = Connection(program, net, service_port=22)
    connection.send("S")
    with Memories(program) as memories:
        other = next(found for found in program.backend_ids.values() if found != memories.number)
        memories.write(1 - memories.here, age, other, state)
        memories.write(memories.here, 0, 0)
    backend = connection.backend
    connection.send("S")
    assert connection.backend != backend


def test_a_flow_that_was_closed_here_may_have_begun_anew_on_another_cpu(make, net):
    program = make([STICKY], STICKY_BACKENDS)
    connection = Connection(program, net, service_port=22)
    connection.send("S")
    backend = connection.backend
    with Memories(program) as memories:
        other = next(found for found in program.backend_ids.values() if found != memories.number)
        memories.write(memories.here, 0, memories.number, 2)
        memories.write(1 - memories.here, 0, other, 0)
    connection.send("A")
    assert connection.backend != backend
