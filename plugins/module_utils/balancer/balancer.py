# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer by its name: what modules, the boot-time restore, health checks and the exporter do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..config.filters import parse_filters
from ..config.parsing import parse_services
from ..errors import EngineError
from ..kernel import device, files, link, neighbours
from ..outcome import Outcome
from . import (
    drift,
    fill,
    handover,
    health_store,
    health_view,
    history,
    host_settings,
    legacy,
    live,
    lock,
    map_set,
    observed,
    offload,
    offload_change,
    programs,
    reader,
    slices,
    state,
    writing,
)
from .change import adopted
from .document import Document, Settings, addresses_of_kernel
from .hooks import Hooks
from .interfaces import known_interfaces
from .native import finish
from .places import Places, remove_if_empty, remove_tree
from .transaction import detach

# How long the neighbours of the first packets get to answer before they are needed.
RESOLVE_TIMEOUT = 3.0  # seconds


@dataclass(frozen=True)
class Conditions:
    """Under which a document is applied."""

    # The generation that the caller started from; None: any.
    generation: int | None = None
    # Replace programs that somebody else attached.
    force: bool = False
    applied_by: str = ""
    # Seconds to wait for the lock; None: for ever.
    lock_timeout: float | None = 30.0
    # Put back what is declared, on the interfaces that are there.
    repair: bool = False


class Balancer:
    """All methods raise EngineError; none of them changes anything when `check` is true."""

    def __init__(self, name: str, paths: state.Paths = state.HOST_PATHS) -> None:
        self.places = Places(name, paths)
        self.name, self.paths = name, paths
        self.state_file, self.health_file = self.places.state_file, self.places.health_file
        self._health = health_store.HealthStore(self.state_file, self.health_file)
        # The state as it was read last, with the version of its file.
        self._known: tuple[health_store.Version, state.State | None] | None = None

    # --- changing it

    def apply(self, document: Document, check: bool, conditions: Conditions = Conditions()) -> Outcome:
        """Make this the balancer's document."""
        return self._change(lambda _current: document, check, conditions, document.interfaces)

    def change(
        self, make: Callable[[Document], Document], check: bool, conditions: Conditions = Conditions()
    ) -> Outcome:
        """Make the current document another one; there has to be one."""

        def changed(current: Document | None) -> Document:
            if current is None:
                raise EngineError(
                    f"there is no balancer {self.name} on this host; declare it with xdp_balancer or xdp_program first"
                )
            return make(current)

        return self._change(changed, check, conditions)

    def _read(self) -> state.State | None:
        """The state, parsed again only if its file is another one."""
        version = health_store.version_of(self.state_file)
        if version is None:
            return state.load(self.state_file)
        if self._known is None or self._known[0] != version:
            self._known = version, state.load(self.state_file)
        return self._known[1]

    def _change(
        self,
        make: Callable[[Document | None], Document],
        check: bool,
        conditions: Conditions,
        interfaces: tuple[str, ...] = (),
    ) -> Outcome:
        started = time.monotonic()
        make = slices.made_once(make)
        problems = self._resolve_new_neighbours(make, check)
        with self._locked(check, conditions.lock_timeout):
            waited = time.monotonic() - started
            current = self._load(check, interfaces)
            state.refuse_other_generation(self.name, current, conditions.generation)
            document = make(current.document if current else None)
            outcome = self._carry_out(current, document, check, conditions, started, waited)
        unresolved = [f"backend {address}: {problem}" for address, problem in sorted(problems.items())]
        return replace(outcome, warnings=[*outcome.warnings, *unresolved])

    def _carry_out(
        self,
        current: state.State | None,
        document: Document,
        check: bool,
        conditions: Conditions,
        started: float,
        waited: float,
    ) -> Outcome:
        known, repair = current or adopted(self.places, document), conditions.repair
        change = offload_change.plan_change(self.places, known, document, conditions.force, repair)
        change.warnings += [
            f"{name}: its balancer is removed with its flows, sessions and counters; only the first interface's is "
            "taken over"
            for name in legacy.given_up(self.places, document.interfaces)
        ]
        settings = self._set_host(document, True, repair)
        planned = time.monotonic() - started - waited
        after_state = current
        if not check and settings:
            # Before the first packet needs them. Files below /etc are out of reach of the units that apply it again.
            self._set_host(document, False, repair)
        if check:
            change.foresee()
        elif change.changed:
            try:
                after_state = offload_change.carry_out(change, conditions.applied_by or history.applied_by())
            except BaseException:
                if settings and not repair:
                    self._set_host(current.document if current else None, False)
                raise
            legacy.discard(self.places, document.interfaces)
        details = change.details
        details.update(
            generation=after_state.generation if after_state else 0,
            changes=change.labels(),
            repaired=change.repaired,
            kernel_settings=settings,
            timings={
                "lock": round(waited, 3),
                "plan": round(planned, 3),
                "write": round(time.monotonic() - started - waited - planned, 3),
            },
            program=reader.program_facts(self.places, after_state),
        )
        old = current.document if current else None
        warnings = [*change.warnings, *fill.problems()]
        return Outcome(change.changed or bool(settings), old, document, details, warnings)

    def _set_host(self, document: Document | None, check: bool, repair: bool = False) -> list[str]:
        """Kernel settings that all balancers of the host need, this one with `document`; returns what differs."""
        if self.paths.sysctl is None:
            return []
        names = [name for name in state.balancers(self.paths) if name != self.name]
        found = {name: state.load(self.paths.state_file(name)) for name in names}
        documents = {name: other.document for name, other in found.items() if other}
        others = tuple(documents)
        if document is not None:
            documents[self.name] = document
        needs = {
            name: (device.with_bonds(entry.interfaces), entry.has_ipv6)
            for name, entry in documents.items()
            # The kernel forwards nothing for a network card.
            if not offload.is_mode_of(entry)
        }
        paths = host_settings.Paths(configuration=self.paths.sysctl, record=self.paths.state / "sysctl.json")
        if repair and not check:
            return host_settings.restore(needs, paths)
        return host_settings.apply(needs, check, paths, lenient=(*others, self.name) if repair else others)

    def _resolve_new_neighbours(self, make: Callable[[Document | None], Document], check: bool) -> dict[str, str]:
        """Have the kernel ask for the neighbours of new backends before a packet needs them, without the lock.

        Returns by address why there is no next hop.
        """
        self.places.check_host()
        if check:
            return {}
        current = self._read()
        document = make(current.document if current else None)
        known = current.config.backends if current else {}
        created = [backend for key, backend in document.config.backends.items() if key not in known]
        if not created:
            return {}
        return neighbours.resolve(neighbours.ways(addresses_of_kernel(created)), RESOLVE_TIMEOUT)

    @contextmanager
    def _locked(self, check: bool, timeout: float | None) -> Iterator[None]:
        self.places.check_host()
        with lock.locked(self.paths.state, create=not check, timeout=timeout):
            yield

    def _load(self, check: bool, interfaces: tuple[str, ...]) -> state.State | None:
        """The state, once what an interrupted run left is completed."""
        former = legacy.find(self.paths, interfaces)
        if former and check and not self.state_file.exists():
            return legacy.load(self.paths, former)
        if former and not check:
            legacy.take_over(self.places, former)
        current = self._read()
        if not check:
            programs.complete_interrupted(self.places, current)
            self._finish_preparations()
            following, lapsed = current and current.tables.following, current and handover.has_lapsed(current)
            if current and (following or lapsed) and self.places.maps.exists():
                save = partial(state.save, self.state_file)
                with map_set.open_pinned(self.places.maps, current.program.sizes) as live_maps:
                    if following:
                        current = health_view.follow(current, live_maps, self.observed(), save)
                    if lapsed:
                        current = handover.discard_lapsed(current, live_maps, save)
        return current

    def _finish_preparations(self) -> None:
        """What a killed run prepared stays only if its program is on the driver's hook."""
        for path in sorted(self.places.state_directory.glob("preparing-*.json")):
            interface = path.stem.removeprefix("preparing-")
            attached = Hooks(interface).attached() if link.exists(interface) else None
            ours = attached and attached.hook == "native" and programs.owns(self.places, interface, attached)
            finish(interface, path, bool(ours))

    def remove(self, check: bool, conditions: Conditions = Conditions()) -> Outcome:
        """Detach our programs and remove pins, maps and state; a program of somebody else stays."""
        with self._locked(True, conditions.lock_timeout):
            try:
                current = state.load(self.state_file)
            except EngineError:
                if not conditions.force:
                    raise
                current = None
            exists = self.places.pins.exists() or self.places.state_directory.exists()
            if exists:
                state.refuse_other_generation(self.name, current, conditions.generation)
            if exists and not check:
                # A program of a killed run may be on an interface that nothing else tells of.
                programs.complete_interrupted(self.places, current)
                known = current.program.hooks if current else {}
                for interface in dict.fromkeys([*known, *self.places.pinned_interfaces()]):
                    detach(self.places, interface)
                self._finish_preparations()
                remove_tree(self.places.pins)
                self._set_host(None, check=False)
                # Last, since a killed run has to be told what there is to remove.
                remove_tree(self.places.state_directory)
                remove_if_empty(self.paths.pins)
        document = current.document if current else None
        return Outcome(exists, document, None, {"generation": 0}, [])

    # --- parts of the document

    def apply_program(self, settings: Settings, check: bool, conditions: Conditions = Conditions()) -> Outcome:
        """Make these the settings of the program; services, backends and filters stay."""
        return self._change(
            lambda document: slices.with_settings(document, settings), check, conditions, settings.interfaces
        )

    def apply_services(self, raw: Any, purge: bool, check: bool) -> Outcome:
        """Make these the services; backends of services that go away go with them."""
        parse_services(raw)
        return self.change(lambda document: slices.with_services(document, raw, purge), check)

    def apply_backends(self, raw: Any, purge: bool, check: bool, service: str | None = None) -> Outcome:
        """Make these the backends: of one service if `service` is given, else of all."""
        slices.parse_backend_list(raw, service)
        return self.change(lambda document: slices.with_backends(document, raw, purge, service), check)

    def apply_filters(self, raw: Any, purge: bool, check: bool) -> Outcome:
        """Make these the filters, all at once."""
        parse_filters(raw)
        return self.change(lambda document: slices.with_filters(document, raw, purge), check)

    # --- what health checks see

    def observe(self, seen: observed.Observed, news: writing.News = lambda: None) -> health_view.Followed:
        """Have lookup tables and flow tables follow what health checks saw; the document stays as it is.

        `news` is asked between tables, and returns what was seen since, or None.
        """
        self.places.check_host()

        def newer() -> observed.Observed | None:
            found = news()
            if found is not None:
                self._health.save_seen(found)
            return found

        # No directory is made: where there is none, there is no balancer either.
        with lock.locked(self.paths.state, create=False):
            current = self._live(self._health.load())
            self._health.save_seen(seen)
            if offload.is_mode_of(current.document):
                followed = offload.follow(self.places, current, seen, self._health.save)
                return health_view.Followed(followed.tables.out, self._health.refusal)
            with map_set.open_pinned(self.places.maps, current.program.sizes) as live_maps:
                if not drift.is_sure(current, live_maps):
                    raise EngineError(f"a change of balancer {self.name} was interrupted; apply or restore it first")
                followed = health_view.follow(current, live_maps, seen, self._health.save, newer)
        return health_view.Followed(followed.tables.out, self._health.refusal)

    def _live(self, current: state.State | None) -> state.State:
        if current is None or not self._is_loaded(current):
            raise EngineError(f"balancer {self.name} is not loaded on this host; apply it, or restore it")
        return current

    def _is_loaded(self, current: state.State) -> bool:
        return self.places.maps.exists() or offload.is_loaded(self.places, current)

    def configured(self) -> health_store.Version | None:
        """Another one when a module has written the state since, but not when observe() has."""
        return self._health.configured()

    def forgotten(self) -> bool:
        """Whether somebody else changed or removed what observe() wrote down."""
        return self._health.forgotten()

    def forget_health(self) -> None:
        """Nothing is checked any more: what is desired is all there is to go by."""
        current = state.load(self.state_file)
        if current is not None and self._is_loaded(current):
            refusal = self.observe(observed.Observed()).refusal
            if refusal:
                raise EngineError(f"health state was cleared in the kernel but could not be saved: {refusal}")
        files.remove(self.health_file)

    def observed(self) -> observed.Observed:
        """What health checks saw last."""
        return observed.load(self.health_file)

    # --- reading

    def info(self) -> dict[str, Any]:
        """Everything live: program, services and backends with their counters, packets by reason."""
        self.places.check_host()
        # No lock: the state file is replaced as a whole, and a reader must not wait for a long apply.
        found = self.read(state.load(self.state_file)).info()
        return {**found, "history": history.entries(self.places.history)}

    def read(self, current: state.State | None) -> live.Reading:
        """What is live of what the state file says. Asks for nothing but reading."""
        return reader.read(self.places, current)

    # --- what runs on the host without a controller

    def next_hop_addresses(self) -> list[str]:
        """The backends whose next hop the kernel's tables decide."""
        current = state.load(self.state_file)
        return [] if current is None else addresses_of_kernel(current.config.backends.values())

    def forget_next_hops(self) -> None:
        """Routes, links or neighbours changed: the program asks the kernel's tables again."""
        current = state.load(self.state_file)
        if current is None or not self._is_loaded(current):
            return
        if offload.is_mode_of(current.document):
            offload.refresh(self.places, current)
            return
        present = tuple(name for name in current.document.interfaces if link.exists(name))
        with map_set.open_pinned(self.places.maps, current.program.sizes) as live_maps:
            live_maps.update_control(known_interfaces(present))
            live_maps.set_links(link.links_up(current.config.redirect_interfaces()))

    def restore(self) -> Outcome:
        """Put back what the state file declares: programs, maps and their content."""
        if state.load(self.state_file) is None:
            raise EngineError(f"{self.state_file} does not exist, so there is nothing to restore of {self.name}")
        # The first packets would be lost. lbops-watch resolves neighbours that do not answer in time.
        neighbours.resolve(neighbours.ways(self.next_hop_addresses()), RESOLVE_TIMEOUT)
        # The document is read under the lock, so that a change that comes first is not taken back.
        return self.change(lambda document: document, False, Conditions(lock_timeout=None, repair=True))
