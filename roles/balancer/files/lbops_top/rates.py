# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates of one balancer from two reads of Balancer.info(): what lbops-top shows, and prints as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Counter, its rate, and what one of the counter's units is in those of the rate.
RATES = (
    ("packets", "packets_per_second", 1),
    ("bytes", "bits_per_second", 8),
    ("reply_packets", "reply_packets_per_second", 1),
    ("reply_bytes", "reply_bits_per_second", 8),
)
# With the others, replies go to the client directly.
REPLIES_COME_BACK = ("dnat", "full_nat")

Entry = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Snapshot:
    """What Balancer.info() returned, and when by a clock that only goes forward."""

    seconds: float
    info: dict[str, Any]


def target(backend: Entry) -> str:
    """Its address, or for redirect its interface."""
    return str(backend.get("address") or backend["interface"])


def report(balancer: str, before: Snapshot | None, after: Snapshot) -> dict[str, Any]:
    """Everything of `after`, the backends below their services, with rates; without `before` those are None."""
    seconds = after.seconds - before.seconds if before else None
    known = _by_key(before.info) if before else {}

    def with_rates(key: Key, entry: Entry) -> Entry:
        return {**entry, **_rates(known.get(key), entry, seconds or 0)}

    services = [with_rates(_service_key(entry), entry) for entry in after.info["services"]]
    backends_of: dict[str, list[Entry]] = {service["name"]: [] for service in services}
    for entry in after.info["backends"]:
        backends_of[entry["service"]].append(with_rates(_backend_key(entry), entry))
    for service in services:
        backends = backends_of[service["name"]]
        total = _sum(backend["packets_per_second"] for backend in backends)
        for backend in backends:
            rate = backend["packets_per_second"]
            backend["share"] = round(rate / total, 4) if rate is not None and total else None
            _leave_out_replies(service, backend)
        service["backends"] = backends
        _leave_out_replies(service, service)
    return {
        "balancer": balancer,
        "seconds": round(seconds, 3) if seconds else None,
        "program": after.info["program"],
        "total": {rate: _sum(service[rate] for service in services) for _counter, rate, _unit in RATES},
        "services": services,
        "reasons": [with_rates(_reason_key(entry), entry) for entry in after.info["reasons"]],
    }


def _rates(before: Entry | None, after: Entry, seconds: float) -> dict[str, float | None]:
    """None for counters that are new or began anew: nobody knows how long they have been counting."""
    counted = [row for row in RATES if row[0] in after]
    if before is None or any(after[counter] < before[counter] for counter, _rate, _unit in counted):
        return {rate: None for _counter, rate, _unit in counted}
    return {rate: round((after[counter] - before[counter]) * unit / seconds, 3) for counter, rate, unit in counted}


def _leave_out_replies(service: Entry, entry: Entry) -> None:
    """Nought would be wrong where replies are not seen."""
    if service["forwarding"] not in REPLIES_COME_BACK:
        entry.update(reply_packets_per_second=None, reply_bits_per_second=None)


def _sum(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return round(sum(known), 3) if known else None


def _service_key(service: Entry) -> Key:
    return ("service", service["name"])


def _backend_key(backend: Entry) -> Key:
    return ("backend", backend["service"], target(backend), backend.get("port"))


def _reason_key(row: Entry) -> Key:
    return ("reason", row["verdict"], row["reason"])


def _by_key(info: dict[str, Any]) -> dict[Key, Entry]:
    return {
        **{_service_key(entry): entry for entry in info["services"]},
        **{_backend_key(entry): entry for entry in info["backends"]},
        **{_reason_key(entry): entry for entry in info["reasons"]},
    }
