# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of the maps' values, read back the way files/bpf reads them."""

from __future__ import annotations

import socket
import struct
from functools import reduce
from operator import xor

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables import tables
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import (
    BACKEND,
    BACKEND_FIELDS,
    ENDPOINT_BACKEND,
    ENDPOINT_SERVICE,
    ENDPOINT_SOURCE,
    ENDPOINT_VIP,
    Sizes,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.packet import reference

TCP, UDP, ICMP = 6, 17, 1


def config(services: list[dict], backends: list[dict]) -> model.Config:
    built = model.Config(parse_services(services), parse_backends(backends))
    cross_check.check(built)
    return built


# --- checksum deltas


def checksum(data: bytes) -> int:
    """From scratch, as RFC 1071 describes it."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def updated(check: int, delta: bytes) -> int:
    """As the program applies a delta: HC' = ~(~HC + delta), RFC 1624."""
    total = (~check & 0xFFFF) + int.from_bytes(delta, "big")
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


REPLACEMENTS = st.integers(1, 6).flatmap(
    lambda words: st.tuples(*[st.binary(min_size=2 * words, max_size=2 * words)] * 2)
)


@given(REPLACEMENTS, st.binary(max_size=40))
@example((b"\0\0", b"\xff\xff"), b"\1\2")
@example((b"\xff\xff", b"\0\0"), b"\1\2")
@example((b"\xff\xff\xff\xff", b"\0\0\0\0"), b"\1\2")
@example((b"\1\2", b"\1\2"), b"\3\4")
def test_delta_is_as_good_as_a_new_checksum(replacement, rest):
    before, after = replacement
    rest = rest[: len(rest) // 2 * 2]
    # Data that is all zeroes has no place in a packet, and its checksum is the one with two forms.
    assume(any(rest) and any(rest + before))
    delta = tables.checksum_delta(before, after)
    assert updated(checksum(before + rest), delta) % 0xFFFF == checksum(after + rest) % 0xFFFF


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=4, max_size=4))
def test_ip_delta_includes_the_ttl(header, address):
    """Destination and TTL of an IP header change; its checksum is 0 while it is summed."""
    assume(header[8] > 0)
    before = header[:10] + b"\0\0" + header[12:]
    after = before[:8] + bytes((before[8] - 1,)) + before[9:16] + address
    delta = tables.checksum_delta(header[16:], address, ttl_step=True)
    assert updated(checksum(before), delta) % 0xFFFF == checksum(after) % 0xFFFF


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(1, 65535), st.integers(1, 65535))
def test_there_and_back_is_no_change(vip, address, vip_port, port):
    before = vip.packed + vip_port.to_bytes(2, "big")
    after = address.packed + port.to_bytes(2, "big")
    there, back = (tables.checksum_delta(*words) for words in ((before, after), (after, before)))
    assert (int.from_bytes(there, "big") + int.from_bytes(back, "big")) % 0xFFFF == 0


# --- backends

WEB = {"name": "web", "address": "192.0.2.1", "protocol": "tcp", "port": 80}


PLACE = tables.BackendPlace(3, 5, 7)


def packed_backend(service: dict, backend: dict, place: tables.BackendPlace = PLACE) -> dict:
    built = config([service], [backend])
    packed = tables.pack_backend(*built.services.values(), *built.backends.values(), place)
    return dict(zip(BACKEND_FIELDS, BACKEND.unpack(packed)))


def words(address: bytes) -> bytes:
    return address.ljust(16, b"\0")


VIP, VIP6 = b"\xc0\0\x02\x01", bytes.fromhex("20010db8000000000000000000000001")
ADDRESS, ADDRESS6 = b"\x0a\0\0\x01", bytes.fromhex("fd000000000000000000000000000001")
WEB6 = {**WEB, "address": "2001:db8::1"}
DELTAS = ["ip_delta", "l4_delta", "reply_ip_delta", "reply_l4_delta"]


def test_dnat_backend_with_a_port():
    fields = packed_backend(WEB, {"service": "web", "address": "10.0.0.1", "port": 8080})
    wanted = {"address": words(ADDRESS), "vip": words(VIP), "port": b"\x1f\x90", "vip_port": b"\0\x50"}
    wanted |= {"forwarding": 1, "family": 4, "has_mac": 0, "mac": bytes(6)}
    wanted |= {"service": 3, "service_counters": 5, "backend_counters": 7, "interface": 0}
    assert wanted.items() <= fields.items()


def test_dnat_backend_that_keeps_the_port():
    fields = packed_backend(WEB, {"service": "web", "address": "10.0.0.1"})
    assert (fields["port"], fields["vip_port"]) == (bytes(2), bytes(2))


def test_dnat_deltas():
    fields = packed_backend(WEB, {"service": "web", "address": "10.0.0.1", "port": 8080})
    assert [fields[name] for name in DELTAS] == [
        tables.checksum_delta(VIP, ADDRESS, ttl_step=True),
        tables.checksum_delta(VIP + b"\0\x50", ADDRESS + b"\x1f\x90"),
        tables.checksum_delta(ADDRESS, VIP, ttl_step=True),
        tables.checksum_delta(ADDRESS + b"\x1f\x90", VIP + b"\0\x50"),
    ]


def test_ipv6_has_no_header_checksum_and_so_no_ttl_in_it():
    fields = packed_backend(WEB6, {"service": "web", "address": "fd00::1", "port": 8080})
    assert (fields["address"], fields["vip"], fields["family"]) == (ADDRESS6, VIP6, 6)
    assert [fields[name] for name in DELTAS[:2]] == [
        tables.checksum_delta(VIP6, ADDRESS6),
        tables.checksum_delta(VIP6 + b"\0\x50", ADDRESS6 + b"\x1f\x90"),
    ]


def test_backend_with_a_mac():
    fields = packed_backend(WEB, {"service": "web", "address": "10.0.0.1", "mac": "52:54:00:12:34:56"})
    assert (fields["has_mac"], fields["mac"]) == (1, bytes.fromhex("525400123456"))


@pytest.mark.parametrize("forwarding, extra", [("dsr", {}), ("ipip", {"source": "10.0.0.9"})])
def test_backends_that_keep_the_packet_change_neither_port_nor_checksums(forwarding, extra):
    service = {**WEB, "forwarding": forwarding, **extra}
    fields = packed_backend(service, {"service": "web", "address": "10.0.0.1", "port": 80})
    assert (fields["port"], fields["vip_port"]) == (bytes(2), bytes(2))
    assert [fields[name] for name in DELTAS] == [bytes(2)] * 4


@pytest.mark.parametrize(
    "source, words_of_source, mask",
    [
        ("10.0.0.9", words(b"\x0a\0\0\x09"), bytes(4)),
        ("10.99.0.0/16", words(b"\x0a\x63\0\0"), b"\0\0\xff\xff"),
        ("0.0.0.0/0", bytes(16), b"\xff\xff\xff\xff"),
    ],
)
def test_source_of_a_tunnel(source, words_of_source, mask):
    fields = packed_backend({**WEB, "forwarding": "ipip", "source": source}, {"service": "web", "address": "10.0.0.1"})
    assert (fields["source"], fields["source_mask"]) == (words_of_source, mask)
    # 0x4500 + 0x4004 (TTL 64, IPv4 inside) + 0x0a00 + 0x0001, in the packet's byte order.
    assert fields["header_sum"] == 0x0045 + 0x0440 + 0x000A + 0x0100


def test_tunnel_of_ipv6_over_ipv4():
    service = {**WEB6, "forwarding": "ipip", "source": "10.0.0.9"}
    fields = packed_backend(service, {"service": "web", "address": "10.0.0.1"})
    assert (fields["family"], fields["source"]) == (4, words(b"\x0a\0\0\x09"))
    # 0x4500 + 0x4029 (TTL 64, IPv6 inside) + 0x0a00 + 0x0001, in the packet's byte order.
    assert fields["header_sum"] == 0x0045 + 0x2940 + 0x000A + 0x0100


@pytest.mark.parametrize("port, packed", [(None, b"\x17\xc0"), (7000, b"\x1b\x58")])
def test_gue(port, packed):
    service = {**WEB6, "forwarding": "gue", "source": "10.99.0.0/16", "tunnel_port": port}
    fields = packed_backend(service, {"service": "web", "address": "10.0.0.1"})
    assert (fields["port"], fields["vip_port"], fields["source_mask"]) == (packed, bytes(2), b"\0\0\xff\xff")
    # 0x4500 + 0x4011 (TTL 64, UDP) + 0x0a00 + 0x0001, in the packet's byte order.
    assert fields["header_sum"] == 0x0045 + 0x1140 + 0x000A + 0x0100
    assert [fields[name] for name in DELTAS] == [bytes(2)] * 4


def test_tunnel_over_ipv6_mixes_32_bits_at_the_most():
    service = {**WEB6, "forwarding": "ipip", "source": "fd99::/64"}
    fields = packed_backend(service, {"service": "web", "address": "fd00::1"})
    assert (fields["source_mask"], fields["header_sum"], fields["family"]) == (b"\xff" * 4, 0, 6)


def test_full_nat_knows_its_pool():
    service = {**WEB, "forwarding": "full_nat", "source": "10.0.0.9", "source_ports": "20000-20099"}
    place = tables.BackendPlace(3, 5, 7, tables.PoolPlace(2, 700))
    fields = packed_backend(service, {"service": "web", "address": "10.0.0.1"}, place)
    wanted = {"source": words(b"\x0a\0\0\x09"), "source_port": 20000, "source_ports": 100}
    assert (wanted | {"first_session": 700, "pool": 2}).items() <= fields.items()


def test_redirect_knows_its_interface():
    place = tables.BackendPlace(3, 5, 7, interface=12)
    fields = packed_backend({**WEB, "forwarding": "redirect"}, {"service": "web", "interface": "eth1"}, place)
    assert (fields["interface"], fields["forwarding"], fields["address"]) == (12, 5, bytes(16))


# --- endpoints


def endpoints(services: list[dict], backends: list[dict]) -> tables.Endpoints:
    built = config(services, backends)
    rings = {name: 100 + number for number, name in enumerate(built.services)}
    ids = {key: 1000 + number for number, key in enumerate(built.backends)}
    return tables.endpoints(built, rings, ids, {})


def key(kind: int, address: str, protocol: int, port: int) -> bytes:
    """Composed as endpoints.h does on a little-endian machine."""
    number = int.from_bytes(socket.inet_aton(address), "little")
    number |= int.from_bytes(port.to_bytes(2, "big"), "little") << 32 | protocol << 48 | kind << 56
    return number.to_bytes(8, "little")


def test_endpoints_of_a_service():
    assert endpoints([WEB], []) == {
        key(ENDPOINT_VIP, "192.0.2.1", ICMP, 0): 0,
        key(ENDPOINT_SERVICE, "192.0.2.1", TCP, 80): 100,
    }


def test_endpoints_of_a_range():
    found = endpoints([{**WEB, "protocol": "udp", "port": "7000-7002"}], [{"service": "web", "address": "10.0.0.1"}])
    wanted = {key(ENDPOINT_VIP, "192.0.2.1", ICMP, 0): 0}
    for port in (7000, 7001, 7002):
        wanted[key(ENDPOINT_SERVICE, "192.0.2.1", UDP, port)] = 100
        wanted[key(ENDPOINT_BACKEND, "10.0.0.1", UDP, port)] = 1000
    assert found == wanted


def test_endpoints_of_backends_are_those_that_reply_through_the_balancer():
    services = [WEB, {**WEB, "name": "direct", "port": 443, "forwarding": "dsr"}]
    backends = [
        {"service": "web", "address": "10.0.0.1", "port": 8080},
        {"service": "direct", "address": "10.0.0.2"},
        {"service": "web", "address": "10.0.0.3", "state": "drained"},
        {"service": "web", "address": "10.0.0.4", "weight": 0},
    ]
    replies = {name: number for name, number in endpoints(services, backends).items() if name[7] == ENDPOINT_BACKEND}
    assert replies == {
        key(ENDPOINT_BACKEND, "10.0.0.1", TCP, 8080): 1000,
        key(ENDPOINT_BACKEND, "10.0.0.3", TCP, 80): 1002,
        key(ENDPOINT_BACKEND, "10.0.0.4", TCP, 80): 1003,
    }


# --- the endpoint table

SIZES = Sizes(max_services=16, max_backends=16, max_endpoints=1000)


def lookup(table: bytes, wanted: bytes) -> int | None:
    """endpoint_lookup() of endpoints.h."""
    shift = struct.unpack_from("<I", table)[0]
    home = int.from_bytes(wanted, "little") * 0x9E3779B97F4A7C15 % 2**64 >> shift
    for slot in range(home, home + 16):
        found, number = struct.unpack_from("<8sI", table, 160 + 16 * slot)
        if found == wanted:
            return number
        if found == bytes(8):
            return None
    return None


def port_bits(*found: bytes) -> tuple[int, int]:
    return struct.unpack_from("<QQ", tables.pack_endpoint_tables(dict.fromkeys(found, 1), SIZES)[0], 8)


def test_ports_in_use_are_known_by_their_last_six_bits():
    web = key(ENDPOINT_SERVICE, "192.0.2.1", TCP, 80)
    high = key(ENDPOINT_SERVICE, "192.0.2.2", UDP, 65535)
    backend = key(ENDPOINT_BACKEND, "10.0.0.1", TCP, 8080)
    assert port_bits() == (0, 0)
    assert port_bits(web, high, backend) == (1 << 80 % 64 | 1 << 63, 1 << 8080 % 64)
    assert port_bits(key(ENDPOINT_VIP, "192.0.2.1", ICMP, 0)) == (0, 0)
    assert port_bits(web, key(ENDPOINT_SERVICE, "192.0.2.9", TCP, 0)) == (2**64 - 1, 0)


def test_address_bloom_are_known_by_ten_bits():
    def bits(*found: bytes) -> int:
        table4, table6 = tables.pack_endpoint_tables(dict.fromkeys(found, 1), SIZES)
        return int.from_bytes((table6 or table4)[32 : 32 + 128], "little")

    def bit(*words: int) -> int:
        return 1 << (reduce(xor, words) * 0x9E3779B97F4A7C15 % 2**64 >> 54)

    vip, pool = key(ENDPOINT_VIP, "192.0.2.1", ICMP, 0), key(ENDPOINT_SOURCE, "10.0.0.250", 0, 0)
    assert bits(key(ENDPOINT_SERVICE, "192.0.2.9", TCP, 80), key(ENDPOINT_BACKEND, "10.0.0.1", TCP, 80)) == 0
    assert bits(vip, pool) == bit(0x010200C0) | bit(0xFA00000A)
    vip6 = tables.endpoint_key(ENDPOINT_VIP, "2001:db8::1", ICMP, 0)
    assert bits(vip6) == bit(0xB80D0120, 0, 0, 0x01000000)


def test_ipv6_has_a_table_of_its_own():
    found4 = {key(ENDPOINT_SERVICE, "192.0.2.1", TCP, 80): 5}
    found6 = {
        tables.endpoint_key(ENDPOINT_SERVICE, f"2001:db8::{host:x}", TCP, port): host * port
        for host in range(1, 40)
        for port in (80, 443)
    }
    table4, table6 = tables.pack_endpoint_tables({**found4, **found6}, SIZES)
    assert table4 == tables.pack_endpoint_tables(found4, SIZES)[0]
    assert table6 is not None and len(table6) == SIZES.endpoint6_table_bytes
    shift = struct.unpack_from("<I", table6)[0]
    for wanted, number in found6.items():
        upper, lower, rest = struct.unpack("<QQI", wanted)
        mixed = (upper ^ rest << 32) * 0x9E3779B97F4A7C15 % 2**64
        home = (mixed ^ mixed >> 32 ^ lower) * 0x9E3779B97F4A7C15 % 2**64 >> shift
        slots = [struct.unpack_from("<20sI", table6, 160 + 24 * slot) for slot in range(home, home + 16)]
        assert dict(slots)[wanted] == number


def test_without_ipv6_there_is_no_second_table():
    assert tables.pack_endpoint_tables({key(ENDPOINT_SERVICE, "192.0.2.1", TCP, 80): 5}, SIZES)[1] is None


KEYS = st.builds(
    key,
    st.sampled_from((ENDPOINT_SERVICE, ENDPOINT_BACKEND, ENDPOINT_VIP)),
    st.builds("{}.{}.{}.{}".format, *[st.integers(0, 255)] * 4),
    st.sampled_from((ICMP, TCP, UDP)),
    st.integers(0, 65535),
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.integers(0, 2**32 - 1), max_size=300), st.lists(KEYS, max_size=100))
def test_every_key_is_found_and_no_other(found, others):
    table = tables.pack_endpoint_tables(found, SIZES)[0]
    assert len(table) == SIZES.endpoint_table_bytes
    assert {name: lookup(table, name) for name in found} == found
    assert all(lookup(table, other) is None for other in others if other not in found)


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.integers(0, 2**32 - 1), max_size=100))
def test_table_holds_nothing_else(found):
    table = tables.pack_endpoint_tables(found, SIZES)[0]
    slots = list(struct.iter_unpack("<8sII", table[160:]))
    assert sorted(slot for slot in slots if any(slot[0])) == sorted((name, number, 0) for name, number in found.items())


def test_empty_table_finds_nothing():
    table = tables.pack_endpoint_tables({}, SIZES)[0]
    assert lookup(table, key(ENDPOINT_SERVICE, "192.0.2.1", TCP, 80)) is None
    assert lookup(table, key(ENDPOINT_VIP, "0.0.0.0", ICMP, 0)) is None


@pytest.mark.parametrize("count", [1, 2, 3, 5, 1000])
def test_full_table(count):
    """As many endpoints as the map is declared for."""
    found = {key(ENDPOINT_SERVICE, "192.0.2.1", TCP, port): port for port in range(1, count + 1)}
    sizes = Sizes(max_endpoints=count)
    table = tables.pack_endpoint_tables(found, sizes)[0]
    assert len(table) == sizes.endpoint_table_bytes
    assert {name: lookup(table, name) for name in found} == found


@pytest.mark.parametrize("first, last", [(1, 5000), (1024, 20000), (60000, 65535), (1, 65535)])
def test_thousands_of_adjacent_ports(first, last):
    found = {key(ENDPOINT_SERVICE, "192.0.2.1", UDP, port): port for port in range(first, last + 1)}
    table = tables.pack_endpoint_tables(found, Sizes(max_endpoints=len(found)))[0]
    assert all(lookup(table, name) == number for name, number in found.items())
    for port in range(max(first - 1000, 0), first):
        assert lookup(table, key(ENDPOINT_SERVICE, "192.0.2.1", UDP, port)) is None
        assert lookup(table, key(ENDPOINT_SERVICE, "192.0.2.1", TCP, port)) is None


def test_adjacent_addresses():
    found = {
        key(ENDPOINT_BACKEND, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", TCP, 8080): number
        for number in range(20000)
    }
    table = tables.pack_endpoint_tables(found, Sizes(max_endpoints=20000))[0]
    assert all(lookup(table, name) == number for name, number in found.items())


def test_small_configuration_uses_few_slots():
    """So that lookups of a small configuration stay in the CPU's cache, whatever the map could hold."""
    found = {key(ENDPOINT_SERVICE, "192.0.2.1", TCP, port): 1 for port in range(1, 5)}
    table = tables.pack_endpoint_tables(found, Sizes(max_endpoints=100000))[0]
    assert struct.unpack_from("<I", table) == (64 - 4,)


def test_too_many_endpoints():
    found = {key(ENDPOINT_SERVICE, "192.0.2.1", TCP, port): 1 for port in range(1, 1002)}
    with pytest.raises(EngineError, match=r"needs 1001 endpoints .*max_endpoints is 1000; raise max_endpoints"):
        tables.pack_endpoint_tables(found, SIZES)[0]


def test_endpoints_that_cluster(monkeypatch):
    """Nobody finds such keys by chance, so this program looks at one slot only."""
    monkeypatch.setattr(tables, "ENDPOINT_PROBES", 1)
    found = {key(ENDPOINT_SERVICE, f"192.0.{port % 7}.1", TCP, port): 1 for port in range(1, 1001)}
    with pytest.raises(EngineError, match="1000 endpoints cluster too much for max_endpoints 1000; double"):
        tables.pack_endpoint_tables(found, SIZES)[0]


# --- rings


def packed_ring(service: dict, backends: list[dict]) -> bytes | None:
    """Backends have the ids 1, 2, 3 and so on."""
    built = config([service], [{"service": "web", **backend} for backend in backends])
    ids = {name: number for number, name in enumerate(built.backends, start=1)}
    return tables.pack_ring(built.services["web"], built.backends.values(), ids)


def unpacked(packed: bytes | None, room: int = 65537) -> tuple[tuple[int, ...], list[int]]:
    """The header, and all slots."""
    assert packed is not None and len(packed) == 16 + 4 * room
    words = struct.unpack(f"<{4 + room}I", packed)
    return words[:4], list(words[4:])


@pytest.mark.parametrize("size, room", [(251, 1021), (1021, 1021), (8191, 16381), (65521, 65537), (131071, 131071)])
def test_maglev_table_of_another_size(size, room):
    packed = packed_ring({**WEB, "table_size": size}, [{"address": "10.0.0.1"}, {"address": "10.0.0.2", "weight": 3}])
    (scheduler, length, *_rest), slots = unpacked(packed, room)
    ids = {"10.0.0.1:80": 1, "10.0.0.2:80": 2}
    assert (scheduler, length) == (1, size)
    assert slots[:size] == [ids[name] for name in reference.maglev({"10.0.0.1:80": 1, "10.0.0.2:80": 3}, size)]
    assert not any(slots[size:])


ROUND_ROBIN = {**WEB, "protocol": "udp", "scheduler": "round_robin"}
NOBODY = [
    [],
    [{"address": "10.0.0.1", "state": "drained"}],
    [{"address": "10.0.0.1", "weight": 0}],
    [{"address": "10.0.0.1", "state": "drained"}, {"address": "10.0.0.2", "weight": 0}],
]


@pytest.mark.parametrize("backends", NOBODY, ids=["no backend", "drained", "weight 0", "both"])
@pytest.mark.parametrize("service", [WEB, ROUND_ROBIN], ids=["maglev", "round_robin"])
def test_no_ring_without_a_backend_that_takes_packets(service, backends):
    assert packed_ring(service, backends) is None


def test_maglev_ring():
    weights = {"10.0.0.1": 1, "10.0.0.2": 3}
    packed = packed_ring(WEB, [{"address": address, "weight": weight} for address, weight in weights.items()])
    (scheduler, length, *_rest), slots = unpacked(packed)
    assert (scheduler, length) == (1, 65537)
    ids = {"10.0.0.1:80": 1, "10.0.0.2:80": 2}
    wanted = reference.maglev({"10.0.0.1:80": 1, "10.0.0.2:80": 3})
    assert slots == [ids[name] for name in wanted]


def test_maglev_ring_does_not_tell_a_port_kept_from_the_same_port_set():
    assert packed_ring(WEB, [{"address": "10.0.0.1"}, {"address": "10.0.0.2"}]) == packed_ring(
        WEB, [{"address": "10.0.0.1", "port": 80}, {"address": "10.0.0.2", "port": 80}]
    )


def test_maglev_ring_tells_ports_apart():
    packed = packed_ring(WEB, [{"address": "10.0.0.1", "port": 8080}, {"address": "10.0.0.1", "port": 8081}])
    assert set(unpacked(packed)[1]) == {1, 2}


def test_ring_leaves_drained_backends_out():
    packed = packed_ring(WEB, [{"address": "10.0.0.1", "state": "drained"}, {"address": "10.0.0.2"}])
    assert set(unpacked(packed)[1]) == {2}


def test_round_robin_ring():
    backends = [
        {"address": "10.0.0.1", "weight": 1},
        {"address": "10.0.0.2", "weight": 0},
        {"address": "10.0.0.3", "weight": 2},
    ]
    packed = packed_ring(ROUND_ROBIN, backends)
    (scheduler, length, *_rest), slots = unpacked(packed)
    assert (scheduler, length, slots[:3]) == (2, 3, [3, 1, 3])
    assert not any(slots[3:])


@pytest.mark.parametrize("scheduler", ["maglev", "hash", "round_robin"])
def test_the_order_of_the_inventory_makes_no_difference(scheduler):
    """To which backend a flow goes: all balancers of a fleet agree, whenever a backend came to which of them."""
    service = {**WEB, "protocol": "udp", "scheduler": scheduler}
    hosts = [("10.0.0.9", 80, 1), ("10.0.0.10", 80, 2), ("10.0.0.9", 443, 1), ("9.255.0.1", 80, 1), ("10.0.0.2", 80, 3)]

    def flows_to(order: list[int]) -> list[tuple]:
        backends = [dict(zip(("address", "port", "weight"), hosts[place])) for place in order]
        (_scheduler, length, *_rest), slots = unpacked(packed_ring(service, backends))
        return [hosts[order[number - 1]] for number in slots[:length]]

    first = flows_to([0, 1, 2, 3, 4])
    assert flows_to([4, 2, 0, 1, 3]) == flows_to([3, 4, 1, 2, 0]) == first
    if scheduler != "maglev":
        # By number, not by text. Those of another weight take their turns in between.
        alike = [entry for entry in dict.fromkeys(first) if entry[2] == 1]
        assert alike == [("9.255.0.1", 80, 1), ("10.0.0.9", 80, 1), ("10.0.0.9", 443, 1)]


def test_round_robin_ring_of_heavy_weights_fits():
    packed = packed_ring(ROUND_ROBIN, [{"address": f"10.0.0.{host}", "weight": 65536 - host} for host in range(1, 9)])
    (_scheduler, length, *_rest), slots = unpacked(packed)
    assert length <= 65537
    assert set(slots[:length]) == set(range(1, 9))
    assert not any(slots[length:])
