# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters: rules for source prefixes. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .addresses import parse_prefix
from .entries import Entry, parse_entries, raise_all
from .vocabulary import FILTER_ACTIONS

FILTER_KEYS = frozenset(("name", "prefix", "action", "protocol", "rate", "burst"))
PROTOCOLS = ("any", "tcp", "udp", "icmp")
# A packet takes a whole number of nanoseconds of 32 bits.
MAX_RATE = 1_000_000_000
MAX_BURST = 0xFFFFFFFF
# Without a burst in the inventory: what arrives in a tenth of a second.
DEFAULT_BURST_SHARE = 10


class FilterKey(NamedTuple):
    """What makes a filter the same filter over changes."""

    prefix: str
    protocol: str


@dataclass(frozen=True)
class Filter:
    prefix: str
    protocol: str
    action: str
    rate: int = 0  # packets a second
    burst: int = 0  # packets
    name: str | None = None

    @property
    def key(self) -> FilterKey:
        return FilterKey(self.prefix, self.protocol)

    def as_dict(self) -> dict[str, Any]:
        limit = self.action == "limit"
        return {
            "prefix": self.prefix,
            "protocol": self.protocol,
            "action": self.action,
            "rate": self.rate if limit else None,
            "burst": self.burst if limit else None,
            "name": self.name,
        }


Filters = dict[FilterKey, Filter]


def _filter(entry: Entry) -> Filter:
    value = entry.required("prefix")
    try:
        prefix = parse_prefix(str(value))
    except ValueError as error:
        raise entry.error(f"prefix {value!r} {error}") from None
    action = entry.choice("action", FILTER_ACTIONS)
    protocol = entry.choice("protocol", PROTOCOLS, "any")
    rate = burst = 0
    if action == "limit":
        rate = entry.integer("rate", 1, MAX_RATE, entry.required("rate"))
        given = entry.raw.get("burst")
        burst = max(1, rate // DEFAULT_BURST_SHARE) if given is None else entry.integer("burst", 1, MAX_BURST, given)
    else:
        for key in ("rate", "burst"):
            if entry.raw.get(key) is not None:
                raise entry.error(f"{key} is for action limit, not for {action}")
    name = entry.raw.get("name")
    return Filter(str(prefix), protocol, action, rate, burst, None if name is None else str(name))


def parse_filters(raw: Any) -> Filters:
    """The filters by key. Raises EngineError naming each bad entry, duplicates included."""
    found: Filters = {}
    errors = []
    for entry, item in parse_entries("filters", raw, FILTER_KEYS, _filter):
        if item.key in found:
            errors.append(f"{entry.where}: duplicate filter, {item.prefix} has a rule for {item.protocol} already")
        found[item.key] = item
    raise_all(errors)
    return found
