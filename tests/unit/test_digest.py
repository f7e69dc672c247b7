# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The digest of lookup tables is equal where packets are spread alike, and only there."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey, Config
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.tables.digest import tables_digest

DNS = {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53}
WEB = {"name": "web", "address": "2001:db8::10", "protocol": "tcp", "port": "80-90", "scheduler": "hash"}
ONE = {"service": "dns", "address": "198.51.100.1", "port": 5353, "weight": 3}
TWO = {"service": "dns", "address": "198.51.100.2"}
SIX = {"service": "web", "address": "2001:db8::1"}


def config(services: list[dict[str, Any]], backends: list[dict[str, Any]]) -> Config:
    return Config(parse_services(services), parse_backends(backends))


def digest(services: list[dict[str, Any]], backends: list[dict[str, Any]], *out: str) -> str:
    return tables_digest(config(services, backends), {BackendKey("dns", address, None) for address in out})


def test_it_is_the_sha_256_of_the_content_by_name():
    """Written down by hand, so that hosts with other versions can be told from hosts with other tables."""
    content = (
        '[["dns","192.0.2.10","udp",53,53,"maglev","dnat",65537,[["198.51.100.1",5353,3],["198.51.100.2",0,1]]],'
        '["web","2001:db8::10","tcp",80,90,"hash","dnat",65537,[["2001:db8::1",0,1]]]]'
    )
    assert digest([WEB, DNS], [ONE, TWO, SIX]) == hashlib.sha256(content.encode()).hexdigest()


def test_no_services_have_a_digest_too():
    assert digest([], []) == hashlib.sha256(b"[]").hexdigest()


def test_the_order_of_the_inventory_and_what_spreads_no_packet_do_not_matter():
    named = {**ONE, "name": "be1", "mac": "02:00:00:00:00:01"}
    assert digest([DNS, WEB], [ONE, TWO, SIX]) == digest([WEB, DNS], [SIX, TWO, named])
    # A drained backend takes no new flow, so neither its absence nor its weight is in the table.
    drained = {**TWO, "address": "198.51.100.9", "state": "drained"}
    assert digest([DNS], [ONE, TWO, drained]) == digest([DNS], [ONE, TWO])


@pytest.mark.parametrize(
    ("service", "backends"),
    [
        ({"name": "other"}, [{**ONE, "service": "other"}, {**TWO, "service": "other"}]),
        ({"address": "192.0.2.11"}, [ONE, TWO]),
        ({"port": 54}, [ONE, TWO]),
        ({"protocol": "tcp"}, [ONE, TWO]),
        ({"scheduler": "round_robin"}, [ONE, TWO]),
        ({"affinity": "client"}, [ONE, TWO]),
        ({"forwarding": "full_nat", "source": "192.0.2.1"}, [ONE, TWO]),
        ({}, [ONE]),
        ({}, [{**ONE, "weight": 4}, TWO]),
        ({}, [{**ONE, "port": 5354}, TWO]),
        ({}, [{**ONE, "address": "198.51.100.3"}, TWO]),
        ({}, [{**ONE, "state": "drained"}, TWO]),
    ],
    ids=str,
)
def test_whatever_spreads_packets_otherwise_changes_it(service, backends):
    assert digest([{**DNS, **service}], backends) != digest([DNS], [ONE, TWO])


def test_backends_that_health_checks_keep_out_are_left_out():
    assert digest([DNS], [ONE, TWO], "198.51.100.2") == digest([DNS], [ONE]) != digest([DNS], [ONE, TWO])
