# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a balancer on disk: its document, and which index in the maps belongs to whom.

/var/lib/lbops/<balancer>/state.json, replaced atomically, readable by root only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.filters import FilterKey, Filters, parse_filters
from ..config.model import Backend, BackendKey, Config, Pool
from ..config.parsing import parse_services
from ..errors import EngineError
from ..kernel import files
from ..tables.digest import tables_digest
from ..tables.layout import Sizes
from ..tables.tables import PoolPlace
from .document import Document, Settings
from .plan import Allocation
from .previous import Previous, load_previous
from .retained import Retained

SCHEMA = 3


@dataclass(frozen=True)
class Paths:
    """Where things lie on a host; tests use directories of their own."""

    pins: Path = Path("/sys/fs/bpf/lbops")
    state: Path = files.STATE
    # Where files for sysctl(8) go; without it the kernel settings of the host are left alone.
    sysctl: Path | None = None

    def directory(self, balancer: str) -> Path:
        return self.state / balancer

    def state_file(self, balancer: str) -> Path:
        return self.directory(balancer) / "state.json"

    def health_file(self, balancer: str) -> Path:
        return self.directory(balancer) / "health.json"

    def history(self, balancer: str) -> Path:
        return self.directory(balancer) / "history"

    def compiled(self, balancer: str) -> Path:
        return self.directory(balancer) / "compiled"

    def preparing_file(self, balancer: str, interface: str) -> Path:
        """What is being changed for the sake of a native program; see native.py."""
        return self.directory(balancer) / f"preparing-{interface}.json"


HOST_PATHS = Paths(sysctl=Path("/etc/sysctl.d"))


@dataclass(frozen=True)
class Hook:
    """Where the program is on one interface."""

    hook: str  # native, generic or tc; empty while it is on none
    why: str
    attached_at: float = 0.0  # seconds since 1970; 0: not attached


@dataclass(frozen=True)
class ProgramState:
    """The program that is loaded, and where it is."""

    # Of the build for XDP, see compiler.Build; empty while a change of program is not finished.
    digest: str = ""
    features: list[str] = field(default_factory=list)
    # Of the maps that are pinned.
    sizes: Sizes = Sizes()
    hooks: dict[str, Hook] = field(default_factory=dict)


# Of a table that is about to be replaced: whichever is live has to be replaced once more after a run was killed.
UNKNOWN_TABLE = -1


@dataclass(frozen=True)
class Tables:
    """Ids of the frozen tables in the maps and a digest of the backends' entries, to notice drift."""

    endpoints: int = 0
    endpoints6: int = 0
    filters: int = 0
    rings: dict[int, int] = field(default_factory=dict)
    backends: str = ""
    # Backends that the lookup tables leave out since health checks said so.
    out: frozenset[BackendKey] = frozenset()
    # Health checks were about to change lookup tables and entries: these may be the old ones or the new ones.
    following: bool = False
    # Of previous lookup tables, by index of the service.
    previous: dict[int, int] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {**vars(self), "out": sorted(map(list, self.out), key=str)}


@dataclass(frozen=True)
class FilterSet:
    """The filters of a document, with the places of their counters and limits."""

    filters: Filters
    ids: dict[FilterKey, int]

    def dump(self) -> list[dict[str, Any]]:
        return [{**entry.as_dict(), "id": self.ids[key]} for key, entry in self.filters.items()]


@dataclass(frozen=True)
class State:
    document: Document
    program: ProgramState = ProgramState()
    allocation: Allocation = Allocation()
    tables: Tables = Tables()
    filter_ids: dict[FilterKey, int] = field(default_factory=dict)
    # The filters of documents of which something may still be live, because a change did not end.
    leaving: tuple[FilterSet, ...] = ()
    retained: Retained = Retained()
    # How often something was changed, and when that was last.
    generation: int = 0
    applied_at: float = 0.0
    applied_by: str = ""
    # Since when counters have only grown.
    counting_since: float = 0.0
    # What lookup tables were made of, by service.
    previous: dict[str, Previous] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.document.config

    @property
    def filters(self) -> Filters:
        return self.document.filters

    @property
    def filter_ids_in_use(self) -> dict[FilterKey, int]:
        """Those of the document, and those of documents that are being left."""
        leaving = {key: number for found in self.leaving for key, number in found.ids.items()}
        return {**leaving, **self.filter_ids}

    @cached_property
    def tables_digest(self) -> str:
        """Computed once: the exporter keeps a state for as long as its file."""
        return tables_digest(self.config, self.tables.out, self.document.settings.hash_seed)

    def dump(self) -> dict[str, Any]:
        """Everything but the document, which has a text of its own."""
        allocation = self.allocation
        return {
            "schema": SCHEMA,
            "generation": self.generation,
            "applied_at": self.applied_at,
            "applied_by": self.applied_by,
            "counting_since": self.counting_since,
            "program": asdict(self.program),
            # Lists in the order of the document's.
            "allocation": {
                "rings": [allocation.rings[name] for name in self.config.services],
                "service_counters": [allocation.service_counters[name] for name in self.config.services],
                "backends": [allocation.backends[key] for key in self.config.backends],
                "backend_counters": [allocation.backend_counters[key] for key in self.config.backends],
                "filters": [self.filter_ids[key] for key in self.filters],
                "pools": [{**pool._asdict(), **asdict(place)} for pool, place in allocation.pools.items()],
                "retiring_rings": sorted(allocation.retiring_rings),
                "retiring_backends": sorted(allocation.retiring_backends),
                "retiring_service_counters": sorted(allocation.retiring_service_counters),
                "retiring_backend_counters": sorted(allocation.retiring_backend_counters),
                "next_backend": allocation.next_backend,
            },
            "leaving": [found.dump() for found in self.leaving],
            "tables": self.tables.dump(),
            "retained": self.retained.dump(),
            "previous": {name: previous.dump() for name, previous in self.previous.items()},
        }


def load_tables(document: dict[str, Any]) -> Tables:
    return Tables(
        document["endpoints"],
        document["endpoints6"],
        document["filters"],
        {int(ring): table for ring, table in document["rings"].items()},
        document["backends"],
        frozenset(BackendKey(*key) for key in document.get("out", ())),
        document.get("following", False),
        {int(ring): table for ring, table in document.get("previous", {}).items()},
    )


def _load_document(raw: dict[str, Any]) -> Document:
    """What was checked when it was saved is not checked again."""
    backends = [Backend(**entry) for entry in raw["backends"]]
    config = Config(parse_services(raw["services"]), {backend.key: backend for backend in backends})
    plain = {key: raw[key] for key in ("attached", "mode", "prepare", "multi_buffer", "latency", "source")}
    # State files of layout 3 have no such options.
    plain["unserved"] = raw.get("unserved", "drop")
    plain["reply_check"] = raw.get("reply_check", "strict")
    plain["hash_seed"] = raw.get("hash_seed", "")
    plain["next_program"] = raw.get("next_program", "")
    plain["virtual_macs"] = tuple(raw.get("virtual_macs", ()))
    settings = Settings(tuple(raw["interfaces"]), sizes=Sizes(**raw["sizes"]), **plain)
    return Document(settings, config, parse_filters(raw["filters"]))


def _load_filter_set(entries: list[dict[str, Any]]) -> FilterSet:
    ids = [entry.pop("id") for entry in entries]
    filters = parse_filters(entries)
    return FilterSet(filters, dict(zip(filters, ids)))


def _load(raw: dict[str, Any]) -> State:
    document = _load_document(raw["document"])
    program, places = raw["program"], raw["allocation"]
    services, backends = list(document.config.services), list(document.config.backends)
    allocation = Allocation(
        dict(zip(services, places["rings"])),
        dict(zip(services, places["service_counters"])),
        dict(zip(backends, places["backends"])),
        dict(zip(backends, places["backend_counters"])),
        {
            Pool(entry["address"], entry["first_port"], entry["last_port"]): PoolPlace(
                entry["id"], entry["first_session"]
            )
            for entry in places["pools"]
        },
        frozenset(places["retiring_rings"]),
        frozenset(places["retiring_backends"]),
        # Earlier engines did not write these.
        frozenset(places.get("retiring_service_counters", ())),
        frozenset(places.get("retiring_backend_counters", ())),
        places.get("next_backend", 1),
    )
    return State(
        document,
        ProgramState(
            program["digest"],
            program["features"],
            Sizes(**program["sizes"]),
            {interface: Hook(**hook) for interface, hook in program["hooks"].items()},
        ),
        allocation,
        load_tables(raw["tables"]),
        dict(zip(document.filters, places["filters"])),
        tuple(map(_load_filter_set, raw.get("leaving", ()))),
        Retained.load(raw["retained"]),
        raw["generation"],
        raw["applied_at"],
        raw["applied_by"],
        raw["counting_since"],
        {name: load_previous(entry) for name, entry in raw.get("previous", {}).items()},
    )


def read(path: Path) -> dict[str, Any] | None:
    """The file's content, None if there is none. Raises EngineError for what is no state of this schema."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise EngineError(f"{path} is damaged ({error}); {REMEDY}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise EngineError(f"{path} has schema {schema!r}, this engine reads {SCHEMA}; {REMEDY}")
    return document


def load(path: Path) -> State | None:
    """The state, None if there is none. Raises EngineError for what this engine cannot read."""
    document = read(path)
    if document is None:
        return None
    try:
        return _load(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {error}); {REMEDY}") from None


REMEDY = "restore it from a backup, or remove everything with xdp_balancer state=absent force=true and apply again"


def save(path: Path, state: State) -> None:
    # dumps() is several times as fast as dump().
    files.write(path, state.document.text_with(state.dump()) + "\n")


def with_config(current: State, config: Config) -> State:
    return replace(current, document=replace(current.document, config=config))


def balancers(paths: Paths) -> list[str]:
    """The names of the balancers of this host."""
    return sorted(path.parent.name for path in paths.state.glob("*/state.json"))


def refuse_other_generation(name: str, current: State | None, wanted: int | None) -> None:
    """Raises EngineError if balancer `name` has another generation than the one wanted; None: any will do."""
    generation = current.generation if current else 0
    if wanted not in (None, generation):
        raise EngineError(
            f"balancer {name}: generation {wanted} is not the current one, which is {generation}; "
            "somebody else changed it meanwhile, look at the difference and run this again"
        )
