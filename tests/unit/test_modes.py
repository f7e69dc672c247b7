# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to one forwarding mode or to services that remember flows: what may be declared, and what is planned."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from hypothesis import given
from hypothesis import strategies as st

WHERE = "services[0] (web 192.0.2.10): "
NAT = {"forwarding": "full_nat", "source": "10.0.0.250"}
TUNNEL = {"forwarding": "ipip", "source": "10.0.0.250"}
SIX = "2001:db8::10"


def service(**other: Any) -> dict[str, Any]:
    return {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80, **other}


def backend(**other: Any) -> dict[str, Any]:
    return {"service": "web", "address": "10.0.0.1", **other}


def out(**other: Any) -> dict[str, Any]:
    return {"service": "web", "interface": "eth1", **other}


def parsed(**other: Any) -> model.Service:
    return parse_services([service(**other)])["web"]


def check(services: list[dict], backends: list[dict]) -> model.Config:
    config = model.Config(parse_services(services), parse_backends(backends))
    cross_check.check(config)
    return config


def refused(*words: str) -> Any:
    """The message has all of these words."""
    return pytest.raises(EngineError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


# --- sources


@pytest.mark.parametrize("forwarding", ["dnat", "dsr", "redirect"])
def test_a_source_is_for_modes_that_have_one(forwarding):
    with refused(WHERE, f"source is for full_nat, ipip, gue, not for {forwarding}"):
        parsed(forwarding=forwarding, source="10.0.0.250")


def test_a_source_is_missing():
    with refused(WHERE, "source is missing: full_nat sends from an address of the balancer's") as caught:
        parsed(forwarding="full_nat")
    assert "prefix" not in str(caught.value)
    with refused(WHERE, "source is missing: ipip sends", "or from a prefix of which each flow gets an address"):
        parsed(forwarding="ipip")


@pytest.mark.parametrize("value", ["10.0.0.0/24", "nonsense", "10.0.0.250/32"])
def test_full_nat_sends_from_one_address(value):
    with refused(WHERE, f"source {value!r} is not an IPv4 address"):
        parsed(forwarding="full_nat", source=value)


@pytest.mark.parametrize("vip, source, family", [("192.0.2.10", "fd00::1", 4), (SIX, "10.0.0.250", 6)])
def test_full_nat_sends_from_the_vips_family(vip, source, family):
    with refused(f"source {source!r} is not of the VIP's family, IPv{family}"):
        parsed(address=vip, forwarding="full_nat", source=source)


def test_full_nat_does_not_send_from_the_vip():
    with refused(WHERE, "source '192.0.2.10' is the VIP; replies to it could not be told from requests"):
        parsed(forwarding="full_nat", source="192.0.2.10")


@pytest.mark.parametrize("source", ["10.0.0.250", "10.99.0.0/16", "0.0.0.0/0", "fd99::/64"])
@pytest.mark.parametrize("forwarding", ["ipip", "gue"])
def test_tunnels_send_from_an_address_or_a_prefix_of_either_family(forwarding, source):
    assert parsed(forwarding=forwarding, source=source).source == source


def test_port_of_gue():
    """6080 is IANA's."""
    gue = {"forwarding": "gue", "source": "10.0.0.250"}
    assert [parsed(**gue).tunnel_port, parsed(**gue, tunnel_port="7000").tunnel_port] == [6080, 7000]
    assert parsed(**gue).as_dict()["tunnel_port"] == 6080
    assert "tunnel_port" not in parsed(**TUNNEL).as_dict()
    for port in (0, 65536, "any"):
        with refused(WHERE, f"tunnel_port {port!r} is not "):
            parsed(**gue, tunnel_port=port)
    with refused(WHERE, "tunnel_port is for gue, not for ipip"):
        parsed(**TUNNEL, tunnel_port=6080)


@pytest.mark.parametrize("value, words", [("10.99.1.0/16", "write 10.99.0.0/16"), ("x", "is not an IPv4 address")])
def test_ipip_does_not_send_from_something_else(value, words):
    with refused(WHERE, f"source {value!r}", words):
        parsed(forwarding="ipip", source=value)


@pytest.mark.parametrize("value, pool", [(None, (10000, 32767)), ("1-65535", (1, 65535)), (7, (7, 7)), ("9-9", (9, 9))])
def test_ports_of_a_source(value, pool):
    found = parsed(**NAT, source_ports=value).pool
    assert found == ("10.0.0.250", *pool)
    assert found is not None and found.ports == pool[1] - pool[0] + 1


@pytest.mark.parametrize(
    "value, words",
    [
        ("0-9", "source_ports '0' is not between 1 and 65535"),
        ("9-65536", "source_ports '65536' is not between 1 and 65535"),
        ("9-8", "source_ports range '9-8' is reversed, write 8-9"),
        ("any", "source_ports 'any' is not a whole number"),
    ],
)
def test_ports_that_a_source_cannot_have(value, words):
    with refused(WHERE, words):
        parsed(**NAT, source_ports=value)


@pytest.mark.parametrize("forwarding", ["dnat", "dsr", "ipip", "redirect"])
def test_only_full_nat_has_source_ports(forwarding):
    source = {"source": "10.0.0.250"} if forwarding == "ipip" else {}
    with refused(WHERE, f"source_ports is for full_nat, not for {forwarding}"):
        parsed(forwarding=forwarding, source_ports="1-9", **source)
    assert parsed(forwarding=forwarding, **source).pool is None


def test_services_share_an_address_with_the_same_ports_only():
    other = service(name="other", port=81, **NAT)
    assert len(check([service(**NAT), other], []).pools()) == 1
    with refused("service other: source_ports 1-9 of 10.0.0.250 are 10000-32767 for service web"):
        check([service(**NAT), {**other, "source_ports": "1-9"}], [])
    different = {**other, "source": "10.0.0.251", "source_ports": "1-9"}
    assert [pool.address for pool in check([service(**NAT), different], []).pools()] == ["10.0.0.250", "10.0.0.251"]


def test_a_source_is_not_the_vip_of_another_service():
    with refused("service web: source 10.0.0.250 is the VIP of service other"):
        check([service(**NAT), service(name="other", address="10.0.0.250")], [])


# --- flows


@pytest.mark.parametrize("protocol, seconds", [("tcp", 900), ("udp", 300)])
@pytest.mark.parametrize("kind", [{"flow_table": True}, NAT], ids=["flow table", "full_nat"])
def test_flows_are_remembered_for_as_long_as_ipvs_does(kind, protocol, seconds):
    found = parsed(protocol=protocol, **kind)
    assert found.remembers_flows and found.idle_timeout == seconds
    assert parsed(protocol=protocol, idle_timeout=7, **kind).idle_timeout == 7


@pytest.mark.parametrize("value", [0, -1, 3601])
def test_time_that_no_flow_is_remembered(value):
    with refused(WHERE, f"idle_timeout {value} is not between 1 and 3600"):
        parsed(flow_table=True, idle_timeout=value)


@pytest.mark.parametrize("flow_table", [None, False])
def test_time_is_for_services_that_remember(flow_table):
    with refused(WHERE, "idle_timeout is for services with flow_table: true or forwarding full_nat"):
        parsed(flow_table=flow_table, idle_timeout=60)
    assert not parsed(flow_table=flow_table).remembers_flows


# --- handover


def test_connections_are_handed_over_until_all_have_sent_a_packet():
    assert parsed(protocol="tcp", flow_table=True).handover_seconds == 900
    assert parsed(protocol="tcp", flow_table=True, idle_timeout=60).handover_seconds == 60
    assert parsed(protocol="tcp", flow_table=True, scheduler="hash", handover_seconds=7).handover_seconds == 7
    assert parsed(protocol="tcp", flow_table=True, handover_seconds=0).handover_seconds == 0


@pytest.mark.parametrize("value", [-1, 3601])
def test_time_of_a_handover(value):
    with refused(WHERE, f"handover_seconds {value} is not between 0 and 3600"):
        parsed(protocol="tcp", flow_table=True, handover_seconds=value)


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "udp", "flow_table": True},
        {"protocol": "tcp"},
        {"protocol": "tcp", "flow_table": True, "scheduler": "round_robin"},
        {"protocol": "tcp", **NAT},
    ],
    ids=["udp", "no flow table", "round robin", "full_nat"],
)
def test_what_has_no_handover(other):
    assert parsed(**other).handover_seconds == 0
    assert parsed(**other, handover_seconds=0).handover_seconds == 0
    with refused(WHERE, "handover_seconds is for services with protocol tcp, flow_table: true and scheduler maglev"):
        parsed(**other, handover_seconds=60)


def test_full_nat_needs_no_flow_table():
    with refused(WHERE, "flow_table is of no use with full_nat"):
        parsed(flow_table=True, **NAT)
    assert not parsed(flow_table=False, **NAT).flow_table


@pytest.mark.parametrize("value", ["yes", 1, 0, "", []], ids=repr)
def test_flow_table_is_true_or_false(value):
    with refused(WHERE, f"flow_table {value!r} is neither true nor false"):
        parsed(flow_table=value)


@pytest.mark.parametrize("kind", [{"flow_table": True}, NAT, {"forwarding": "redirect"}], ids=str)
def test_round_robin_of_tcp_is_for_those_that_remember_or_need_not(kind):
    assert parsed(scheduler="round_robin", **kind).scheduler == "round_robin"


def test_hash_is_for_all():
    assert parsed(scheduler="hash").scheduler == "hash"


# --- any port


def test_any_port():
    found = parsed(port="any")
    assert (found.any_port, found.port, list(found.ports), found.keeps_ports) == (True, "any", [0], True)


def test_a_service_on_any_port_leaves_room_for_one_on_a_port():
    assert len(check([service(port="any"), service(name="other", port=80)], []).services) == 2
    with refused("services[1] (other 192.0.2.10): duplicate service, 192.0.2.10 tcp port any belongs to web"):
        check([service(port="any"), service(name="other", port="any")], [])


def test_backend_port_for_any_port():
    with refused("backend 10.0.0.1 of service web: port 85 for a service on ports any; leave port out"):
        check([service(port="any")], [backend(port=85)])


@pytest.mark.parametrize("order", [1, -1], ids=["any first", "any last"])
def test_replies_from_any_port_cannot_be_told_from_those_of_another_service(order):
    services = [service(port="any"), service(name="other", address="192.0.2.11")][::order]
    backends = [backend(), backend(service="other")][::order]
    with refused("could not tell them apart; give each service a port of its own on the backend"):
        check(services, backends)


@pytest.mark.parametrize("other", [{"protocol": "udp"}, {"forwarding": "dsr"}, NAT], ids=str)
def test_replies_from_any_port_beside_a_service_that_has_no_such_replies(other):
    services = [service(port="any"), service(name="other", address="192.0.2.11", **other)]
    assert len(check(services, [backend(), backend(service="other")]).backends) == 2


# --- families


@pytest.mark.parametrize("forwarding", ["dnat", "dsr", "full_nat"])
@pytest.mark.parametrize(
    "vip, address, source, families",
    [("192.0.2.10", "fd00::1", "10.0.0.250", (4, 6)), (SIX, "10.0.0.1", "fd00::250", (6, 4))],
)
def test_backends_are_of_the_vips_family(forwarding, vip, address, source, families):
    more = {"source": source} if forwarding == "full_nat" else {}
    words = "{} cannot go from IPv{}, the VIP's family, to IPv{}".format(forwarding, *families)
    with refused(f"backend {address} of service web: {words}"):
        check([service(address=vip, forwarding=forwarding, **more)], [backend(address=address)])


@pytest.mark.parametrize(
    "vip, source, address",
    [
        ("192.0.2.10", "10.0.0.250", "10.0.0.1"),
        ("192.0.2.10", "fd99::/64", "fd00::1"),
        (SIX, "10.99.0.0/16", "10.0.0.1"),
        (SIX, "fd99::/64", "fd00::1"),
    ],
    ids=["4 in 4", "4 in 6", "6 in 4", "6 in 6"],
)
def test_tunnels(vip, source, address):
    for forwarding in ("ipip", "gue"):
        assert check([service(address=vip, forwarding=forwarding, source=source)], [backend(address=address)])


@pytest.mark.parametrize("source, address, family", [("fd99::/64", "10.0.0.1", 4), ("10.0.0.250", "fd00::1", 6)])
def test_tunnel_from_another_family(source, address, family):
    with refused(f"the outer header's source {source} is not of its family, IPv{family}"):
        check([service(forwarding="ipip", source=source)], [backend(address=address)])


def test_tunnel_to_another_port():
    with refused("backend 10.0.0.1 of service web: port 8080, but ipip leaves the port 80 as it is"):
        check([service(**TUNNEL)], [backend(port=8080)])


def test_full_nat_may_change_the_port():
    assert check([service(**NAT)], [backend(port=8080)])


def test_ipv6_backend_that_is_a_vip():
    services = [service(address=SIX), service(name="other", address="2001:db8::11")]
    with refused(f"backend {SIX} of service other: the address is the VIP of service web"):
        check(services, [backend(service="other", address=SIX)])


# --- redirect


def test_redirect_goes_to_interfaces():
    config = check([service(forwarding="redirect")], [out(), out(interface="eth2", weight=3, state="drained")])
    assert [(item.target, item.address, item.share) for item in list(config.backends.values())] == [
        ("eth1", None, 1),
        ("eth2", None, 0),
    ]


@pytest.mark.parametrize(
    "key, value", [("address", "10.0.0.1"), ("port", 80), ("mac", "52:54:00:00:00:01")], ids=["address", "port", "mac"]
)
def test_nothing_beside_an_interface(key, value):
    with refused("backends[0] (web ", f"{key} {value!r} beside interface: redirect leaves frames as they are"):
        parse_backends([out(**{key: value})])


@pytest.mark.parametrize("value", ["", "a/b", "a b", "x" * 16], ids=repr)
def test_interface_that_is_none(value):
    with refused(f"interface {value!r} is not a name of an interface"):
        parse_backends([out(interface=value)])


def test_interfaces_and_addresses_each_where_they_belong():
    with refused("backend 10.0.0.1 of service web: redirect goes to an interface; give interface instead of address"):
        check([service(forwarding="redirect")], [backend()])
    with refused("backend eth1 of service web: interface eth1 is for redirect, not for dnat; give address"):
        check([service()], [out()])


def test_one_interface_twice():
    with refused("backends[1] (web eth1): duplicate backend of service web"):
        parse_backends([out(), out(weight=2)])


# --- written and read

PORTS = st.integers(1, 65535)
RANGES = st.tuples(PORTS, PORTS).map(sorted).map(lambda ends: f"{ends[0]}-{ends[1]}")
FLOWS = st.fixed_dictionaries({}, optional={"idle_timeout": st.integers(1, 3600)})
KINDS = st.one_of(
    FLOWS.map(lambda flows: {**flows, "flow_table": True}),
    st.builds(lambda flows, ports: {**flows, **ports, **NAT}, FLOWS, st.fixed_dictionaries({"source_ports": RANGES})),
    st.sampled_from(("10.99.0.0/16", "fd99::/64", "10.0.0.250")).map(lambda source: {**TUNNEL, "source": source}),
    st.just({"forwarding": "redirect"}),
)


@given(KINDS, PORTS | RANGES | st.just("any"), st.sampled_from(("maglev", "hash")))
def test_services_of_all_modes_survive_being_written_and_read(kind, port, scheduler):
    found = parse_services([service(port=port, scheduler=scheduler, **kind)])
    assert parse_services([entry.as_dict() for entry in found.values()]) == found


def test_an_interface_survives_being_written_and_read():
    found = parse_backends([out(weight=3, name="uplink")])
    assert parse_backends([entry.as_dict() for entry in found.values()]) == found


# --- what is planned


def follow(first: model.Config, second: model.Config) -> tuple[plan.Plan, plan.Plan]:
    before = plan.make(model.Config({}, {}), plan.Allocation(), first, Sizes())
    settled = replace(before.allocation, retiring_rings=frozenset(), retiring_backends=frozenset())
    return before, plan.make(first, settled, second, Sizes())


@pytest.mark.parametrize(
    "before, after",
    [
        ({"flow_table": True}, {}),
        ({"flow_table": True}, {"flow_table": True, "idle_timeout": 5}),
        ({"scheduler": "hash"}, {}),
        (NAT, {**NAT, "idle_timeout": 5}),
    ],
    ids=["flow table", "idle timeout", "scheduler", "idle timeout of sessions"],
)
def test_how_a_service_chooses_and_remembers_is_in_its_ring_alone(before, after):
    first, second = check([service(**before)], [backend()]), check([service(**after)], [backend()])
    _before, planned = follow(first, second)
    assert planned.swapped_rings == ["web"]
    assert not planned.written_backends and not planned.written_pools and planned.endpoints is None


@pytest.mark.parametrize(
    "before, after",
    [
        (NAT, {**NAT, "source": "10.0.0.251"}),
        (NAT, {**NAT, "source_ports": "1-9"}),
        (TUNNEL, {**TUNNEL, "source": "10.99.0.0/16"}),
        (NAT, TUNNEL),
    ],
    ids=["source", "source ports", "source of a tunnel", "mode"],
)
def test_where_packets_come_from_is_in_new_entries(before, after):
    """So sessions and flows that are remembered with the old ones end."""
    first, second = check([service(**before)], [backend()]), check([service(**after)], [backend()])
    earlier, planned = follow(first, second)
    assert planned.written_backends == list(second.backends)
    assert set(planned.allocation.backends.values()).isdisjoint(earlier.allocation.backends.values())
    assert planned.allocation.retiring_backends == frozenset(earlier.allocation.backends.values())


def test_replies_to_a_source_that_is_given_up_linger():
    _before, planned = follow(check([service(**NAT)], []), check([service()], []))
    assert planned.interim_endpoints is not None and planned.replies_linger
    _before, planned = follow(check([service(forwarding="dsr")], []), check([], []))
    assert planned.interim_endpoints is not None and not planned.replies_linger


def test_an_entry_says_where_its_pool_is():
    services = [service(**NAT, source_ports="1-100"), service(name="other", port=81, **NAT)]
    services[1]["source"] = "10.0.0.251"
    desired = check(services, [backend(service="other"), backend()])
    planned = plan.make(model.Config({}, {}), plan.Allocation(), desired, Sizes())
    pools = [planned.backend_place(key, 0).pool for key in desired.backends]
    assert [(pool.id, pool.first_session) for pool in pools if pool] == [(1, 100), (0, 0)]


def test_an_entry_of_a_redirect_says_its_interface_and_has_no_pool():
    desired = check([service(forwarding="redirect")], [out()])
    planned = plan.make(model.Config({}, {}), plan.Allocation(), desired, Sizes())
    [key] = list(desired.backends)
    place = planned.backend_place(key, 12)
    assert (place.interface, place.pool) == (12, None)


def test_more_sources_than_pools_are_refused():
    services = [
        service(name=f"s{n}", port=n, **{**NAT, "source": f"10.0.1.{n}"}, source_ports="1-2") for n in range(1, 66)
    ]
    with refused("65 sources of full_nat are more than 64"):
        plan.make(model.Config({}, {}), plan.Allocation(), check(services, []), Sizes())
    assert plan.make(model.Config({}, {}), plan.Allocation(), check(services[:-1], []), Sizes())
