# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is live and what is wanted to what must be written. Pure functions, no I/O.

Ids are places in maps. A backend keeps its id only while its entry stays the same to the byte, and a service keeps
its ring only while its VIP, protocol and ports stay: whatever a packet may be looking at is never rewritten.
Counters stay with the service's name and the backend's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.filters import FilterKey, Filters
from ..config.model import Backend, BackendKey, Config, Pool, Service, ring_members
from ..errors import EngineError
from ..tables.layout import ENDPOINT_BACKEND, ENDPOINT_SERVICE, ENDPOINT_SOURCE, MAX_POOLS, Sizes
from ..tables.tables import BackendPlace, Endpoints, PoolPlace, endpoints
from .free_places import FreePlaces, assign


@dataclass(frozen=True)
class Allocation:
    """Which places in the maps belong to whom."""

    rings: dict[str, int] = field(default_factory=dict)
    service_counters: dict[str, int] = field(default_factory=dict)
    backends: dict[BackendKey, int] = field(default_factory=dict)
    backend_counters: dict[BackendKey, int] = field(default_factory=dict)
    pools: dict[Pool, PoolPlace] = field(default_factory=dict)
    # Left over from a run that was killed before it finished: still visible to packets, so not to be given away.
    retiring_rings: frozenset[int] = frozenset()
    retiring_backends: frozenset[int] = frozenset()
    # Entries of backends that are visible count there.
    retiring_service_counters: frozenset[int] = frozenset()
    retiring_backend_counters: frozenset[int] = frozenset()
    # Where the search for a backend's place begins. Flow tables remember places, so one that becomes free is given to
    # another backend last of all.
    next_backend: int = 1


@dataclass(frozen=True)
class Drift:
    """What in the maps is not what the state file says, because of a killed run or of somebody else."""

    endpoints: bool = False
    rings: frozenset[int] = frozenset()
    backends: bool = False
    previous: frozenset[int] = frozenset()  # services' indexes
    source_ranges: bool = False

    def __bool__(self) -> bool:
        return self.endpoints or bool(self.rings or self.previous) or self.backends or self.source_ranges


@dataclass(frozen=True)
class Changes:
    """Names of services or keys of backends."""

    created: list[Any]
    modified: list[Any]
    removed: list[Any]

    def __bool__(self) -> bool:
        return bool(self.created or self.modified or self.removed)


@dataclass(frozen=True)
class Plan:
    """Everything to write, in the order of the fields."""

    desired: Config
    allocation: Allocation
    services: Changes
    backends: Changes
    drift: Drift
    zero_service_counters: list[int]
    zero_backend_counters: list[int]
    written_backends: list[BackendKey]
    written_pools: list[Pool]
    new_rings: list[str]  # services whose ring nobody looks at yet
    # While rings are swapped, packets of the old and of the new configuration are both known.
    interim_endpoints: Endpoints | None
    swapped_rings: list[str]
    endpoints: Endpoints | None  # None: the table stays
    removed_rings: frozenset[int]
    # Backends that health checks took out: flows remembered with them are chosen anew.
    out: frozenset[BackendKey]
    suspended_backends: list[BackendKey]
    # Replies of backends that were removed may still be on their way.
    replies_linger: bool

    def backend_place(self, key: BackendKey, interface: int) -> BackendPlace:
        """What the backend's entry says of other maps; `interface` is the index of that of a redirect."""
        pool = self.desired.services[key.service].pool
        return BackendPlace(
            self.allocation.rings[key.service],
            self.allocation.service_counters[key.service],
            self.allocation.backend_counters[key],
            self.allocation.pools[pool] if pool else None,
            interface,
        )

    @property
    def changed(self) -> bool:
        return bool(self.services or self.backends or self.drift)


def compare(current: Mapping[Any, Any], desired: Mapping[Any, Any]) -> Changes:
    """What to create, modify and remove, each in the order of its own list."""
    return Changes(
        created=[key for key in desired if key not in current],
        modified=[key for key, value in desired.items() if key in current and current[key] != value],
        removed=[key for key in current if key not in desired],
    )


def settled(found: Allocation) -> Allocation:
    """Once everything is written, nothing retires any more."""
    none: frozenset[int] = frozenset()
    return replace(
        found,
        retiring_rings=none,
        retiring_backends=none,
        retiring_service_counters=none,
        retiring_backend_counters=none,
    )


def _same_ring(old: Service | None, new: Service) -> bool:
    return old is not None and (old.address, old.protocol, old.ports) == (new.address, new.protocol, new.ports)


def same_entries(old: Service | None, new: Service) -> bool:
    """Whether what its backends' entries say of the service stays."""
    return (
        old is not None
        and _same_ring(old, new)
        and (old.forwarding, old.source, old.source_ports, old.tunnel_port)
        == (new.forwarding, new.source, new.source_ports, new.tunnel_port)
    )


def _rules(service: Service) -> tuple[Any, ...]:
    """What the lookup table's header, size and order of preference come from."""
    header = (service.scheduler, service.forwarding, service.flow_table, service.idle_timeout)
    size = service.table_size
    affinity = (service.affinity_prefix, service.affinity_group, service.server_id_length)
    return (*header, size, *affinity, bool(service.source_ranges))


def _place_pools(desired: list[Pool], current: dict[Pool, PoolPlace], sizes: Sizes) -> dict[Pool, PoolPlace]:
    """A pool keeps its sessions; a new one gets the first gap among those that packets may still look at."""
    placed = {pool: current[pool] for pool in desired if pool in current}
    taken = {**current, **placed}
    for pool in desired:
        if pool in placed:
            continue
        ids = {place.id for place in taken.values()}
        number = next((number for number in range(MAX_POOLS) if number not in ids), None)
        if number is None:
            raise EngineError(f"{len(desired)} sources of full_nat are more than {MAX_POOLS}")
        start = 0
        for other, place in sorted(taken.items(), key=lambda item: item[1].first_session):
            if start + pool.ports <= place.first_session:
                break
            start = max(start, place.first_session + other.ports)
        if start + pool.ports > sizes.max_sessions:
            raise EngineError(
                f"source {pool.address} with {pool.ports} source_ports does not fit: max_sessions of the balancer is "
                f"{sizes.max_sessions}; raise max_sessions or take fewer source_ports"
            )
        placed[pool] = taken[pool] = PoolPlace(number, start)
    return placed


def _shares(
    members: list[Backend], ids: dict[BackendKey, int], out: frozenset[BackendKey]
) -> list[tuple[BackendKey, int, int]]:
    """What a ring is made of, whatever the order of the inventory."""
    return sorted((backend.key, ids[backend.key], backend.share) for backend in ring_members(members, out))


def make(
    current: Config,
    allocation: Allocation,
    desired: Config,
    sizes: Sizes,
    drift: Drift = Drift(),
    was_out: frozenset[BackendKey] = frozenset(),
    out: frozenset[BackendKey] = frozenset(),
    live: Endpoints | None = None,
) -> Plan:
    """The plan. Raises EngineError if the maps are too small.

    `out`: backends that health checks keep out of the rings, `was_out`: those that the live rings leave out.
    `live`: what the endpoint tables hold, where that may be something else than what `current` says.
    """
    _check_sizes(desired, sizes)
    rings = assign(
        desired.services,
        lambda name: (
            allocation.rings.get(name) if _same_ring(current.services.get(name), desired.services[name]) else None
        ),
        FreePlaces(
            f"{len(desired.services)} services",
            "max_services",
            0,
            sizes.max_services,
            [*allocation.rings.values(), *allocation.retiring_rings],
        ),
    )
    old_service_counters = allocation.retiring_service_counters.union(allocation.service_counters.values())
    old_backend_counters = allocation.retiring_backend_counters.union(allocation.backend_counters.values())
    service_counters = assign(
        desired.services,
        allocation.service_counters.get,
        FreePlaces("services", "max_services", 0, sizes.max_services, old_service_counters),
    )

    same_services = {
        name for name, service in desired.services.items() if same_entries(current.services.get(name), service)
    }

    def kept_backend(key: BackendKey) -> int | None:
        old, new = current.backends.get(key), desired.backends[key]
        if old is None or key.service not in same_services:
            return None
        same = (old.mac, old.interface, old.local) == (new.mac, new.interface, new.local)
        return allocation.backends.get(key) if same else None

    backend_places = FreePlaces(
        f"{len(desired.backends)} backends",
        "max_backends",
        1,
        sizes.max_backends,
        [*allocation.backends.values(), *allocation.retiring_backends],
        allocation.next_backend,
    )
    backends = assign(desired.backends, kept_backend, backend_places)
    backend_counters = assign(
        desired.backends,
        allocation.backend_counters.get,
        FreePlaces("backends", "max_backends", 1, sizes.max_backends, old_backend_counters),
    )
    old_rings = frozenset(allocation.rings.values()) | allocation.retiring_rings
    old_backends = frozenset(allocation.backends.values()) | allocation.retiring_backends
    pools = _place_pools(desired.pools(), allocation.pools, sizes)
    planned = Allocation(
        rings,
        service_counters,
        backends,
        backend_counters,
        pools,
        retiring_rings=old_rings - frozenset(rings.values()),
        retiring_backends=old_backends - frozenset(backends.values()),
        retiring_service_counters=old_service_counters - frozenset(service_counters.values()),
        retiring_backend_counters=old_backend_counters - frozenset(backend_counters.values()),
        next_backend=backend_places.next,
    )

    service_changes = compare(current.services, desired.services)
    backend_changes = compare(current.backends, desired.backends)
    out = out.intersection(desired.backends)
    written_backends = [
        key
        for key, place in backends.items()
        if drift.backends or allocation.backends.get(key) != place or key in was_out - out
    ]
    # Those that are new are among those that are written.
    touched = {
        key.service for key in (*written_backends, *backend_changes.modified, *backend_changes.removed, *out ^ was_out)
    }
    new_rings, swapped_rings = _rings_to_write(
        _Rings(current, allocation, was_out), _Rings(desired, planned, out), drift, touched, live
    )

    endpoints_change = (
        drift.endpoints
        or _endpoints_change(service_changes, backend_changes, allocation, planned)
        or _server_ids(current) != _server_ids(desired)
    )
    final = endpoints(desired, rings, backends, pools) if endpoints_change else None
    interim = None
    if final is not None:
        old = endpoints(current, allocation.rings, allocation.backends, allocation.pools) if live is None else live
        union = {**old, **final}
        interim = union if union.keys() != final.keys() else None
    return Plan(
        desired=desired,
        allocation=planned,
        services=service_changes,
        backends=backend_changes,
        drift=drift,
        zero_service_counters=[
            place for name, place in service_counters.items() if name not in allocation.service_counters
        ],
        zero_backend_counters=[
            place for key, place in backend_counters.items() if key not in allocation.backend_counters
        ],
        written_backends=written_backends,
        written_pools=[pool for pool, place in pools.items() if drift.backends or allocation.pools.get(pool) != place],
        new_rings=new_rings,
        interim_endpoints=interim,
        swapped_rings=swapped_rings,
        endpoints=final,
        removed_rings=planned.retiring_rings,
        out=out,
        suspended_backends=[key for key in backends if key in out - was_out],
        replies_linger=interim is not None
        and final is not None
        and any(key[-1] in (ENDPOINT_BACKEND, ENDPOINT_SOURCE) for key in interim.keys() - final.keys()),
    )


def _check_sizes(desired: Config, sizes: Sizes) -> None:
    for what, count, option, limit in (
        ("services", len(desired.services), "max_services", sizes.max_services),
        ("backends", len(desired.backends), "max_backends", sizes.max_backends - 1),
    ):
        if count > limit:
            raise EngineError(
                f"{count} {what} are more than the maps hold, {limit} with {option} "
                f"{getattr(sizes, option)}; raise {option} of the balancer"
            )


def assign_filters(desired: Filters, current: dict[FilterKey, int], sizes: Sizes) -> dict[FilterKey, int]:
    """Places of counters and limits; a filter keeps its own."""
    places = FreePlaces(f"{len(desired)} filters", "max_filters", 0, sizes.max_filters, current.values())
    if len(desired) > sizes.max_filters:
        raise EngineError(
            f"{len(desired)} filters are more than max_filters {sizes.max_filters}; raise max_filters of the balancer"
        )
    return assign(desired, current.get, places)


@dataclass(frozen=True)
class _Rings:
    """What rings are made from."""

    config: Config
    allocation: Allocation
    out: frozenset[BackendKey]


def _rings_to_write(
    before: _Rings, after: _Rings, drift: Drift, touched: set[str], live: Endpoints | None
) -> tuple[list[str], list[str]]:
    """Services whose ring nobody looks at yet, and services whose ring is replaced where it is.

    Only those in `touched` may have other members than before. `live`: see make().
    """
    new, swapped = [], []
    # A killed run may have left no ring where the endpoint table is about to point.
    seen = None if live is None else {place for key, place in live.items() if key[-1] == ENDPOINT_SERVICE}
    members_before, members_after = before.config.backends_of(), after.config.backends_of()
    for name, service in after.config.services.items():
        place = after.allocation.rings[name]
        if before.allocation.rings.get(name) != place or seen is not None and place not in seen:
            new.append(name)
            continue
        if (
            place in drift.rings
            or _rules(before.config.services[name]) != _rules(service)
            or name in touched
            and _shares(members_before[name], before.allocation.backends, before.out)
            != _shares(members_after[name], after.allocation.backends, after.out)
        ):
            swapped.append(name)
    return new, swapped


def _server_ids(config: Config) -> dict[BackendKey, tuple[str, int, int]]:
    """What the endpoints of QUIC's server ids come from, besides indexes."""
    found = {}
    for key, backend in config.backends.items():
        service = config.services[key.service]
        if backend.server_id is not None and service.by_connection_id:
            found[key] = backend.server_id, service.server_id_length, service.quic_config_id
    return found


def _endpoints_change(services: Changes, backends: Changes, allocation: Allocation, planned: Allocation) -> bool:
    return bool(
        services.created
        or services.removed
        or backends.created
        or backends.removed
        or allocation.rings != planned.rings
        or allocation.backends != planned.backends
        or allocation.pools != planned.pools
    )
