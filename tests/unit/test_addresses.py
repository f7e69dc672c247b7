# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses and prefixes, held against Python's own ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.addresses import (
    Address,
    Prefix,
    parse_address,
    parse_prefix,
)
from hypothesis import given
from hypothesis import strategies as st

BITS = {4: 32, 6: 128}
# A number of a family, and how many bits of it are a prefix.
PREFIXES = st.sampled_from((4, 6)).flatmap(
    lambda family: st.tuples(st.just(family), st.integers(0, 2 ** BITS[family] - 1), st.integers(0, BITS[family]))
)


def ip(family: int, number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return (ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address)(number)


def usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a host on a network can have it, as data-plane.md lists what cannot be a source."""
    if address.version == 4:
        nobody = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")
    else:
        # IPv4 in disguise and what belongs to one link only, besides.
        nobody = ("::/80", "ff00::/8", "fe80::/10")
    return not any(address in ipaddress.ip_network(prefix) for prefix in nobody)


@pytest.mark.parametrize(
    "text, written",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0:0::1", "2001:db8::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("2001:db8::192.0.2.1", "2001:db8::c000:201"),
        ("64:ff9b::192.0.2.1", "64:ff9b::c000:201"),
    ],
)
def test_an_address_has_one_form(text, written):
    assert str(parse_address(text)) == written
    assert parse_address(text) == parse_address(written)


@pytest.mark.parametrize(
    "text",
    ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "0:0:0:0:1::", "fe7f::1", "fec0::1", "fe00::"],
)
def test_addresses_at_the_edges_of_what_hosts_can_have(text):
    assert usable(ipaddress.ip_address(text)) and parse_address(text)


@pytest.mark.parametrize(
    "text",
    ["0.255.255.255", "127.0.0.0", "127.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255"]
    + ["::ffff:192.0.2.1", "::ffff:ffff:ffff", "fe80::", "febf:ffff::1", "ff00::", "ff02::1"],
)
def test_addresses_at_the_edges_of_what_hosts_cannot_have(text):
    assert not usable(ipaddress.ip_address(text))
    with pytest.raises(ValueError, match="is not a unicast address of a host on a network"):
        parse_address(text)


@given(PREFIXES)
def test_hosts_have_addresses_that_are_not_reserved(prefix):
    family, number, length = prefix
    # Small numbers, and those that begin like a reserved one, are too rare otherwise.
    for address in (ip(family, number), ip(family, number >> length), ip(family, 2 ** BITS[family] - 1 - number)):
        if usable(address):
            parsed = parse_address(address.exploded)
            assert (parsed.family, parsed.packed) == (family, address.packed)
            assert parsed.words == address.packed + bytes(16 - len(address.packed))
            assert parse_address(str(parsed)) == parsed
        else:
            with pytest.raises(ValueError, match="is not a unicast address of a host on a network"):
                parse_address(address.exploded)


@pytest.mark.parametrize("text", ["", ":", "::1%lo", "fe80::1%eth0", "1.2.3", "01.2.3.4", "1.2.3.4 ", "\ud800", "1\0"])
def test_what_is_no_address_has_an_example_of_one(text):
    for parse in (parse_address, parse_prefix):
        with pytest.raises(ValueError, match="^is not an IPv4 address such as 192.0.2.10 or an IPv6 address such as"):
            parse(text)


@given(PREFIXES)
def test_a_prefix_is_the_first_bits(prefix):
    family, number, length = prefix
    rest = BITS[family] - length
    network = ipaddress.ip_network(
        (number >> rest << rest, length) if family == 4 else f"{ip(6, number)}/{length}", False
    )
    parsed = parse_prefix(network.exploded)
    assert (parsed.family, parsed.length, parsed.number) == (family, length, int(network.network_address))
    assert parsed.host_mask == int(network.hostmask)
    assert parse_prefix(str(parsed)) == parsed
    assert ipaddress.ip_network(str(parsed)) == network


@given(PREFIXES)
def test_bits_behind_the_length_are_refused_with_the_prefix_that_was_meant(prefix):
    family, number, length = prefix
    text = f"{ip(family, number)}/{length}"
    meant = ipaddress.ip_network(text, strict=False)
    if int(meant.network_address) == number:
        assert parse_prefix(text).number == number
        return
    with pytest.raises(ValueError, match="^has bits behind its length; write ") as caught:
        parse_prefix(text)
    assert ipaddress.ip_network(str(caught.value).rpartition(" ")[2]) == meant


def test_a_whole_address_is_written_without_a_length():
    assert str(parse_prefix("192.0.2.1/32")) == "192.0.2.1"
    assert str(parse_prefix("2001:db8::1/128")) == "2001:db8::1"
    assert parse_prefix("192.0.2.1") == Prefix(Address("192.0.2.1"), 32)


def test_prefixes_need_not_be_of_hosts():
    assert [str(parse_prefix(text)) for text in ("0.0.0.0/0", "224.0.0.0/4", "::/0", "fe80::/10")] == [
        "0.0.0.0/0",
        "224.0.0.0/4",
        "::/0",
        "fe80::/10",
    ]


def test_a_length_of_thousands_of_digits():
    with pytest.raises(ValueError, match="has no length from 0 to 32"):
        parse_prefix("10.0.0.0/" + "9" * 5000)
