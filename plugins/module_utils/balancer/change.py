# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a document changes: worked out and checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..config.filters import FilterKey
from ..config.model import BackendKey, Config
from ..errors import EngineError
from ..kernel import link
from ..tables import memory
from ..tables.filter_table import pack_filter_table, pack_strictest_table
from ..tables.layout import BACKEND, BACKEND_FIELDS
from . import compiler, consequences, drift, host_check, map_set, maps, observed, plan, programs, state, writing
from .document import Document, Settings
from .handover import plan_handover
from .health_view import settled
from .hooks import HOOKS_OF_MODE, Hooks, Known, Wanted
from .map_specs import map_specs
from .native import NativeHook, examine
from .next_program import NextProgram
from .places import Places, pinned_id

EMPTY = Config({}, {})
# Of the entry of a backend, as a tuple.
SERVICE_COUNTERS, BACKEND_COUNTERS = map(BACKEND_FIELDS.index, ("service_counters", "backend_counters"))
NO_BACKEND = BACKEND.unpack(bytes(BACKEND.size))
# What remembers flows needs a table for each CPU.
REMEMBERING_FEATURES = frozenset(("flow_table", "full_nat"))


class Change:
    """What there is to do. `current` is what the state file says, None without one. All methods raise EngineError."""

    def __init__(
        self, places: Places, current: state.State | None, document: Document, force: bool, repair: bool = False
    ) -> None:
        """With `repair` interfaces that are not there are left out, so that the others go on."""
        self.places, self.current, self.document, self.force, self.repair = places, current, document, force, repair
        self.present = tuple(name for name in document.interfaces if not repair or link.exists(name))
        self.hooks = {interface: Hooks(interface) for interface in self.present}
        self.warnings: list[str] = []
        self.details: dict[str, Any] = {"compiled": False, "new_maps": False}
        self.next_program_differs = False

    # --- what is refused before anything is touched, and what there is to do

    def work_out(self) -> None:
        """Refuse what cannot be, in check mode as well, and find what there is to do."""
        document, current = self.document, self.current
        if not self.present:
            raise EngineError(f"none of the interfaces {', '.join(document.interfaces)} exists")
        for interface in self.present:
            link.interface_index(interface)
        host_check.refuse_shared_interfaces(self.places, self.present)
        self._refuse_foreign()
        self.natives = {interface: self._examine(interface) for interface in self.present}
        for interface, hooks in self.hooks.items():
            hooks.refuse_impossible(self.wanted(), self.known(interface), self.natives[interface])
        self.next_program = NextProgram(document.settings, self.places.paths.pins, self.repair)
        self.warnings += [self.next_program.problem] if self.next_program.problem else []
        self.seen = observed.load(self.places.health_file)
        with _open(self.places, current, document) as live_maps:
            self.details["new_maps"] = live_maps is None
            if live_maps is None or current is None:
                self._plan_new_maps()
            else:
                self._plan_in_place(current, live_maps)
                self.next_program_differs = self.next_program.differs(live_maps)
            known = self.current or state.State(Document())
            missing = None if live_maps is None else self.drift.previous
            self.handover = plan_handover(known, document, self.planned.allocation, missing)
            # What does not fit is refused in check mode as well.
            self.packed = writing.endpoint_tables(self.planned, document.sizes)
            self.filter_table = (
                pack_filter_table(document.filters, self.filter_ids, document.sizes) if document.filters else None
            )
            self.leaving = self._filters_to_leave()
            self.interim_filter_table = self._interim_filters()
            self._plan_program(live_maps)
        host_check.refuse_lack_of_memory(self._needed_memory())
        self.refuse_lost_next_hops(self.expected_hooks)
        host_check.refuse_wrong_arms(list(document.config.backends.values()), self.present)
        if self.changed:
            self.warnings += host_check.warnings(document) + consequences.resets(self.before, document)

    def refuse_lost_next_hops(self, hooks: dict[str, str]) -> None:
        created = [self.document.config.backends[key] for key in self.planned.backends.created]
        host_check.refuse_lost_next_hops(created, self.document, hooks)

    def _refuse_foreign(self) -> None:
        for interface, hooks in self.hooks.items():
            hooks.refuse_foreign(partial(programs.owns, self.places, interface), self.force)

    def _examine(self, interface: str) -> NativeHook:
        """What is in the way of the program on the native hook, if that is one to try."""
        document, current = self.document, self.current
        preparing = self.places.preparing_file(interface)
        hooks = self._to_try(interface)
        if "native" not in hooks:
            return NativeHook(interface, [], document.settings.prepare, preparing)
        found = examine(interface, document.settings.multi_buffer)
        attached = self.hooks[interface].attached()
        if attached and attached.hook == "native" and programs.owns(self.places, interface, attached):
            # With what is in the way of the program that is there the kernel can live.
            running = current.program.features if current else document.features
            accepted = examine(interface, "multi_buffer" in running)
            found = [problem for problem in found if problem not in accepted]
        return NativeHook(interface, found, document.settings.prepare, preparing)

    def _to_try(self, interface: str) -> tuple[str, ...]:
        if not self.document.settings.attached:
            return ()
        return self.hooks[interface].to_try(self.wanted(), self.known(interface))

    def wanted(self) -> Wanted:
        document = self.document
        settings = document.settings
        return Wanted(settings.mode, settings.attached, document.features, settings.prepare)

    def known(self, interface: str) -> Known | None:
        current = self.current
        hook = current.program.hooks.get(interface) if current else None
        if current is None or hook is None:
            return None
        settings = current.document.settings
        return Known(settings.mode, hook.hook, hook.why, settings.prepare)

    def _plan_in_place(self, known: state.State, live_maps: maps.Maps) -> None:
        document = self.document
        current = self.current = settled(known, live_maps)
        self.drift = drift.find(current, live_maps)
        self.planned = plan.make(
            current.config,
            current.allocation,
            document.config,
            document.sizes,
            self.drift,
            was_out=current.tables.out,
            out=self.seen.out(document.config),
            live=live_maps.read_endpoints() if self.drift.endpoints else None,
        )
        self.filter_ids = plan.assign_filters(document.filters, current.filter_ids_in_use, document.sizes)
        self.filters_repaired = live_maps.table_id("filters") != current.tables.filters

    def _plan_new_maps(self) -> None:
        """Everything is written. Indexes stay where they can, so that what packets left in the maps stays right."""
        document, current = self.document, self.current
        out = self.seen.out(document.config)
        self.drift, self.filters_repaired = plan.Drift(), False
        self.kept = False
        if current and _readable(self.places, current):
            everything = plan.Drift(True, frozenset(current.allocation.rings.values()), True)
            try:
                self.planned = plan.make(
                    current.config, current.allocation, document.config, document.sizes, everything, out=out
                )
                self.filter_ids = plan.assign_filters(document.filters, current.filter_ids_in_use, document.sizes)
                self.kept = _fits(self.planned.allocation, self.filter_ids, document)
            except EngineError:
                # Beside those of the old document there is no room in the new sizes.
                pass
        if not self.kept:
            self.planned = plan.make(EMPTY, plan.Allocation(), document.config, document.sizes, out=out)
            self.filter_ids = plan.assign_filters(document.filters, {}, document.sizes)

    def _filters_to_leave(self) -> tuple[state.FilterSet, ...]:
        """Those that are live, or whose documents' services are, until this document's are: they count until then."""
        current = self.current
        if current is None or self.details["new_maps"]:
            return ()
        changing = (state.FilterSet(current.filters, current.filter_ids),) if self.filters else ()
        return (*current.leaving, *changing)

    def _interim_filters(self) -> bytes | None:
        """Services and filters are switched one after the other; what either document drops is dropped in between."""
        if not self.leaving or not self.planned.changed:
            return None
        ids = {key: number for found in self.leaving for key, number in found.ids.items()}
        sets = [*(found.filters for found in self.leaving), self.document.filters]
        return pack_strictest_table(sets, {**ids, **self.filter_ids}, self.document.sizes)

    def _plan_program(self, live_maps: maps.Maps | None) -> None:
        """Which features the program has while both documents are live, and whether it has to be put on hooks."""
        document, current = self.document, self.current
        running = frozenset(current.program.features) if current and live_maps else frozenset()
        self.interim = document.features | running
        build = self.build(self.interim)
        self.digest = build.digest()
        same = live_maps is not None and current is not None and current.program.digest == self.digest
        self.reusable = same
        self.due = [interface for interface in self.present if not same or not self._is_right(interface, live_maps)]
        known = [*(current.program.hooks if current else ()), *self.places.pinned_interfaces()]
        self.removed = [interface for interface in dict.fromkeys(known) if interface not in document.interfaces]

    def _needed_memory(self) -> memory.Needs:
        """For what is not there yet."""
        document, current = self.document, self.current
        new_maps = self.details["new_maps"]
        kept = current if current and (not new_maps or self.kept) else None
        former = kept.program.sizes if kept else None
        new_flow_tables = bool(self.interim & REMEMBERING_FEATURES) and (
            kept is None
            or not REMEMBERING_FEATURES.intersection(kept.program.features)
            or document.sizes.flow_buckets != kept.program.sizes.flow_buckets
        )
        new_filters = bool(document.filters) and (new_maps or bool(self.filters) or self.filters_repaired)
        needs = host_check.needed_memory(self.planned, document, former, new_maps, new_flow_tables, new_filters)
        written = (self.handover.wanted[name].service for name in self.handover.written)
        return needs + memory.previous_tables(written)

    def _is_right(self, interface: str, live_maps: maps.Maps | None) -> bool:
        """Whether an interface has what the document asks for."""
        document, current = self.document, self.current
        known = self.known(interface)
        attached, pinned = self.hooks[interface].attached(), pinned_id(self.places.program(interface))
        if current is None or known is None or pinned is None or live_maps is None:
            return False
        before, after = current.document.settings, document.settings
        if (before.mode, before.prepare) != (after.mode, after.prepare):
            return False
        if not programs.uses_maps(pinned, live_maps):
            return False
        if not after.attached:
            return attached is None or attached.program_id != pinned
        if not attached or attached.program_id != pinned or attached.hook not in HOOKS_OF_MODE[after.mode]:
            return False
        return not self.hooks[interface].shadowed_by(attached)

    def build(self, features: frozenset[str]) -> compiler.Build:
        settings = self.document.settings
        return compiler.Build(Path(settings.source), features, settings.sizes, hash_seed=settings.hash_seed)

    @cached_property
    def expected_hooks(self) -> dict[str, str]:
        """By interface, the hook that its program is on or that is tried first; empty for none."""
        return {
            interface: hooks.likely(self.wanted(), self.known(interface), self.natives[interface])
            for interface, hooks in self.hooks.items()
        }

    @cached_property
    def filters(self) -> plan.Changes:
        return plan.compare(self.before.filters, self.document.filters)

    @property
    def before(self) -> Document:
        return self.current.document if self.current else Document()

    @cached_property
    def interfaces(self) -> plan.Changes:
        before, after = self.before.interfaces, self.document.interfaces
        return plan.Changes(
            [name for name in after if name not in before],
            [name for name in self.due if name in before],
            [name for name in before if name not in after],
        )

    @property
    def repaired(self) -> bool:
        replaced = self.next_program_differs and self.before.settings == self.document.settings
        return bool(self.drift) or self.filters_repaired or replaced

    @property
    def program_changes(self) -> bool:
        shrinks = self.interim != self.document.features
        return bool(self.due or self.removed or shrinks or self.details["new_maps"])

    @property
    def changed(self) -> bool:
        settings = self.before.settings != self.document.settings
        return bool(
            self.current is None
            or self.services
            or self.backends
            or self.filters
            or self.repaired
            or settings
            or self.next_program_differs
            or self.program_changes
        )

    def labels(self) -> dict[str, dict[str, list[str]]]:
        """What is created, modified and removed, in words."""
        parts = {
            "interfaces": self.interfaces,
            "services": self.services,
            "backends": self.backends,
            "filters": self.filters,
        }
        return {
            name: {kind: [_label(key) for key in getattr(changes, kind)] for kind in ("created", "modified", "removed")}
            for name, changes in parts.items()
        }

    def foresee(self) -> None:
        """What check mode can tell: preparations as if the kernel were as strict as it may be."""
        for native in self.natives.values():
            native.plan()
        self.report_natives()

    @cached_property
    def services(self) -> plan.Changes:
        return plan.compare(self.before.config.services, self.document.config.services)

    @cached_property
    def backends(self) -> plan.Changes:
        return plan.compare(self.before.config.backends, self.document.config.backends)

    def report_natives(self) -> None:
        """Say what was prepared, and what the kernel has taken with a loss."""
        self.details["prepared"] = [entry for native in self.natives.values() for entry in native.prepared]
        self.warnings += [warning for native in self.natives.values() for warning in native.warnings]

    def attachment(self, interface: str) -> programs.Attachment:
        return programs.Attachment(interface, self.wanted(), self.known(interface), self.natives[interface])


def _label(key: Any) -> str:
    if isinstance(key, FilterKey):
        return key.prefix + (f" {key.protocol}" if key.protocol != "any" else "")
    if isinstance(key, BackendKey):
        return f"{key.service} {key.address}" + (f":{key.port}" if key.port is not None else "")
    return str(key)


@contextmanager
def _open(places: Places, current: state.State | None, document: Document) -> Iterator[maps.Maps | None]:
    """The pinned maps if the document can be written into them, else None."""
    # A pinned map of maps does not tell the size of those in it.
    if current is not None and map_specs(current.program.sizes) != map_specs(document.sizes):
        yield None
        return
    try:
        live_maps = map_set.open_pinned(places.maps, document.sizes)
    except map_set.OtherLayout:
        yield None
        return
    with live_maps:
        yield live_maps if current else None


def _readable(places: Places, current: state.State) -> bool:
    """Whether the maps of the state are pinned, in a layout of which new maps can share some."""
    try:
        map_set.open_shareable(places.maps, current.program.sizes).close()
        return True
    except map_set.OtherLayout:
        return False


def adopted(places: Places, document: Document) -> state.State | None:
    """Maps whose state file is lost go on as they are; what packets may see in them is not given away."""
    try:
        live_maps = map_set.open_pinned(places.maps, document.sizes)
    except map_set.OtherLayout:
        return None
    with live_maps:
        entries = list(BACKEND.iter_unpack(live_maps.read_backends()))
        visible = [index for index, entry in enumerate(entries) if index and entry != NO_BACKEND]
        allocation = plan.Allocation(
            retiring_rings=frozenset(live_maps.ring_ids()),
            retiring_backends=frozenset(visible),
            retiring_service_counters=frozenset(entries[index][SERVICE_COUNTERS] for index in visible),
            retiring_backend_counters=frozenset(entries[index][BACKEND_COUNTERS] for index in visible),
        )
        ids = drift.table_ids(live_maps)
    return state.State(
        Document(Settings(sizes=document.sizes)),
        state.ProgramState(sizes=document.sizes),
        allocation=allocation,
        tables=state.Tables(ids[0], ids[1], ids[2]),
    )


def _fits(allocation: plan.Allocation, filter_ids: dict[Any, int], document: Document) -> bool:
    """Whether all indexes lie within the maps of these sizes."""
    sizes = document.sizes
    sessions = [place.first_session + pool.ports for pool, place in allocation.pools.items()]
    return (
        max([*allocation.rings.values(), *allocation.service_counters.values()], default=0) < sizes.max_services
        and max([*allocation.backends.values(), *allocation.backend_counters.values()], default=0) < sizes.max_backends
        and max(sessions, default=0) <= sizes.max_sessions
        and max(filter_ids.values(), default=0) < sizes.max_filters
    )
