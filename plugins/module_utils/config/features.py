# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which parts of the program a configuration needs."""

from __future__ import annotations

from .filters import Filters
from .model import Config
from .vocabulary import DEFAULT_TABLE_SIZE, FEATURES


def used_features(config: Config, declared: Filters | None = None) -> frozenset[str]:
    """The features that a configuration and filters need compiled in."""
    needed = set()
    for service in config.services.values():
        needed |= {service.forwarding, service.scheduler, "ipv6" if service.family == 6 else ""}
        needed |= {"flow_table" if service.flow_table else "", "any_port" if service.any_port else ""}
        needed.add("handover" if service.handover_seconds else "")
        needed.add("affinity" if service.affinity_prefix else "")
        needed.add("source_ranges" if service.source_ranges else "")
        needed.add("quic" if service.by_connection_id else "")
        needed.add("table_size" if service.table_size != DEFAULT_TABLE_SIZE else "")
    if any(backend.local for backend in config.backends.values()):
        needed.add("local")
    if declared:
        needed.add("filters")
        if any(":" in key.prefix for key in declared):
            needed.add("ipv6")
    return frozenset(needed.intersection(FEATURES))
