# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One value for all lookup tables of a balancer, equal on hosts that spread packets alike. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from typing import Any

from ..config.model import Backend, BackendKey, Config, Service, ring_members


def tables_digest(config: Config, out: Container[BackendKey] = (), hash_seed: str = "") -> str:
    """SHA-256 of what spreads packets; `out`: backends that health checks keep out of the lookup tables.

    Nothing in it is of one host: no index, no id of a map, no order of an inventory.
    """
    members = config.backends_of()
    content = [_service(config.services[name], members[name], out) for name in sorted(config.services)]
    if hash_seed:
        content.append(["hash_seed", hash_seed])
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _service(service: Service, backends: list[Backend], out: Container[BackendKey]) -> list[Any]:
    active = sorted((backend.target, backend.port or 0, backend.share) for backend in ring_members(backends, out))
    # Only where it is in use, so that hosts with an older engine agree on the rest.
    affinity = [service.affinity_prefix, service.affinity_group] if service.affinity_prefix else []
    quic = []
    if service.by_connection_id:
        ids = sorted((backend.server_id, backend.target, backend.port or 0) for backend in backends)
        quic = [service.quic_config_id, ids]
    return [
        service.name,
        service.address,
        service.protocol,
        service.first_port,
        service.last_port,
        service.scheduler,
        service.forwarding,
        service.table_size,
        active,
        *affinity,
        *quic,
    ]
