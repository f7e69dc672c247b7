# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The feature latency measures some packets, and about as long as the kernel does itself."""

from __future__ import annotations

from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.frames import CLIENT, udp

WEB = {"name": "web", "address": "203.0.113.10", "protocol": "udp", "port": 53}
FRAME = udp(CLIENT, 40000, WEB["address"], 53, bytes(18))
SAMPLED, SAMPLES = 256, 400


def test_one_packet_in_so_many_is_measured(make_rig, net):
    program = make_rig([WEB], [{"service": "web", "address": "10.0.0.1"}], frozenset(("dnat", "latency"))).program
    _verdict, _frame, mean = program.run(FRAME, SAMPLED * SAMPLES, net.front)
    nanoseconds, *packets = program.maps.read_latency()
    # 20 is the standard deviation.
    assert abs(sum(packets) - SAMPLES) < 120
    least = [0, *layout.LATENCY_BOUNDS]
    assert sum(count * bound for count, bound in zip(packets, least)) <= nanoseconds
    # The clock may cost more than the program, and a virtual machine may be interrupted meanwhile.
    assert mean / 4 < nanoseconds / sum(packets) < 50 * mean + 1000


def test_without_the_feature_nothing_is(make_rig, net):
    program = make_rig([WEB], [{"service": "web", "address": "10.0.0.1"}], frozenset(("dnat",))).program
    program.run(FRAME, 10 * SAMPLED, net.front)
    assert not any(program.maps.read_latency())
