# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transaction over maps in memory: killed before each of its steps, and watched at each.

At every step a packet meets the old document or the new one, never a mix; and the run after a killed one ends where a
run that was not killed ends.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import observed, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, parse_document
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError

from .memory_tables import INTERFACES, WITHIN, Interrupted, Kernel, Map, Program, Snapshot, installed
from .packet_model import (
    BACKEND_ENTRY,
    ROOMS,
    SESSION,
    SESSION_OF_REPLIES,
    DeclaredPackets,
    LivePackets,
    Outcome,
    Packet,
)

SIZES = {
    "max_services": 24,
    "max_backends": 40,
    "max_endpoints": 48,
    "max_flows": 16,
    "max_sessions": 32,
    "max_filters": 8,
}
WEB = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80, "scheduler": "hash"}
DNS = {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53, "scheduler": "round_robin"}
SIX = {"name": "six", "address": "2001:db8::10", "protocol": "tcp", "port": 443, "scheduler": "hash"}
TUNNEL = {
    "name": "tunnel",
    "address": "192.0.2.11",
    "protocol": "tcp",
    "port": "1000-1003",
    "scheduler": "hash",
    "forwarding": "ipip",
    "source": "198.51.100.0/24",
}
ANY = {"name": "any", "address": "192.0.2.12", "protocol": "udp", "port": "any", "scheduler": "hash"}
FLOWS = {
    "name": "flows",
    "address": "192.0.2.13",
    "protocol": "tcp",
    "port": 80,
    "scheduler": "hash",
    "flow_table": True,
}
NAT = {
    "name": "nat",
    "address": "192.0.2.14",
    "protocol": "tcp",
    "port": 80,
    "scheduler": "hash",
    "forwarding": "full_nat",
    "source": "10.0.0.250",
    "source_ports": "10000-10007",
}
OUT = {
    "name": "out",
    "address": "192.0.2.15",
    "protocol": "udp",
    "port": 9,
    "scheduler": "hash",
    "forwarding": "redirect",
}


def backends(service: dict, *hosts: str | dict, port: int | None = None) -> list[dict]:
    entries = [host if isinstance(host, dict) else {"address": host} for host in hosts]
    return [{"service": service["name"], "port": port, **entry} for entry in entries]


WEB_BACKENDS = backends(WEB, "10.0.0.1", "10.0.0.2", "10.0.0.3", port=8080)
SERVICES = [WEB, DNS, SIX, TUNNEL, ANY, FLOWS, NAT, OUT]
BACKENDS = [
    *WEB_BACKENDS,
    *backends(DNS, "10.0.1.1", "10.0.1.2"),
    *backends(SIX, "fd00::1", "fd00::2", port=8443),
    *backends(TUNNEL, "10.0.2.1", "10.0.2.2"),
    *backends(ANY, "10.0.3.1", "10.0.3.2"),
    *backends(FLOWS, "10.0.4.1", "10.0.4.2", "10.0.4.3", port=8080),
    *backends(NAT, "10.0.5.1", "10.0.5.2"),
    *backends(OUT, {"interface": "out0"}, {"interface": "out1"}),
]
FILTERS = [{"prefix": "203.0.113.64/26", "action": "drop"}, {"prefix": "2001:db8:f::/48", "action": "drop"}]


def raw(
    services: list | None = None, members: list | None = None, filters: list | None = None, **settings: Any
) -> dict:
    """A document with these parts; None: everything that this file declares."""
    return {
        "interfaces": ["eth0", "eth1"],
        "mode": "native",
        "sizes": SIZES,
        "source": "/usr/lib/lbops/current/bpf",
        "services": SERVICES if services is None else services,
        "backends": BACKENDS if members is None else members,
        "filters": FILTERS if filters is None else filters,
        **settings,
    }


EVERYTHING = raw()
PLAIN = raw([WEB], WEB_BACKENDS, [])


def changed(entries: list[dict], match: Callable[[dict], bool], **values: Any) -> list[dict]:
    return [{**entry, **values} if match(entry) else entry for entry in entries]


def with_service(named: str, before: dict = EVERYTHING, members: list | None = None, **values: Any) -> dict:
    services = changed(before["services"], lambda entry: entry["name"] == named, **values)
    if members is not None:
        others = [entry for entry in before["backends"] if entry["service"] != named]
        members = [*others, *({"service": values.get("name", named), **entry} for entry in members)]
    elif "name" in values:
        members = changed(before["backends"], lambda entry: entry["service"] == named, service=values["name"])
    return {**before, "services": services, "backends": before["backends"] if members is None else members}


def ranged(named: str, *prefixes: str, before: dict = EVERYTHING) -> dict:
    return with_service(named, before, source_ranges=list(prefixes))


def with_backend(address: str, **values: Any) -> dict:
    return {**EVERYTHING, "backends": changed(BACKENDS, lambda entry: entry.get("address") == address, **values)}


def changed_members(service: str, *members: tuple[str, str]) -> dict:
    """Addresses and states."""
    states = dict(members)
    entries = [
        {**entry, "state": states[entry["address"]]} if entry["service"] == service else entry for entry in BACKENDS
    ]
    return {**EVERYTHING, "backends": entries}


def without(*names: str, before: dict = EVERYTHING) -> dict:
    return {
        **before,
        "services": [entry for entry in before["services"] if entry["name"] not in names],
        "backends": [entry for entry in before["backends"] if entry["service"] not in names],
    }


def without_backend(*addresses: str) -> dict:
    return {**EVERYTHING, "backends": [entry for entry in BACKENDS if entry.get("address") not in addresses]}


DIRECT = [{"address": "10.0.0.1"}, {"address": "10.0.0.2"}, {"address": "10.0.0.4"}]
CHANGES = {
    "first": (None, EVERYTHING),
    "add services": ({**PLAIN, "filters": FILTERS}, EVERYTHING),
    "remove services": (EVERYTHING, {**PLAIN, "filters": FILTERS}),
    "remove a service": (EVERYTHING, without("dns", "nat")),
    "remove all services": (EVERYTHING, raw([], [])),
    "replace a service": (without("six"), without("web")),
    "rename": (EVERYTHING, with_service("web", name="site")),
    "rename with memory": (EVERYTHING, with_service("flows", name="streams")),
    "another VIP": (EVERYTHING, with_service("web", address="192.0.2.20")),
    "another VIP of IPv6": (EVERYTHING, with_service("six", address="2001:db8::20")),
    "swap VIPs": (
        EVERYTHING,
        with_service("web", with_service("flows", address="192.0.2.10"), address="192.0.2.13"),
    ),
    "another port": (EVERYTHING, with_service("web", port=81)),
    "another range": (EVERYTHING, with_service("tunnel", port="1002-1005")),
    "any port": (EVERYTHING, with_service("tunnel", port="any")),
    "one port of any": (EVERYTHING, with_service("any", port=500)),
    "dnat to dsr": (EVERYTHING, with_service("web", members=DIRECT, forwarding="dsr")),
    "dnat to ipip": (
        EVERYTHING,
        with_service("web", members=DIRECT, forwarding="ipip", source="198.51.100.9"),
    ),
    "ipip to dnat": (EVERYTHING, with_service("tunnel", forwarding="dnat", source=None)),
    "dnat to full_nat": (
        EVERYTHING,
        with_service("web", forwarding="full_nat", source="10.0.0.251", source_ports="20000-20007"),
    ),
    "full_nat to dnat": (EVERYTHING, with_service("nat", forwarding="dnat", source=None, source_ports=None)),
    "another pool": (EVERYTHING, with_service("nat", source="10.0.0.252", source_ports="30000-30003")),
    "dnat to redirect": (
        EVERYTHING,
        with_service("dns", members=[{"interface": "out2"}], forwarding="redirect"),
    ),
    "another size of a lookup table": (
        with_service("web", scheduler="maglev", table_size=1021),
        with_service("web", scheduler="maglev", table_size=4093),
    ),
    "a smaller lookup table": (
        with_service("web", scheduler="maglev"),
        with_service("web", scheduler="maglev", table_size=1021),
    ),
    "another scheduler": (EVERYTHING, with_service("dns", scheduler="maglev")),
    "a flow table": (EVERYTHING, with_service("web", flow_table=True)),
    "no flow table": (EVERYTHING, with_service("flows", flow_table=False)),
    "weight": (EVERYTHING, with_backend("10.0.0.2", weight=3)),
    "drain": (EVERYTHING, with_backend("10.0.4.2", state="drained")),
    "add a backend": (
        EVERYTHING,
        {**EVERYTHING, "backends": [*BACKENDS, *backends(FLOWS, "10.0.4.4", "10.0.4.5", port=8080)]},
    ),
    "drain all": (without_backend("10.0.0.2", "10.0.0.3"), with_backend("10.0.0.1", state="drained")),
    "a backup that is not needed": (EVERYTHING, with_backend("10.0.4.2", state="backup")),
    "all others are drained": (
        with_backend("10.0.4.2", state="backup"),
        changed_members("flows", ("10.0.4.1", "drained"), ("10.0.4.2", "backup"), ("10.0.4.3", "drained")),
    ),
    "one is no longer drained": (
        changed_members("flows", ("10.0.4.1", "drained"), ("10.0.4.2", "backup"), ("10.0.4.3", "drained")),
        with_backend("10.0.4.2", state="backup"),
    ),
    "first source ranges": (EVERYTHING, ranged("web", "203.0.113.0/26")),
    "no more source ranges": (ranged("flows", "203.0.113.0/26", "198.51.100.0/24"), EVERYTHING),
    "other source ranges": (ranged("flows", "203.0.113.0/26"), ranged("flows", "203.0.113.64/26", "198.51.100.0/24")),
    "other source ranges of IPv6": (
        ranged("six", "2001:db8:e::/48"),
        ranged("six", "2001:db8:e::2", "2001:db8:d::/48"),
    ),
    "a new service with source ranges": (without("web"), ranged("web", "203.0.113.7")),
    "a new service where another had source ranges": (
        ranged("web", "0.0.0.0/0", before=without("dns")),
        ranged("dns", "203.0.113.7", before=without("web")),
    ),
    "another VIP and source ranges": (
        ranged("flows", "203.0.113.0/24"),
        ranged("flows", "203.0.113.9", before=with_service("flows", address="192.0.2.20")),
    ),
    "source ranges and larger maps": (
        ranged("web", "203.0.113.7"),
        {**ranged("web", "203.0.113.9"), "sizes": {**SIZES, "max_backends": 60}},
    ),
    "a local backend": (EVERYTHING, with_backend("10.0.0.2", local=True, port=None)),
    "a local backend of a tunnel": (EVERYTHING, with_backend("10.0.2.2", local=True)),
    "a local backend of full_nat": (EVERYTHING, with_backend("10.0.5.2", local=True)),
    "no local backend": (with_backend("10.0.4.2", local=True, port=None), EVERYTHING),
    "a MAC address": (EVERYTHING, with_backend("10.0.4.1", mac="52:54:00:00:00:01")),
    "remove a backend": (EVERYTHING, without_backend("10.0.0.2", "10.0.4.2", "10.0.5.2", "fd00::1")),
    "replace backends": (
        without_backend("10.0.0.1", "10.0.4.1", "10.0.5.1"),
        without_backend("10.0.0.2", "10.0.4.2", "10.0.5.2"),
    ),
    "other interfaces of redirect": (
        EVERYTHING,
        {**EVERYTHING, "backends": changed(BACKENDS, lambda entry: entry.get("interface") == "out0", interface="out2")},
    ),
    "add filters": ({**EVERYTHING, "filters": FILTERS[:1]}, EVERYTHING),
    "remove filters": (EVERYTHING, {**EVERYTHING, "filters": []}),
    "first filters": (PLAIN, {**PLAIN, "filters": FILTERS}),
    "services and filters": (
        {**PLAIN, "filters": [FILTERS[0]]},
        {**EVERYTHING, "filters": [FILTERS[1], {"prefix": "203.0.113.0/28", "action": "drop", "protocol": "tcp"}]},
    ),
    "a VIP and its filter": (
        EVERYTHING,
        {**with_service("web", address="192.0.2.20"), "filters": [{"prefix": "203.0.113.0/24", "action": "drop"}]},
    ),
    "a VIP without its filter": (
        {**EVERYTHING, "filters": [{"prefix": "203.0.113.0/24", "action": "drop"}]},
        {**with_service("web", address="192.0.2.20"), "filters": []},
    ),
    "limit": (
        EVERYTHING,
        {**EVERYTHING, "filters": [{"prefix": "203.0.113.64/26", "action": "limit", "rate": 5}, FILTERS[1]]},
    ),
    "add an interface": (PLAIN, {**PLAIN, "interfaces": ["eth0", "eth1", "eth2"]}),
    "remove an interface": (EVERYTHING, {**EVERYTHING, "interfaces": ["eth1"]}),
    "replace an interface": (EVERYTHING, {**without("web"), "interfaces": ["eth2", "eth1"]}),
    "detach": (PLAIN, {**PLAIN, "attached": False}),
    "attach": ({**PLAIN, "attached": False}, PLAIN),
    "another hook": (without("out"), {**without("out", "web"), "mode": "tc"}),
    "larger maps": (EVERYTHING, {**without("six"), "sizes": {**SIZES, "max_backends": 60, "max_endpoints": 100}}),
    "smaller maps": (
        EVERYTHING,
        {**PLAIN, "filters": FILTERS, "sizes": {**SIZES, "max_services": 3, "max_backends": 9}},
    ),
    "more new flows": (EVERYTHING, {**EVERYTHING, "sizes": {**SIZES, "max_new_flows": 64}}),
    "larger endpoint tables": (EVERYTHING, {**EVERYTHING, "sizes": {**SIZES, "max_endpoints": 100}}),
    "more filters": (EVERYTHING, {**EVERYTHING, "sizes": {**SIZES, "max_filters": 40}}),
}


# What is remembered in tables of another size is lost.
FORGETTING = {
    "larger flow tables": (EVERYTHING, {**EVERYTHING, "sizes": {**SIZES, "max_flows": 64}}),
}


# --- one host


class Host:
    """A kernel in memory with a balancer on it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.balancer = Balancer("main", kernel.paths)
        self.steps: list[str] = []

    def run(self, action: Callable[[], Any], watch: Callable[[str], None] = lambda _step: None) -> None:
        steps = self.kernel.steps
        steps.names, steps.watch = [], watch
        try:
            action()
            watch("")
        finally:
            self.steps, steps.watch = steps.names, lambda _step: None

    def apply(self, document: Document, watch: Callable[[str], None] = lambda _step: None) -> None:
        self.run(lambda: self.balancer.apply(document, False), watch)

    def restart(self, snapshot: Snapshot) -> None:
        """Have the kernel and the disk as they were; processes know nothing of what came after."""
        self.kernel.restore(snapshot)
        self.balancer = Balancer("main", self.kernel.paths)

    @property
    def state(self) -> state.State:
        found = state.load(self.balancer.state_file)
        assert found is not None
        return found


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterable[Host]:
    # A file system in memory, where there is one: a busy disk takes milliseconds to forget a file.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as root, monkeypatch.context() as patch:
        with installed(Kernel(Path(root)), patch) as kernel:
            yield Host(kernel)


# --- what packets meet

CLIENTS = ("203.0.113.7", "203.0.113.9", "203.0.113.70", "203.0.113.100", "198.51.100.77", "203.0.113.200")
CLIENTS6 = ("2001:db8:f::1", "2001:db8:e::2", "2001:db8:e::3", "2001:db8:d::4")
REMEMBERED = ("10.0.4.1", "10.0.4.2", "10.0.4.3", "10.0.5.1", "10.0.5.2")


def packets_of(documents: list[Document]) -> list[Packet]:
    """For all services, from all backends, and others."""
    found = [Packet("203.0.113.9", "192.0.2.99", "tcp", 5, 80), Packet("203.0.113.70", "192.0.2.99", "udp", 5, 53)]
    for document in documents:
        for service in document.config.services.values():
            clients = CLIENTS if service.family == 4 else CLIENTS6
            ports = (service.first_port, service.last_port, service.last_port + 1, service.first_port - 1)
            for number, client in enumerate(clients):
                if service.flow_table and service.protocol == "tcp":
                    connection = Packet(client, service.address, "tcp", port=service.first_port, has_begun=True)
                    found += [connection._replace(source_port=port) for port in range(9000, 9012)]
                found.append(Packet(client, service.address, "icmp"))
                for port in ports:
                    if 0 < port:
                        found.append(Packet(client, service.address, service.protocol, 1000 + 77 * number, port))
            found.append(Packet(clients[1], service.address, service.protocol, 5, service.last_port or 9, ttl=1))
        for backend in document.config.backends.values():
            client = CLIENTS[1] if document.config.services[backend.service].family == 4 else CLIENTS6[1]
            for port in {backend.port or 80, 53, 80, 1001, 1004} if backend.address else ():
                protocol = document.config.services[backend.service].protocol
                found.append(Packet(backend.address or "", client, protocol, port, 5000))
    return list(dict.fromkeys(found))


def remembered_packets(host: Host) -> list[Packet]:
    """Of flows that the data plane remembers: in the flow table, and as sessions, which are begun here."""
    found: list[Packet] = []
    current = host.state
    program = host.kernel.on_hook(current.document.interfaces[0])
    if program is None:
        return found
    entries, sessions = program.maps["backends"].values, program.maps["sessions"].values
    flows = program.maps["flows"].id
    for place, (key, number) in enumerate(current.allocation.backends.items()):
        service = current.config.services[key.service]
        if service.flow_table:
            found += [
                Packet(client, service.address, "tcp", 7000 + place, service.first_port, 64, key, number, flows)
                for client in CLIENTS[:2]
            ]
        if service.pool:
            index = current.allocation.pools[service.pool].first_session + place % service.pool.ports
            identity = BACKEND_ENTRY.unpack(entries[number])[-1]
            vip_port, client, client_port = SESSION_OF_REPLIES
            sessions[index] = SESSION.pack(client, client_port, vip_port, number, 0, 1, 1, 6, 0, 0, 0, identity)
            port = service.pool.first_port + place % service.pool.ports
            found.append(Packet(key.address, service.source or "", "tcp", 80, port, known=key))
    return found


def kept_entries(before: Document, after: Document) -> frozenset[BackendKey]:
    """The backends of which nothing changes that flows are remembered with."""

    def entry(document: Document, key: BackendKey) -> Any:
        service, backend = document.config.services[key.service], document.config.backends[key]
        where = (service.address, service.protocol, service.port, service.forwarding)
        return (*where, service.source, service.source_ports, backend.mac, backend.interface, backend.local)

    both = before.config.backends.keys() & after.config.backends.keys()
    return frozenset(key for key in both if entry(before, key) == entry(after, key))


class Watch:
    """Looks at every step whether each packet has the outcome of one of the documents, on every interface."""

    def __init__(self, host: Host, packets: list[Packet], expected: list[list[Outcome]], interfaces: set[str]) -> None:
        self.host, self.packets, self.expected, self.interfaces = host, packets, expected, interfaces
        self.allowed = [set(outcomes) for outcomes in zip(*expected)]
        self.seen: set[Any] = set()
        # Whether what the run leaves is kept, should it be killed before a step.
        self.keeps = False
        self.snapshots: list[Snapshot] = []

    def __call__(self, step: str) -> None:
        if self.keeps and not step.startswith(WITHIN):
            self.snapshots.append(self.host.kernel.snapshot(step))
        self.look(step)

    def look(self, step: str = "") -> None:
        for interface in INTERFACES:
            program = self.host.kernel.on_hook(interface)
            if program is None:
                assert interface not in self.interfaces, f"before {step!r}: {interface} has no program"
                continue
            signature = signature_of(program)
            if signature in self.seen:
                continue
            live = LivePackets(program)
            for packet, allowed in zip(self.packets, self.allowed):
                outcome = live.outcome(packet)
                assert outcome in allowed, f"on {interface} before {step!r}: {packet} -> {outcome}, not of {allowed}"
            self.seen.add(signature)


LOOKUPS = tuple(f"lookup_{room}" for room in ROOMS)
SEEN_BY_PACKETS = (
    *("endpoints", "endpoints6", "filters", *LOOKUPS, "backends", "pools", "links", "sessions"),
    *("previous", "source_ranges"),
)


def signature_of(program: Program) -> Any:
    """All that outcomes depend on."""

    def content(value: Any) -> Any:
        return value.content() if isinstance(value, Map) else value

    maps = ((name, program.maps[name].values) for name in SEEN_BY_PACKETS)
    return (
        program.features,
        program.maps["flows"].id,
        tuple((name, tuple(sorted((key, content(value)) for key, value in values.items()))) for name, values in maps),
    )


# --- what there is when a run has ended


def ending(host: Host) -> dict[str, Any]:
    """Without ids and times."""
    kernel, current = host.kernel, host.state
    known = current.tables
    ids = {"rings": dict.fromkeys(known.rings, 0), "previous": dict.fromkeys(known.previous, 0)}
    tables = replace(known, endpoints=0, endpoints6=0, filters=0, **ids)
    previous = {name: replace(entry, until=0.0) for name, entry in current.previous.items()}
    hooks = {name: replace(hook, attached_at=0.0) for name, hook in current.program.hooks.items()}
    program = replace(current.program, hooks=hooks)
    saved = replace(current, program=program, tables=tables, applied_at=0.0, applied_by="", counting_since=0.0)
    saved = replace(saved, previous=previous)
    entry = json.loads((host.balancer.places.history / f"{current.generation}.json").read_text())
    assert parse_document(entry["document"]) == current.document
    on_hooks, pins = {}, {}
    live = {}
    for name in (kernel.root / "pins/main/maps").iterdir():
        live[name.name] = kernel.objects[name.stat().st_ino]
    for name, content in kernel.snapshot().files.items():
        # A program that was compiled and is not used any more goes with the next change.
        used = not name.endswith(".program") or current.program.digest in name
        if used and not name.startswith("state/main/history/"):
            pins[name] = type(content).__name__
    for interface in INTERFACES:
        found = kernel.on_hook(interface)
        if found:
            owned = {name: entry.id for name, entry in found.maps.items()} == {
                name: entry.id for name, entry in live.items()
            }
            on_hooks[interface] = (kernel.xdp.get(interface, ("tc",))[0], found.features, owned)
    places = sorted(current.allocation.backends.values())
    contents = {
        name: {key: value.content() for key, value in live[name].values.items()}
        for name in ("endpoints", "endpoints6", "filters", *LOOKUPS)
    }
    contents["previous"] = {key: without_time(value.content()) for key, value in live["previous"].values.items()}
    contents["backends"] = {place: live["backends"].values.get(place) for place in places}
    contents["links"] = dict(live["links"].values)
    contents["pools"] = {place.id: live["pools"].values.get(place.id) for place in current.allocation.pools.values()}
    return {"state": saved, "files": pins, "hooks": on_hooks, **contents}


def without_time(previous: bytes) -> bytes:
    """A previous lookup table without the tick until which it counts."""
    return previous[:8] + previous[12:]


def flat(found: Any, path: str = "") -> dict[str, Any]:
    """A comparison names what differs."""
    if is_dataclass(found):
        found = vars(found)
    if not isinstance(found, dict) or not found:
        return {path: found}
    return {name: value for key, entry in found.items() for name, value in flat(entry, f"{path}.{key}").items()}


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    one, other = flat(found), flat(wanted)
    return [
        f"{name}: {str(one.get(name, 'none'))[:200]}, not {str(other.get(name, 'none'))[:200]}"
        for name in {**one, **other}
        if one.get(name, "none") != other.get(name, "none")
    ]


# --- the changes


class Case:
    """A change of a balancer that has the document `before`, from where it can begin again and again."""

    def __init__(self, host: Host, before: dict | None, after: dict, remembers: bool = True) -> None:
        self.host = host
        self.old, self.new = parse(before) if before else Document(), parse(after)
        memory: list[Packet] = []
        if before:
            host.apply(self.old)
            memory = [packet for packet in remembered_packets(host) if remembers or not packet.memory]
        self.packets = packets_of([self.old, self.new]) + memory
        self.documents = [DeclaredPackets(self.old), self.declared(self.new)]
        settings = self.old.settings, self.new.settings
        attached = all(entry.attached for entry in settings)
        self.interfaces = set(self.old.interfaces) & set(self.new.interfaces) if attached else set()
        self.start = host.kernel.snapshot("begin")
        if before:
            self.watch(self.documents[:1]).look()

    def declared(self, document: Document, out: frozenset[BackendKey] = frozenset()) -> DeclaredPackets:
        before = DeclaredPackets(self.old) if self.old.config.services else None
        return DeclaredPackets(document, out, kept_entries(self.old, document), before)

    def watch(self, documents: list[DeclaredPackets]) -> Watch:
        expected = [[document.outcome(packet) for packet in self.packets] for document in documents]
        return Watch(self.host, self.packets, expected, self.interfaces)

    def killed(self) -> tuple[dict[str, Any], list[Snapshot]]:
        """What a run ends with, and what it leaves when it is killed on the way."""
        watch = self.watch(self.documents)
        watch.keeps = True
        self.host.apply(self.new, watch)
        self.watch(self.documents[1:]).look()
        return ending(self.host), moments(watch.snapshots)


def parse(document: dict) -> Document:
    return parse_document(copy.deepcopy(document))


def moments(snapshots: list[Snapshot]) -> list[Snapshot]:
    """The first and the last before steps of the same kind: maps are pinned one after the other, all alike."""

    def kind(snapshot: Snapshot) -> str:
        return snapshot.step.rpartition("/")[0] or snapshot.step

    chosen = []
    for _kind, group in itertools.groupby(snapshots, kind):
        alike = list(group)
        chosen += [alike[0], *alike[1:][-1:]]
    return chosen


@pytest.mark.parametrize("name", [*CHANGES, *FORGETTING])
def test_a_run_that_is_killed_and_the_next(host, name):
    before, after = CHANGES[name] if name in CHANGES else FORGETTING[name]
    case = Case(host, before, after, remembers=name not in FORGETTING)
    wanted, snapshots = case.killed()
    watch, final = case.watch(case.documents), case.watch(case.documents[1:])
    for snapshot in snapshots:
        host.restart(snapshot)
        host.apply(case.new, watch)
        final.look()
        assert compare(ending(host), wanted) == [], f"killed before {snapshot.step!r}"


OTHERS = {
    "back from another VIP": ("another VIP", EVERYTHING),
    "back from another mode": ("dnat to full_nat", EVERYTHING),
    "back from other interfaces": ("replace an interface", EVERYTHING),
    "back from more features": ("add services", {**PLAIN, "filters": FILTERS}),
    "back from larger maps": ("larger maps", EVERYTHING),
    "renamed once more": ("rename", with_service("web", name="shop")),
    "removed after all": ("replace backends", without("flows", "nat")),
    "features after all": ("remove services", without("web")),
    "other filters after a VIP and its filter": (
        "a VIP and its filter",
        {**with_service("web", address="192.0.2.30"), "filters": [FILTERS[1]]},
    ),
    "another filter after a VIP without its filter": (
        "a VIP without its filter",
        {**with_service("web", address="192.0.2.30"), "filters": [{"prefix": "198.51.100.0/24", "action": "drop"}]},
    ),
    "back from services and filters": ("services and filters", {**PLAIN, "filters": [FILTERS[0]]}),
    "larger maps after all": ("another VIP", {**EVERYTHING, "sizes": {**SIZES, "max_backends": 50}}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_document_after_a_run_that_was_killed(host, name):
    change, third = OTHERS[name]
    case = Case(host, *CHANGES[change])
    _wanted, snapshots = case.killed()
    other = parse(third)
    both = kept_entries(case.old, case.new) & kept_entries(case.old, other)
    kept = (both, frozenset(), kept_entries(case.old, other))
    old = case.documents[0]
    documents = [*case.documents, *(DeclaredPackets(other, kept=keys, before=old) for keys in kept)]
    watch, final = case.watch(documents), case.watch(documents[2:])
    for snapshot in snapshots:
        host.restart(snapshot)
        host.apply(other, watch)
        final.look()
        found = ending(host)
        assert found["state"].document == other, f"killed before {snapshot.step!r}"
        assert set(found["hooks"]) == set(other.interfaces) and all(entry[2] for entry in found["hooks"].values())
        assert not [name for name in found["files"] if "_new/" in name or name.endswith("_new") and "maps" in name]
        allocation = host.state.allocation
        assert not allocation.retiring_backends and not allocation.retiring_rings


@pytest.mark.parametrize("name", ["rename", "another VIP", "replace backends", "larger maps", "replace an interface"])
def test_a_run_that_is_killed_while_it_completes_another(host, name):
    case = Case(host, *CHANGES[name])
    wanted, snapshots = case.killed()
    for snapshot in snapshots[2::5]:
        host.restart(snapshot)
        watch = case.watch(case.documents)
        watch.keeps = True
        host.apply(case.new, watch)
        for second in moments(watch.snapshots)[2::6]:
            host.restart(second)
            host.apply(case.new, case.watch(case.documents))
            assert compare(ending(host), wanted) == [], f"killed before {snapshot.step!r} and before {second.step!r}"


@pytest.mark.parametrize("name", ["first", "larger maps", "replace an interface"])
def test_removal_after_a_run_that_was_killed(host, name):
    case = Case(host, *CHANGES[name])
    _wanted, snapshots = case.killed()
    for snapshot in snapshots:
        host.restart(snapshot)
        host.run(lambda: host.balancer.remove(False))
        assert not host.kernel.xdp and not host.kernel.tc, f"killed before {snapshot.step!r}"
        assert not host.balancer.places.pins.exists() and not host.balancer.places.state_directory.exists()


BOTH_CHANGE = ["services and filters", "a VIP and its filter", "a VIP without its filter"]
FAILING = ["first", "add services", "rename", "first filters", "limit", "larger maps", "replace an interface"]
FAILING += BOTH_CHANGE


@pytest.mark.parametrize("stays_full", [False, True])
@pytest.mark.parametrize("name", FAILING)
def test_a_disk_that_is_full(host, name, stays_full):
    """State and kernel agree on the old document or the new one, and the next run ends as any other."""
    case = Case(host, *CHANGES[name])
    before = host.kernel.written_files
    wanted, _snapshots = case.killed()
    for number in range(host.kernel.written_files - before):
        host.restart(case.start)
        host.kernel.written_files, host.kernel.full_at, host.kernel.stays_full = 0, number, stays_full
        watch = case.watch(case.documents)
        try:
            host.apply(case.new, watch)
        except (OSError, EngineError) as error:
            assert "No space left on device" in str(error) and f"{host.kernel.root}/state/main/" in str(error)
        host.kernel.full_at = None
        found = state.load(host.balancer.state_file)
        document = found.document if found else Document()
        assert document in (case.old, case.new)
        case.watch([case.documents[document == case.new]]).look(f"file {number}")
        host.apply(case.new, watch)
        # A compiled program that could not be kept is compiled once more at the next boot.
        different = [line for line in compare(ending(host), wanted) if "/compiled/" not in line]
        assert different == [], f"no space for file {number}"


@pytest.mark.parametrize("name", FAILING)
def test_a_run_that_is_interrupted_cleans_up(host, name):
    case = Case(host, *CHANGES[name])
    wanted, _snapshots = case.killed()
    for number in range(1, len(host.steps), 7):
        host.restart(case.start)
        watch = case.watch(case.documents)

        def interrupt(step: str, number: int = number, watch: Watch = watch) -> None:
            watch(step)
            if len(host.kernel.steps.names) == number and step:
                host.kernel.steps.names.append(step)
                raise Interrupted(step)

        with contextlib.suppress(Interrupted):
            host.apply(case.new, interrupt)
        host.apply(case.new, watch)
        assert compare(ending(host), wanted) == [], f"interrupted at step {number}"


# --- health checks


def seen_down(case: Case, *addresses: str) -> observed.Observed:
    return observed.Observed({key: key.address not in addresses for key in case.old.config.backends})


DOWN = ("10.0.0.1", "10.0.1.2", "10.0.4.2", "fd00::1")
UP_AGAIN = ("10.0.0.1", "10.0.0.3", "10.0.4.1")


@pytest.mark.parametrize("first", [(), DOWN], ids=["all were up", "others were down"])
@pytest.mark.parametrize("next_run", ["observe", "the same document", "another document"])
def test_health_checks_that_are_killed(host, first, next_run):
    case = Case(host, EVERYTHING, without("dns"))
    before, after = seen_down(case, *first), seen_down(case, *(UP_AGAIN if first else DOWN))
    host.run(lambda: host.balancer.observe(before))
    documents = [
        case.declared(document, seen.out(document.config))
        for document in (case.old, case.new)
        for seen in (before, after)
    ]
    case.packets = [packet for packet in case.packets if not packet.known]
    watch = case.watch(documents[:2])
    watch.keeps = True
    host.run(lambda: host.balancer.observe(after), watch)
    case.watch(documents[1:2]).look()
    actions = {
        "observe": (lambda: host.balancer.observe(after), documents[:2], documents[1]),
        "the same document": (lambda: host.balancer.apply(case.old, False), documents[:2], documents[1]),
        "another document": (lambda: host.balancer.apply(case.new, False), documents, documents[3]),
    }
    action, allowed, final = actions[next_run]
    for snapshot in watch.snapshots:
        host.restart(snapshot)
        if "health.json" in snapshot.step:
            continue
        host.run(action, case.watch(allowed))
        if next_run == "the same document":
            # Which is no change: where health checks had not begun to write, they are the ones to do it.
            host.run(lambda: host.balancer.observe(after), case.watch(allowed))
        case.watch([final]).look(f"after it was killed before {snapshot.step!r}")
        assert not host.state.tables.following
