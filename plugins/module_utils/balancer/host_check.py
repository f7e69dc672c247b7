# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host itself cannot do for a document: refused before anything is touched."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..config.addresses import Address
from ..config.model import Backend, Service
from ..errors import EngineError
from ..kernel import bpf, link, neighbours, sockets
from ..kernel.device import Link, links
from ..kernel.xdp_features import xdp_features
from ..nic.preflight import LATER_OR_NEVER
from ..tables import memory
from ..tables.layout import Sizes
from . import map_set, plan, state
from .document import Document, addresses_of_kernel
from .map_specs import memory_of
from .places import Places

MEMINFO = Path("/proc/meminfo")
# Options of something else than the balancer.
_OPTION_WORDS = {"table_size": "table_size of services"}
# Devices on top of another one, which IFLA_LINK names. A veth's is its other end.
STACKED_KINDS = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
# bond_xdp_check()
XDP_BOND_MODES = ("balance-rr", "active-backup", "balance-xor", "802.3ad")


def refuse_shared_interfaces(places: Places, interfaces: Collection[str]) -> None:
    """Raises EngineError for an interface that is in two balancers, or below or on top of one that is in one."""
    owners = {interface: places.name for interface in interfaces}
    for other in state.balancers(places.paths):
        if other == places.name:
            continue
        current = state.load(places.paths.state_file(other))
        for interface in current.document.interfaces if current else ():
            if interface in owners:
                raise EngineError(f"interface {interface} is in balancer {other} already; an interface is in one only")
            owners[interface] = other
    found = {entry.name: entry for entry in links()}
    by_index = {entry.index: entry for entry in found.values()}
    for interface in interfaces:
        for relation, name in _below(found[interface], by_index):
            if name in owners:
                raise EngineError(_shared(interface, owners[interface], relation, name, owners[name]))
    for interface in owners.keys() - set(interfaces):
        for relation, name in _below(found[interface], by_index) if interface in found else ():
            if name in interfaces:
                raise EngineError(_shared(interface, owners[interface], relation, name, owners[name]))


def _below(entry: Link, by_index: dict[int, Link]) -> list[tuple[str, str]]:
    """The devices that get the frames of this one, too: how they are related, and their names."""
    related = []
    if entry.master in by_index:
        related.append((f"is a member of {by_index[entry.master].kind or 'device'}", by_index[entry.master].name))
    if entry.kind in STACKED_KINDS and entry.lower in by_index:
        related.append((f"is a {entry.kind} of", by_index[entry.lower].name))
    return related


def _shared(interface: str, owner: str, relation: str, other: str, other_owner: str) -> str:
    return (
        f"interface {interface} of balancer {owner} {relation} {other}, which is in balancer {other_owner}: frames "
        "would be balanced twice; name one of the two"
    )


def needed_memory(
    planned: plan.Plan, document: Document, former: Sizes | None, new_maps: bool, new_flow_tables: bool, filters: bool
) -> memory.Needs:
    """The kernel's memory for what is not there yet: old tables stay until packets have left them.

    `former`: sizes of maps of which new ones take over what they share, None without any. `filters`: whether there
    is a new filter table.
    """
    sizes, services, cpus = document.sizes, planned.desired.services, bpf.possible_cpus()
    needs = memory.lookup_tables(services[name] for name in (*planned.new_rings, *planned.swapped_rings))
    if new_maps:
        needs += memory_of(map_set.unshared(sizes, former), cpus)
    if new_flow_tables:
        needs += memory.flow_tables(sizes, cpus)
    if planned.endpoints is not None:
        needs += memory.endpoint_tables(sizes, any(service.family == 6 for service in services.values()))
    if filters:
        needs += memory.filter_table(sizes)
    return needs


def available_memory() -> int | None:
    """What the kernel can give away without swapping, in bytes; None if it does not say."""
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        name, _colon, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def refuse_lack_of_memory(needs: memory.Needs) -> None:
    """Raises EngineError for more than there is. Without this, the kernel might end processes to make room."""
    available, total = available_memory(), sum(needs.values())
    if available is None or total <= available:
        return
    option, size = max(((name, size) for name, size in needs.items() if name), key=lambda item: item[1])
    raise EngineError(
        f"new maps and tables need {_mebibytes(total)} MiB of the kernel's memory, and {available >> 20} MiB "
        f"are available (MemAvailable of {MEMINFO}); lower {_OPTION_WORDS.get(option, option)}, which takes "
        f"{_mebibytes(size)} MiB of them, or give the host more memory"
    )


def _mebibytes(size: int) -> int:
    """Rounded up."""
    return -(-size >> 20)


def refuse_lost_next_hops(created: list[Backend], document: Document, hooks: dict[str, str]) -> None:
    """Raises EngineError for an interface of a backend that is not there, or that takes no packets.

    `hooks`: by interface of the balancer. A frame that native XDP sends to a device without ndo_xdp_xmit, such as a
    bridge or a VLAN, is lost. The kernel's routes lead over a bond, never over its members: what arrives on a member
    leaves by the bond.
    """
    subjects = {
        link.interface_index(backend.interface): f"{backend.label} is reached"
        for backend in created
        if backend.interface
    }
    native = [interface for interface, hook in hooks.items() if hook == "native"]
    if not native:
        return
    by_address = {backend.address: backend for backend in created if not backend.mac}
    for neighbour, address in neighbours.ways(addresses_of_kernel(created)).neighbours.items():
        subjects.setdefault(neighbour.interface, f"{by_address[address].label} is reached")
    found = {entry.index: entry for entry in links()}
    for entry in found.values() if _follows_routes(document) else ():
        if entry.name in native and entry.master in found and found[entry.master].kind == "bond":
            subjects.setdefault(entry.master, f"what the program on {entry.name} forwards is sent")
    for index, subject in sorted(subjects.items()):
        from_others = [interface for interface in native if link.interface_index(interface) != index]
        why = _takes_no_packets(found[index], found.values(), native) if from_others and index in found else ""
        if why:
            name = found[index].name
            instead = name if found[index].kind == "bond" else f"the interface that {name} is made of"
            raise EngineError(
                f"{subject} over {name}, which takes no packets from native XDP on {from_others[0]} ({why}); attach "
                f"the program with mode: tc or mode: generic, or to {instead}"
            )


def _follows_routes(document: Document) -> bool:
    """Whether there are packets that go where the kernel's routes lead: to backends, or back to clients."""
    replies = any(service.forwarding in ("dnat", "full_nat") for service in document.config.services.values())
    return replies or bool(addresses_of_kernel(document.config.backends.values()))


def _takes_no_packets(entry: Link, found: Collection[Link], native: Collection[str]) -> str:
    """Why a device does not take what native XDP sends to it; empty if it does, or if the kernel does not say."""
    features = xdp_features(entry.index)
    if features is not None and "ndo_xmit" in features:
        return ""
    if entry.kind == "bond" and entry.name not in native:
        return _bond_takes_no_packets(entry, found, native, features is not None)
    # Most drivers take some once they have a program (xdp_features_set_redirect_target()), veth if its other end has.
    if features is None or (entry.name in native and entry.kind != "veth"):
        return ""
    return "its driver has no ndo_xdp_xmit, or not now"


def _bond_takes_no_packets(bond: Link, found: Collection[Link], native: Collection[str], told: bool) -> str:
    """A bond sends by whichever member its mode chooses, before Linux 6.3 also by one whose driver cannot do it."""
    if bond.bond_mode not in XDP_BOND_MODES:
        return f"its mode is {bond.bond_mode}"
    for member in found:
        if member.master != bond.index:
            continue
        known = "" if told else LATER_OR_NEVER.get(link.driver(member.name), "")
        if known:
            return f"its member {member.name}: {known}"
        if member.name not in native and "ndo_xmit" not in (xdp_features(member.index) or ()):
            return f"its member {member.name} has no native program of this balancer"
    return ""


def refuse_wrong_arms(backends: list[Backend], interfaces: Collection[str]) -> None:
    """Raises EngineError for a backend with an Ethernet address of its own that only one of several interfaces reaches.

    Its packets leave by the interface that they arrive on.
    """
    given = {backend.address: backend for backend in backends if backend.mac and backend.address}
    if len(interfaces) < 2 or not given:
        return
    indexes = {link.interface_index(interface): interface for interface in interfaces}
    for neighbour, address in neighbours.ways(sorted(given)).neighbours.items():
        if neighbour.interface in indexes:
            backend = given[address]
            raise EngineError(
                f"{backend.label}: with mac {backend.mac} its packets leave by the "
                f"interface that they arrive on, but the kernel reaches it over {indexes[neighbour.interface]} only; "
                "leave mac out"
            )


def warnings(document: Document) -> list[str]:
    """What an operator should know: VIPs that are addresses of this host or should be, services without backends."""
    found = []
    members = document.config.backends_of()
    local = neighbours.local_addresses()
    for service in document.config.services.values():
        if not members[service.name]:
            found.append(f"service {service.name} has no backends: its packets are dropped as no_backend")
        if any(backend.local for backend in members[service.name]):
            found += _missing_addresses(service, members[service.name], local)
        elif service.address in local:
            last = service.last_port if service.first_port else 65535
            shadowed = sockets.listeners(Address(service.address).packed, service.protocol, service.first_port, last)
            words = f"; {', '.join(shadowed)} of this host will get no packets for it" if shadowed else ""
            found.append(f"service {service.name}: the VIP {service.address} is an address of this host{words}")
    return found


def _missing_addresses(service: Service, members: list[Backend], local: Collection[str]) -> list[str]:
    """Why the kernel would not take the packets of backends that are declared to be this host."""
    found = []
    if service.address not in local:
        bits = 32 if service.family == 4 else 128
        found.append(
            f"service {service.name}: the VIP {service.address} is no address of this host, so the kernel does not "
            f"take packets for its local backend; ip address add {service.address}/{bits} dev lo"
        )
    for backend in members:
        if backend.local and backend.address not in local:
            found.append(f"{backend.label} is declared local, but its address is none of this host's")
    return found
