# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an inventory to the arguments of the modules, and what it is told before any host is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.lbops.xdp.plugins.filter import inventory
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler
from ansible_collections.lbops.xdp.plugins.module_utils.config import filters, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import SERVICE_KEYS, parse_services

ROOT = Path(__file__).resolve().parents[2]
DNS = {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53, "backends": "resolvers"}
OUT = {"name": "out", "address": "192.0.2.12", "protocol": "udp", "port": 9, "forwarding": "redirect"}
GROUPS = {"resolvers": ["one", "two"], "empty": []}
HOSTVARS = {"one": {"ansible_host": "198.51.100.1"}, "two": {"ansible_host": "198.51.100.2"}}


def problems(*declared: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> list[str]:
    return inventory.inventory_problems(list(declared), GROUPS, HOSTVARS, rules)


def features(declared: list[dict[str, Any]], rules: list[dict[str, Any]] | None = None) -> list[str]:
    """What these need to have compiled in."""
    config = model.Config(parse_services(inventory.services(declared)), {})
    return sorted(used_features(config, filters.parse_filters(rules or [])))


def backend(service: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """Of a group with one host."""
    [found] = inventory.backends([service], {"resolvers": ["one"]}, {"one": variables})
    return found


# --- the arguments of xdp_balancer and xdp_backends


def test_services_are_what_is_declared_but_for_the_inventorys_own_keys():
    declared = [{**DNS, "backend_port": 5353, "scheduler": "hash"}, {**OUT, "interfaces": ["eth1"]}]
    assert inventory.services(declared) == [
        {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53, "scheduler": "hash"},
        OUT,
    ]
    assert declared[0]["backends"] == "resolvers"


def test_services_keep_what_is_wrong_for_the_module_to_refuse():
    assert inventory.services([{**DNS, "ports": 53}])[0]["ports"] == 53


def test_backends_are_the_hosts_of_the_services_group():
    assert inventory.backends([DNS], GROUPS, HOSTVARS) == [
        {"service": "dns", "name": "one", "address": "198.51.100.1"},
        {"service": "dns", "name": "two", "address": "198.51.100.2"},
    ]


def test_a_host_serves_every_service_of_its_group():
    web = {**DNS, "name": "web", "protocol": "tcp", "backend_port": 8080}
    found = inventory.backends([DNS, web], GROUPS, HOSTVARS)
    assert [(entry["service"], entry["name"], entry.get("port")) for entry in found] == [
        ("dns", "one", None),
        ("dns", "two", None),
        ("web", "one", 8080),
        ("web", "two", 8080),
    ]


@pytest.mark.parametrize(
    "variables, address",
    [
        ({"backend_address": "10.0.0.1", "ansible_host": "198.51.100.1"}, "10.0.0.1"),
        ({"ansible_host": "198.51.100.1"}, "198.51.100.1"),
        ({}, "one"),
    ],
    ids=["backend_address", "ansible_host", "the name"],
)
def test_address_of_a_backend(variables, address):
    assert backend(DNS, **variables)["address"] == address


def test_variables_of_a_backend():
    mac = "52:54:00:00:00:01"
    assert backend(DNS, backend_weight=3, backend_state="drained", backend_mac=mac) == {
        "service": "dns",
        "name": "one",
        "address": "one",
        "weight": 3,
        "state": "drained",
        "mac": mac,
    }


def test_weight_0_is_a_weight():
    assert backend(DNS, backend_weight=0)["weight"] == 0


def test_backends_of_a_redirect_are_interfaces():
    assert inventory.backends([{**OUT, "interfaces": ["eth1", "eth2"]}], GROUPS, HOSTVARS) == [
        {"service": "out", "interface": "eth1"},
        {"service": "out", "interface": "eth2"},
    ]


def test_an_empty_group_has_no_backends():
    assert inventory.backends([{**DNS, "backends": "empty"}], GROUPS, HOSTVARS) == []


def test_backends_of_a_group_that_is_not_there():
    with pytest.raises(AnsibleFilterError, match="service dns: the inventory has no group 'resolver'"):
        inventory.backends([{**DNS, "backends": "resolver"}], GROUPS, HOSTVARS)


# --- the argument features of the balancer

MODES = {
    "dnat": {},
    "dsr": {},
    "full_nat": {"source": "10.0.0.250"},
    "ipip": {"source": "10.0.0.250"},
    "gue": {"source": "10.0.0.250"},
    "redirect": {"interfaces": ["eth1"]},
}


@pytest.mark.parametrize("forwarding", MODES)
def test_feature_of_a_mode(forwarding):
    assert features([{**DNS, "forwarding": forwarding, **MODES[forwarding]}]) == [forwarding]


@pytest.mark.parametrize(
    "change, more",
    [
        ({"address": "2001:db8::10"}, ["ipv6"]),
        ({"scheduler": "round_robin"}, ["round_robin"]),
        ({"scheduler": "hash"}, []),
        ({"flow_table": True}, ["flow_table"]),
        ({"port": "any"}, ["any_port"]),
        ({"port": "1-65535"}, []),
    ],
    ids=str,
)
def test_feature_besides_the_mode(change, more):
    assert features([{**DNS, **change}]) == sorted(["dnat", *more])


def test_features_of_several_services_are_each_named_once():
    others = [{**DNS, "name": "six", "address": "2001:db8::10"}, {**DNS, "name": "direct", "port": 54}]
    others[1]["forwarding"] = "dsr"
    assert features([DNS, *others]) == ["dnat", "dsr", "ipv6"]


@pytest.mark.parametrize(
    "prefix, found", [("198.51.100.0/24", ["filters"]), ("2001:db8::/32", ["filters", "ipv6"]), (None, [])]
)
def test_features_of_filters(prefix, found):
    assert features([], [{"prefix": prefix, "action": "drop"}] if prefix else []) == found


def test_nothing_needs_no_feature():
    assert features([]) == features([], None) == features([], []) == []


# --- what is wrong


def test_a_good_inventory_has_no_problems():
    rules = [{"prefix": "203.0.113.0/24", "action": "drop"}]
    assert problems(DNS, {**OUT, "interfaces": ["eth1"]}, rules=rules) == []
    assert problems() == []


def test_a_group_without_hosts_is_no_problem():
    """Nobody serves it yet, or all are down; packets are dropped and counted."""
    assert problems({**DNS, "backends": "empty"}) == []


@pytest.mark.parametrize("change", [{"backends": None}, {"backends": ""}], ids=str)
def test_service_without_a_group(change):
    assert problems({**DNS, **change}) == ["service dns: backends, the inventory group that serves it, is missing"]


def test_group_that_is_not_there():
    assert problems({**DNS, "backends": "resolver"}) == [
        "service dns: the inventory has no group 'resolver'; add one with the hosts that serve it"
    ]


@pytest.mark.parametrize("change", [{}, {"interfaces": []}, {"backends": "resolvers"}], ids=str)
def test_redirect_without_interfaces(change):
    assert problems({**OUT, **change}) == ["service out: interfaces, where redirect sends packets, is missing"]


def test_every_service_without_backends_is_named_at_once():
    found = problems({**DNS, "backends": "resolver"}, DNS, {**DNS, "name": "web", "backends": None}, OUT)
    assert [line.partition(":")[0] for line in found] == ["service dns", "service web", "service out"]


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"port": 0}, "services[0] (dns 192.0.2.10): port 0 is not between 1 and 65535"),
        ({"name": None}, "services[0] (192.0.2.10): name is missing"),
        ({"forwarding": "nat"}, "services[0] (dns 192.0.2.10): forwarding 'nat' is not one of "),
        ({"weight": 3}, "services[0] (dns 192.0.2.10): unknown key 'weight'"),
    ],
    ids=str,
)
def test_service_that_the_module_would_refuse(change, problem):
    assert problems({**DNS, **change})[0].startswith(problem)


def test_backends_that_the_module_would_refuse_are_named_by_their_hosts():
    assert problems({**DNS, "backend_port": 0}) == [
        "backends[0] (dns one 198.51.100.1): port 0 is not between 1 and 65535",
        "backends[1] (dns two 198.51.100.2): port 0 is not between 1 and 65535",
    ]
    hostvars = {"one": {}, "two": {"ansible_host": "198.51.100.2", "backend_state": "down"}}
    assert inventory.inventory_problems([DNS], GROUPS, hostvars) == [
        "backends[0] (dns one one): address 'one' is not an IPv4 address such as 192.0.2.10 or an IPv6 address such as "
        "2001:db8::10",
        "backends[1] (dns two 198.51.100.2): state 'down' is not one of enabled, drained, backup",
    ]


def test_what_no_entry_shows_alone():
    assert problems(DNS, {**DNS, "name": "six", "address": "2001:db8::10"}) == [
        f"backend 198.51.100.{host} of service six: dnat cannot go from IPv6, the VIP's family, to IPv4"
        for host in (1, 2)
    ]


def test_filter_that_the_module_would_refuse():
    assert problems(DNS, rules=[{"prefix": "10.0.0.0/8", "action": "reject"}]) == [
        "filters[0] (10.0.0.0/8): action 'reject' is not one of drop, pass, limit"
    ]


def test_problems_stay_in_one_piece_with_their_remedies():
    rules = [{"prefix": "10.0.0.1/8", "action": "drop"}]
    assert problems(DNS, rules=rules) == [
        "filters[0] (10.0.0.1/8): prefix '10.0.0.1/8' has bits behind its length; write 10.0.0.0/8"
    ]


@pytest.mark.parametrize(
    "declared, problem",
    [
        (None, "balancer_services is None, not a list"),
        (["dns"], "services[0] is 'dns', not a mapping"),
        ([{**DNS, "backends": ["one"]}], "service dns: backends is ['one'], not the name of an inventory group"),
        (
            [{**DNS, "forwarding": "redirect", "interfaces": "eth1"}],
            "service dns: interfaces is 'eth1', not a list",
        ),
    ],
)
def test_what_is_of_another_kind_than_it_should_be(declared, problem):
    assert inventory.inventory_problems(declared, GROUPS, HOSTVARS) == [problem]


# --- the inventories and the filters of this collection


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("inventory/*/group_vars/balancers*")), ids=lambda path: path.parts[-3]
)
def test_services_of_our_own_inventories(path):
    files = sorted(path.rglob("*.yml")) if path.is_dir() else [path]
    variables: dict[str, Any] = {}
    for file in files:
        variables.update(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    declared = variables["balancer_services"]
    groups = {service["backends"]: ["one", "two"] for service in declared}
    assert declared and inventory.inventory_problems(declared, groups, HOSTVARS) == []


def test_every_filter_is_documented():
    documented = {path.stem for path in (ROOT / "plugins" / "filter").glob("*.yml")}
    assert documented == set(inventory.FilterModule().filters())


def test_the_role_documents_the_keys_of_services():
    specs = yaml.safe_load((ROOT / "roles/balancer/meta/argument_specs.yml").read_text(encoding="utf-8"))
    options = specs["argument_specs"]["main"]["options"]["balancer_services"]["options"]
    assert set(options) == SERVICE_KEYS | set(inventory.INVENTORY_KEYS)


def test_features_are_such_as_can_be_compiled_in():
    everything = [{**DNS, "name": name, "forwarding": name, **more} for name, more in MODES.items()]
    for number, service in enumerate(everything):
        service["port"] = 53 + number
    everything[1].update(table_size=251, source_ranges=["203.0.113.0/24"])
    direct = next(service for service in everything if service["forwarding"] == "dsr")
    direct.update(affinity="quic", quic_server_id_length=1)
    everything[0].update(
        address="2001:db8::10", scheduler="round_robin", flow_table=True, port="any", affinity="client"
    )
    everything.append({**DNS, "name": "handover", "protocol": "tcp", "flow_table": True})
    rules = [{"prefix": "::/0", "action": "pass"}]
    # "local" is of a backend.
    others = {"multi_buffer", "latency", "unserved_pass", "local", "next_program", "reply_interface", "reply_unchecked"}
    assert set(features(everything, rules)) == set(compiler.FEATURES) - others
    assert filters.parse_filters(rules)


def test_what_is_wrong_with_the_exporters_variables():
    assert inventory.exporter_problems({}, "::", 9477) == []
    assert inventory.exporter_problems({"tls": 1}, "nonsense", 70000) == [
        "exporter_address 'nonsense' is not an IP address such as 127.0.0.1 or ::",
        "exporter_web_config has no 'tls'; there are tls_server_config, basic_auth_users",
    ]
    # As --extra-vars exporter_port=9477 gives it.
    assert inventory.exporter_problems({}, "127.0.0.1", "9477") == []
    for port in (True, "9477x", 0):
        assert inventory.exporter_problems({}, "127.0.0.1", port) == [
            f"exporter_port {port!r} is not between 1 and 65535"
        ]
    assert inventory.exporter_problems({}, "127.0.0.1", 70000) == ["exporter_port 70000 is not between 1 and 65535"]


# --- interfaces, slices and groups without hosts


@pytest.mark.parametrize(
    ("interfaces", "message"),
    [
        ("eth0", "balancer_interfaces is 'eth0', not a list of names such as [eth0]"),
        ([7], "balancer_interfaces is [7], not a list of names such as [eth0]"),
        ([], "balancer_interfaces is empty; list the interfaces on which packets for the services arrive"),
        (["eth0", "eth1", "eth0"], "balancer_interfaces has eth0 twice"),
    ],
)
def test_interfaces_that_make_no_sense(interfaces, message):
    assert inventory.inventory_problems([DNS], GROUPS, HOSTVARS, None, interfaces) == [message]


def test_interfaces_that_make_sense():
    assert inventory.inventory_problems([DNS], GROUPS, HOSTVARS, None, ["eth0", "eth0.100"]) == []


def test_the_backends_of_one_service():
    declared = [DNS, {**DNS, "name": "web", "protocol": "tcp"}]
    assert {entry["service"] for entry in inventory.backends(declared, GROUPS, HOSTVARS, "web")} == {"web"}


def test_a_group_without_hosts_is_warned_of_by_name(monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(inventory.Display, "warning", lambda _self, text: warnings.append(text))
    assert problems({**DNS, "backends": "empty"}) == []
    assert warnings == ["service dns: the inventory group 'empty' has no hosts, so nothing serves it"]
    assert problems(DNS) == [] and problems({**OUT, "interfaces": ["eth1"]}) == []
    assert len(warnings) == 1
