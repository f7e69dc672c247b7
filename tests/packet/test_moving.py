# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows and sessions over changes of max_flows and max_sessions: how many connections are reset."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.moving import Move
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

from tests.packet.frames import tcp
from tests.packet.network import FRONT
from tests.support import balancer as support
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

VIP, SOURCE = "203.0.113.10", "10.0.0.250"
WEB = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80, "flow_table": True, "handover_seconds": 0}
NAT = {"name": "nat", "address": VIP, "protocol": "tcp", "port": 81, "forwarding": "full_nat", "source": SOURCE}
FLOWS = range(2000)


def members(*hosts: int) -> list[dict]:
    return [{"service": name, "address": f"10.0.0.{host}"} for name in ("web", "nat") for host in hosts]


@pytest.fixture
def balancer(net) -> Iterator[Balancer]:
    with support.balancer() as made:
        yield made


def apply(balancer: Balancer, backends: list[dict], **sizes: int) -> None:
    chosen = settings(FRONT, mode="generic", sizes=replace(SIZES, **sizes))
    balancer.apply(declared(chosen, [WEB, NAT], backends), check=False)


def run(balancer: Balancer, frames: list[bytes]) -> list[bytes]:
    descriptor, interface = bpf.object_get(str(balancer.places.program(FRONT))), socket.if_nametoindex(FRONT)
    try:
        return [bpf.test_run(descriptor, frame, 1, interface)[1] for frame in frames]
    finally:
        os.close(descriptor)


def requests(port: int, flags: str) -> list[bytes]:
    return [tcp(f"198.51.100.{flow % 250}", 1024 + flow, VIP, port, tcp_flags=flags) for flow in FLOWS]


def answers(sent: list[bytes]) -> list[bytes]:
    """Of the backends to packets that they got."""
    return [
        tcp(socket.inet_ntoa(frame[30:34]), 81, SOURCE, int.from_bytes(frame[34:36], "big"), tcp_flags="A")
        for frame in sent
    ]


def ends(sent: list[bytes]) -> list[bytes]:
    """Addresses and ports."""
    return [frame[26:38] for frame in sent]


def changed(before: list[bytes], after: list[bytes]) -> int:
    return sum(one != other for one, other in zip(ends(before), ends(after)))


def test_no_connection_is_reset_by_other_sizes(balancer):
    apply(balancer, members(1, 2, 3))
    begun = {port: run(balancer, requests(port, "S")) for port in (80, 81)}
    replies = run(balancer, answers(begun[81]))
    for port in (80, 81):
        assert not changed(begun[port], run(balancer, requests(port, "A")))
    # Of flows that nobody remembers a third would go to others.
    apply(balancer, members(1, 2, 3, 4, 5))
    resets = {}
    for step, sizes in {
        "larger flow tables": {"max_flows": 4 * SIZES.max_flows},
        "smaller flow tables and fewer sessions": {"max_flows": SIZES.max_flows // 2, "max_sessions": 32768},
        "more sessions": {"max_flows": SIZES.max_flows // 2},
    }.items():
        apply(balancer, members(1, 2, 3, 4, 5), **sizes)
        back = run(balancer, answers(begun[81]))
        resets[step] = changed(replies, back) + sum(
            changed(begun[port], run(balancer, requests(port, "A"))) for port in (80, 81)
        )
    assert resets == dict.fromkeys(resets, 0)


# --- what comes while the maps are switched

OLD = Sizes(max_services=8, max_backends=16, max_endpoints=64, max_flows=4096, max_sessions=4096, max_filters=8)


def table(maps) -> int:
    return bpf.map_fd(maps.table_ids("flows")[0])


def write_flow(maps, signature: int, age: int = 0, number: int = 5) -> None:
    """As the program learns it, on the first CPU; files/bpf/layout.h, struct flow_bucket."""
    place = signature * maps.sizes.flow_buckets >> 64
    flow = (signature >> 2 & (1 << 29) - 1) << 35 | 1 << 33 | (layout.ticks_now() - age) % 4096 << 21 | number
    descriptor = table(maps)
    flows = list(layout.FLOW_BUCKET.unpack(bpf.map_lookup(descriptor, layout.index(place), 64)))
    flows[flows.index(0)] = flow
    bpf.map_update(descriptor, layout.index(place), layout.FLOW_BUCKET.pack(*flows))
    os.close(descriptor)


def number_of(maps, signature: int) -> int:
    """What the program finds; 0: nothing."""
    descriptor = table(maps)
    bucket = bpf.map_lookup(descriptor, layout.index(signature * maps.sizes.flow_buckets >> 64), 64)
    os.close(descriptor)
    wanted = signature >> 2 & (1 << 29) - 1
    found = [flow for flow in layout.FLOW_BUCKET.unpack(bucket) if flow and flow >> 35 == wanted]
    assert len(found) < 2
    return found[0] & (1 << 21) - 1 if found else 0


def session(port: int, age: int = 0) -> bytes:
    value = bytearray(layout.SESSION.size)
    value[:4], value[16:18] = b"\xc6\x33\x64\x07", port.to_bytes(2, "big")
    value[28:36] = (layout.ticks_now() - age).to_bytes(4, "little") + (100).to_bytes(4, "little")
    return bytes(value)


@pytest.mark.parametrize(
    "sizes", [{"max_flows": 32768, "max_sessions": 8192}, {"max_flows": 512, "max_sessions": 2048}]
)
def test_what_comes_in_between(root, sizes):
    chance = random.Random(3)
    before, between, again, old = ([chance.getrandbits(64) for _flow in range(40)] for _kind in range(4))
    with map_set.create(OLD) as maps, map_set.create(replace(OLD, **sizes)) as new:
        for made in (maps, new):
            made.create_flow_tables()
        for signature in before:
            write_flow(maps, signature)
        for signature in old:
            write_flow(maps, signature, age=2000)
        for place in (10, 11, 700):
            bpf.map_update(maps["sessions"], layout.index(place), session(place))
        move = Move(maps, new, [(0, 600)])
        move.copy()
        assert [number_of(new, signature) for signature in before + old] == [5] * 80
        for signature in between + again:
            write_flow(maps, signature)
        for signature in again:
            # Packets came to the new program first, and it chose another backend.
            write_flow(new, signature, number=6)
        for place in (12, 13):
            bpf.map_update(maps["sessions"], layout.index(place), session(place))
        bpf.map_update(new["sessions"], layout.index(13), session(99))
        bpf.map_update(maps["sessions"], layout.index(14), session(14, age=200))
        move.follow()
        assert [number_of(new, signature) for signature in before + between] == [5] * 80
        assert [number_of(new, signature) for signature in again] == [6] * 40
        ports = [
            int.from_bytes(bpf.map_lookup(new["sessions"], layout.index(place), layout.SESSION.size)[16:18], "big")
            for place in (10, 11, 12, 13, 14, 700)
        ]
        # 14 has ended, 700 is of a pool that is elsewhere now.
        assert ports == [10, 11, 12, 99, 0, 0]
