# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prefixes whose clients may use a service: how they are declared and packed."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables.source_ranges import pack_source_ranges

SERVICE = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 443}


def config(*ranges: Any, **service: Any) -> model.Config:
    return model.Config(parse_services([{**SERVICE, **service, "source_ranges": list(ranges)}]), {})


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([], "source_ranges is empty; name the prefixes of clients, or leave it out to take all of them"),
        ("192.0.2.0/24", "source_ranges is '192.0.2.0/24', not a list of prefixes such as 192.0.2.0/24"),
        (["192.0.2.1/24"], "source_ranges: '192.0.2.1/24' has bits behind its length; write 192.0.2.0/24"),
        (["2001:db8::/32"], "source_ranges: '2001:db8::/32' is not of the VIP's family, IPv4"),
        (["192.0.2.1", "192.0.2.1/32"], "source_ranges: '192.0.2.1/32' is listed twice"),
    ],
)
def test_what_makes_no_sense_is_refused(ranges, problem):
    with pytest.raises(EngineError) as caught:
        parse_services([{**SERVICE, "source_ranges": ranges}])
    assert problem in str(caught.value)


def test_the_order_does_not_matter():
    one, other = config("198.51.100.0/24", "192.0.2.0/24"), config("192.0.2.0/24", "198.51.100.0/24")
    assert one == other
    assert one.services["web"].as_dict()["source_ranges"] == ["192.0.2.0/24", "198.51.100.0/24"]
    assert parse_services([one.services["web"].as_dict()]) == one.services


def test_there_is_an_end_to_them(monkeypatch):
    monkeypatch.setattr(cross_check, "MAX_SOURCE_RANGES", 1)
    cross_check.check(config("192.0.2.0/24"))
    with pytest.raises(EngineError, match="services have 2 source_ranges together; a balancer has at most 1"):
        cross_check.check(config("192.0.2.0/24", "198.51.100.0/24"))


def test_they_alone_need_the_feature():
    assert "source_ranges" in used_features(config("0.0.0.0/0"))
    assert "source_ranges" not in used_features(model.Config(parse_services([SERVICE]), {}))


def test_keys_of_the_trie():
    """The bits that count come first, as the kernel compares them: those of the service, then those of the prefix."""
    packed = socket.inet_pton(socket.AF_INET, "198.51.100.0") + bytes(12)
    assert pack_source_ranges(config("198.51.100.0/22"), {"web": 7}) == {struct.pack("<II", 32 + 22, 7) + packed}
    packed = socket.inet_pton(socket.AF_INET6, "2001:db8::")
    six = config("2001:db8::/33", address="2001:db8:1::1")
    assert pack_source_ranges(six, {"web": 3}) == {struct.pack("<II", 32 + 33, 3) + packed}
