# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters: what an inventory may declare, and a table in which a reader of files/bpf/layout.h finds the right rule."""

from __future__ import annotations

import ipaddress
import random
import re
import struct
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan
from ansible_collections.lbops.xdp.plugins.module_utils.config import filters
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables import filter_table
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from hypothesis import example, given, settings
from hypothesis import strategies as st

FILTER = {"prefix": "198.51.100.0/24", "action": "drop"}
WHERE = "filters[0] (198.51.100.0/24): "
SIZES = Sizes(max_filters=256)


def rule(prefix: Any = "198.51.100.0/24", **other: Any) -> dict[str, Any]:
    return {"prefix": prefix, "action": "drop", **other}


def refused(*words: str) -> Any:
    """The message has all of these words."""
    return pytest.raises(EngineError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


def only(raw: dict[str, Any]) -> filters.Filter:
    [parsed] = list(filters.parse_filters([raw]).values())
    return parsed


# --- values of one entry

NOT_PREFIXES = ["nonsense", "192.0.2", "192.0.2.256/24", " 192.0.2.0/24", "2001:db8::1::/64", "eth0", 5, True, ["::/0"]]
NOT_LENGTHS = ["192.0.2.0/", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/+8", "192.0.2.0/ 24", "192.0.2.0/24/24"]
NOT_LENGTHS += ["192.0.2.0/255.255.255.0", "192.0.2.0/２４"]


@pytest.mark.parametrize("value", NOT_PREFIXES, ids=repr)
def test_prefix_that_is_none(value):
    with refused("filters[0] (", f"prefix {value!r} is not an IPv4 address such as 192.0.2.10 or an IPv6 address"):
        filters.parse_filters([rule(value)])


@pytest.mark.parametrize("value", NOT_LENGTHS, ids=repr)
def test_length_that_is_none(value):
    with refused(f"filters[0] ({value}): prefix {value!r} has no length from 0 to 32 behind the slash"):
        filters.parse_filters([rule(value)])


@pytest.mark.parametrize("value", ["2001:db8::/129", "2001:db8::/x"])
def test_length_that_ipv6_has_not(value):
    with refused(f"prefix {value!r} has no length from 0 to 128 behind the slash"):
        filters.parse_filters([rule(value)])


@pytest.mark.parametrize(
    "value, remedy",
    [
        ("198.51.100.7/24", "198.51.100.0/24"),
        ("198.51.100.7/0", "0.0.0.0/0"),
        ("198.51.100.7/31", "198.51.100.6/31"),
        ("2001:db8::1/64", "2001:db8::/64"),
        ("ffff::/1", "8000::/1"),
    ],
)
def test_bits_behind_the_length(value, remedy):
    with refused(f"prefix {value!r} has bits behind its length; write {remedy}"):
        filters.parse_filters([rule(value)])


@pytest.mark.parametrize("empty", [None, ""], ids=repr)
def test_prefix_is_missing(empty):
    with refused("filters[0]", "prefix is missing"):
        filters.parse_filters([rule(empty)])


@pytest.mark.parametrize("value", [None, "", "reject", "DROP", 1, ["drop"]], ids=repr)
def test_action(value):
    with refused(WHERE, f"action {value!r} is not one of drop, pass, limit"):
        filters.parse_filters([rule(action=value)])


@pytest.mark.parametrize("value", ["", "icmpv6", "other", 6, {"tcp": 1}], ids=repr)
def test_protocol(value):
    with refused(WHERE, f"protocol {value!r} is not one of any, tcp, udp, icmp"):
        filters.parse_filters([rule(protocol=value)])


@pytest.mark.parametrize("empty", [None, ""], ids=repr)
def test_limit_without_a_rate(empty):
    with refused(WHERE, "rate is missing"):
        filters.parse_filters([rule(action="limit", rate=empty)])


@pytest.mark.parametrize("key", ["rate", "burst"])
def test_number_that_is_none(key):
    limit = rule(action="limit", rate=100)
    for value in ("many", "1k", 1.5, "", True) if key == "burst" else ("many", "1k", 1.5, True):
        with refused(WHERE, f"{key} {value!r} is not a whole number"):
            filters.parse_filters([{**limit, key: value}])


@pytest.mark.parametrize("key, highest", [("rate", 10**9), ("burst", 2**32 - 1)])
def test_number_out_of_range(key, highest):
    limit = rule(action="limit", rate=100)
    for value in (0, -1, highest + 1):
        with refused(WHERE, f"{key} {value!r} is not between 1 and {highest}"):
            filters.parse_filters([{**limit, key: value}])
    for value in (1, highest, str(highest)):
        assert getattr(only({**limit, key: value}), key) == int(value)


@pytest.mark.parametrize("action", ["drop", "pass"])
@pytest.mark.parametrize("key", ["rate", "burst"])
def test_only_a_limit_has_numbers(action, key):
    for value in (5, 0, ""):
        with refused(WHERE, f"{key} is for action limit, not for {action}"):
            filters.parse_filters([rule(action=action, **{key: value})])
    assert only(rule(action=action, **{key: None})).action == action


def test_unknown_key():
    with refused(WHERE, "unknown key 'port'; known are action, burst, name, prefix, protocol, rate"):
        filters.parse_filters([rule(port=80)])


@pytest.mark.parametrize("value", [None, "drop", {}, {"prefix": "::/0"}], ids=repr)
def test_not_a_list(value):
    with refused(f"filters is {value!r}, not a list"):
        filters.parse_filters(value)


def test_every_bad_entry_is_named_at_once():
    with refused("filters[0] (x): prefix 'x'", "filters[2] (10.0.0.0/8 ", "action 'no'") as caught:
        filters.parse_filters([rule("x"), FILTER, {"name": "10.0.0.0/8", "prefix": "10.0.0.0/8", "action": "no"}])
    assert "filters[1]" not in str(caught.value)


@pytest.mark.parametrize(
    "first, second, written",
    [
        ("198.51.100.0/24", "198.51.100.0/24", "198.51.100.0/24"),
        ("192.0.2.1", "192.0.2.1/32", "192.0.2.1"),
        ("2001:DB8:0::/32", "2001:db8::/32", "2001:db8::/32"),
        ("0.0.0.0/0", "0.0.0.0/00", "0.0.0.0/0"),
    ],
)
def test_one_prefix_written_twice(first, second, written):
    with refused(f"filters[1] ({second}): duplicate filter, {written} has a rule for any already"):
        filters.parse_filters([rule(first), rule(second, action="pass")])


def test_one_prefix_with_a_rule_for_each_protocol():
    parsed = filters.parse_filters([rule(protocol=protocol) for protocol in ("tcp", "any", "udp", "icmp")])
    assert list(parsed) == [("198.51.100.0/24", protocol) for protocol in ("tcp", "any", "udp", "icmp")]


def test_defaults():
    assert only(FILTER) == filters.Filter("198.51.100.0/24", "any", "drop", rate=0, burst=0, name=None)


@pytest.mark.parametrize("rate, burst", [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (1000, 100), (10**9, 10**8)])
def test_burst_without_one_is_what_arrives_in_a_tenth_of_a_second(rate, burst):
    assert only(rule(action="limit", rate=rate)).burst == burst


BITS = {4: 32, 6: 128}


def network(family: int, number: int, length: int) -> str:
    """The prefix that holds an address."""
    number = number >> BITS[family] - length << BITS[family] - length
    return f"{ipaddress.ip_address(number.to_bytes(BITS[family] // 8, 'big'))}/{length}"


def prefixes(family: int) -> st.SearchStrategy[str]:
    """Most of them in or around each other."""
    bits = BITS[family]
    near = st.sampled_from((0, (1 << bits) - 1, 0xC633 << bits - 16)).flatmap(
        lambda number: st.integers(0, bits - 1).map(lambda bit: number ^ 1 << bit)
    )
    return st.builds(network, st.just(family), near | st.integers(0, (1 << bits) - 1), st.integers(0, bits))


ACTIONS = st.one_of(
    st.fixed_dictionaries({"action": st.sampled_from(("drop", "pass"))}),
    st.fixed_dictionaries(
        {"action": st.just("limit"), "rate": st.integers(1, 10**9)}, optional={"burst": st.integers(1, 2**32 - 1)}
    ),
)
PROTOCOLS = st.sampled_from(("any", "tcp", "udp", "icmp"))
RULES = st.builds(
    lambda prefix, protocol, action: {"prefix": prefix, "protocol": protocol, **action},
    prefixes(4) | prefixes(6),
    PROTOCOLS,
    ACTIONS,
)
RULE_SETS = st.lists(RULES, max_size=40, unique_by=lambda entry: (entry["prefix"], entry["protocol"]))


@settings(deadline=None)
@given(RULE_SETS, st.none() | st.text())
def test_filters_survive_being_written_and_read(raw, name):
    parsed = filters.parse_filters([{**entry, "name": name} for entry in raw])
    assert filters.parse_filters([item.as_dict() for item in parsed.values()]) == parsed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(filters.FILTER_KEYS)), JSON).map(lambda some: {**FILTER, **some}))
def test_no_value_crashes(raw):
    try:
        filters.parse_filters([raw])
    except EngineError as error:
        assert str(error).startswith("filters[0]")


# --- the table, read as files/bpf/filter.h reads it

MULTIPLIER, MASK64 = 0x9E3779B97F4A7C15, 2**64 - 1
CLASSES = ("tcp", "udp", "icmp", "other")
NO_RULE = (0, 0, 0, 0)


class Reader:
    """The table as lines of 64 bytes, and the search in it."""

    def __init__(self, table: bytes) -> None:
        assert len(table) % 64 == 0
        self.lines = [table[start : start + 64] for start in range(0, len(table), 64)]
        *numbers, count4, count6, lengths4, _unused, lengths6 = struct.unpack("<7IBB32sH128s", table[:192])
        first4, first6, shift4, shift6, self.first_verdict, any4, any6 = numbers
        # The bytes of a slot, slots in a line, first line, shift, verdict without any prefix, lengths in use.
        self.families = {
            4: (16, 4, first4, shift4, any4, lengths4[:count4]),
            6: (32, 2, first6, shift6, any6, lengths6[:count6]),
        }

    def _slot(self, family: int, number: int, length: int) -> int | None:
        """The verdict in a prefix's slot."""
        size, _slots, first, shift, _any, _lengths = self.families[family]
        if family == 4:
            value = number | length << 32
            wanted, place = value.to_bytes(8, "little"), value * MULTIPLIER & MASK64
        else:
            upper, lower = number >> 64, number & MASK64
            place = (upper ^ length) * MULTIPLIER & MASK64
            place = (place ^ place >> 32 ^ lower) * MULTIPLIER & MASK64
            wanted = struct.pack("<QQI", upper, lower, length)
        for home in (place, (place ^ place >> 29) * MULTIPLIER & MASK64):
            line = self.lines[first + (home >> shift)]
            for start in range(0, 64, size):
                found = line[start : start + len(wanted)]
                if found == wanted:
                    return int.from_bytes(line[start + len(wanted) : start + len(wanted) + 4], "little")
                if not any(found[4:8] if family == 4 else found[16:20]):
                    # No length: whatever comes behind an empty slot is not looked at, nor is the second line.
                    return None
        return None

    def rules(self, text: str) -> dict[str, tuple[int, ...]]:
        """For an address, by class of protocols: id, action, interval, burst."""
        address = ipaddress.ip_address(text)
        *_slot, verdict, lengths = self.families[address.version]
        low, high = 0, len(lengths)
        while low < high:
            middle = (low + high) // 2
            rest = address.max_prefixlen - lengths[middle]
            found = self._slot(address.version, int(address) >> rest << rest, lengths[middle])
            if found is None:
                high = middle
            else:
                verdict, low = found, middle + 1
        line = self.lines[self.first_verdict + verdict]
        return dict(zip(CLASSES, struct.iter_unpack("<IIII", line))) if verdict else dict.fromkeys(CLASSES, NO_RULE)


def packed(raw: list[dict[str, Any]], sizes: Sizes = SIZES) -> Reader:
    """With the ids 7, 8, 9 and so on."""
    parsed = filters.parse_filters(raw)
    table = filter_table.pack_filter_table(parsed, {key: number for number, key in enumerate(parsed, start=7)}, sizes)
    assert len(table) // 64 <= sizes.filter_lines
    return Reader(table)


class Declared:
    """The longest prefix by trying all lengths, a rule for the protocol before one for any."""

    def __init__(self, raw: list[dict[str, Any]]) -> None:
        self.rules = {}
        for number, entry in enumerate(raw, start=7):
            prefix = ipaddress.ip_network(entry["prefix"])
            place = (prefix.version, prefix.prefixlen, int(prefix.network_address), entry.get("protocol", "any"))
            self.rules[place] = self._rule(number, **entry)
        self.lengths = sorted({length for _version, length, _number, _protocol in self.rules}, reverse=True)

    @staticmethod
    def _rule(number: int, action: str, rate: int = 0, burst: int | None = None, **_rest: Any) -> tuple[int, ...]:
        if action != "limit":
            return number, {"drop": 1, "pass": 2}[action], 0, 0
        return number, 3, round(10**9 / rate), max(rate // 10, 1) if burst is None else burst

    def rule(self, text: str, kind: str) -> tuple[int, ...]:
        address = ipaddress.ip_address(text)
        for length in self.lengths:
            rest = address.max_prefixlen - length
            for protocol in (kind, "any") if rest >= 0 else ():
                place = (address.version, length, int(address) >> rest << rest, protocol)
                if place in self.rules:
                    return self.rules[place]
        return NO_RULE


def around(raw: list[dict[str, Any]]) -> set[str]:
    """The first and the last address of every prefix, and their neighbours."""
    found = {"0.0.0.0", "255.255.255.255", "::", "8000::", "203.0.113.9"}
    for entry in raw:
        prefix = ipaddress.ip_network(entry["prefix"])
        form = type(prefix.network_address)
        for number in (int(prefix.network_address), int(prefix.broadcast_address)):
            found |= {str(form((number + step) % (1 << prefix.max_prefixlen))) for step in (-1, 0, 1)}
    return found


def check(raw: list[dict[str, Any]], reader: Reader) -> None:
    declared = Declared(raw)
    for address in around(raw):
        wanted = {kind: declared.rule(address, kind) for kind in CLASSES}
        assert reader.rules(address) == wanted, address


@settings(deadline=None, max_examples=60)
@given(RULE_SETS)
@example([rule("0.0.0.0/1"), rule("::/1"), rule("0.0.0.0", protocol="tcp"), rule("::", protocol="udp")])
@example([rule("0.0.0.0/0"), rule("::/0", protocol="icmp"), rule("::/128", action="pass")])
def test_the_longest_prefix_with_a_rule_for_the_protocol_decides(raw):
    check(raw, packed(raw))


@pytest.mark.parametrize("family", [4, 6])
def test_prefixes_of_all_lengths_inside_each_other(family):
    for number in (0, (1 << BITS[family]) - 1, random.Random(family).getrandbits(BITS[family])):
        raw = [rule(network(family, number, length)) for length in range(BITS[family] + 1)]
        check(raw, packed(raw))


@pytest.mark.parametrize("family", [4, 6])
def test_prefixes_of_all_lengths_beside_each_other(family):
    """A search for one finds no other on its way, but the markers that it needs."""
    source = random.Random(family)
    raw = [rule(network(family, source.getrandbits(BITS[family]), length)) for length in range(7, BITS[family] + 1)]
    check(raw, packed(raw))


@pytest.mark.parametrize("family", [4, 6])
def test_thousands_of_adjacent_addresses(family):
    """So many that lines are full, and slots go to their second line or make room for another."""
    first = int(ipaddress.ip_address("10.0.0.0" if family == 4 else "2001:db8::"))
    raw = [rule(network(family, first + number, BITS[family])) for number in range(4096)]
    reader = packed(raw, Sizes(max_filters=4096))
    found = [reader.rules(raw[number]["prefix"].partition("/")[0])["tcp"][0] for number in range(4096)]
    assert found == list(range(7, 7 + 4096))
    form = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    outside = [str(form(first + number)) for number in (*range(-500, 0), *range(4096, 4596))]
    assert all(reader.rules(address)["tcp"] == NO_RULE for address in outside)


@settings(deadline=None, max_examples=60)
@given(RULE_SETS, RULE_SETS)
@example([rule("10.0.0.0/8")], [rule("10.1.0.0/16", action="pass")])
@example([rule("0.0.0.0/0", action="pass")], [rule("10.0.0.0/8", action="limit", rate=5), rule("::/0")])
def test_in_between_the_stricter_of_two_sets_decides(before, after):
    parsed = filters.parse_filters(before), filters.parse_filters(after)
    keys = list(dict.fromkeys([*parsed[0], *parsed[1]]))
    # Both together are what has to fit.
    table = filter_table.pack_strictest_table(parsed, {key: number for number, key in enumerate(keys)}, SIZES)
    reader, sets = Reader(table), (Declared(before), Declared(after))
    strictness = {0: 0, 2: 0, 3: 1, 1: 2}

    def strict(rule: tuple[int, ...]) -> tuple[int, int]:
        """The longer the interval, the lower the rate."""
        return strictness[rule[0]], rule[1]

    for address in around([*before, *after]):
        for kind, found in reader.rules(address).items():
            one, other = (entry.rule(address, kind)[1:] for entry in sets)
            # Of limits of one rate either may be taken, whatever their bursts.
            assert strict(found[1:]) == max(strict(one), strict(other)) and found[1:] in (one, other), (address, kind)


def test_without_filters_nothing_has_a_rule():
    check([], packed([]))


def test_families_do_not_mix():
    """0.0.0.0/1 and ::/1 look alike to the bit."""
    reader = packed([rule("0.0.0.0/1"), rule("0.0.0.0/0", action="pass")])
    assert reader.rules("::1") == reader.rules("8000::") == dict.fromkeys(CLASSES, NO_RULE)


def test_verdict_0_is_none():
    """The program takes 0 for no verdict, so the first one that says something is 1."""
    reader = packed([rule("0.0.0.0/0")])
    assert reader.families[4][4] == 1
    assert reader.lines[reader.first_verdict] == bytes(64)


def test_a_small_list_makes_a_small_table():
    """So that a search stays in the CPU's cache, whatever the map could hold."""
    assert len(packed([rule()], Sizes(max_filters=1 << 20)).lines) <= 16


@pytest.mark.parametrize("prefix", ["10.0.{}.{}", "2001:db8::{}:{}"])
@pytest.mark.parametrize("count", [1, 2, 3, 100, 1024])
def test_as_many_filters_as_the_map_is_declared_for(prefix, count):
    raw = [rule(prefix.format(number // 256, number % 256)) for number in range(count)]
    check(raw[:50], packed(raw[:50]))
    assert packed(raw, Sizes(max_filters=count)).rules(raw[-1]["prefix"])["udp"][0] == 7 + count - 1


def test_more_filters_than_max_filters_are_refused_with_the_option_to_raise():
    raw = [rule(f"10.0.0.{number}") for number in range(5)]
    with refused("5 filters are more than max_filters 4; raise max_filters of the balancer"):
        packed(raw, Sizes(max_filters=4))
    with refused("5 filters are more than max_filters 4; raise max_filters of the balancer"):
        plan.assign_filters(filters.parse_filters(raw), {}, Sizes(max_filters=4))


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_more_lines_than_the_map_has_are_refused_with_the_option_to_raise(families):
    raw = [rule(network(family, 1 << number, BITS[family])) for family in families for number in range(32)]
    lines = len(packed(raw, Sizes(max_filters=1024)).lines)
    assert len(packed(raw, few_lines(lines)).lines) == lines
    with refused("places with their markers, which do not fit; raise max_filters of the balancer"):
        packed(raw, few_lines(lines - 1))


@pytest.mark.parametrize("seed", range(3))
def test_max_filters_hold_that_many_of_many_lengths(seed):
    source = random.Random(seed)
    lengths = [*range(24, 32), 48, 64, *[128] * 1014]
    raw = [rule(network(6, source.getrandbits(128), length)) for length in lengths]
    assert packed(raw, Sizes(max_filters=1024)).lines


def few_lines(count: int) -> Sizes:
    """Whatever the sizes make room for, this much there is."""
    return type("FewLines", (Sizes,), {"filter_lines": count})()


def test_hosts_beyond_all_other_lengths():
    """The search for each visits seven lengths, and at each of those it has a marker of its own."""
    source = random.Random(1)
    raw = [rule(network(6, source.getrandbits(128), length)) for length in (*range(7, 128), *[128] * 700)]
    check(raw[:200], packed(raw[:200]))
    reader = packed(raw, Sizes(max_filters=4096))
    wanted = list(range(7 + 121, 7 + len(raw)))
    assert [reader.rules(entry["prefix"].partition("/")[0])["tcp"][0] for entry in raw[121:]] == wanted


# --- places of counters and limits


def places(raw: list[dict[str, Any]], current: dict, limit: int = 8) -> list[int]:
    return list(plan.assign_filters(filters.parse_filters(raw), current, Sizes(max_filters=limit)).values())


ONE, TWO, THREE = [filters.FilterKey(f"10.0.0.{host}", "any") for host in (1, 2, 3)]


def test_a_filter_keeps_its_place_and_a_new_one_gets_a_free_one():
    assert places([rule("10.0.0.1"), rule("10.0.0.2")], {}) == [0, 1]
    assert places([rule("10.0.0.2"), rule("10.0.0.3")], {ONE: 0, TWO: 1}) == [1, 2]
    assert places([rule("10.0.0.1", action="pass")], {ONE: 5}) == [5]


def test_a_rule_for_another_protocol_is_another_filter():
    assert places([rule("10.0.0.1", protocol="tcp")], {ONE: 0}) == [1]


def test_the_place_of_a_removed_filter_is_free_after_the_change_only():
    with refused("2 filters do not fit: max_filters of the balancer is 2", "second place", "raise max_filters"):
        places([rule("10.0.0.1"), rule("10.0.0.3")], {ONE: 0, TWO: 1}, limit=2)
    assert places([rule("10.0.0.1"), rule("10.0.0.3")], {ONE: 0, THREE: 1}, limit=2) == [0, 1]
