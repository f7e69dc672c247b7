# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The prefixes whose clients may use a service, as keys of a trie. Pure functions."""

from __future__ import annotations

from ..config.addresses import parse_prefix
from ..config.model import Config
from .layout import SOURCE_RANGE


def pack_source_ranges(config: Config, rings: dict[str, int]) -> set[bytes]:
    """struct source_range of all services, with the places of their lookup tables by name."""
    found = set()
    for service in config.services.values():
        for text in service.source_ranges:
            prefix = parse_prefix(text)
            found.add(SOURCE_RANGE.pack(32 + prefix.length, rings[service.name], prefix.address.words))
    return found


def service_of(key: bytes) -> int:
    """The place of the lookup table of a struct source_range."""
    place: int = SOURCE_RANGE.unpack(key)[1]
    return place
