# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is live of a balancer: its programs by interface, and what the maps hold."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..kernel import bpf, link
from . import live, maps, observed, state
from .hooks import Hooks
from .places import Places, pinned_id


def program_facts(places: Places, current: state.State | None) -> dict[str, Any]:
    """What is really on the hooks, with what the state file knows about it."""
    interfaces = current.document.interfaces if current else places.pinned_interfaces()
    found = [interface_facts(places, current, interface) for interface in interfaces]
    facts: dict[str, Any] = {
        "attached": bool(found) and all(entry["attached"] for entry in found),
        "interfaces": found,
    }
    first = next((entry["program_id"] for entry in found if "program_id" in entry), None)
    if current is not None and first is not None:
        facts.update(
            mode=current.document.settings.mode,
            prepare=current.document.settings.prepare,
            features=current.program.features,
            digest=current.program.digest,
            program_id=first,
            **asdict(current.program.sizes),
        )
    return facts


def interface_facts(places: Places, current: state.State | None, interface: str) -> dict[str, Any]:
    attached = Hooks(interface).attached() if link.exists(interface) else None
    ours = pinned_id(places.program(interface))
    is_ours = bool(attached and ours and attached.program_id == ours)
    facts: dict[str, Any] = {"interface": interface, "attached": is_ours, "present": link.exists(interface)}
    known = current.program.hooks.get(interface) if current else None
    if ours and known:
        facts.update(
            hook=attached.hook if attached and is_ours else "",
            why=known.why,
            attached_at=known.attached_at,
            program_id=ours,
        )
    return facts


def read(places: Places, current: state.State | None) -> live.Reading:
    """What is live of what the state file says. Asks for nothing but reading."""
    facts = program_facts(places, current)
    if current is None or "program_id" not in facts:
        return live.Reading(facts)
    first = next(entry["interface"] for entry in facts["interfaces"] if "program_id" in entry)
    facts.update(_kernel_facts(places.program(first)))
    facts.update(
        generation=current.generation,
        applied_at=current.applied_at,
        applied_by=current.applied_by,
        counting_since=current.counting_since,
    )
    with maps.open_pinned(places.maps, current.program.sizes, read_only=True) as live_maps:
        return live.read(facts, current, live_maps, observed.load(places.health_file).healthy)


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
