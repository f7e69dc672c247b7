# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services and backends as the inventory declares them.

Addresses are strings as inet_ntop(3) writes them, ports and weights are numbers. A service on any port has port 0.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .addresses import Prefix, family_of, parse_prefix
from .vocabulary import DEFAULT_TABLE_SIZE, TUNNELS

ANY_PORT = "any"


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
    source: str | None = None  # an address, for tunnels also a prefix
    source_ports: str | None = None
    table_size: int = DEFAULT_TABLE_SIZE  # slots of a Maglev table
    affinity_prefix: int = 0  # bits of the client's address that choose the backend; 0: the whole flow does
    affinity_group: str | None = None
    tunnel_port: int | None = None  # gue: UDP port of the backends
    # For so long after a change, connections that no flow table knows go by the lookup table before it; 0: not at all.
    handover_seconds: int = 0
    source_ranges: tuple[str, ...] = ()  # prefixes whose clients may use it; none: all may
    server_id_length: int = 0  # bytes of the backends' ids in connection ids of QUIC; 0: those choose nothing
    quic_config_id: int = 0

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
    def is_tunnel(self) -> bool:
        """Whether packets reach its backends behind another IP header."""
        return self.forwarding in TUNNELS

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

    @property
    def may_hand_over(self) -> bool:
        """Whether a slot of its lookup table says which backend a connection had."""
        return self.flow_table and self.protocol == "tcp" and self.scheduler != "round_robin"

    @property
    def by_connection_id(self) -> bool:
        """Whether connection ids of QUIC choose the backend."""
        return self.server_id_length > 0

    @property
    def keeps_connections(self) -> bool:
        """Whether a drained backend keeps connections that are open."""
        return self.remembers_flows or self.by_connection_id

    def as_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
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
        if self.may_hand_over:
            entry["handover_seconds"] = self.handover_seconds
        if self.table_size != DEFAULT_TABLE_SIZE:
            entry["table_size"] = self.table_size
        if self.affinity_prefix:
            entry |= {"affinity": "client", "affinity_prefix": self.affinity_prefix}
        if self.affinity_group:
            entry["affinity_group"] = self.affinity_group
        if self.tunnel_port is not None:
            entry["tunnel_port"] = self.tunnel_port
        if self.source_ranges:
            entry["source_ranges"] = list(self.source_ranges)
        if self.by_connection_id:
            entry |= {
                "affinity": "quic",
                "quic_server_id_length": self.server_id_length,
                "quic_config_id": self.quic_config_id,
            }
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
    local: bool = False  # it is the balancer's own host
    server_id: str | None = None  # in connection ids of QUIC: hexadecimal digits, in lower case

    @property
    def target(self) -> str:
        """What it is known by: its address, or for redirect its interface."""
        return self.address or self.interface or ""

    @property
    def key(self) -> BackendKey:
        return BackendKey(self.service, self.target, self.port)

    @property
    def label(self) -> str:
        """As errors and warnings name it."""
        return f"backend {self.target} of service {self.service}"

    @property
    def share(self) -> int:
        """The weight that counts: a drained backend keeps its replies but gets nothing new."""
        return 0 if self.state == "drained" else self.weight

    @property
    def is_backup(self) -> bool:
        """Whether it gets new flows only while no other backend of its service does."""
        return self.state == "backup"

    def as_dict(self) -> dict[str, Any]:
        entry = self._asdict()
        if not self.local:
            del entry["local"]
        return entry


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


def ring_members(backends: Iterable[Backend], out: Container[BackendKey] = ()) -> list[Backend]:
    """Those that take new flows, backups if no others do; `out` are those that health checks took out."""
    ready = [backend for backend in backends if backend.share and (not out or backend.key not in out)]
    return [backend for backend in ready if not backend.is_backup] or ready


def backend_ports(service: Service, port: int | None) -> range:
    """The ports on which a backend is reached."""
    return service.ports if port is None else range(port, port + 1)
