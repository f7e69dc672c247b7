# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup table that a service had before its backends changed, as files/bpf/handover.h reads it. Pure functions."""

from __future__ import annotations

from array import array
from collections.abc import Collection

from ..config.model import Backend, BackendKey, Service
from . import lookup
from .layout import IDS_PER_LINE, PREVIOUS_HEADER
from .tables import slot_ids

# Of a backend that is not in the service any more: none has it, so the program goes on to the table in use.
NO_ID = 0xFFFFFFFF


def pack_previous_table(
    service: Service,
    members: Collection[Backend],
    backend_ids: dict[BackendKey, int],
    seed: int,
    until: int,
    fill: lookup.Fill = lookup.fill,
) -> bytes:
    """struct previous_header and the ids, line by line.

    `members` had new flows, at least one; `backend_ids` are those of today. `until`: tick.
    """
    ids = [backend_ids.get(backend.key, NO_ID) for backend in members]
    slots = slot_ids(service, list(members), ids, fill)
    padding = array("I", bytes(4 * (-len(slots) % IDS_PER_LINE)))
    return PREVIOUS_HEADER.pack(seed, until, len(slots), service.affinity_prefix) + (slots + padding).tobytes()
