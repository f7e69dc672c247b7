# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts set up before a balancer had a name: one balancer for each interface, known by it.

Its state was /var/lib/lbops/<interface>.json, its pins /sys/fs/bpf/lbops/<interface>/program and maps. take_over()
moves them to where the balancer that now has the interface keeps its own. The program stays on its hook meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.filters import parse_filters
from ..config.model import BackendKey, Config, Pool
from ..config.parsing import parse_backends, parse_services
from ..errors import EngineError
from ..kernel import files
from ..tables.layout import Sizes
from ..tables.tables import PoolPlace
from .document import Document, Settings
from .places import Places, pin_name, remove_tree
from .plan import Allocation
from .retained import Retained
from .state import REMEDY, Hook, Paths, ProgramState, State, load_tables, save

SCHEMAS = (1, 2)
COMPILED = "*.program"


def state_file(paths: Paths, interface: str) -> Path:
    return paths.state / f"{interface}.json"


def health_file(paths: Paths, interface: str) -> Path:
    return paths.state / f"health-{interface}.json"


def preparing_file(paths: Paths, interface: str) -> Path:
    return paths.state / f"{interface}.preparing"


def pins(paths: Paths, interface: str) -> Path:
    return paths.pins / pin_name(interface)


def find(paths: Paths, interfaces: Iterable[str]) -> str | None:
    """The first of these interfaces that has a balancer of its own."""
    return next((interface for interface in interfaces if state_file(paths, interface).exists()), None)


def given_up(places: Places, interfaces: Iterable[str]) -> list[str]:
    """Those of these interfaces whose own balancer is removed: only that of the first is taken over."""
    found = [interface for interface in interfaces if state_file(places.paths, interface).exists()]
    return found if places.state_file.exists() else found[1:]


def load(paths: Paths, interface: str) -> State:
    """Raises EngineError for a file that cannot be read."""
    path = state_file(paths, interface)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] not in SCHEMAS:
            raise EngineError(f"{path} has schema {raw['schema']!r}; {REMEDY}")
        return _load(raw, interface)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {error}); {REMEDY}") from None


def _load(raw: dict[str, Any], interface: str) -> State:
    program, tables, retiring = raw["program"], raw["tables"], raw["retiring"]
    sizes = Sizes(**program["sizes"])
    services, backends, filters = raw["services"], raw["backends"], raw.get("filters", [])
    rings = {entry["name"]: entry.pop("ring") for entry in services}
    service_counters = {entry["name"]: entry.pop("counters") for entry in services}
    ids = [entry.pop("id") for entry in backends]
    counters = [entry.pop("counters") for entry in backends]
    filter_ids = [entry.pop("id") for entry in filters]
    config = Config(parse_services(services), parse_backends(backends))
    keys: list[BackendKey] = list(config.backends)
    settings = Settings(
        (interface,),
        program["attached"],
        program["mode"],
        program.get("prepare", False),
        "multi_buffer" in program["features"],
        "latency" in program["features"],
        sizes=sizes,
        source=program["source"],
    )
    document = Document(settings, config, parse_filters(filters))
    pools = {
        Pool(entry["address"], entry["first_port"], entry["last_port"]): PoolPlace(entry["id"], entry["first_session"])
        for entry in raw.get("pools", [])
    }
    return State(
        document,
        # Another engine built it, so its digest says nothing.
        ProgramState(
            "",
            program["features"],
            sizes,
            {interface: Hook(program["hook"], program["why"], program.get("attached_at", 0.0))},
        ),
        Allocation(
            rings,
            service_counters,
            dict(zip(keys, ids)),
            dict(zip(keys, counters)),
            pools,
            frozenset(retiring["rings"]),
            frozenset(retiring["backends"]),
        ),
        # All tables are written anew.
        load_tables({"endpoints6": 0, "filters": 0, **tables, "following": False}),
        dict(zip(document.filters, filter_ids)),
        (),
        Retained.load(raw.get("departed", {})),
        raw.get("generation", 0),
        raw.get("applied_at", 0.0),
        "",
        raw.get("counting_since", 0.0),
    )


def take_over(places: Places, interface: str) -> None:
    """Move a balancer of one interface to `places`. A run that is killed on the way is finished by the next."""
    paths = places.paths
    old = pins(paths, interface)
    places.state_directory.mkdir(mode=0o700, exist_ok=True)
    if not places.state_file.exists():
        known = load(paths, interface)
        if old != places.pins:
            remove_tree(places.maps)
        save(places.state_file, known)
    places.make()
    # What is there already is this balancer's, which may have taken over another interface's before.
    if (old / "program").exists() and not places.program(interface).exists():
        (old / "program").rename(places.program(interface))
    if (old / "maps").exists() and not places.maps.exists():
        (old / "maps").rename(places.maps)
    if health_file(paths, interface).exists() and not places.health_file.exists():
        health_file(paths, interface).replace(places.health_file)
    if preparing_file(paths, interface).exists():
        preparing_file(paths, interface).replace(places.preparing_file(interface))
    discard(places, [interface])


def discard(places: Places, interfaces: Iterable[str]) -> None:
    """Remove what is left of balancers of these interfaces."""
    paths = places.paths
    for interface in interfaces:
        if not state_file(paths, interface).exists():
            continue
        if pins(paths, interface) != places.pins:
            remove_tree(pins(paths, interface))
        health_file(paths, interface).unlink(missing_ok=True)
        preparing_file(paths, interface).unlink(missing_ok=True)
        for path in paths.state.glob(COMPILED):
            path.unlink()
        # Last, since it is what a next run goes by.
        files.remove(state_file(paths, interface))
