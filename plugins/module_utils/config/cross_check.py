# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no entry shows alone: services and backends checked against each other, before anything is touched."""

from __future__ import annotations

from collections import Counter

from .addresses import family_of
from .entries import raise_all
from .model import ANY_PORT, Backend, BackendKey, Config, Service, backend_ports
from .primes import next_prime
from .vocabulary import MAX_SOURCE_RANGES, MAX_TABLE_SIZE


def check(config: Config) -> None:
    """What no entry shows alone. Raises EngineError."""
    raise_all(
        [
            *_pool_problems(config),
            *_table_problems(config),
            *_group_problems(config),
            *_range_problems(config),
            *_server_id_problems(config),
            *backend_problems(config).values(),
        ]
    )


def _range_problems(config: Config) -> list[str]:
    count = sum(len(service.source_ranges) for service in config.services.values())
    if count <= MAX_SOURCE_RANGES:
        return []
    return [f"services have {count} source_ranges together; a balancer has at most {MAX_SOURCE_RANGES}, use filters"]


def _table_problems(config: Config) -> list[str]:
    """Tables with less slots than their services have backends, which would leave some without packets."""
    counts = Counter(backend.service for backend in config.backends.values())
    problems = []
    for service in config.services.values():
        count = counts[service.name]
        if count <= service.table_size:
            continue
        if count > MAX_TABLE_SIZE:
            remedy = f"a service has {MAX_TABLE_SIZE} at the most"
        elif service.scheduler == "maglev":
            remedy = f"set table_size to {next_prime(count)} or more"
        else:
            remedy = f"set scheduler to maglev and table_size to {next_prime(count)} or more"
        problems.append(
            f"service {service.name}: its table has {service.table_size} slots for {count} backends; {remedy}"
        )
    return problems


def _group_problems(config: Config) -> list[str]:
    """Services of one affinity group that could send a client to different backends."""
    grouped = [service for service in config.services.values() if service.affinity_group]
    if not grouped:
        return []
    backends = config.backends_of()
    problems = []
    first: dict[str, Service] = {}
    for service in grouped:
        group = service.affinity_group or ""
        members = backends[service.name]
        addresses = Counter(backend.target for backend in members)
        twice = next((address for address, count in addresses.items() if count > 1), None)
        if twice:
            problems.append(
                f"service {service.name}: backend {twice} has several ports, which a service of an affinity_group "
                "cannot tell apart; declare it once, or leave affinity_group out"
            )
            continue
        other = first.setdefault(group, service)
        difference = _group_difference(other, service, backends[other.name], members)
        if difference:
            problems.append(
                f"service {service.name}: {difference} service {other.name} of the same affinity_group {group}; make "
                "them equal, or use another group"
            )
    return problems


def _server_id_problems(config: Config) -> list[str]:
    """Backends that a connection id of QUIC would not find, or of which it would find the wrong one.

    Backends of other services may have an id: so it can be declared before the service needs it.
    """
    problems = []
    taken: dict[tuple[str, str], Backend] = {}
    for backend in config.backends.values():
        service = config.services.get(backend.service)
        if service is None or not service.by_connection_id:
            continue
        server_id, length = backend.server_id, service.server_id_length
        if server_id is None:
            problems.append(
                f"{backend.label}: server_id is missing, by which affinity quic finds the server of a connection; give "
                f"{length} bytes, such as {'0a' * length}"
            )
        elif len(server_id) != 2 * length:
            problems.append(
                f"{backend.label}: server_id {server_id} has {len(server_id) // 2} bytes, but quic_server_id_length of "
                f"the service is {length}"
            )
        else:
            other = taken.setdefault((service.name, server_id), backend)
            if other is not backend:
                problems.append(
                    f"{backend.label}: server_id {server_id} is that of backend {other.target} already; give each its "
                    "own"
                )
    return problems


def _group_difference(one: Service, other: Service, ones: list[Backend], others: list[Backend]) -> str:
    """Why two services could send a client to different backends; nothing if they cannot."""
    if one.family != other.family:
        return f"its VIP is IPv{other.family}, that of"
    for option in ("scheduler", "affinity_prefix", "table_size"):
        if getattr(one, option) != getattr(other, option):
            return f"{option} is {getattr(other, option)}, but {getattr(one, option)} for"
    shares, expected = ({backend.target: _share(backend) for backend in found} for found in (others, ones))
    unequal = sorted(key for key in {**shares, **expected} if shares.get(key) != expected.get(key))
    if not unequal:
        return ""
    if unequal[0] not in shares:
        return f"it has no backend {unequal[0]}, which is one of"
    if unequal[0] not in expected:
        return f"it has the backend {unequal[0]}, which is none of"
    return f"backend {unequal[0]} has weight {shares[unequal[0]]}, but {expected[unequal[0]]} for"


def _share(backend: Backend) -> str:
    return f"{backend.share} (backup)" if backend.is_backup and backend.share else str(backend.share)


def backend_problems(config: Config) -> dict[BackendKey, str]:
    """What is wrong with backends together with their services and with each other; of two, with the later one."""
    errors = {}
    vips = {service.address: service.name for service in config.services.values()}
    replies: dict[tuple[str, str], dict[int, str]] = {}
    for key, backend in config.backends.items():
        service = config.services.get(backend.service)
        if service is None:
            known = ", ".join(config.services) or "none"
            errors[key] = f"{backend.label}: unknown service {backend.service!r}; known services: {known}"
            continue
        problem = _misfit(config, backend, service)
        if not problem and service.forwarding in ("dnat", "full_nat"):
            if backend.address in vips:
                problem = f"the address is the VIP of service {vips[backend.address]}"
            elif service.forwarding == "dnat" and not backend.local:
                taken = replies.setdefault((backend.target, service.protocol), {})
                problem = _ambiguous_reply(taken, service, backend)
        if problem:
            errors[key] = f"{backend.label}: {problem}"
    return errors


def _pool_problems(config: Config) -> list[str]:
    problems = []
    by_address: dict[str, Service] = {}
    vips = {service.address: service.name for service in config.services.values()}
    for service in config.services.values():
        if not service.pool:
            continue
        other = by_address.setdefault(service.pool.address, service)
        if other.pool != service.pool:
            problems.append(
                f"service {service.name}: source_ports {service.source_ports} of {service.source} are "
                f"{other.source_ports} for service {other.name}; services share an address with the same ports only"
            )
        if service.pool.address in vips:
            problems.append(
                f"service {service.name}: source {service.source} is the VIP of service {vips[service.pool.address]}"
            )
    return problems


def _misfit(config: Config, backend: Backend, service: Service) -> str:
    """Why a backend cannot serve its service; nothing if it can."""
    if service.forwarding == "redirect":
        return "" if backend.interface else "redirect goes to an interface; give interface instead of address"
    if backend.address is None:
        return f"interface {backend.interface} is for redirect, not for {service.forwarding}; give address"
    family = family_of(backend.address)
    if service.is_tunnel:
        source = service.source_prefix
        if source is not None and family != source.family:
            return f"the outer header's source {service.source} is not of its family, IPv{family}"
    elif family != service.family:
        return f"{service.forwarding} cannot go from IPv{service.family}, the VIP's family, to IPv{family}"
    if backend.port is not None and service.keeps_ports:
        return f"port {backend.port} for a service on ports {service.port}; leave port out"
    if not separate_ports(config, backend, service):
        return f"declared twice, with and without port {service.first_port}"
    if backend.local and backend.port not in (None, service.first_port):
        return f"port {backend.port}, but a local backend gets packets as they are, on port {service.port}"
    if (service.forwarding == "dsr" or service.is_tunnel) and backend.port not in (None, service.first_port):
        return f"port {backend.port}, but {service.forwarding} leaves the port {service.port} as it is"
    return ""


def _ambiguous_reply(taken: dict[int, str], service: Service, backend: Backend) -> str:
    """A reply is known by the port it comes from, so a port of a backend serves one service; 0 stands for all."""
    for port in backend_ports(service, backend.port):
        other = taken.setdefault(port, service.name)
        if port == 0 or 0 in taken:
            other = next((name for name in taken.values() if name != service.name), other)
        if other != service.name:
            return (
                f"{service.protocol} port {port or ANY_PORT} serves {other} already, and a dnat reply could "
                "not tell them apart; give each service a port of its own on the backend"
            )
    return ""


def separate_ports(config: Config, backend: Backend, service: Service) -> bool:
    """False if the same backend is also declared with the port it gets anyway."""
    return backend.port is not None or BackendKey(service.name, backend.target, service.first_port) not in (
        config.backends
    )
