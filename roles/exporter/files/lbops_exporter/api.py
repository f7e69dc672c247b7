# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration as JSON, with the objects that xdp_info returns. Nothing can be changed here."""

from __future__ import annotations

import json
from typing import Any

from engine.balancer.live import Reading
from engine.errors import EngineError

from .source import Sources

DOCUMENTS = ("config", "services", "backends")


def _entries(name: str, balancer: str, reading: Reading) -> list[dict[str, Any]]:
    found = reading.service_entries() if name == "services" else reading.backend_entries()
    return [{**entry, "balancer": balancer} for entry in found]


def _busy(cpus: list[int]) -> dict[int, int]:
    """Packets that the program saw, by CPU."""
    return {cpu: packets for cpu, packets in enumerate(cpus) if packets}


def document(name: str, sources: Sources) -> tuple[bytes, bool]:
    """One of DOCUMENTS, and whether everything could be read; if not, it says what could not."""
    balancers: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    try:
        present = sources.balancers()
    except OSError as error:
        # The page looks for balancers even then.
        nothing: dict[str, Any] = {"balancers": {}} if name == "config" else {}
        return json.dumps({**nothing, "errors": {"": str(error)}}).encode() + b"\n", False
    for balancer in present:
        try:
            reading = sources.read(balancer)
        except (EngineError, OSError) as error:
            errors[balancer] = str(error)
            continue
        if name == "config":
            moment = {"timestamp": sources.timestamp(balancer), "cpus": _busy(reading.cpus)}
            balancers[balancer] = {**moment, **reading.info()}
        else:
            entries += _entries(name, balancer, reading)
    found: Any = {"balancers": balancers} if name == "config" else entries
    if errors:
        # A list without what could not be read would be taken for the whole.
        found = {"balancers": balancers, "errors": errors} if name == "config" else {"errors": errors}
    return json.dumps(found).encode() + b"\n", not errors
