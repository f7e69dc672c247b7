# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services and backends parsed from what the inventory declares, each entry by itself."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from .addresses import Address, parse_prefix
from .entries import Entry, parse_entries, raise_all
from .model import ANY_PORT, Backend, BackendKey, Service
from .primes import next_prime
from .vocabulary import (
    AFFINITIES,
    DEFAULT_TABLE_SIZE,
    DEFAULT_TUNNEL_PORT,
    FORWARDINGS,
    MAX_QUIC_CONFIG_ID,
    MAX_SERVER_ID_LENGTH,
    MAX_TABLE_SIZE,
    MIN_TABLE_SIZE,
    PROTOCOLS,
    SCHEDULERS,
    TUNNELS,
)

MAX_WEIGHT = 65535
STATES = ("enabled", "drained", "backup")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
INTERFACE_PATTERN = re.compile(r"[^/\s]{1,15}")
MAC_PATTERN = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# Modes whose packets bear an address of the balancer's.
MODES_WITH_SOURCE = ("full_nat", *TUNNELS)
# Below what Linux takes for its own connections (net.ipv4.ip_local_port_range).
DEFAULT_SOURCE_PORTS = "10000-32767"
# Seconds; as IPVS has them.
DEFAULT_IDLE_TIMEOUTS = {"tcp": 900, "udp": 300}
MAX_IDLE_TIMEOUT = 3600
MAX_HANDOVER_SECONDS = 3600
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
        "handover_seconds",
        "source",
        "source_ports",
        "table_size",
        "affinity",
        "affinity_prefix",
        "affinity_group",
        "tunnel_port",
        "source_ranges",
        "quic_server_id_length",
        "quic_config_id",
    )
)
BACKEND_KEYS = frozenset(
    ("service", "address", "port", "weight", "state", "mac", "name", "interface", "local", "server_id")
)
SERVER_ID_PATTERN = re.compile(r"([0-9a-f]{2})+")


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
        affinity_prefix=_affinity_prefix(entry, Address(address).family),
        affinity_group=_affinity_group(entry),
        tunnel_port=_tunnel_port(entry, forwarding),
        source_ranges=_source_ranges(entry, Address(address).family),
        server_id_length=_server_id_length(entry),
        quic_config_id=_quic_config_id(entry),
    )
    if service.by_connection_id:
        _check_quic(entry, service)
    if scheduler == "round_robin" and service.affinity_prefix:
        _check_remembered_clients(entry, service)
    if scheduler == "round_robin" and protocol == "tcp" and not service.remembers_flows and forwarding != "redirect":
        raise entry.error(
            "scheduler 'round_robin' sends each packet of a TCP connection to another backend; use maglev, or "
            "flow_table: true"
        )
    service = replace(service, idle_timeout=_idle_timeout(entry, service))
    return replace(service, handover_seconds=_handover_seconds(entry, service))


def _check_remembered_clients(entry: Entry, service: Service) -> None:
    if not service.flow_table:
        raise entry.error(
            "affinity 'client' with scheduler 'round_robin' needs flow_table: true, which remembers the client's turn; "
            "set that, or another scheduler"
        )
    if service.affinity_group:
        raise entry.error(
            "affinity_group is not for scheduler 'round_robin', whose flow table remembers the clients of one service; "
            "use maglev or hash"
        )


def _affinity_prefix(entry: Entry, family: int) -> int:
    value = entry.raw.get("affinity_prefix")
    bits = 32 if family == 4 else 128
    if entry.choice("affinity", AFFINITIES, "none") != "client":
        if value is not None:
            raise entry.error("affinity_prefix is for services with affinity: client")
        return 0
    return bits if value is None else entry.integer("affinity_prefix", 1, bits, value)


def _affinity_group(entry: Entry) -> str | None:
    value = entry.raw.get("affinity_group")
    if value is None:
        return None
    if entry.raw.get("affinity") != "client":
        raise entry.error("affinity_group is for services with affinity: client")
    if not NAME_PATTERN.fullmatch(str(value)):
        raise entry.error(f"affinity_group {value!r} may hold letters, digits and _ . : - only, 63 of them at the most")
    return str(value)


def _server_id_length(entry: Entry) -> int:
    value = entry.raw.get("quic_server_id_length")
    if entry.raw.get("affinity") != "quic":
        if value is not None:
            raise entry.error("quic_server_id_length is for services with affinity: quic")
        return 0
    if value is None:
        raise entry.error(
            f"quic_server_id_length is missing: affinity quic needs to know how many bytes of a connection id, 1 to "
            f"{MAX_SERVER_ID_LENGTH}, are the id of a server"
        )
    return entry.integer("quic_server_id_length", 1, MAX_SERVER_ID_LENGTH, value)


def _quic_config_id(entry: Entry) -> int:
    value = entry.raw.get("quic_config_id")
    if value is None:
        return 0
    if entry.raw.get("affinity") != "quic":
        raise entry.error("quic_config_id is for services with affinity: quic")
    return entry.integer("quic_config_id", 0, MAX_QUIC_CONFIG_ID, value)


def _check_quic(entry: Entry, service: Service) -> None:
    if service.protocol != "udp":
        raise entry.error("affinity 'quic' is for protocol udp, which QUIC runs over")
    if service.forwarding == "full_nat":
        raise entry.error(
            "affinity 'quic' is not for forwarding full_nat, whose sessions are of addresses and ports; use another "
            "forwarding"
        )
    if service.forwarding == "redirect":
        raise entry.error(
            "affinity 'quic' is not for forwarding redirect, whose backends are interfaces and no servers; use another "
            "forwarding"
        )
    if service.scheduler == "round_robin" and not service.flow_table:
        raise entry.error(
            "affinity 'quic' with scheduler 'round_robin' needs flow_table: true, or the packets of a handshake go to "
            "several backends; set that, or another scheduler"
        )


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


def _handover_seconds(entry: Entry, service: Service) -> int:
    value = entry.raw.get("handover_seconds")
    if not service.may_hand_over:
        if value not in (None, 0):
            raise entry.error(
                "handover_seconds is for services with protocol tcp, flow_table: true and scheduler maglev or hash"
            )
        return 0
    # By then each connection that is remembered at all has sent a packet.
    return service.idle_timeout if value is None else entry.integer("handover_seconds", 0, MAX_HANDOVER_SECONDS, value)


def _source(entry: Entry, forwarding: str, vip: Address) -> str | None:
    value = entry.raw.get("source")
    if forwarding not in MODES_WITH_SOURCE:
        if value is not None:
            raise entry.error(f"source is for {', '.join(MODES_WITH_SOURCE)}, not for {forwarding}")
        return None
    if value is None:
        raise entry.error(
            f"source is missing: {forwarding} sends from an address of the balancer's, such as 198.51.100.2"
            + (", or from a prefix of which each flow gets an address" if forwarding in TUNNELS else "")
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


def _tunnel_port(entry: Entry, forwarding: str) -> int | None:
    value = entry.raw.get("tunnel_port")
    if forwarding != "gue":
        if value is not None:
            raise entry.error(f"tunnel_port is for gue, not for {forwarding}")
        return None
    return DEFAULT_TUNNEL_PORT if value is None else entry.integer("tunnel_port", 1, 65535, value)


def _source_ranges(entry: Entry, family: int) -> tuple[str, ...]:
    value = entry.raw.get("source_ranges")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise entry.error(f"source_ranges is {value!r}, not a list of prefixes such as 192.0.2.0/24")
    if not value:
        raise entry.error("source_ranges is empty; name the prefixes of clients, or leave it out to take all of them")
    found: list[str] = []
    for text in value:
        try:
            prefix = parse_prefix(str(text))
        except ValueError as error:
            raise entry.error(f"source_ranges: {text!r} {error}") from None
        if prefix.family != family:
            raise entry.error(f"source_ranges: {text!r} is not of the VIP's family, IPv{family}")
        if str(prefix) in found:
            raise entry.error(f"source_ranges: {text!r} is listed twice")
        found.append(str(prefix))
    return tuple(sorted(found))


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
    try:
        return parse_mac(value)
    except ValueError as error:
        raise entry.error(f"mac {error}") from None


def parse_mac(value: Any) -> str:
    """A unicast Ethernet address in lower case. Raises ValueError."""
    mac = str(value).lower()
    if not MAC_PATTERN.fullmatch(mac):
        raise ValueError(f"{value!r} is not an Ethernet address such as 52:54:00:12:34:56")
    if mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        raise ValueError(f"{value!r} is not the address of one host")
    return mac


def _server_id(entry: Entry) -> str | None:
    value = entry.raw.get("server_id")
    if value is None:
        return None
    server_id = str(value).lower()
    if not SERVER_ID_PATTERN.fullmatch(server_id):
        raise entry.error(
            f"server_id {value!r} is not a row of bytes of two hexadecimal digits each; quote it in the inventory"
        )
    return server_id


def _backend(entry: Entry) -> Backend:
    raw = entry.raw
    mac = _mac(entry)
    port = raw.get("port")
    weight = raw.get("weight")
    name = raw.get("name")
    interface = raw.get("interface")
    local = entry.boolean("local")
    if local and mac is not None:
        raise entry.error(f"mac {mac!r} beside local: packets for this host are sent to nobody")
    if interface is not None:
        for key in ("address", "port", "mac"):
            if raw.get(key) is not None:
                raise entry.error(f"{key} {raw[key]!r} beside interface: redirect leaves frames as they are")
        if local:
            raise entry.error("local beside interface: redirect goes to an interface, not to this host")
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
        local=local,
        server_id=_server_id(entry),
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
