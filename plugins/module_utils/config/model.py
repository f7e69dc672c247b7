# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services and backends as the inventory declares them, checked before anything is touched.

Addresses are strings as inet_ntop(3) writes them, ports and weights are numbers. A service on any port has port 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple

from ..errors import EngineError, Problems
from .addresses import Address, Prefix, canonical, family_of, parse_prefix
from .primes import next_prime
from .vocabulary import (
    DEFAULT_TABLE_SIZE,
    FORWARDINGS,
    MAX_TABLE_SIZE,
    MIN_TABLE_SIZE,
    PROTOCOLS,
    SCHEDULERS,
)

MAX_WEIGHT = 65535
STATES = ("enabled", "drained")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
INTERFACE_PATTERN = re.compile(r"[^/\s]{1,15}")
MAC_PATTERN = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# int() takes more than an inventory should hold: "8_0", " +80", other alphabets' digits.
NUMBER_PATTERN = re.compile(r"-?[0-9]{1,20}")
RANGE_PATTERN = re.compile(r"([0-9]+)-([0-9]+)")
ANY_PORT = "any"
# Modes whose packets bear an address of the balancer's.
MODES_WITH_SOURCE = ("full_nat", "ipip")
# Below what Linux takes for its own connections (net.ipv4.ip_local_port_range).
DEFAULT_SOURCE_PORTS = "10000-32767"
# Seconds; as IPVS has them.
DEFAULT_IDLE_TIMEOUTS = {"tcp": 900, "udp": 300}
MAX_IDLE_TIMEOUT = 3600


class BackendKey(NamedTuple):
    """What makes a backend the same backend over changes."""

    service: str
    address: str  # for redirect the interface
    port: int | None  # None: the packet keeps its port


class Pool(NamedTuple):
    """The source address and ports that full_nat services share."""

    address: str
    first_port: int
    last_port: int

    @property
    def ports(self) -> int:
        return self.last_port - self.first_port + 1


@dataclass(frozen=True)
class Service:
    name: str
    address: str
    protocol: str
    first_port: int  # 0: any port
    last_port: int
    scheduler: str
    forwarding: str
    flow_table: bool = False
    idle_timeout: int = 0  # seconds
    source: str | None = None  # an address, for ipip also a prefix
    source_ports: str | None = None
    table_size: int = DEFAULT_TABLE_SIZE  # slots of a Maglev table

    @property
    def family(self) -> int:
        """4 or 6."""
        return family_of(self.address)

    @property
    def any_port(self) -> bool:
        return not self.first_port

    @property
    def ports(self) -> range:
        return range(self.first_port, self.last_port + 1)

    @property
    def keeps_ports(self) -> bool:
        """Whether its backends must be reached on the port that the client chose."""
        return self.any_port or self.last_port > self.first_port

    @property
    def port(self) -> int | str:
        """As the inventory writes it."""
        if self.any_port:
            return ANY_PORT
        return self.first_port if len(self.ports) == 1 else f"{self.first_port}-{self.last_port}"

    @property
    def source_prefix(self) -> Prefix | None:
        return parse_prefix(self.source) if self.source else None

    @property
    def pool(self) -> Pool | None:
        """Of full_nat."""
        if self.source is None or self.source_ports is None:
            return None
        first, last = self.source_ports.split("-")
        return Pool(self.source, int(first), int(last))

    @property
    def remembers_flows(self) -> bool:
        return self.flow_table or self.forwarding == "full_nat"

    def as_dict(self) -> dict[str, Any]:
        entry = {
            "name": self.name,
            "address": self.address,
            "protocol": self.protocol,
            "port": self.port,
            "scheduler": self.scheduler,
            "forwarding": self.forwarding,
            "source": self.source,
            "source_ports": self.source_ports,
        }
        if self.flow_table:
            entry["flow_table"] = True
        if self.remembers_flows:
            entry["idle_timeout"] = self.idle_timeout
        if self.table_size != DEFAULT_TABLE_SIZE:
            entry["table_size"] = self.table_size
        return entry


class Backend(NamedTuple):
    """A tuple, since there are so many of them: made and compared several times as fast as a dataclass."""

    service: str
    address: str | None  # None: redirect
    port: int | None
    weight: int
    state: str
    mac: str | None
    name: str | None
    interface: str | None = None

    @property
    def target(self) -> str:
        """What it is known by: its address, or for redirect its interface."""
        return self.address or self.interface or ""

    @property
    def key(self) -> BackendKey:
        return BackendKey(self.service, self.target, self.port)

    @property
    def share(self) -> int:
        """The weight that counts: a drained backend keeps its replies but gets nothing new."""
        return self.weight if self.state == "enabled" else 0

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


@dataclass(frozen=True)
class Config:
    """A whole configuration; services by name, backends by key, both in the order they were declared."""

    services: dict[str, Service]
    backends: dict[BackendKey, Backend]

    def pools(self) -> list[Pool]:
        """Each once, in the order of the services."""
        return list(dict.fromkeys(service.pool for service in self.services.values() if service.pool))

    def backends_of(self) -> dict[str, list[Backend]]:
        """The backends of each service, by its name."""
        grouped: dict[str, list[Backend]] = {name: [] for name in self.services}
        for backend in self.backends.values():
            grouped[backend.service].append(backend)
        return grouped

    def redirect_interfaces(self) -> set[str]:
        return {backend.interface for backend in self.backends.values() if backend.interface}


class Entry:
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
        label = " ".join(
            str(self.raw[key])
            for key in ("service", "name", "address", "interface", "prefix")
            if self.raw.get(key) is not None
        )
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
        if not isinstance(value, str) or value not in choices:
            raise self.error(f"{key} {value!r} is not one of {', '.join(choices)}")
        return value

    def address(self, key: str) -> str:
        value = self.required(key)
        try:
            return canonical(str(value))
        except ValueError as error:
            raise self.error(f"{key} {value!r} {error}") from None

    def boolean(self, key: str) -> bool:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} {value!r} is neither true nor false")
        return bool(value)

    def port_range(self, key: str, value: Any) -> tuple[int, int]:
        ends = RANGE_PATTERN.fullmatch(str(value))
        first, last = ends.groups() if ends else (value, value)
        first_port = self.integer(key, 1, 65535, first)
        last_port = self.integer(key, 1, 65535, last)
        if first_port > last_port:
            raise self.error(f"{key} range {value!r} is reversed, write {last_port}-{first_port}")
        return first_port, last_port

    def integer(self, key: str, lowest: int, highest: int, value: Any) -> int:
        # True is an int, too, but no number that somebody meant.
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not NUMBER_PATTERN.fullmatch(str(value)):
            raise self.error(f"{key} {value!r} is not a whole number")
        number = int(value)
        if not lowest <= number <= highest:
            raise self.error(f"{key} {value!r} is not between {lowest} and {highest}")
        return number


def parse_entries(kind: str, raw: Any, known: frozenset[str], parse: Callable[[Entry], Any]) -> list[tuple[Entry, Any]]:
    """Every entry parsed, or one error that lists what is wrong with each."""
    if not isinstance(raw, list):
        raise EngineError(f"{kind} is {raw!r}, not a list")
    parsed, errors = [], []
    for position, item in enumerate(raw):
        try:
            entry = Entry(kind, position, item, known)
            parsed.append((entry, parse(entry)))
        except EngineError as error:
            errors.append(str(error))
    raise_all(errors)
    return parsed


def raise_all(errors: list[str]) -> None:
    if errors:
        raise Problems(errors)


SERVICE_KEYS = frozenset(
    (
        "name",
        "address",
        "protocol",
        "port",
        "scheduler",
        "forwarding",
        "flow_table",
        "idle_timeout",
        "source",
        "source_ports",
        "table_size",
    )
)
BACKEND_KEYS = frozenset(("service", "address", "port", "weight", "state", "mac", "name", "interface"))


def _service(entry: Entry) -> Service:
    name = str(entry.required("name"))
    if not NAME_PATTERN.fullmatch(name):
        raise entry.error(f"name {name!r} may hold letters, digits and _ . : - only, 63 of them at the most")
    address = entry.address("address")
    protocol = entry.choice("protocol", PROTOCOLS)
    port = entry.required("port")
    first_port, last_port = (0, 0) if port == ANY_PORT else entry.port_range("port", port)
    scheduler = entry.choice("scheduler", SCHEDULERS, "maglev")
    forwarding = entry.choice("forwarding", FORWARDINGS, "dnat")
    service = Service(
        name,
        address,
        protocol,
        first_port,
        last_port,
        scheduler,
        forwarding,
        flow_table=_flow_table(entry, forwarding),
        source=_source(entry, forwarding, Address(address)),
        source_ports=_source_ports(entry, forwarding),
        table_size=_table_size(entry, scheduler),
    )
    if scheduler == "round_robin" and protocol == "tcp" and not service.remembers_flows and forwarding != "redirect":
        raise entry.error(
            "scheduler 'round_robin' sends each packet of a TCP connection to another backend; use maglev, or "
            "flow_table: true"
        )
    return replace(service, idle_timeout=_idle_timeout(entry, service))


def _flow_table(entry: Entry, forwarding: str) -> bool:
    wanted = entry.boolean("flow_table")
    if wanted and forwarding == "full_nat":
        raise entry.error("flow_table is of no use with full_nat, which keeps a session for each flow anyway")
    return wanted


def _idle_timeout(entry: Entry, service: Service) -> int:
    value = entry.raw.get("idle_timeout")
    if not service.remembers_flows:
        if value is not None:
            raise entry.error("idle_timeout is for services with flow_table: true or forwarding full_nat")
        return 0
    return (
        DEFAULT_IDLE_TIMEOUTS[service.protocol]
        if value is None
        else entry.integer("idle_timeout", 1, MAX_IDLE_TIMEOUT, value)
    )


def _source(entry: Entry, forwarding: str, vip: Address) -> str | None:
    value = entry.raw.get("source")
    if forwarding not in MODES_WITH_SOURCE:
        if value is not None:
            raise entry.error(f"source is for {' and '.join(MODES_WITH_SOURCE)}, not for {forwarding}")
        return None
    if value is None:
        raise entry.error(
            f"source is missing: {forwarding} sends from an address of the balancer's, such as 198.51.100.2"
            + (", or from a prefix of which each flow gets an address" if forwarding == "ipip" else "")
        )
    if forwarding == "full_nat":
        source = entry.address("source")
        if Address(source).family != vip.family:
            raise entry.error(f"source {source!r} is not of the VIP's family, IPv{vip.family}")
        if source == str(vip):
            raise entry.error(f"source {source!r} is the VIP; replies to it could not be told from requests")
        return source
    try:
        return str(parse_prefix(str(value)))
    except ValueError as error:
        raise entry.error(f"source {value!r} {error}") from None


def _source_ports(entry: Entry, forwarding: str) -> str | None:
    value = entry.raw.get("source_ports")
    if forwarding != "full_nat":
        if value is not None:
            raise entry.error(f"source_ports is for full_nat, not for {forwarding}")
        return None
    first, last = entry.port_range("source_ports", DEFAULT_SOURCE_PORTS if value is None else value)
    return f"{first}-{last}"


def _table_size(entry: Entry, scheduler: str) -> int:
    value = entry.raw.get("table_size")
    if value is None:
        return DEFAULT_TABLE_SIZE
    if scheduler != "maglev":
        raise entry.error(f"table_size is for scheduler maglev, not for {scheduler}")
    size = entry.integer("table_size", MIN_TABLE_SIZE, MAX_TABLE_SIZE, value)
    if next_prime(size) != size:
        raise entry.error(f"table_size {value!r} is not a prime number; the next one is {next_prime(size)}")
    return size


def parse_services(raw: Any) -> dict[str, Service]:
    """The services by name. Raises EngineError naming each bad entry, duplicates included."""
    services: dict[str, Service] = {}
    ports: dict[tuple[str, str, int], str] = {}
    errors = []
    for entry, service in parse_entries("services", raw, SERVICE_KEYS, _service):
        if service.name in services:
            errors.append(f"{entry.where}: duplicate service, the name {service.name} is taken already")
            continue
        services[service.name] = service
        for port in service.ports:
            other = ports.setdefault((service.address, service.protocol, port), service.name)
            if other != service.name:
                errors.append(
                    f"{entry.where}: duplicate service, {service.address} {service.protocol} port "
                    f"{port or ANY_PORT} "
                    f"belongs to {other} already"
                )
                break
    raise_all(errors)
    return services


def _mac(entry: Entry) -> str | None:
    value = entry.raw.get("mac")
    if value is None:
        return None
    mac = str(value).lower()
    if not MAC_PATTERN.fullmatch(mac):
        raise entry.error(f"mac {value!r} is not an Ethernet address such as 52:54:00:12:34:56")
    if mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        raise entry.error(f"mac {value!r} is not the address of one host")
    return mac


def _backend(entry: Entry) -> Backend:
    raw = entry.raw
    mac = _mac(entry)
    port = raw.get("port")
    weight = raw.get("weight")
    name = raw.get("name")
    interface = raw.get("interface")
    if interface is not None:
        for key in ("address", "port", "mac"):
            if raw.get(key) is not None:
                raise entry.error(f"{key} {raw[key]!r} beside interface: redirect leaves frames as they are")
        if not INTERFACE_PATTERN.fullmatch(str(interface)):
            raise entry.error(f"interface {interface!r} is not a name of an interface")
    return Backend(
        service=str(entry.required("service")),
        address=entry.address("address") if interface is None else None,
        port=None if port is None else entry.integer("port", 1, 65535, port),
        weight=1 if weight is None else entry.integer("weight", 0, MAX_WEIGHT, weight),
        state=entry.choice("state", STATES, "enabled"),
        mac=mac,
        name=None if name is None else str(name),
        interface=None if interface is None else str(interface),
    )


def parse_backends(raw: Any) -> dict[BackendKey, Backend]:
    """The backends by key. Raises EngineError naming each bad entry, duplicates included."""
    backends: dict[BackendKey, Backend] = {}
    errors = []
    for entry, backend in parse_entries("backends", raw, BACKEND_KEYS, _backend):
        key = backend.key
        if key in backends:
            errors.append(f"{entry.where}: duplicate backend of service {backend.service}")
        backends[key] = backend
    raise_all(errors)
    return backends


def ring_members(backends: Iterable[Backend], out: Container[BackendKey] = ()) -> list[Backend]:
    """Those that take new flows; `out` are those that health checks took out."""
    active = [backend for backend in backends if backend.share]
    return [backend for backend in active if backend.key not in out] if out else active


def backend_ports(service: Service, port: int | None) -> range:
    """The ports on which a backend is reached."""
    return service.ports if port is None else range(port, port + 1)


def check(config: Config) -> None:
    """What no entry shows alone. Raises EngineError."""
    raise_all([*_pool_problems(config), *_table_problems(config), *backend_problems(config).values()])


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


def backend_problems(config: Config) -> dict[BackendKey, str]:
    """What is wrong with backends together with their services and with each other; of two, with the later one."""
    errors = {}
    vips = {service.address: service.name for service in config.services.values()}
    replies: dict[tuple[str, str], dict[int, str]] = {}
    for key, backend in config.backends.items():
        service = config.services.get(backend.service)
        if service is None:
            known = ", ".join(config.services) or "none"
            errors[key] = f"{_label(backend)}: unknown service {backend.service!r}; known services: {known}"
            continue
        problem = _misfit(config, backend, service)
        if not problem and service.forwarding in ("dnat", "full_nat"):
            if backend.address in vips:
                problem = f"the address is the VIP of service {vips[backend.address]}"
            elif service.forwarding == "dnat":
                taken = replies.setdefault((backend.target, service.protocol), {})
                problem = _ambiguous_reply(taken, service, backend)
        if problem:
            errors[key] = f"{_label(backend)}: {problem}"
    return errors


def _label(backend: Backend) -> str:
    return f"backend {backend.target} of service {backend.service}"


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
    if service.forwarding == "ipip":
        source = service.source_prefix
        if source is not None and family != source.family:
            return f"the outer header's source {service.source} is not of its family, IPv{family}"
        if (service.family, family) == (6, 4):
            return f"ipip carries IPv6 over IPv6 only, and the VIP {service.address} is IPv6"
    elif family != service.family:
        return f"{service.forwarding} cannot go from IPv{service.family}, the VIP's family, to IPv{family}"
    if backend.port is not None and service.keeps_ports:
        return f"port {backend.port} for a service on ports {service.port}; leave port out"
    if not separate_ports(config, backend, service):
        return f"declared twice, with and without port {service.first_port}"
    if service.forwarding in ("dsr", "ipip") and backend.port not in (None, service.first_port):
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
