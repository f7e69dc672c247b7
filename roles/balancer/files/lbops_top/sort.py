# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of services, and of the backends of each. Entries are those of rates.report()."""

from __future__ import annotations

import re
from typing import Any, Callable

from .rates import Entry
from .text import name_of, state_of

SORTS = ("service", "backend", "state", "packets", "bits", "reply_packets", "reply_bits")
STATES = ("unhealthy", "drained", "backup", "enabled", "healthy")


def sort_services(services: list[Entry], sort: str, reverse: bool = False) -> list[Entry]:
    """The busiest or worst first, names from A to Z; equals stay in the order of the inventory."""
    of_service, of_backend = _KEYS.get(sort) or (_busiest_first(sort), _busiest_first(sort))
    found = [
        {**service, "backends": sorted(service["backends"], key=of_backend, reverse=reverse)} for service in services
    ]
    return sorted(found, key=of_service, reverse=reverse)


def _busiest_first(sort: str) -> Callable[[Entry], float]:
    return lambda entry: -(entry[f"{sort}_per_second"] or 0)


def _natural(name: str) -> list[tuple[str, int]]:
    """be2 before be10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _as_declared(_entry: Entry) -> int:
    return 0


def _worst_first(backend: Entry) -> int:
    return STATES.index(state_of(backend))


# By what services are sorted, by what backends are.
_KEYS: dict[str, tuple[Callable[[Entry], Any], Callable[[Entry], Any]]] = {
    "service": (lambda service: _natural(service["name"]), _as_declared),
    "backend": (_as_declared, lambda backend: _natural(name_of(backend))),
    "state": (lambda service: min(map(_worst_first, service["backends"]), default=len(STATES)), _worst_first),
}
