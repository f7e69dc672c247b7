# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an inventory may declare, and the words in which it is told what is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import (
    BACKEND_KEYS,
    MAX_WEIGHT,
    NAME_PATTERN,
    SERVICE_KEYS,
    STATES,
    parse_backends,
    parse_services,
)
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from hypothesis import given
from hypothesis import strategies as st

SERVICE = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80}
BACKEND = {"service": "web", "address": "10.0.0.1"}
SERVICE_WHERE = "services[0] (web 192.0.2.10): "
BACKEND_WHERE = "backends[0] (web 10.0.0.1): "


def service(**other: Any) -> dict[str, Any]:
    return {**SERVICE, **other}


def backend(**other: Any) -> dict[str, Any]:
    return {**BACKEND, **other}


def check(services: list[dict], backends: list[dict]) -> model.Config:
    config = model.Config(parse_services(services), parse_backends(backends))
    cross_check.check(config)
    return config


def refused(*words: str) -> Any:
    """The message has all of these words."""
    return pytest.raises(EngineError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


# --- values of one entry

NOT_ADDRESSES = [
    "nonsense",
    "192.0.2",
    "192.0.2.256",
    "192.0.2.01",
    " 192.0.2.1",
    "192.0.2.1\0",
    "192.0.2.0/24",
    "2001:db8::1::2",
    "2001:db8::/64",
    3221225985,
    ["192.0.2.1"],
    {"ip": "192.0.2.1"},
    True,
]
NOT_A_HOST = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"]
NOT_A_HOST += ["::", "::1", "::ffff:192.0.2.1", "ff02::1", "fe80::1"]


@pytest.mark.parametrize("value", NOT_ADDRESSES, ids=repr)
def test_address_that_is_none(value):
    with refused("services[0] (web ", f"address {value!r} is not an IPv4 address"):
        parse_services([service(address=value)])
    with refused("backends[0] (web ", f"address {value!r} is not an IPv4 address"):
        parse_backends([backend(address=value)])


@pytest.mark.parametrize("value", NOT_A_HOST)
def test_address_of_no_host(value):
    with refused("services[0] (web ", f"address {value!r} is not a unicast address"):
        parse_services([service(address=value)])
    with refused("backends[0] (web ", f"address {value!r} is not a unicast address"):
        parse_backends([backend(address=value)])


@pytest.mark.parametrize("key", ["name", "address", "protocol", "port"])
@pytest.mark.parametrize("empty", [None, ""], ids=repr)
def test_service_lacks(key, empty):
    with refused("services[0] (", key):
        parse_services([service(**{key: empty})])


@pytest.mark.parametrize("key", ["service", "address"])
@pytest.mark.parametrize("empty", [None, ""], ids=repr)
def test_backend_lacks(key, empty):
    with refused("backends[0] (", f"{key} is missing"):
        parse_backends([backend(**{key: empty})])


NOT_A_NUMBER = ["80x", "x", "8_0", "+80", " 80", "80 ", "８０", "0x50", "80.5", 80.0, 80.5, True, False, [80], {}]


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, "80-", "80-x", "x-80", "1-2-3", "80 - 90", "80:90"], ids=repr)
def test_service_port_that_is_no_number(value):
    with refused(SERVICE_WHERE, f"port {value!r} is not a whole number"):
        parse_services([service(port=value)])


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, "80-90", ""], ids=repr)
def test_backend_port_that_is_no_number(value):
    with refused(BACKEND_WHERE, f"port {value!r} is not a whole number"):
        parse_backends([backend(port=value)])


@pytest.mark.parametrize("value", [0, 65536, -1, "0", "65536", "-1", 10**15], ids=repr)
def test_port_out_of_range(value):
    with refused(SERVICE_WHERE, f"port {value!r} is not between 1 and 65535"):
        parse_services([service(port=value)])
    with refused(BACKEND_WHERE, f"port {value!r} is not between 1 and 65535"):
        parse_backends([backend(port=value)])


@pytest.mark.parametrize("value, end", [("0-80", "0"), ("80-65536", "65536"), ("70000-80000", "70000")])
def test_end_of_a_range_out_of_range(value, end):
    with refused(SERVICE_WHERE, f"port {end!r} is not between 1 and 65535"):
        parse_services([service(port=value)])


def test_reversed_range():
    with refused(SERVICE_WHERE, "port range '90-80' is reversed, write 80-90"):
        parse_services([service(port="90-80")])


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, "", "heavy"], ids=repr)
def test_weight_that_is_no_number(value):
    with refused(BACKEND_WHERE, f"weight {value!r} is not a whole number"):
        parse_backends([backend(weight=value)])


@pytest.mark.parametrize("value", [-1, 65536, "65536", 10**15], ids=repr)
def test_weight_out_of_range(value):
    with refused(BACKEND_WHERE, f"weight {value!r} is not between 0 and 65535"):
        parse_backends([backend(weight=value)])


def test_number_of_thousands_of_digits():
    with refused(BACKEND_WHERE, "is not a whole number"):
        parse_backends([backend(weight="9" * 5000)])


NOT_A_MAC = [
    "nonsense",
    "",
    "52:54:00:12:34",
    "52:54:00:12:34:56:78",
    "52-54-00-12-34-56",
    "525400123456",
    "52:54:00:12:34:5g",
    "52:54:00:12:34:56\n",
    # What YAML 1.1 makes of 11:22:33:44:55:56 without quotes, a number to base 60.
    8834916956,
]


@pytest.mark.parametrize("value", NOT_A_MAC, ids=repr)
def test_mac_that_is_none(value):
    with refused(BACKEND_WHERE, f"mac {value!r} is not an Ethernet address"):
        parse_backends([backend(mac=value)])


@pytest.mark.parametrize("value", ["00:00:00:00:00:00", "01:00:5e:00:00:01", "33:33:00:00:00:01", "FF:FF:FF:FF:FF:FF"])
def test_mac_of_no_host(value):
    with refused(BACKEND_WHERE, f"mac {value!r} is not the address of one host"):
        parse_backends([backend(mac=value)])


NO_CHOICE = ["", "other", 6, True, ["tcp"], {"tcp": 1}]


@pytest.mark.parametrize("value", NO_CHOICE, ids=repr)
@pytest.mark.parametrize("key", ["protocol", "scheduler", "forwarding"])
def test_service_choice(key, value):
    with refused(SERVICE_WHERE, f"{key} {value!r} is not one of "):
        parse_services([service(**{key: value})])


@pytest.mark.parametrize("value", NO_CHOICE, ids=repr)
def test_state(value):
    with refused(BACKEND_WHERE, f"state {value!r} is not one of enabled, drained, backup"):
        parse_backends([backend(state=value)])


@pytest.mark.parametrize("value", ["a b", "-web", "web/1", "web\n", "wéb", "x" * 64, "["], ids=repr)
def test_name_of_a_service(value):
    with refused("services[0] (", f"name {value!r} may hold"):
        parse_services([service(name=value)])


def test_round_robin_with_tcp():
    with refused(SERVICE_WHERE, "'round_robin' sends each packet of a TCP connection to another backend"):
        parse_services([service(scheduler="round_robin")])


# --- entries and lists


def test_unknown_key():
    with refused(
        SERVICE_WHERE,
        "unknown key 'ports'",
        "known are address, affinity, affinity_group, affinity_prefix, flow_table, forwarding, handover_seconds",
    ):
        parse_services([service(ports=80)])
    with refused(BACKEND_WHERE, "unknown key 'wieght'", "known are address, interface, local, mac, name, port"):
        parse_backends([backend(wieght=1)])


def test_unknown_keys_that_are_no_words():
    with refused(SERVICE_WHERE, "unknown key 1"):
        parse_services([{**SERVICE, 1: 2, "zone": 3, None: 4}])


@pytest.mark.parametrize("value", [None, "web", 5, {}, {"web": SERVICE}, (SERVICE,)], ids=repr)
def test_not_a_list(value):
    with refused(f"services is {value!r}, not a list"):
        parse_services(value)
    with refused(f"backends is {value!r}, not a list"):
        parse_backends(value)


@pytest.mark.parametrize("value", [None, "web", 5, [SERVICE]], ids=repr)
def test_not_a_mapping(value):
    with refused(f"services[1] is {value!r}, not a mapping"):
        parse_services([SERVICE, value])
    with refused(f"backends[1] is {value!r}, not a mapping"):
        parse_backends([BACKEND, value])


def test_entry_is_named_by_its_place_when_it_has_no_name():
    with refused("services[1]: name is missing"):
        parse_services([SERVICE, {}])


def test_every_bad_entry_is_named_at_once():
    with refused("services[0] (a ", "port 0 is not", "services[2] (c ", "port 'x' is not") as caught:
        parse_services([service(name="a", port=0), service(name="b"), service(name="c", port="x")])
    assert "services[1]" not in str(caught.value)


@pytest.mark.parametrize("count, more", [(10, None), (11, "; and 1 more"), (5000, "; and 4990 more")])
def test_more_than_ten_errors_are_summarised(count, more):
    with pytest.raises(EngineError) as caught:
        parse_backends([backend(port=0)] * count)
    message = str(caught.value)
    assert message.count("port 0 is not between") == 10
    assert message.endswith(more) if more else " more" not in message


# --- duplicates


def test_two_services_of_one_name():
    with refused("services[1] (web 192.0.2.11): duplicate service, the name web is taken"):
        parse_services([SERVICE, service(address="192.0.2.11")])


@pytest.mark.parametrize(
    "first, second, port",
    [(80, 80, 80), ("80", 80, 80), ("80-90", 85, 85), (85, "80-90", 85), ("80-90", "90-99", 90), ("1-99", "2-3", 2)],
)
def test_two_services_on_one_port(first, second, port):
    with refused("services[1] (other 192.0.2.10): duplicate service", f"192.0.2.10 tcp port {port} belongs to web"):
        parse_services([service(port=first), service(name="other", port=second)])


@pytest.mark.parametrize(
    "other", [{"port": 81}, {"protocol": "udp"}, {"address": "192.0.2.11"}, {"port": "81-90"}], ids=str
)
def test_services_side_by_side(other):
    assert list(parse_services([SERVICE, service(name="other", **other)])) == ["web", "other"]


@pytest.mark.parametrize("port", [None, 8080])
def test_one_backend_twice(port):
    with refused("backends[1] (web 10.0.0.1): duplicate backend of service web"):
        parse_backends([backend(port=port), backend(port=port, weight=7)])


def test_backends_side_by_side():
    entries = [backend(port=1), backend(port="2"), backend(address="10.0.0.2"), backend(service="other")]
    assert len(parse_backends(entries)) == 4


# --- what no entry shows alone


def test_unknown_service():
    with refused("backend 10.0.0.1 of service wbe", "unknown service 'wbe'", "known services: web, dns"):
        check([SERVICE, service(name="dns", port=53)], [backend(service="wbe")])


def test_unknown_service_when_there_is_none():
    with refused("unknown service 'web'", "known services: none"):
        check([], [BACKEND])


@pytest.mark.parametrize("forwarding", ["dnat", "dsr"])
def test_backend_port_for_a_range(forwarding):
    with refused("backend 10.0.0.1 of service web: port 85", "on ports 80-90", "leave port out"):
        check([service(port="80-90", forwarding=forwarding)], [backend(port=85)])


def test_dsr_with_another_port():
    with refused("backend 10.0.0.1 of service web: port 8080", "dsr leaves the port 80 as it is"):
        check([service(forwarding="dsr")], [backend(port=8080)])


@pytest.mark.parametrize("forwarding", ["dnat", "dsr"])
@pytest.mark.parametrize("ports", [(None, 80), (80, None)], ids=str)
def test_one_backend_with_and_without_the_port_it_gets_anyway(forwarding, ports):
    with refused("backend 10.0.0.1 of service web: declared twice, with and without port 80"):
        check([service(forwarding=forwarding)], [backend(port=port) for port in ports])


SAME_REPLIES = [
    ("same port set", 80, 8080, 81, 8080, 8080),
    ("port kept and set", 80, None, 81, 80, 80),
    ("inside a range", "80-90", None, 8080, 85, 85),
]


@pytest.mark.parametrize("_description, port, to, other_port, other_to, replies", SAME_REPLIES)
def test_replies_that_cannot_be_told_apart(_description, port, to, other_port, other_to, replies):
    services = [service(port=port), service(name="other", port=other_port)]
    with refused(f"backend 10.0.0.1 of service other: tcp port {replies} serves web already", "port of its own"):
        check(services, [backend(port=to), backend(service="other", port=other_to)])


def test_replies_of_two_vips_that_cannot_be_told_apart():
    with refused("backend 10.0.0.1 of service other: tcp port 80 serves web already"):
        check([SERVICE, service(name="other", address="192.0.2.11")], [BACKEND, backend(service="other")])


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other", "port": 53, "protocol": "udp"},
        {"name": "other", "port": 443},
        {"name": "other", "address": "192.0.2.11", "forwarding": "dsr"},
    ],
    ids=["other protocol", "other port", "dsr, which needs no replies"],
)
def test_one_backend_of_two_services(other):
    assert len(check([SERVICE, service(**other)], [BACKEND, backend(service="other")]).backends) == 2


def test_backend_that_is_a_vip():
    services = [SERVICE, service(name="dns", address="192.0.2.53", protocol="udp", port=53)]
    with refused("backend 192.0.2.53 of service web", "the address is the VIP of service dns"):
        check(services, [backend(address="192.0.2.53")])


def test_every_bad_backend_is_named_at_once():
    with refused("backend 10.0.0.1 of service nobody", "backend 192.0.2.10 of service web"):
        check([SERVICE], [backend(service="nobody"), backend(address="192.0.2.10")])


# --- good input


def test_service_with_defaults():
    parsed = parse_services([SERVICE])["web"]
    assert parsed == model.Service("web", "192.0.2.10", "tcp", 80, 80, scheduler="maglev", forwarding="dnat")


def test_backend_with_defaults():
    [parsed] = list(parse_backends([BACKEND]).values())
    assert parsed == model.Backend("web", "10.0.0.1", port=None, weight=1, state="enabled", mac=None, name=None)


def test_numbers_as_strings():
    """What a template makes of a number."""
    assert parse_services([service(port="80")]) == parse_services([SERVICE])
    assert parse_backends([backend(port="80", weight="7")]) == parse_backends([backend(port=80, weight=7)])


def test_none_means_the_default():
    optional = {"scheduler": None, "forwarding": None}
    assert parse_services([service(**optional)]) == parse_services([SERVICE])
    optional = {"port": None, "weight": None, "state": None, "mac": None, "name": None}
    assert parse_backends([backend(**optional)]) == parse_backends([BACKEND])


def test_mac_in_capitals():
    [parsed] = list(parse_backends([backend(mac="52:54:00:AB:CD:EF")]).values())
    assert parsed.mac == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    "port, first, last", [(1, 1, 1), ("65535", 65535, 65535), ("1-65535", 1, 65535), ("7-7", 7, 7)]
)
def test_ports(port, first, last):
    parsed = parse_services([service(port=port)])["web"]
    assert parsed.ports == range(first, last + 1)


@pytest.mark.parametrize("weight", [0, 1, 65535])
def test_weights(weight):
    [parsed] = list(parse_backends([backend(weight=weight)]).values())
    assert parsed.share == weight


def test_drained_backend_has_no_share():
    [parsed] = list(parse_backends([backend(weight=5, state="drained")]).values())
    assert (parsed.weight, parsed.share) == (5, 0)


def test_empty_lists():
    assert check([], []) == model.Config({}, {})


def test_backends_by_service_in_their_order():
    backends = [backend(address=f"10.0.0.{host}", service=name) for host, name in ((3, "web"), (1, "dns"), (2, "web"))]
    grouped = check([SERVICE, service(name="dns", port=53), service(name="idle", port=9)], backends).backends_of()
    assert {name: [member.address for member in members] for name, members in grouped.items()} == {
        "web": ["10.0.0.3", "10.0.0.2"],
        "dns": ["10.0.0.1"],
        "idle": [],
    }


def test_dsr_backend_may_name_the_port_it_keeps():
    assert len(check([service(forwarding="dsr")], [backend(port=80)]).backends) == 1


NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
HOSTS = st.builds("10.{}.{}.{}".format, *[st.integers(0, 255)] * 3)
PORTS = st.integers(1, 65535)
RANGES = st.tuples(PORTS, PORTS).map(sorted).map(lambda ends: f"{ends[0]}-{ends[1]}")
MACS = st.binary(min_size=5, max_size=5).map(lambda tail: "52:" + tail.hex(":"))
SERVICES = st.fixed_dictionaries(
    {"name": NAMES, "address": HOSTS, "protocol": st.just("udp"), "port": PORTS | RANGES},
    optional={"scheduler": st.sampled_from(("maglev", "round_robin")), "forwarding": st.sampled_from(("dnat", "dsr"))},
)
BACKENDS = st.fixed_dictionaries(
    {"service": NAMES, "address": HOSTS},
    optional={
        "port": PORTS,
        "weight": st.integers(0, MAX_WEIGHT),
        "state": st.sampled_from(STATES),
        "mac": MACS,
        "name": st.text(),
    },
)


@given(SERVICES)
def test_service_survives_being_written_and_read(raw):
    parsed = parse_services([raw])
    assert parse_services([entry.as_dict() for entry in parsed.values()]) == parsed


@given(BACKENDS)
def test_backend_survives_being_written_and_read(raw):
    parsed = parse_backends([raw])
    assert parse_backends([entry.as_dict() for entry in parsed.values()]) == parsed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(SERVICE_KEYS)), JSON).map(lambda some: {**SERVICE, **some}))
def test_no_value_of_a_service_crashes(raw):
    try:
        parse_services([raw])
    except EngineError as error:
        assert str(error).startswith("services[0]")


@given(st.dictionaries(st.sampled_from(sorted(BACKEND_KEYS)), JSON).map(lambda some: {**BACKEND, **some}))
def test_no_value_of_a_backend_crashes(raw):
    try:
        parse_backends([raw])
    except EngineError as error:
        assert str(error).startswith("backends[0]")


# --- sizes of lookup tables


def test_table_size_is_there_only_if_it_is_not_the_default():
    sizes = {"a": None, "b": 65537, "c": 251, "d": "131071"}
    raw = [
        {"name": name, "address": "192.0.2.1", "protocol": "tcp", "port": 80 + position, "table_size": size}
        for position, (name, size) in enumerate(sizes.items())
    ]
    parsed = parse_services(raw)
    assert [service.table_size for service in parsed.values()] == [65537, 65537, 251, 131071]
    assert [service.as_dict().get("table_size") for service in parsed.values()] == [None, None, 251, 131071]
    assert parse_services([service.as_dict() for service in parsed.values()]) == parsed


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"table_size": 241}, "table_size 241 is not between 251 and 131071"),
        ({"table_size": 131101}, "table_size 131101 is not between 251 and 131071"),
        ({"table_size": 65536}, "table_size 65536 is not a prime number; the next one is 65537"),
        ({"table_size": "many"}, "table_size 'many' is not a whole number"),
        ({"table_size": 251, "scheduler": "hash"}, "table_size is for scheduler maglev, not for hash"),
    ],
)
def test_bad_table_size(more, problem):
    with pytest.raises(EngineError) as caught:
        parse_services([{"name": "web", "address": "192.0.2.1", "protocol": "udp", "port": 80, **more}])
    assert str(caught.value) == f"services[0] (web 192.0.2.1): {problem}"


@pytest.mark.parametrize("count, fits", [(251, True), (252, False)])
def test_a_table_has_a_slot_for_each_backend(count, fits):
    services = [{"name": "web", "address": "192.0.2.1", "protocol": "udp", "port": 80, "table_size": 251}]
    backends = [{"service": "web", "address": f"10.0.{number >> 8}.{number & 255}"} for number in range(1, count + 1)]
    built = model.Config(parse_services(services), parse_backends(backends))
    if fits:
        cross_check.check(built)
        return
    with pytest.raises(EngineError) as caught:
        cross_check.check(built)
    assert str(caught.value) == ("service web: its table has 251 slots for 252 backends; set table_size to 257 or more")
