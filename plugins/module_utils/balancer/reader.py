# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is live of a balancer: its programs by interface, and what the maps hold."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import bpf, device, link
from . import live, map_set, next_program, observed, offload, problems, state
from .hooks import Hooks
from .places import Places, pinned_id

# What the kernel counts of a program, while kernel.bpf_stats_enabled is on.
RUNS = ("run_time_ns", "run_count")


def program_facts(places: Places, current: state.State | None) -> dict[str, Any]:
    """What is really on the hooks, with what the state file knows about it."""
    interfaces = current.document.interfaces if current else places.pinned_interfaces()
    found = [interface_facts(places, current, interface) for interface in interfaces]
    facts: dict[str, Any] = {
        "attached": bool(found) and all(entry["attached"] for entry in found),
        "interfaces": found,
        "problems": problems.find(places.name, current, found) if current else [],
    }
    if current is not None and current.document.settings.next_program:
        following = next_program.live_entry(places, current)
        facts["next_program"] = {"path": current.document.settings.next_program, "program_id": following}
        if not following and current.document.settings.attached:
            facts["problems"].append(next_program.missing(places, current))
    first = next((entry["program_id"] for entry in found if "program_id" in entry), None)
    if current is not None and first is not None:
        facts.update(
            mode=current.document.settings.mode,
            prepare=current.document.settings.prepare,
            features=current.program.features,
            digest=current.program.digest,
            tables_digest=current.tables_digest,
            program_id=first,
            **asdict(current.program.sizes),
        )
    return facts


def interface_facts(places: Places, current: state.State | None, interface: str) -> dict[str, Any]:
    found, on_hooks = _link(interface)
    ours = pinned_id(places.program(interface))
    attached = next((entry for entry in on_hooks if entry.program_id == ours), None)
    shadowed_by = Hooks(interface).shadowed_by(attached) if attached else []
    facts: dict[str, Any] = {
        "interface": interface,
        "attached": bool(attached and not shadowed_by),
        "present": found is not None,
        "up": found is not None and found.enabled and found.usable,
    }
    known = current.program.hooks.get(interface) if current else None
    if ours and known:
        facts.update(
            hook=attached.hook if attached else "",
            why=known.why,
            attached_at=known.attached_at,
            program_id=ours,
        )
    if shadowed_by:
        facts["shadowed_by"] = shadowed_by
    return facts


def _link(interface: str) -> tuple[device.Link | None, list[link.Attached]]:
    """An interface and what is on its hooks; nothing for one that is not there, or goes away just now."""
    try:
        return device.Device(link.interface_index(interface), interface).link(), Hooks(interface).programs()
    except EngineError:
        if link.exists(interface):
            raise
        return None, []


def read(places: Places, current: state.State | None) -> live.Reading:
    """What is live of what the state file says. Asks for nothing but reading."""
    facts = program_facts(places, current)
    if current is None or "program_id" not in facts:
        return live.Reading(facts)
    facts.update(_add_kernel_facts(places, facts["interfaces"]))
    facts.update(
        generation=current.generation,
        applied_at=current.applied_at,
        applied_by=current.applied_by,
        counting_since=current.counting_since,
    )
    healthy = observed.load(places.health_file).healthy
    if offload.is_mode_of(current.document):
        return live.Reading(facts, current, healthy=healthy, **offload.counters(places, current))
    with map_set.open_pinned(places.maps, current.program.sizes, read_only=True) as live_maps:
        return live.read(facts, current, live_maps, healthy)


def _add_kernel_facts(places: Places, interfaces: list[dict[str, Any]]) -> dict[str, Any]:
    """Add what the kernel says of the program on each interface. Returns that of the first, with runs of all.

    Interfaces with the same kind of hook share a program.
    """
    programs: dict[int, dict[str, Any]] = {}
    for entry in interfaces:
        if "program_id" in entry:
            number = entry["program_id"]
            programs[number] = programs.get(number) or _kernel_facts(places.program(entry["interface"]))
            entry.update(programs[number])
    first = next(iter(programs.values()))
    return {**first, **{name: sum(facts[name] for facts in programs.values()) for name in RUNS}}


def _kernel_facts(pin: Path) -> dict[str, Any]:
    descriptor = bpf.object_get(str(pin), read_only=True)
    try:
        info = bpf.program_info(descriptor)
    finally:
        os.close(descriptor)
    return {
        "name": info.name,
        "tag": info.tag,
        "jited_bytes": info.jited_size,
        "verified_instructions": info.verified_instructions,
        "run_time_ns": info.run_time_ns,
        "run_count": info.run_count,
    }
