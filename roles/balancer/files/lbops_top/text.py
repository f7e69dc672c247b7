# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as lbops-top writes them. Entries are those of rates.report()."""

from __future__ import annotations

from .rates import Entry, target

UNITS = "kMGT"


def quantity(value: float | None) -> str:
    """At most five characters: 0, 7.5, 999, 1.23k, 45.6M."""
    if not value:
        return "-" if value is None else "0"
    if value < 999.5:
        return f"{value:.{1 if value < 9.95 else 0}f}"
    thousands = 0
    while value >= 999.5 and thousands < len(UNITS):
        value /= 1000
        thousands += 1
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{UNITS[thousands - 1]}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def name_of(backend: Entry) -> str:
    return backend.get("name") or address_of(backend)


def address_of(entry: Entry) -> str:
    """With the port, if it has one of its own."""
    address = target(entry)
    if entry.get("port") is None:
        return address
    return f"[{address}]:{entry['port']}" if ":" in address else f"{address}:{entry['port']}"


def state_of(backend: Entry) -> str:
    """Whether anything new goes to it, and if not, why; where nobody checks its health, it is just enabled.

    A backup is one whatever its service needs at the moment, unless it is unhealthy.
    """
    if backend["state"] == "backup" and backend.get("healthy") is False:
        return "unhealthy"
    if backend["state"] == "enabled" and backend.get("healthy") is not None:
        return "healthy" if backend["healthy"] else "unhealthy"
    return str(backend["state"])


def program_of(balancer: Entry) -> str:
    """The balancer, each of its interfaces with the hook that the program is on, and what rates are of."""
    seconds = balancer["seconds"]
    interfaces = ", ".join(f"{entry['interface']} {_hook_of(entry)}" for entry in balancer["program"]["interfaces"])
    over = f"rates over {seconds:.1f} s" if seconds else "no rates yet"
    return f"{balancer['balancer']}: {interfaces}; {over}"


def _hook_of(interface: Entry) -> str:
    if not interface["present"]:
        return "does not exist"
    if "shadowed_by" in interface:
        return f"is behind what may keep packets from it: {'; '.join(interface['shadowed_by'])}"
    where: str = interface["hook"] if interface["attached"] else "not attached"
    return where if interface["up"] else f"{where} (down)"
