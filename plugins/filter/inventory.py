# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the inventory to the arguments of the modules.

An inventory declares services as the role's balancer_services does, and backends as the hosts of groups.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, health, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.exporter_options import check_listening, check_web
from ansible_collections.lbops.xdp.plugins.module_utils.config.filters import parse_filters
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError, Problems

# What the role adds to the keys of a service.
INVENTORY_KEYS = ("backends", "backend_port", "interfaces", "health")


def services(declared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The argument C(services) of xdp_balancer."""
    return [{key: value for key, value in service.items() if key not in INVENTORY_KEYS} for service in declared]


def _backend(service: dict[str, Any], host: str, variables: dict[str, Any], balancer: str) -> dict[str, Any]:
    entry = {
        "service": service["name"],
        "name": host,
        "address": variables.get("backend_address", variables.get("ansible_host", host)),
        "port": service.get("backend_port"),
        "weight": variables.get("backend_weight"),
        "state": variables.get("backend_state"),
        "mac": variables.get("backend_mac"),
        # To the other balancers, such a host is a backend like any other.
        "local": variables.get("backend_local") if host == balancer else None,
        "server_id": variables.get("backend_server_id"),
    }
    return {key: value for key, value in entry.items() if value is not None}


def backends(
    declared: list[dict[str, Any]],
    groups: dict[str, list[str]],
    hostvars: Any,
    service_name: str = "",
    balancer: str = "",
) -> list[dict[str, Any]]:
    """The argument C(backends) of xdp_balancer and xdp_backends: the hosts of each service's group, or its interfaces.

    With a name only those of this service. `balancer`: the host that they are for.
    """
    found = []
    for service in declared:
        if service_name and service.get("name") != service_name:
            continue
        if service.get("forwarding") == "redirect":
            found += [{"service": service["name"], "interface": name} for name in service.get("interfaces", [])]
            continue
        group = service.get("backends")
        if group not in groups:
            raise AnsibleFilterError(f"service {service.get('name')}: the inventory has no group {group!r}")
        found += [_backend(service, host, hostvars[host], balancer) for host in groups[group]]
    return found


def health_checks(declared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the role health writes for its service: how the backends of each service that says so are checked."""
    return [check.as_dict() for check in health.parse(declared).values()]


def _unserved(position: int, service: Any, groups: dict[str, list[str]]) -> str:
    """Why nobody serves it; nothing if somebody does."""
    if not isinstance(service, dict):
        return f"services[{position}] is {service!r}, not a mapping"
    where = f"service {service.get('name')}"
    if service.get("forwarding") == "redirect":
        interfaces = service.get("interfaces")
        if not interfaces:
            return f"{where}: interfaces, where redirect sends packets, is missing"
        if not isinstance(interfaces, list):
            return f"{where}: interfaces is {interfaces!r}, not a list"
        return ""
    group = service.get("backends")
    if not group:
        return f"{where}: backends, the inventory group that serves it, is missing"
    if not isinstance(group, str):
        return f"{where}: backends is {group!r}, not the name of an inventory group"
    if group not in groups:
        return f"{where}: the inventory has no group {group!r}; add one with the hosts that serve it"
    return ""


def _bounced(service: dict[str, Any], groups: dict[str, list[str]], hostvars: Any) -> str:
    """Why balancers would send each other the same packet for ever; nothing if they do not.

    With dsr it is still for the VIP, and no hop lowers its TTL.
    """
    if service.get("forwarding") != "dsr":
        return ""
    balancers = [host for host in groups[service["backends"]] if hostvars[host].get("backend_local")]
    if len(balancers) < 2:
        return ""
    return (
        f"service {service.get('name')}: {balancers[0]} and {balancers[1]} have backend_local and would balance each "
        "other's packets again with dsr; use ipip, gue or full_nat, which reach the other's server alone"
    )


def inventory_warnings(declared: list[dict[str, Any]], groups: dict[str, list[str]]) -> list[str]:
    """What is allowed, but hardly meant."""
    return [
        f"service {service.get('name')}: the inventory group {service['backends']!r} has no hosts, so nothing serves it"
        for service in declared
        if service.get("forwarding") != "redirect" and not groups[service["backends"]]
    ]


def _interface_problems(interfaces: Any) -> list[str]:
    if not isinstance(interfaces, list) or not all(isinstance(name, str) and name for name in interfaces):
        return [f"balancer_interfaces is {interfaces!r}, not a list of names such as [eth0]"]
    if not interfaces:
        return ["balancer_interfaces is empty; list the interfaces on which packets for the services arrive"]
    twice = sorted({name for name in interfaces if interfaces.count(name) > 1})
    return [f"balancer_interfaces has {', '.join(twice)} twice"] if twice else []


def inventory_problems(
    declared: list[dict[str, Any]],
    groups: dict[str, list[str]],
    hostvars: Any,
    filters: list[dict[str, Any]] | None = None,
    interfaces: list[str] | None = None,
    balancer: str = "",
) -> list[str]:
    """What is wrong with services, the hosts that serve them, filters and interfaces, in sentences.

    Nothing if all is well. Groups without hosts are warned of.
    """
    found = _interface_problems(interfaces) if interfaces is not None else []
    if not isinstance(declared, list):
        return [*found, f"balancer_services is {declared!r}, not a list"]
    found += _service_problems(declared, groups, hostvars, filters, balancer)
    if not found:
        for warning in inventory_warnings(declared, groups):
            Display().warning(warning)
    return found


def _service_problems(
    declared: list[dict[str, Any]],
    groups: dict[str, list[str]],
    hostvars: Any,
    filters: list[dict[str, Any]] | None,
    balancer: str,
) -> list[str]:
    problems = [
        problem for position, service in enumerate(declared) if (problem := _unserved(position, service, groups))
    ]
    problems = problems or [problem for service in declared if (problem := _bounced(service, groups, hostvars))]
    if problems:
        return problems
    try:
        found = backends(declared, groups, hostvars, balancer=balancer)
        config = model.Config(parse_services(services(declared)), parse_backends(found))
        cross_check.check(config)
        parse_filters(filters or [])
        return health.problems(health.parse(declared), config)
    except Problems as error:
        return error.problems
    except EngineError as error:
        return [str(error)]


def exporter_problems(web_config: Any, address: Any, port: Any) -> list[str]:
    """What is wrong with the role exporter's variables, in sentences; nothing if all is well."""
    problems = []
    for check, arguments in ((check_listening, (address, port)), (check_web, (web_config, "web_config"))):
        try:
            check(*arguments)
        except EngineError as error:
            problems.append(f"exporter_{error}")
    return problems


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Any]:
        return {
            "exporter_problems": exporter_problems,
            "services": services,
            "backends": backends,
            "health_checks": health_checks,
            "inventory_problems": inventory_problems,
        }
