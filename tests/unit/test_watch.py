# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the kernel's messages, bytes as they come by netlink, mean that packets may have to go elsewhere."""

from __future__ import annotations

import socket
import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.watch import Watch
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.link import import_pyroute2

# include/uapi/linux/rtnetlink.h
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = 16, 17, 20, 21, 24, 25, 28, 29
# include/uapi/linux/neighbour.h
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = 1, 2, 4, 8, 16, 32, 64, 128
UP, LOWER_UP = 0x1, 0x10000
BRIDGE = 7  # AF_BRIDGE
MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def attributes(values: dict[int, bytes]) -> bytes:
    packed = b""
    for number, value in values.items():
        packed += (struct.pack("=HH", len(value) + 4, number) + value).ljust(4 + -(-len(value) // 4) * 4, b"\0")
    return packed


def message(kind: int, body: bytes):
    """As pyroute2 hands it over."""
    import_pyroute2()
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    [parsed] = list(MarshalRtnl().parse(struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body))
    return parsed


def link(kind: int = NEWLINK, index: int = 2, flags: int = UP | LOWER_UP, **changed: bytes):
    values = {"address": MAC, "name": b"eth0\0", "mtu": struct.pack("=I", 1500), "operstate": b"\6", **changed}
    numbers = {"address": 1, "name": 3, "mtu": 4, "operstate": 16, "queue": 13, "group": 27}
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    return message(kind, body + attributes({numbers[name]: value for name, value in values.items()}))


def neighbour(
    state: int = REACHABLE,
    mac: bytes | None = MAC,
    address: str = "198.51.100.1",
    kind: int = NEWNEIGH,
    index: int = 2,
    family: int | None = None,
):
    kernel_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    values = {1: socket.inet_pton(kernel_family, address)}
    if mac is not None:
        values[2] = mac
    body = struct.pack("=BxxxiHBB", family or kernel_family, index, state, 0, 1)
    return message(kind, body + attributes(values))


def told(*messages) -> list[bool]:
    """What one watch says of each, in their order."""
    watch = Watch()
    return [bool(watch.changes_next_hop(item)) for item in messages]


# --- routes


@pytest.mark.parametrize("kind", [NEWROUTE, DELROUTE])
def test_every_route_counts_however_often(kind):
    route = message(kind, struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 3, 0, 1, 0))
    assert told(route, route) == [True, True]


@pytest.mark.parametrize("kind", [NEWADDR, DELADDR])
def test_what_is_neither_route_nor_link_nor_neighbour_does_not(kind):
    address = message(kind, struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2) + attributes({1: bytes(4)}))
    assert told(address) == [False]


# --- links


def test_a_link_counts_when_it_is_first_heard_of_and_not_again():
    assert told(link(), link(), link()) == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [{"flags": UP}, {"address": OTHER_MAC}, {"mtu": struct.pack("=I", 9000)}, {"operstate": b"\2"}],
    ids=["flags", "Ethernet address", "MTU", "state"],
)
def test_a_link_that_changes_counts_there_and_back(change):
    assert told(link(), link(**change), link(**change), link()) == [True, True, False, True]


@pytest.mark.parametrize("name", ["queue", "group"])
def test_what_no_packet_depends_on_does_not_count(name):
    assert told(link(), link(**{name: struct.pack("=I", 7)})) == [True, False]


def test_a_link_that_goes_away_counts_and_so_does_its_return():
    assert told(link(), link(DELLINK), link()) == [True, True, True]


def test_links_do_not_stand_for_each_other():
    assert told(link(index=2), link(index=3), link(index=2)) == [True, True, False]


# --- neighbours


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_a_neighbour_counts_when_it_has_an_address_and_not_when_that_is_confirmed(address):
    states = (REACHABLE, STALE, DELAY, PROBE, REACHABLE, PERMANENT, NOARP)
    assert told(*(neighbour(state, address=address) for state in states)) == [True] + [False] * (len(states) - 1)


def test_a_neighbour_that_moves_counts():
    assert told(neighbour(), neighbour(mac=OTHER_MAC), neighbour(STALE, OTHER_MAC)) == [True, True, False]


def test_a_neighbour_that_does_not_answer_counts_once():
    assert told(neighbour(), neighbour(FAILED), neighbour(FAILED), neighbour()) == [True, True, False, True]


def test_a_neighbour_being_looked_for_does_not_count():
    assert told(neighbour(INCOMPLETE, None), neighbour(FAILED, None), neighbour()) == [False, False, True]


def test_a_neighbour_that_is_removed_counts():
    assert told(neighbour(), neighbour(kind=DELNEIGH), neighbour(kind=DELNEIGH)) == [True, True, False]


@pytest.mark.parametrize("change", [{"address": "198.51.100.2"}, {"index": 3}], ids=str)
def test_neighbours_do_not_stand_for_each_other(change):
    assert told(neighbour(), neighbour(**change), neighbour()) == [True, True, False]


def test_what_a_bridge_learns_does_not_count():
    assert told(neighbour(family=BRIDGE)) == [False]


def test_links_and_neighbours_are_remembered_side_by_side():
    assert told(link(), neighbour(), link(), neighbour()) == [True, True, False, False]
