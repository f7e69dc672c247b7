# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the kernel's messages, bytes as they come by netlink, mean that packets may have to go elsewhere."""

from __future__ import annotations

import socket
import struct
import tracemalloc

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import watch as service
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.watch import Watch

# include/uapi/linux/rtnetlink.h
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = 16, 17, 20, 21, 24, 25, 28, 29
# include/uapi/linux/neighbour.h
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = 1, 2, 4, 8, 16, 32, 64, 128
# include/uapi/linux/if.h
UP, LINK_NOARP, LOWER_UP = 0x1, 0x80, 0x10000
BRIDGE = 7  # AF_BRIDGE
MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
# Type and payload of a netlink message.
Message = tuple[int, bytes]


def attributes(values: dict[int, bytes]) -> bytes:
    packed = b""
    for number, value in values.items():
        packed += (struct.pack("=HH", len(value) + 4, number) + value).ljust(4 + -(-len(value) // 4) * 4, b"\0")
    return packed


def link(kind: int = NEWLINK, index: int = 2, flags: int = UP | LOWER_UP, family: int = 0, **changed: bytes) -> Message:
    values = {"address": MAC, "name": b"eth0\0", "mtu": struct.pack("=I", 1500), "operstate": b"\6", **changed}
    numbers = {"address": 1, "name": 3, "mtu": 4, "master": 10, "operstate": 16, "queue": 13, "group": 27}
    body = struct.pack("=BxHiII", family, 1, index, flags, 0)
    return kind, body + attributes({numbers[name]: value for name, value in values.items()})


def neighbour(
    state: int = REACHABLE,
    mac: bytes | None = MAC,
    address: str = "198.51.100.1",
    kind: int = NEWNEIGH,
    index: int = 2,
    family: int | None = None,
) -> Message:
    kernel_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    values = {1: socket.inet_pton(kernel_family, address)}
    if mac is not None:
        values[2] = mac
    return kind, struct.pack("=BxxxiHBB", family or kernel_family, index, state, 0, 1) + attributes(values)


def gone(**values) -> Message:
    """As the garbage collector deletes what nobody used for a minute: the state is the last one."""
    return neighbour(STALE, kind=DELNEIGH, **values)


def told(*messages: Message) -> list[bool]:
    """What one watch says of each, in their order; the program is made to forget where it says so."""
    watch = Watch()
    return [tell(watch, item) for item in messages]


def tell(watch: Watch, message: Message) -> bool:
    changed = watch.changes_next_hop(*message)
    if changed:
        watch.forgotten()
    return changed


# --- routes


@pytest.mark.parametrize("kind", [NEWROUTE, DELROUTE])
def test_every_route_counts_however_often(kind):
    route = kind, struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 3, 0, 1, 0)
    assert told(route, route) == [True, True]


@pytest.mark.parametrize("kind", [NEWADDR, DELADDR])
def test_what_is_neither_route_nor_link_nor_neighbour_does_not(kind):
    address = kind, struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2) + attributes({1: bytes(4)})
    assert told(address) == [False]


# --- links


def test_a_link_counts_when_it_is_first_heard_of_and_not_again():
    assert told(link(), link(), link()) == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"flags": UP},
        {"address": OTHER_MAC},
        {"mtu": struct.pack("=I", 9000)},
        {"operstate": b"\2"},
        {"master": struct.pack("=I", 9)},
    ],
    ids=["flags", "Ethernet address", "MTU", "state", "bond or bridge"],
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


def test_a_port_that_leaves_its_bridge_is_no_link_that_goes_away():
    assert told(link(), link(DELLINK, family=BRIDGE), link()) == [True, False, False]


# --- neighbours: the program has cached no more than what they had


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_a_neighbour_counts_neither_when_it_is_resolved_nor_when_that_is_confirmed(address):
    states = (REACHABLE, STALE, DELAY, PROBE, REACHABLE, PERMANENT, NOARP)
    watch = Watch()
    assert not any(tell(watch, neighbour(state, address=address)) for state in states)
    assert not watch.lost


def test_a_neighbour_that_moves_counts():
    assert told(neighbour(), neighbour(mac=OTHER_MAC), neighbour(STALE, OTHER_MAC)) == [False, True, False]


def test_a_neighbour_that_moves_to_and_fro_counts_each_time():
    assert told(neighbour(), neighbour(mac=OTHER_MAC), neighbour(), neighbour(mac=OTHER_MAC)) == [False] + [True] * 3


def test_a_neighbour_that_never_had_an_address_does_not_count():
    watch = Watch()
    for message in (neighbour(INCOMPLETE, None), neighbour(FAILED, None), neighbour(FAILED, None, kind=DELNEIGH)):
        assert not tell(watch, message) and not watch.lost


LOSSES = {
    "does not answer": [neighbour(FAILED, None)],
    "is collected": [gone()],
    "does not answer and is deleted": [neighbour(FAILED, None), neighbour(FAILED, None, kind=DELNEIGH)],
}


@pytest.fixture(params=LOSSES)
def loss(request) -> list[Message]:
    return LOSSES[request.param]


def test_an_address_that_is_lost_may_be_cached_until_the_program_has_forgotten_it(loss):
    watch = Watch()
    tell(watch, neighbour())
    for message in loss:
        assert not tell(watch, message)
        assert watch.lost
    watch.forgotten()
    assert not watch.lost
    # And not a second time.
    for message in (*loss, *LOSSES["does not answer and is deleted"]):
        assert not tell(watch, message) and not watch.lost


def test_a_neighbour_that_comes_back_with_another_address_counts_if_the_program_may_have_the_old_one(loss):
    watch = Watch()
    tell(watch, neighbour())
    for message in loss:
        tell(watch, message)
    assert tell(watch, neighbour(mac=OTHER_MAC))
    assert not watch.lost


def test_a_neighbour_that_comes_back_with_another_address_does_not_once_the_program_has_forgotten(loss):
    watch = Watch()
    tell(watch, neighbour())
    for message in loss:
        tell(watch, message)
    watch.forgotten()
    assert not tell(watch, neighbour(mac=OTHER_MAC))
    # From here on, the program may have cached this one.
    assert tell(watch, neighbour())


def test_a_neighbour_that_comes_back_as_it_was_has_lost_nothing(loss):
    watch = Watch()
    tell(watch, neighbour())
    for message in loss:
        tell(watch, message)
    assert not tell(watch, neighbour())
    assert not watch.lost


def test_forgetting_keeps_what_neighbours_have():
    watch = Watch()
    tell(watch, neighbour())
    watch.forgotten()
    assert tell(watch, neighbour(mac=OTHER_MAC))


@pytest.mark.parametrize("change", [{"address": "198.51.100.2"}, {"index": 3}], ids=str)
def test_neighbours_do_not_stand_for_each_other(change):
    messages = neighbour(), neighbour(mac=OTHER_MAC, **change), neighbour(), neighbour(mac=OTHER_MAC, **change)
    assert told(*messages) == [False] * 4


def test_what_a_bridge_learns_does_not_count():
    assert told(neighbour(family=BRIDGE), neighbour(mac=OTHER_MAC, family=BRIDGE)) == [False, False]


def test_a_neighbour_of_a_link_without_arp_counts_when_it_is_first_heard_of():
    """There the kernel makes up an address, of which it says nothing (arp_constructor(), ndisc_constructor())."""
    no_arp = link(flags=UP | LOWER_UP | LINK_NOARP)
    assert told(no_arp, neighbour(PERMANENT), neighbour(PERMANENT)) == [True, True, False]
    assert told(no_arp, neighbour(PERMANENT, index=3)) == [True, False]


def test_links_and_neighbours_are_remembered_side_by_side():
    assert told(link(), neighbour(), link(), neighbour(mac=OTHER_MAC)) == [True, False, False, True]


# --- memory


def address_of(number: int) -> str:
    return f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}"


def failed(number: int) -> list[Message]:
    address = address_of(number)
    return [neighbour(FAILED, None, address), neighbour(FAILED, None, address, DELNEIGH)]


def collected(number: int) -> list[Message]:
    address = address_of(number)
    return [neighbour(address=address), gone(address=address)]


@pytest.mark.parametrize("of_one", [failed, collected])
def test_memory_does_not_grow_with_neighbours_that_come_and_go(of_one, monkeypatch):
    monkeypatch.setattr(service, "MAX_LOST", 100)
    watch = Watch()

    def scan(first: int, count: int) -> int:
        return sum(tell(watch, message) for number in range(first, first + count) for message in of_one(number))

    scan(0, 1000)
    tracemalloc.start()
    try:
        flushes = scan(1000, 20000)
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is kept was allocated before, or is a hundred entries of some hundred bytes each.
    assert grown < 64 * 1024
    assert flushes == (0 if of_one is failed else 20000 // 100)


def test_memory_does_not_grow_with_links_that_come_and_go():
    watch = Watch()
    tracemalloc.start()
    try:
        for index in range(2, 2000):
            assert tell(watch, link(index=index)) and tell(watch, link(DELLINK, index=index))
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 16 * 1024
