# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Source ports of full_nat: nobody can tell the next one (RFC 6056), and the last free one is found."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.packet.frames import CLIENT, udp
from tests.packet.reference import DROP, TX
from tests.support.program import Program

VIP, SOURCE = "203.0.113.10", "10.0.0.250"
DNS = {"name": "dns", "address": VIP, "protocol": "udp", "port": 53, "forwarding": "full_nat", "source": SOURCE}
BACKENDS = [{"service": "dns", "address": "10.0.0.1"}]
FLOWS = 4000


@pytest.fixture
def program(net):
    made: list[Program] = []

    def make(**service) -> Program:
        made.append(Program([{**DNS, **service}], BACKENDS))
        return made[-1]

    yield make
    for program in made:
        program.close()


def ports(program: Program, net, count: int) -> list[int]:
    found = []
    for client_port in range(1024, 1024 + count):
        verdict, output, _time = program.run(udp(CLIENT, client_port, VIP, 53), interface=net.front)
        assert verdict == TX
        found.append(int.from_bytes(output[34:36], "big"))
    return found


def test_ports_are_spread_evenly(program, net):
    """Chi-squared over 16 parts of the range: 15 degrees of freedom, of which one in 10^7 exceeds 60."""
    found = ports(program(), net, FLOWS)
    assert len(set(found)) == FLOWS
    low, high = 10000, max(found) + 1
    parts = Counter((port - low) * 16 // (high - low) for port in found)
    expected = FLOWS / 16
    assert sum((parts[part] - expected) ** 2 / expected for part in range(16)) < 60


def test_the_next_port_does_not_follow_from_the_last_one(program, net):
    found = ports(program(), net, FLOWS)
    steps = Counter(after - before for before, after in zip(found, found[1:]))
    assert max(steps.values()) < 20
    assert ports(program(), net, 20) != found[:20]


def test_a_pool_that_is_full(make_rig):
    """The model knows all ports in use: program and model agree on each new session, and on there being none."""
    rig = make_rig([{**DNS, "source_ports": "10000-10511"}], BACKENDS)

    def establish(client_port: int) -> int:
        verdict, output = rig.send(udp(CLIENT, client_port, VIP, 53))
        if verdict == TX:
            port = int.from_bytes(output[34:36], "big")
            assert rig.send(udp("10.0.0.1", 53, SOURCE, port))[0] == TX
            assert rig.send(udp(CLIENT, client_port, VIP, 53))[0] == TX
        return verdict

    verdicts = Counter(establish(client_port) for client_port in range(1024, 1024 + 2000))
    size = 512 // rig.model.cpus
    assert verdicts[TX] == size and verdicts[DROP] == 2000 - size
    assert len(rig.model.ports_in_use(bytes((10, 0, 0, 250)))) == size
    rig.check_counters()
