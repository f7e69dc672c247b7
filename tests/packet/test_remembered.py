# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of sessions and remembered flows when time, CPUs and backends are not what they were."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout, tables
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from tests.packet.frames import CLIENT, tcp, udp
from tests.packet.reference import TX

VIP = "203.0.113.10"
NAT = {"name": "nat", "address": VIP, "protocol": "tcp", "port": 80, "forwarding": "full_nat", "source": "10.0.0.250"}
STICKY = {"name": "sticky", "address": VIP, "protocol": "tcp", "port": 22, "flow_table": True}
# Offset in struct session, files/bpf/layout.h.
SEEN = 28
HALF_OPEN = 28  # ticks of 2^30 ns: 30 s


@pytest.fixture
def nat(make_rig):
    return make_rig([NAT], [{"service": "nat", "address": "10.0.0.1"}]).program


def send(program, net, flags: str, port: int = 80) -> tuple[str, int]:
    """Backend and source port that the packet of one client was given."""
    verdict, frame, _duration = program.run(tcp(CLIENT, 40000, VIP, port, tcp_flags=flags), interface=net.front)
    assert verdict == TX
    return socket.inet_ntoa(frame[30:34]), int.from_bytes(frame[34:36], "big")


def session(program, port: int) -> bytes:
    pool = next(iter(program.plan.allocation.pools.items()))
    number = pool[1].first_session + port - pool[0].first_port
    return layout.index(number)


def test_a_session_that_a_cpu_a_tick_ahead_has_seen_is_alive(nat, net):
    first = send(nat, net, "S")
    place = session(nat, first[1])
    value = bytearray(bpf.map_lookup(nat.maps["sessions"], place, layout.SESSION.size))
    struct.pack_into("<I", value, SEEN, struct.unpack_from("<I", value, SEEN)[0] + 1)
    bpf.map_update(nat.maps["sessions"], place, bytes(value))
    assert send(nat, net, "A") == first


def test_only_sessions_that_live_count_as_such(nat, net):
    assert nat.maps.live_sessions() == 0
    _backend, port = send(nat, net, "S")
    assert nat.maps.live_sessions() == 1
    place = session(nat, port)
    value = bytearray(bpf.map_lookup(nat.maps["sessions"], place, layout.SESSION.size))
    (seen,) = struct.unpack_from("<I", value, SEEN)
    # The tick may turn while this runs.
    for age, alive in ((HALF_OPEN - 2, 1), (HALF_OPEN + 1, 0)):
        struct.pack_into("<I", value, SEEN, seen - age)
        bpf.map_update(nat.maps["sessions"], place, bytes(value))
        assert nat.maps.live_sessions() == alive


def test_a_session_ends_when_its_backends_place_is_given_to_another(nat, net):
    first = send(nat, net, "S")
    key = next(iter(nat.backend_ids))
    service = nat.config.services["nat"]
    (other,) = nat.config.backends.values()
    other = other._replace(address="10.0.0.2")
    entry = tables.pack_backend(service, other, nat.plan.backend_place(key, 0))
    nat.maps.write_backends({nat.backend_ids[key]: entry})
    _verdict, frame, _duration = nat.run(tcp(CLIENT, 40000, VIP, 80, tcp_flags="A"), interface=net.front)
    packet = Ether(frame)
    assert packet[IP].dst == "10.0.0.2" and packet[TCP].sport != first[1]
    sums = packet[IP].chksum, packet[TCP].chksum
    del packet[IP].chksum, packet[TCP].chksum
    computed = Ether(bytes(packet))
    assert sums == (computed[IP].chksum, computed[TCP].chksum)


def test_a_client_without_a_port_gets_its_reply_without_one(make_rig):
    """UDP's source port 0 (RFC 768)."""
    rig = make_rig([{**NAT, "protocol": "udp", "port": 53}], [{"service": "nat", "address": "10.0.0.1"}])
    _verdict, request = rig.send(udp(CLIENT, 0, VIP, 53, bytes(18)))
    port = int.from_bytes(request[34:36], "big")
    verdict, reply = rig.send(udp("10.0.0.1", 53, NAT["source"], port, bytes(18)))
    assert (verdict, reply[34:38]) == (TX, struct.pack(">HH", 53, 0))


def flow_tables(program) -> list[int]:
    """Descriptors of the CPUs' tables."""
    size = program.maps.spec("flows").max_entries
    return [
        bpf.map_fd(int.from_bytes(bpf.map_lookup(program.maps["flows"], layout.index(cpu), 4), "little"))
        for cpu in range(size)
    ]


def buckets(descriptor: int, count: int) -> dict[int, list[int]]:
    _keys, values = bpf.map_lookup_batch(descriptor, count, layout.FLOW_BUCKET.size)
    return {place: list(flows) for place, flows in enumerate(layout.FLOW_BUCKET.iter_unpack(values)) if any(flows)}


class Memories:
    """What both CPUs remember of the one flow that a program has seen."""

    def __init__(self, program) -> None:
        assert bpf.possible_cpus() > 1
        self.here = min(os.sched_getaffinity(0))
        self._tables = flow_tables(program)
        ((self._place, flows),) = buckets(self._tables[self.here], program.maps.spec("flows").inner_entries).items()
        ((self._slot, flow),) = [(slot, flow) for slot, flow in enumerate(flows) if flow]
        # struct flow_bucket: signature << 35 | state << 33 | tick << 21 | number
        self._signature, self.tick, self.number = flow >> 35, flow >> 21 & 4095, flow & (1 << 21) - 1

    def write(self, cpu: int, age: int, number: int, state: int = 1) -> None:
        """Number 0: the CPU knows nothing."""
        flows = [0] * 8
        if number:
            flows[self._slot] = self._signature << 35 | state << 33 | (self.tick - age) % 4096 << 21 | number
        bpf.map_update(self._tables[cpu], layout.index(self._place), layout.FLOW_BUCKET.pack(*flows))

    def __enter__(self) -> Memories:
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self._tables:
            os.close(descriptor)


def test_the_youngest_of_several_memories_counts(make_rig, net):
    """A flow was here, went to another CPU, and comes back: what is remembered here has long expired."""
    members = [{"service": "sticky", "address": f"10.0.0.{host}"} for host in (1, 2)]
    program = make_rig([STICKY], members).program
    backend, _port = send(program, net, "S", 22)
    with Memories(program) as memories:
        other = next(found for found in program.backend_ids.values() if found != memories.number)
        memories.write(1 - memories.here, 0, other)
        memories.write(memories.here, 2000, memories.number)
    assert send(program, net, "A", 22)[0] != backend


def test_a_memory_of_what_is_no_more_is_not_made_younger(make_rig, net):
    """This CPU knows the client's port from a session that the service had as full_nat; another has the connection."""
    members = [{"service": "sticky", "address": f"10.0.0.{host}"} for host in (1, 2)]
    program = make_rig([STICKY], members).program
    backend, _port = send(program, net, "S", 22)
    with Memories(program) as memories:
        memories.write(1 - memories.here, 0, memories.number)
        memories.write(memories.here, 2, 1 << 20 | 5)
    flows = program.maps.read_counters("service_counters")[program.rings["sticky"]][4]
    assert send(program, net, "A", 22)[0] == backend
    assert program.maps.read_counters("service_counters")[program.rings["sticky"]][4] == flows
