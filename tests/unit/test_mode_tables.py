# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes that the modes, schedulers and the memory of flows have in rings, pools and endpoint tables."""

from __future__ import annotations

import socket
import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.tables import tables
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import ticks
from ansible_collections.lbops.xdp.plugins.module_utils.tables.lookup import hashed
from hypothesis import given
from hypothesis import strategies as st

WEB = {"name": "web", "address": "192.0.2.1", "protocol": "tcp", "port": 80}
NAT = {"forwarding": "full_nat", "source": "10.0.0.250"}
TUNNEL = {"forwarding": "ipip", "source": "10.0.0.250"}
# enum endpoint_kind
SERVICE, BACKEND, VIP, SOURCE = 1, 2, 3, 4
# enum service_flags
FLOW_TABLE, SESSIONS, KEEPS_TTL = 1, 2, 4
BACKENDS = [{"address": f"10.0.0.{host}"} for host in (1, 2, 3)]


def config(service: dict, backends: list[dict]) -> model.Config:
    built = model.Config(
        parse_services([{**WEB, **service}]),
        parse_backends([{"service": "web", **backend} for backend in backends]),
    )
    cross_check.check(built)
    return built


def ring(service: dict, backends: list[dict]) -> tuple[tuple[int, int, int, int], list[int]] | None:
    """The header, and the slots in use; backends have the ids 1, 2, 3 and so on."""
    built = config(service, backends)
    ids = {key: number for number, key in enumerate(built.backends, start=1)}
    packed = tables.pack_ring(built.services["web"], built.backends.values(), ids)
    if packed is None:
        return None
    assert len(packed) == 16 + 4 * 65537
    scheduler, length, flags, idle = struct.unpack_from("<4I", packed)
    slots = struct.unpack_from("<65537I", packed, 16)
    assert not any(slots[length:])
    return (scheduler, length, flags, idle), list(slots[:length])


# --- rings


@pytest.mark.parametrize(
    "service, flags",
    [
        ({}, 0),
        (TUNNEL, 0),
        ({"forwarding": "dsr"}, KEEPS_TTL),
        ({"flow_table": True}, FLOW_TABLE),
        ({"flow_table": True, "forwarding": "dsr"}, FLOW_TABLE | KEEPS_TTL),
        (NAT, SESSIONS),
    ],
    ids=str,
)
def test_flags_of_a_service(service, flags):
    packed = ring(service, BACKENDS)
    assert packed is not None and packed[0][2] == flags


def test_flags_of_a_redirect():
    packed = ring({"forwarding": "redirect", "flow_table": True}, [{"interface": "eth1"}])
    assert packed is not None and packed[0][2] == FLOW_TABLE | KEEPS_TTL


def test_a_ring_of_hash_has_the_backends_in_turn():
    packed = ring({"scheduler": "hash"}, BACKENDS)
    assert packed == ((3, 512, 0, 0), [1 + slot % 3 for slot in range(512)])


def test_a_ring_of_hash_is_in_the_order_of_addresses_and_without_the_drained():
    backends = [BACKENDS[2], {**BACKENDS[0], "state": "drained"}, {**BACKENDS[1], "weight": 5}]
    packed = ring({"scheduler": "hash"}, backends[:2] + [{**BACKENDS[1], "weight": 1}])
    assert packed is not None and packed[1][:4] == [3, 1, 3, 1]
    packed = ring({"scheduler": "hash"}, backends)
    assert packed is not None and packed[1].count(3) == pytest.approx(512 * 5 / 6, abs=5)


@pytest.mark.parametrize("service", [{"flow_table": True}, NAT], ids=["flow table", "full_nat"])
def test_a_service_that_remembers_has_a_ring_while_it_has_backends(service):
    """Flows of drained backends go on; new ones find nobody."""
    drained = [{**BACKENDS[0], "state": "drained"}, {**BACKENDS[1], "weight": 0}]
    packed = ring({**service, "idle_timeout": 60}, drained)
    assert packed is not None
    (scheduler, length, _flags, idle), slots = packed
    assert (scheduler, length, slots) == (1, 0, []) and idle
    assert ring(service, []) is None


def test_the_time_a_flow_is_remembered_is_in_ticks():
    """Of 2^30 ns: 900 s are 838.2 of them."""
    packed = ring({"flow_table": True}, BACKENDS)
    assert packed is not None and packed[0][3] == 839


@given(st.integers(0, 3600))
def test_ticks_are_no_shorter_than_the_seconds_and_less_than_one_longer(seconds):
    assert 0 <= ticks(seconds) * 2**30 - seconds * 10**9 < 2**30


@given(st.lists(st.integers(1, 10), min_size=1, max_size=20))
def test_every_backend_has_its_share_of_a_plain_ring(weights):
    slots = hashed(weights)
    assert len(slots) == 512
    for position, weight in enumerate(weights):
        # A cycle that does not end with the ring is cut off.
        assert abs(slots.count(position) - 512 * weight / sum(weights)) <= weight


@pytest.mark.parametrize("count", [1, 2, 3, 511, 512, 513, 2000])
def test_backends_of_equal_weight_have_their_turns_on_a_plain_ring(count):
    assert list(hashed([7] * count)) == [slot % count for slot in range(max(512, count))]


def test_no_weight_is_too_small_for_a_plain_ring():
    assert set(hashed([65535, 1, 65535])) == {0, 1, 2}
    assert set(hashed([1, *[65535] * 511])) == set(range(512))


# --- pools


def test_a_pool_is_where_its_sessions_and_ports_begin():
    pool = model.Pool("10.0.0.250", 10000, 32767)
    assert tables.pack_pool(pool, tables.PoolPlace(3, 700)) == struct.pack("<IHH", 700, 10000, 22768)


def test_a_pool_of_all_ports():
    assert tables.pack_pool(model.Pool("10.0.0.250", 1, 65535), tables.PoolPlace(0, 0)) == struct.pack(
        "<IHH", 0, 1, 65535
    )


# --- endpoints


def endpoints(service: dict, backends: list[dict]) -> dict[tuple, int]:
    """By kind, address, protocol and port; the ring has the place 100, backends 1, 2 and so on, the pool 5."""
    built = config(service, backends)
    ids = {key: number for number, key in enumerate(built.backends, start=1)}
    pools = {pool: tables.PoolPlace(5, 0) for pool in built.pools()}
    return {parts(key): number for key, number in tables.endpoints(built, {"web": 100}, ids, pools).items()}


def parts(key: bytes) -> tuple:
    size = {8: 4, 20: 16}[len(key)]
    address, port, protocol, kind = struct.unpack(f"<{size}s2sBB", key)
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    return kind, socket.inet_ntop(family, address), protocol, int.from_bytes(port, "big")


def test_any_port_is_port_0_there_and_back():
    assert endpoints({"port": "any"}, BACKENDS[:1]) == {
        (VIP, "192.0.2.1", 1, 0): 0,
        (SERVICE, "192.0.2.1", 6, 0): 100,
        (BACKEND, "10.0.0.1", 6, 0): 1,
    }


def test_full_nat_knows_replies_by_its_source_and_not_by_its_backends():
    assert endpoints(NAT, BACKENDS[:1]) == {
        (VIP, "192.0.2.1", 1, 0): 0,
        (SERVICE, "192.0.2.1", 6, 80): 100,
        (SOURCE, "10.0.0.250", 0, 0): 5,
    }


@pytest.mark.parametrize(
    "service, backend",
    [({"forwarding": "dsr"}, BACKENDS[0]), (TUNNEL, BACKENDS[0]), ({"forwarding": "redirect"}, {"interface": "eth1"})],
    ids=["dsr", "ipip", "redirect"],
)
def test_replies_that_do_not_come_by_are_not_known(service, backend):
    assert {kind for kind, *_rest in endpoints(service, [backend])} == {VIP, SERVICE}


def test_endpoints_of_ipv6():
    service = {"address": "2001:db8::1", "protocol": "udp"}
    assert endpoints(service, [{"address": "fd00::1", "port": 8080}]) == {
        (VIP, "2001:db8::1", 1, 0): 0,
        (SERVICE, "2001:db8::1", 17, 80): 100,
        (BACKEND, "fd00::1", 17, 8080): 1,
    }


def test_endpoints_of_full_nat_over_ipv6():
    found = endpoints({**NAT, "address": "2001:db8::1", "source": "fd00::250"}, [{"address": "fd00::1"}])
    assert found[SOURCE, "fd00::250", 0, 0] == 5
