# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services and backends as the inventory declares them, checked before anything is touched.

Addresses are strings in dotted form, ports and weights are numbers; `ports` is an inclusive range.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from .errors import EngineError
from .layout import FORWARDINGS, PROTOCOLS, SCHEDULERS

MAX_WEIGHT = 65535
STATES = ("enabled", "drained")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
MAC_PATTERN = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# int() takes more than an inventory should hold: "8_0", " +80", other alphabets' digits.
NUMBER_PATTERN = re.compile(r"-?[0-9]{1,20}")
RANGE_PATTERN = re.compile(r"([0-9]+)-([0-9]+)")


class BackendKey(NamedTuple):
    """What makes a backend the same backend over changes."""

    service: str
    address: str
    port: int | None  # None: the packet keeps its port


@dataclass(frozen=True)
class Service:
    name: str
    address: str
    protocol: str
    first_port: int
    last_port: int
    scheduler: str
    forwarding: str

    @property
    def ports(self) -> range:
        return range(self.first_port, self.last_port + 1)

    @property
    def port(self) -> int | str:
        """As the inventory writes it."""
        return self.first_port if len(self.ports) == 1 else f"{self.first_port}-{self.last_port}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "protocol": self.protocol,
            "port": self.port,
            "scheduler": self.scheduler,
            "forwarding": self.forwarding,
        }


@dataclass(frozen=True)
class Backend:
    service: str
    address: str
    port: int | None
    weight: int
    state: str
    mac: str | None
    name: str | None

    @property
    def key(self) -> BackendKey:
        return BackendKey(self.service, self.address, self.port)

    @property
    def share(self) -> int:
        """The weight that counts: a drained backend keeps its replies but gets nothing new."""
        return self.weight if self.state == "enabled" else 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "address": self.address,
            "port": self.port,
            "weight": self.weight,
            "state": self.state,
            "mac": self.mac,
            "name": self.name,
        }


@dataclass(frozen=True)
class Config:
    """A whole configuration; services by name, backends by key, both in the order they were declared."""

    services: dict[str, Service]
    backends: dict[BackendKey, Backend]

    def backends_of(self) -> dict[str, list[Backend]]:
        """The backends of each service, by its name."""
        grouped: dict[str, list[Backend]] = {name: [] for name in self.services}
        for backend in self.backends.values():
            grouped[backend.service].append(backend)
        return grouped


class _Entry:
    """One declared entry; errors name it."""

    def __init__(self, kind: str, position: int, raw: Any, known: frozenset[str]) -> None:
        if not isinstance(raw, dict):
            raise EngineError(f"{kind}[{position}] is {raw!r}, not a mapping")
        self.kind, self.position, self.raw = kind, position, raw
        if not raw.keys() <= known:
            unknown = min(raw.keys() - known, key=str)
            raise self.error(f"unknown key {unknown!r}; known are {', '.join(sorted(known))}")

    @property
    def where(self) -> str:
        label = " ".join(str(self.raw[key]) for key in ("service", "name", "address") if self.raw.get(key) is not None)
        return f"{self.kind}[{self.position}]" + (f" ({label})" if label else "")

    def error(self, problem: str) -> EngineError:
        return EngineError(f"{self.where}: {problem}")

    def required(self, key: str) -> Any:
        value = self.raw.get(key)
        if value is None or value == "":
            raise self.error(f"{key} is missing")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        # A tuple, since a list in place of a word cannot be looked up in a dictionary.
        if value not in tuple(choices):
            raise self.error(f"{key} {value!r} is not one of {', '.join(choices)}")
        return value

    def address(self, key: str) -> str:
        value = self.required(key)
        try:
            packed = socket.inet_pton(socket.AF_INET, str(value))
        except (OSError, ValueError):
            raise self.error(f"{key} {value!r} is not an IPv4 address such as 192.0.2.10") from None
        if packed[0] in (0, 127) or packed[0] >= 224:
            raise self.error(f"{key} {value!r} is not a unicast address of a host on a network")
        return str(value)

    def integer(self, key: str, lowest: int, highest: int, value: Any) -> int:
        if not NUMBER_PATTERN.fullmatch(str(value)):
            raise self.error(f"{key} {value!r} is not a whole number")
        number = int(value)
        if not lowest <= number <= highest:
            raise self.error(f"{key} {value!r} is not between {lowest} and {highest}")
        return number


def _parse(kind: str, raw: Any, known: frozenset[str], parse: Callable[[_Entry], Any]) -> list[tuple[_Entry, Any]]:
    """Every entry parsed, or one error that lists what is wrong with each."""
    if not isinstance(raw, list):
        raise EngineError(f"{kind} is {raw!r}, not a list")
    parsed, errors = [], []
    for position, item in enumerate(raw):
        try:
            entry = _Entry(kind, position, item, known)
            parsed.append((entry, parse(entry)))
        except EngineError as error:
            errors.append(str(error))
    _raise_all(errors)
    return parsed


def _raise_all(errors: list[str]) -> None:
    if errors:
        more = f"; and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise EngineError("; ".join(errors[:10]) + more)


SERVICE_KEYS = frozenset(("name", "address", "protocol", "port", "scheduler", "forwarding"))
BACKEND_KEYS = frozenset(("service", "address", "port", "weight", "state", "mac", "name"))


def _service(entry: _Entry) -> Service:
    name = str(entry.required("name"))
    if not NAME_PATTERN.fullmatch(name):
        raise entry.error(f"name {name!r} may hold letters, digits and _ . : - only, 63 of them at the most")
    address = entry.address("address")
    protocol = entry.choice("protocol", PROTOCOLS)
    port = entry.required("port")
    ends = RANGE_PATTERN.fullmatch(str(port))
    first, last = ends.groups() if ends else (port, port)
    first_port = entry.integer("port", 1, 65535, first)
    last_port = entry.integer("port", 1, 65535, last)
    if first_port > last_port:
        raise entry.error(f"port range {port!r} is reversed, write {last_port}-{first_port}")
    scheduler = entry.choice("scheduler", SCHEDULERS, "maglev")
    if scheduler == "round_robin" and protocol == "tcp":
        raise entry.error(
            "scheduler 'round_robin' sends each packet of a TCP connection to another backend; use maglev"
        )
    forwarding = entry.choice("forwarding", FORWARDINGS, "dnat")
    return Service(name, address, protocol, first_port, last_port, scheduler, forwarding)


def parse_services(raw: Any) -> dict[str, Service]:
    """The services by name. Raises EngineError naming each bad entry, duplicates included."""
    services: dict[str, Service] = {}
    ports: dict[tuple[str, str, int], str] = {}
    errors = []
    for entry, service in _parse("services", raw, SERVICE_KEYS, _service):
        if service.name in services:
            errors.append(f"{entry.where}: duplicate service, the name {service.name} is taken already")
            continue
        services[service.name] = service
        for port in service.ports:
            other = ports.setdefault((service.address, service.protocol, port), service.name)
            if other != service.name:
                errors.append(
                    f"{entry.where}: duplicate service, {service.address} {service.protocol} port {port} "
                    f"belongs to {other} already"
                )
                break
    _raise_all(errors)
    return services


def _backend(entry: _Entry) -> Backend:
    raw = entry.raw
    mac = raw.get("mac")
    if mac is not None:
        mac = str(mac).lower()
        if not MAC_PATTERN.fullmatch(mac):
            raise entry.error(f"mac {raw['mac']!r} is not an Ethernet address such as 52:54:00:12:34:56")
        if mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
            raise entry.error(f"mac {raw['mac']!r} is not the address of one host")
    port = raw.get("port")
    weight = raw.get("weight")
    name = raw.get("name")
    return Backend(
        service=str(entry.required("service")),
        address=entry.address("address"),
        port=None if port is None else entry.integer("port", 1, 65535, port),
        weight=1 if weight is None else entry.integer("weight", 0, MAX_WEIGHT, weight),
        state=entry.choice("state", STATES, "enabled"),
        mac=mac,
        name=None if name is None else str(name),
    )


def parse_backends(raw: Any) -> dict[BackendKey, Backend]:
    """The backends by key. Raises EngineError naming each bad entry, duplicates included."""
    backends: dict[BackendKey, Backend] = {}
    errors = []
    for entry, backend in _parse("backends", raw, BACKEND_KEYS, _backend):
        key = backend.key
        if key in backends:
            errors.append(f"{entry.where}: duplicate backend of service {backend.service}")
        backends[key] = backend
    _raise_all(errors)
    return backends


def backend_ports(service: Service, port: int | None) -> range:
    """The ports on which a backend is reached."""
    return service.ports if port is None else range(port, port + 1)


def check(config: Config) -> None:
    """What no entry shows alone. Raises EngineError."""
    errors = []
    vips = {service.address: service.name for service in config.services.values()}
    replies: dict[tuple[str, str, int], str] = {}
    for backend in config.backends.values():
        service = config.services.get(backend.service)
        where = f"backend {backend.address} of service {backend.service}"
        if service is None:
            known = ", ".join(config.services) or "none"
            errors.append(f"{where}: unknown service {backend.service!r}; known services: {known}")
            continue
        if backend.port is not None and len(service.ports) > 1:
            errors.append(f"{where}: port {backend.port} for a service on ports {service.port}; leave port out")
            continue
        if not separate_ports(config, backend, service):
            errors.append(f"{where}: declared twice, with and without port {service.first_port}")
            continue
        if service.forwarding == "dsr":
            if backend.port not in (None, service.first_port):
                errors.append(f"{where}: port {backend.port}, but dsr leaves the port {service.port} as it is")
            continue
        if backend.address in vips:
            errors.append(f"{where}: the address is the VIP of service {vips[backend.address]}")
            continue
        for port in backend_ports(service, backend.port):
            other = replies.setdefault((backend.address, service.protocol, port), service.name)
            if other != service.name:
                errors.append(
                    f"{where}: {service.protocol} port {port} serves {other} already, and a dnat reply could "
                    "not tell them apart; give each service a port of its own on the backend"
                )
                break
    _raise_all(errors)


def separate_ports(config: Config, backend: Backend, service: Service) -> bool:
    """False if the same backend is also declared with the port it gets anyway."""
    return backend.port is not None or BackendKey(service.name, backend.address, service.first_port) not in (
        config.backends
    )
