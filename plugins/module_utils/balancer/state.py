# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired state of one interface on disk: what the boot-time restore needs, and which place in the maps is whose.

/var/lib/lbops/<interface>.json, replaced atomically, readable by root only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config.filters import FilterKey, Filters, parse_filters
from ..config.model import BackendKey, Config, Pool, parse_backends, parse_services
from ..errors import EngineError
from ..kernel import files
from ..tables.layout import Sizes
from ..tables.tables import PoolPlace
from .departed import Departed
from .plan import Allocation

SCHEMA = 2
# What nic_profile keeps lies beside it, see tuned.py, and what health checks saw, see observed.py.
HEALTH_PREFIX = "health-"


@dataclass(frozen=True)
class Paths:
    """Where things lie on a host; tests use places of their own."""

    pins: Path = Path("/sys/fs/bpf/lbops")
    state: Path = files.STATE

    def state_file(self, interface: str) -> Path:
        return self.state / f"{interface}.json"

    def preparing_file(self, interface: str) -> Path:
        """What is being changed for the sake of a native program; see native.py."""
        return self.state / f"{interface}.preparing"

    def health_file(self, interface: str) -> Path:
        return self.state / f"{HEALTH_PREFIX}{interface}.json"


HOST_PATHS = Paths()


@dataclass(frozen=True)
class ProgramState:
    """What xdp_program was told, and what it did."""

    attached: bool
    mode: str  # as asked for: auto, native or generic
    hook: str  # as attached: native or generic
    why: str  # why this hook
    features: list[str]
    requested_features: list[str]
    source: str
    digest: str
    sizes: Sizes
    # Files of earlier releases do not have these.
    prepare: bool = False
    attached_at: float = 0.0  # seconds since 1970; 0: not attached


@dataclass(frozen=True)
class Tables:
    """Ids of the frozen tables in the maps and a digest of the backends' entries, to notice drift."""

    endpoints: int = 0
    endpoints6: int = 0
    filters: int = 0
    rings: dict[int, int] = field(default_factory=dict)
    backends: str = ""
    # Backends that the rings leave out since health checks said so.
    out: frozenset[BackendKey] = frozenset()
    # Health checks were about to change rings and entries: these may be the old ones or the new ones.
    following: bool = False

    def dump(self) -> dict[str, Any]:
        return {**vars(self), "out": sorted(map(list, self.out), key=str)}


@dataclass(frozen=True)
class State:
    program: ProgramState
    config: Config = Config({}, {})
    allocation: Allocation = Allocation()
    tables: Tables = Tables()
    filters: Filters = field(default_factory=dict)
    filter_ids: dict[FilterKey, int] = field(default_factory=dict)
    departed: Departed = Departed()
    # How often something was changed, and when that was last.
    generation: int = 0
    applied_at: float = 0.0
    # Since when counters have only grown.
    counting_since: float = 0.0

    def dump(self) -> dict[str, Any]:
        allocation = self.allocation
        return {
            "schema": SCHEMA,
            "program": asdict(self.program),
            "services": [
                {**service.as_dict(), "ring": allocation.rings[name], "counters": allocation.service_counters[name]}
                for name, service in self.config.services.items()
            ],
            "backends": [
                {**backend.as_dict(), "id": allocation.backends[key], "counters": allocation.backend_counters[key]}
                for key, backend in self.config.backends.items()
            ],
            "pools": [
                {"address": pool.address, "first_port": pool.first_port, "last_port": pool.last_port, **asdict(place)}
                for pool, place in allocation.pools.items()
            ],
            "filters": [{**item.as_dict(), "id": self.filter_ids[key]} for key, item in self.filters.items()],
            "retiring": {
                "rings": sorted(allocation.retiring_rings),
                "backends": sorted(allocation.retiring_backends),
            },
            "tables": self.tables.dump(),
            "departed": self.departed.dump(),
            "generation": self.generation,
            "applied_at": self.applied_at,
            "counting_since": self.counting_since,
        }


def _load(document: dict[str, Any]) -> State:
    program = dict(document["program"])
    program["sizes"] = Sizes(**program["sizes"])
    services = document["services"]
    backends = document["backends"]
    rings = {entry["name"]: entry.pop("ring") for entry in services}
    service_counters = {entry["name"]: entry.pop("counters") for entry in services}
    ids = [entry.pop("id") for entry in backends]
    counters = [entry.pop("counters") for entry in backends]
    config = Config(parse_services(services), parse_backends(backends))
    keys: list[BackendKey] = list(config.backends)
    tables = document["tables"]
    filters = document["filters"]
    filter_ids = [entry.pop("id") for entry in filters]
    parsed_filters = parse_filters(filters)
    pools = {
        Pool(entry["address"], entry["first_port"], entry["last_port"]): PoolPlace(entry["id"], entry["first_session"])
        for entry in document["pools"]
    }
    return State(
        program=ProgramState(**program),
        config=config,
        allocation=Allocation(
            rings,
            service_counters,
            dict(zip(keys, ids)),
            dict(zip(keys, counters)),
            pools,
            frozenset(document["retiring"]["rings"]),
            frozenset(document["retiring"]["backends"]),
        ),
        tables=Tables(
            tables["endpoints"],
            tables["endpoints6"],
            tables["filters"],
            {int(ring): table for ring, table in tables["rings"].items()},
            tables["backends"],
            # Files of earlier releases have neither.
            frozenset(BackendKey(*key) for key in tables.get("out", ())),
            tables.get("following", False),
        ),
        filters=parsed_filters,
        filter_ids=dict(zip(parsed_filters, filter_ids)),
        departed=Departed.load(document.get("departed", {})),
        generation=document.get("generation", 0),
        applied_at=document.get("applied_at", 0.0),
        counting_since=document.get("counting_since", 0.0),
    )


def load(path: Path) -> State | None:
    """The state, None if there is none. Raises EngineError for what this engine cannot read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EngineError(f"{path} is damaged ({error}); {_REMEDY}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == 1:
        schema, document = SCHEMA, _upgraded(document)
    if schema != SCHEMA:
        raise EngineError(f"{path} has schema {schema!r}, this engine reads {SCHEMA}; {_REMEDY}")
    try:
        return _load(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from None


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """From the first release: it had neither filters, nor pools of ports, nor IPv6."""
    return {
        **document,
        "filters": [],
        "pools": [],
        "tables": {"endpoints6": 0, "filters": 0, **document.get("tables", {})},
    }


_REMEDY = "restore it from a backup, or remove everything with xdp_program state=absent force=true and apply again"


def save(path: Path, state: State) -> None:
    # dumps() is several times as fast as dump().
    files.write(path, json.dumps(state.dump(), separators=(",", ":")) + "\n")


def interfaces(paths: Paths) -> list[str]:
    """The interfaces that have a balancer's state."""
    others = (files.NIC_PREFIX, HEALTH_PREFIX)
    return sorted(path.stem for path in paths.state.glob("*.json") if not path.name.startswith(others))


def used_programs(paths: Paths) -> set[str]:
    """Returns the digests of all interfaces' programs."""
    used = set()
    for interface in interfaces(paths):
        try:
            current = load(paths.state_file(interface))
        except EngineError:
            # The file of another interface; the engine reports it when it works on that interface.
            continue
        if current:
            used.add(current.program.digest)
    return used


@contextmanager
def locked(paths: Paths, *, create: bool) -> Iterator[None]:
    """One at a time on a host. The lock is on the directory; without `create` a missing one stays missing."""
    if create:
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not paths.state.exists():
        yield
        return
    descriptor = os.open(paths.state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
