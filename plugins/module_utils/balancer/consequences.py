# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change does to connections that are open. Pure functions."""

from __future__ import annotations

from ..config.model import Backend, Service, ring_members
from .document import Document


def resets(before: Document, after: Document) -> list[str]:
    """One sentence for each service whose open TCP connections the change resets, with the number of backends.

    Another hash seed has a sentence of its own, since it may reset some of every service.
    """
    found = []
    if before.config.services and before.settings.hash_seed != after.settings.hash_seed:
        found.append(
            "hash_seed changes, so flows that are not in a flow table move to other backends, and open connections "
            "among them are reset"
        )
    was_of, is_of = before.config.backends_of(), after.config.backends_of()
    for name, service in after.config.services.items():
        old = before.config.services.get(name)
        if old is None or service.protocol != "tcp":
            continue
        if (old.address, old.first_port, old.last_port) != (service.address, service.first_port, service.last_port):
            found.append(f"service {name}: its VIP or port changes, so its open connections end")
        elif old.forwarding != service.forwarding:
            found.append(
                f"service {name}: forwarding changes from {old.forwarding} to {service.forwarding}, which resets the "
                f"open connections of its {_count(was_of[name])}"
            )
        else:
            found += _lost_shares(service, was_of[name], is_of[name])
    return found


def _lost_shares(service: Service, before: list[Backend], after: list[Backend]) -> list[str]:
    """Without a flow table a connection follows the lookup table, whatever becomes of its backend."""
    kept = {backend.key: backend for backend in after}
    was, stays = ring_members(before), {backend.key for backend in ring_members(after)}
    removed = [backend for backend in was if backend.key not in kept]
    drained = [backend for backend in was if backend.key in kept and not kept[backend.key].share]
    backups = [b for b in was if b.key in kept and kept[b.key].share and b.key not in stays]
    found = []
    if removed:
        found.append(f"service {service.name}: {_count(removed)} removed, whose open connections are reset")
    if drained and not service.remembers_flows:
        found.append(
            f"service {service.name}: {_count(drained)} drained, whose open connections are reset, because the service "
            "has no flow table; set flow_table: true before draining to keep them"
        )
    if backups and not service.remembers_flows:
        found.append(
            f"service {service.name}: backups hand over to other backends, which resets the open connections of "
            f"{_count(backups)}, because the service has no flow table; set flow_table: true before to keep them"
        )
    return found


def _count(backends: list[Backend]) -> str:
    return f"{len(backends)} backend{'' if len(backends) == 1 else 's'}"
