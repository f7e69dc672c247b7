# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents that differ from the current one in one part, as the modules for a part declare it. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config.cross_check import check
from ..config.filters import parse_filters
from ..config.model import Backend, BackendKey, Config
from ..config.parsing import parse_backends, parse_services
from ..errors import EngineError
from ..outcome import Outcome
from .consequences import resets
from .document import Document, Settings, public


def made_once(make: Callable[[Document | None], Document]) -> Callable[[Document | None], Document]:
    """Make a document of the very same one no second time."""
    last: list[tuple[Document | None, Document]] = []

    def made(current: Document | None) -> Document:
        if not last or last[0][0] is not current:
            last[:] = [(current, make(current))]
        return last[0][1]

    return made


def with_settings(document: Document | None, settings: Settings) -> Document:
    """These settings; without a document one that declares nothing else."""
    return replace(document or Document(), settings=settings)


def with_services(document: Document, raw: Any, purge: bool) -> Document:
    """These services; backends of services that go away go with them. Raises EngineError."""
    declared = parse_services(raw)
    services = declared
    if not purge:
        # The merged list is checked as a whole, ports that clash included.
        merged = {**document.config.services, **declared}
        services = parse_services([service.as_dict() for service in merged.values()])
    kept = {key: backend for key, backend in document.config.backends.items() if key.service in services}
    return _checked(document, Config(services, kept))


def parse_backend_list(raw: Any, service: str | None) -> dict[BackendKey, Backend]:
    """Entries of a list for one service need not name it. Raises EngineError."""
    if service is not None and isinstance(raw, list):
        raw = [{"service": service, **entry} if isinstance(entry, dict) else entry for entry in raw]
    return parse_backends(raw)


def with_backends(document: Document, raw: Any, purge: bool, service: str | None) -> Document:
    """These backends, of one service if `service` is given, else of all. Raises EngineError."""
    declared = parse_backend_list(raw, service)
    services = document.config.services
    if service is not None:
        if service not in services:
            known = ", ".join(services) or "none"
            raise EngineError(f"service: unknown service {service!r}; known services: {known}")
        strange = next((key for key in declared if key.service != service), None)
        if strange:
            raise EngineError(
                f"backend {strange.address} is of service {strange.service}, but only those of service "
                f"{service} are declared here"
            )
    kept = {
        key: backend
        for key, backend in document.config.backends.items()
        if not purge or (service is not None and key.service != service)
    }
    return _checked(document, Config(services, {**kept, **declared}))


def with_filters(document: Document, raw: Any, purge: bool) -> Document:
    """These filters. Raises EngineError."""
    declared = parse_filters(raw)
    return replace(document, filters=declared if purge else {**document.filters, **declared})


def _checked(document: Document, config: Config) -> Document:
    check(config)
    return replace(document, config=config)


def part_outcome(outcome: Outcome, part: str, service: str | None = None) -> Outcome:
    """What the module for a part returns: its entries before and after, of one service if `service` is given."""

    def entries(document: Document | None) -> list[dict[str, Any]]:
        if document is None:
            return []
        if part == "filters":
            return [public(entry) for entry in document.filters.values()]
        if part == "services":
            return [public(entry) for entry in document.config.services.values()]
        backends = document.config.backends.values()
        return [public(entry) for entry in backends if service is None or entry.service == service]

    details = {
        **outcome.details["changes"][part],
        **{key: outcome.details[key] for key in ("repaired", "generation", "write_seconds") if key in outcome.details},
    }
    return replace(outcome, before=entries(outcome.before), after=entries(outcome.after), details=details)


def document_outcome(outcome: Outcome) -> Outcome:
    """What modules for a document return: changes, and lists only in a difference."""
    prepared = outcome.details.get("prepared", [])

    def difference() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        before, after = document_lines(outcome.before), document_lines(outcome.after)
        if outcome.before and outcome.after:
            after += [{"effect": words} for words in resets(outcome.before, outcome.after)]
        for entry in prepared:
            for lines, key in ((before, "before"), (after, "after")):
                lines += [{f"{entry['interface']} {name}": value} for name, value in entry[key].items()]
        return before, after

    return replace(outcome, before=None, after=None, diff=difference)


def document_lines(document: Document | None) -> list[dict[str, Any]]:
    """A document as a difference shows it: an entry a line."""
    if document is None:
        return []
    shown = {**document.settings.as_dict(), "hash_seed": "set" if document.settings.hash_seed else None}
    settings = [{key: value} for key, value in shown.items()]
    services = [{"service": entry.name, **public(entry)} for entry in document.config.services.values()]
    backends = [{"backend": entry.target, **public(entry)} for entry in document.config.backends.values()]
    filters = [{"filter": entry.prefix, **public(entry)} for entry in document.filters.values()]
    return [*settings, *services, *backends, *filters]
