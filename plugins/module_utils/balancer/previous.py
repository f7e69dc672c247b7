# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lookup table was made of before a change, for connections that are older. Pure functions.

The table is computed from that again, so that a boot makes it, too, and equal documents make equal ones. Health checks
make none: balancers see backends fail and recover at different times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config.model import Backend, BackendKey, Service, ring_members
from ..config.parsing import parse_services
from .document import Document
from .plan import same_entries


@dataclass(frozen=True)
class Previous:
    """What a service's lookup table was made of before a change."""

    until: float  # seconds since 1970
    service: Service
    members: tuple[Backend, ...]  # with target, port and weight alone
    hash_seed: str

    def ids(self, backend_ids: Mapping[BackendKey, int]) -> list[int | None]:
        """Of its members, as they are now."""
        return [backend_ids.get(backend.key) for backend in self.members]

    def dump(self) -> dict[str, Any]:
        return {
            "until": self.until,
            "service": self.service.as_dict(),
            "members": [[backend.target, backend.port, backend.weight] for backend in self.members],
            "hash_seed": self.hash_seed,
        }


def load_previous(raw: dict[str, Any]) -> Previous:
    (service,) = parse_services([raw["service"]]).values()
    members = (_member(service, *entry) for entry in raw["members"])
    return Previous(raw["until"], service, tuple(members), raw["hash_seed"])


def _member(service: Service, target: str, port: int | None, weight: int) -> Backend:
    address, interface = (None, target) if service.forwarding == "redirect" else (target, None)
    return Backend(service.name, address, port, weight, "enabled", None, None, interface)


def in_force(known: Mapping[str, Previous], now: float) -> dict[str, Previous]:
    """Those whose time is not up."""
    return {name: previous for name, previous in known.items() if previous.until > now}


def follow(
    before: Document, after: Document, was_out: frozenset[BackendKey], known: Mapping[str, Previous], now: float
) -> dict[str, Previous]:
    """By service, what is previous once a change is made at `now`, in seconds since 1970.

    `was_out`: backends that the lookup tables left out until now. Of several changes within handover_seconds the table
    before the first one stays: connections older than it are those that may last.
    """
    found, known = {}, in_force(known, now)
    was_of, is_of = before.config.backends_of(), after.config.backends_of()
    for name, service in after.config.services.items():
        old = before.config.services.get(name)
        if old is None or not service.handover_seconds or not same_entries(old, service):
            continue
        until = now + service.handover_seconds
        if name in known:
            # The clock may have been set since.
            found[name] = replace(known[name], until=min(known[name].until, until))
        elif old.scheduler != "round_robin" and _slots_differ(old, was_of[name], service, is_of[name]):
            members = ring_members(was_of[name], was_out)
            if members:
                taken = (_member(old, backend.target, backend.port, backend.share) for backend in members)
                found[name] = Previous(until, old, tuple(taken), before.settings.hash_seed)
    return found


def _slots_differ(old: Service, before: list[Backend], service: Service, after: list[Backend]) -> bool:
    def made_of(found: Service, members: list[Backend]) -> tuple[object, ...]:
        shares = {(backend.target, backend.port): backend.share for backend in ring_members(members)}
        return found.scheduler, found.table_size, found.affinity_prefix, found.affinity_group, shares

    return made_of(old, before) != made_of(service, after)
