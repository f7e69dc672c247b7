# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balancers of mode offload: their tables in a network card, and what runs on the host without a controller.

The pinned program holds its maps; nothing else is pinned. Packets see one half of the tables. What is new goes into the
other one, and one write switches halves. All functions raise EngineError.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import bpf, link
from ..tables import offload as tables
from ..tables.layout import REASONS
from . import observed, offload_maps, state
from .document import Document
from .interfaces import Interface, known_interfaces
from .offload_maps import OffloadMaps
from .places import Places, pinned_id
from .plan import Allocation

MODE = "offload"


def is_mode_of(document: Document) -> bool:
    return document.settings.mode == MODE


def refuse_other_mode(name: str, current: state.State | None, document: Document) -> None:
    """Raises EngineError for a change between mode offload and the others."""
    if current is not None and is_mode_of(current.document) != is_mode_of(document):
        raise EngineError(
            f"balancer {name} has mode {current.document.settings.mode}, and mode {document.settings.mode} keeps its "
            "tables elsewhere; remove it with state: absent, then apply this"
        )


def open_live(pin: Path) -> OffloadMaps | None:
    """The maps of a pinned program; None without one, and if the network card is gone."""
    try:
        descriptor = bpf.object_get(str(pin))
    except OSError:
        return None
    try:
        return offload_maps.of_program(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def live_interface(interface: str) -> Interface:
    """What the program is to know of it."""
    (found,) = [known for known in known_interfaces((interface,)) if known.index == link.interface_index(interface)]
    return found


def places_of(allocation: Allocation) -> tables.Places:
    return tables.Places(allocation.service_counters, allocation.backend_counters)


def switch(live: OffloadMaps, content: dict[str, bytes], interface: Interface) -> None:
    half = 1 - live.read_control()[0]
    live.write_half(half, content)
    live.write_control(half, interface)


def _live(places: Places, current: state.State) -> OffloadMaps:
    live = open_live(places.program(current.document.interfaces[0]))
    if live is None:
        raise EngineError(f"balancer {places.name} is not loaded on this host; apply it, or restore it")
    return live


def is_loaded(places: Places, current: state.State) -> bool:
    return is_mode_of(current.document) and pinned_id(places.program(current.document.interfaces[0])) is not None


def follow(
    places: Places, current: state.State, seen: observed.Observed, save: Callable[[state.State], None]
) -> state.State:
    """Have the tables leave out what health checks saw down."""
    out = seen.out(current.config)
    if out == current.tables.out:
        return current
    followed = replace(current, tables=replace(current.tables, out=out))
    with _live(places, current) as live:
        content = tables.pack_half(current.config, places_of(current.allocation), live.shape, out)
        switch(live, content, live_interface(current.document.interfaces[0]))
    save(followed)
    return followed


def refresh(places: Places, current: state.State) -> None:
    """Have the program know the interface's address and MTU, which may have changed."""
    (interface,) = current.document.interfaces
    live = open_live(places.program(interface)) if link.exists(interface) else None
    if live is None:
        return
    with live:
        (half, known), now = live.read_control(), live_interface(interface)
        if known != offload_maps.known_of(now):
            live.write_control(half, now)


def counters(places: Places, current: state.State) -> dict[str, Any]:
    """What live.Reading has of maps. A network card neither tells its CPUs apart, nor counts replies or flows."""
    with _live(places, current) as live:
        rows, number, shape = live.read_counters(), live.number(), live.shape
    found = places_of(current.allocation)
    return {
        "services": [(*rows[found.services[name]], 0, 0, 0) for name in current.config.services],
        "backends": [(*rows[found.backends[key]], 0, 0, 0) for key in current.config.backends],
        "reasons": [packets for packets, _bytes in rows[: len(REASONS)]],
        "fill": {
            "services": (len(current.config.services), shape.services),
            "backends": (len(current.config.backends), shape.backends - 1),
        },
        "maps": number,
    }
