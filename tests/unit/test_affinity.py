# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services whose backend follows from the client's address: what they may say, alone and in a group."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout, tables

WEB = {"name": "web", "address": "192.0.2.1", "protocol": "tcp", "port": 80, "affinity": "client"}
SIX = {**WEB, "name": "six", "address": "2001:db8::1"}
SECURE = {**WEB, "name": "secure", "port": 443}


def parsed(raw: dict[str, Any]) -> model.Service:
    return next(iter(parse_services([raw]).values()))


@pytest.mark.parametrize(
    "raw, prefix",
    [
        ({**WEB, "affinity": None}, 0),
        ({**WEB, "affinity": "none"}, 0),
        (WEB, 32),
        (SIX, 128),
        ({**WEB, "affinity_prefix": 1}, 1),
        ({**SIX, "affinity_prefix": "56"}, 56),
        ({**WEB, "scheduler": "round_robin", "flow_table": True}, 32),
        ({**WEB, "forwarding": "full_nat", "source": "192.0.2.9"}, 32),
        ({**WEB, "affinity_group": "shop"}, 32),
    ],
)
def test_the_prefix_is_the_whole_address_unless_it_is_given(raw, prefix):
    service = parsed(raw)
    assert service.affinity_prefix == prefix
    assert parsed(service.as_dict()) == service
    flags = layout.LOOKUP_TABLE.unpack_from(
        tables.pack_ring(service, parse_backends([{"service": service.name, "address": "192.0.2.5"}]).values(), IDS)
        or b""
    )[2]
    assert flags >> 8 == prefix
    features = used_features(model.Config({service.name: service}, {}))
    assert ("affinity" in features) == bool(prefix)


class Ids(dict):  # type: ignore[type-arg]
    """An id for every backend."""

    def __missing__(self, key: model.BackendKey) -> int:
        return self.setdefault(key, len(self) + 1)


IDS = Ids()


def test_without_affinity_nothing_is_written_about_it():
    assert not [key for key in parsed({**WEB, "affinity": "none"}).as_dict() if key.startswith("affinity")]


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"affinity": "server"}, "affinity 'server' is not one of none, client, quic"),
        ({"affinity_prefix": 0}, "affinity_prefix 0 is not between 1 and 32"),
        ({"affinity_prefix": 33}, "affinity_prefix 33 is not between 1 and 32"),
        ({"affinity_prefix": "/24"}, "affinity_prefix '/24' is not a whole number"),
        ({"affinity": "none", "affinity_prefix": 24}, "affinity_prefix is for services with affinity: client"),
        ({"affinity": None, "affinity_group": "shop"}, "affinity_group is for services with affinity: client"),
        (
            {"affinity_group": "my shop"},
            "affinity_group 'my shop' may hold letters, digits and _ . : - only, 63 of them at the most",
        ),
        (
            {"scheduler": "round_robin", "protocol": "udp"},
            "affinity 'client' with scheduler 'round_robin' needs flow_table: true, which remembers the client's turn; "
            "set that, or another scheduler",
        ),
        (
            {"scheduler": "round_robin", "forwarding": "full_nat", "source": "192.0.2.9"},
            "affinity 'client' with scheduler 'round_robin' needs flow_table: true, which remembers the client's turn; "
            "set that, or another scheduler",
        ),
        (
            {"scheduler": "round_robin", "flow_table": True, "affinity_group": "shop"},
            "affinity_group is not for scheduler 'round_robin', whose flow table remembers the clients of one service; "
            "use maglev or hash",
        ),
    ],
)
def test_what_is_refused(more, problem):
    with pytest.raises(EngineError) as caught:
        parse_services([{**WEB, **more}])
    assert str(caught.value) == f"services[0] (web 192.0.2.1): {problem}"


# --- groups


def group(*services: dict[str, Any], shares: dict[str, dict[str, Any]] | None = None) -> model.Config:
    """Services of one group; each has the backends 198.51.100.1 and .2, or those that `shares` says."""
    hosts = {service["name"]: {"198.51.100.1": {}, "198.51.100.2": {}} for service in services}
    hosts |= shares or {}
    backends = [
        {"service": name, "address": address, **more}
        for name, found in hosts.items()
        for address, more in found.items()
    ]
    return model.Config(
        parse_services([{"affinity_group": "shop", **service} for service in services]), parse_backends(backends)
    )


def slots(config: model.Config, name: str) -> list[str]:
    """The address in each slot of a service's table."""
    members = config.backends_of()[name]
    ids = {backend.key: number for number, backend in enumerate(members, 1)}
    packed = tables.pack_ring(config.services[name], members, ids) or b""
    length = layout.LOOKUP_TABLE.unpack_from(packed)[1]
    numbers = memoryview(packed)[layout.LOOKUP_TABLE.size :].cast("I")[:length]
    return [members[number - 1].target for number in numbers]


@pytest.mark.parametrize("scheduler", ["maglev", "hash"])
def test_services_of_a_group_have_the_same_backend_in_each_slot(scheduler):
    web, secure = ({**service, "scheduler": scheduler} for service in (WEB, SECURE))
    shares = {
        "web": {"198.51.100.10": {"weight": 3, "port": 8080}, "198.51.100.9": {}},
        "secure": {"198.51.100.9": {"port": 8443}, "198.51.100.10": {"weight": 3}},
    }
    config = group(web, secure, shares=shares)
    cross_check.check(config)
    assert slots(config, "web") == slots(config, "secure")


def test_other_groups_and_services_without_one_are_none_of_its_business():
    other = {**SECURE, "affinity_group": "other", "affinity_prefix": 24}
    cross_check.check(group(WEB, other, shares={"secure": {"198.51.100.3": {}}}))
    cross_check.check(group(WEB, {**SECURE, "affinity_group": None}, shares={"secure": {"198.51.100.3": {}}}))


@pytest.mark.parametrize(
    "more, shares, problem",
    [
        ({"address": "2001:db8::2"}, None, "its VIP is IPv6, that of service web"),
        ({"scheduler": "hash"}, None, "scheduler is hash, but maglev for service web"),
        ({"affinity_prefix": 24}, None, "affinity_prefix is 24, but 32 for service web"),
        ({"table_size": 251}, None, "table_size is 251, but 65537 for service web"),
        ({}, {"198.51.100.1": {}}, "it has no backend 198.51.100.2, which is one of service web"),
        (
            {},
            {"198.51.100.1": {}, "198.51.100.2": {}, "198.51.100.3": {}},
            "it has the backend 198.51.100.3, which is none of service web",
        ),
        (
            {},
            {"198.51.100.1": {"weight": 2}, "198.51.100.2": {}},
            "backend 198.51.100.1 has weight 2, but 1 for service web",
        ),
        (
            {},
            {"198.51.100.1": {}, "198.51.100.2": {"state": "drained"}},
            "backend 198.51.100.2 has weight 0, but 1 for service web",
        ),
        (
            {},
            {"198.51.100.1": {}, "198.51.100.2": {"state": "backup"}},
            "backend 198.51.100.2 has weight 1 (backup), but 1 for service web",
        ),
    ],
)
def test_services_of_a_group_that_could_disagree_are_refused(more, shares, problem):
    hosts = shares or {}
    if more.get("address"):
        hosts = {"2001:db8::5": {}}
    with pytest.raises(EngineError) as caught:
        cross_check.check(group(WEB, {**SECURE, **more}, shares={"secure": hosts} if hosts else None))
    assert str(caught.value) == (
        f"service secure: {problem} of the same affinity_group shop; make them equal, or use another group"
    )


def test_an_address_with_several_ports_is_refused():
    config = model.Config(
        parse_services([{**WEB, "affinity_group": "shop"}]),
        parse_backends([{"service": "web", "address": "198.51.100.1", "port": port} for port in (8080, 8081)]),
    )
    with pytest.raises(EngineError, match="service web: backend 198.51.100.1 has several ports, which a service of an"):
        cross_check.check(config)
