# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One change of a balancer: from a document to maps and hooks. A packet meets the old document or the new one.

plan() refuses what cannot be, and touches nothing. carry_out() writes: new programs and maps first, where they are
needed; then tables, adding, switching in one step, removing last; then what nothing uses any more is taken away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.model import Config
from ..errors import EngineError
from ..kernel import link
from ..tables.filter_table import pack_filter_table
from ..tables.layout import BACKEND
from . import compiled, compiler, counters, drift, history, host_check, maps, observed, plan, programs, state, writing
from .document import Document, Settings
from .health_view import settled
from .hooks import HOOKS_OF_MODE, Hooks, Known, Wanted
from .native import NativeHook, examine
from .places import Places, pinned_id, remove_tree

EMPTY = Config({}, {})
# What remembers flows needs a table for each CPU.
REMEMBERING_FEATURES = frozenset(("flow_table", "full_nat"))


class Transaction:
    """`current` is what the state file says, None without one. All methods raise EngineError."""

    def __init__(self, places: Places, current: state.State | None, document: Document, force: bool) -> None:
        self._places, self._current, self._document, self._force = places, current, document, force
        self._hooks = {interface: Hooks(interface) for interface in document.interfaces}
        self.warnings: list[str] = []
        self.details: dict[str, Any] = {"compiled": False, "new_maps": False}

    # --- what is refused before anything is touched, and what there is to do

    def plan(self) -> None:
        document, current = self._document, self._current
        for interface in document.interfaces:
            link.interface_index(interface)
        host_check.refuse_shared_interfaces(self._places, document.interfaces)
        self._refuse_foreign()
        self._natives = {interface: self._examine(interface) for interface in document.interfaces}
        self._seen = observed.load(self._places.health_file)
        with _open(self._places, current, document) as live_maps:
            self.details["new_maps"] = live_maps is None
            if live_maps is None:
                self._plan_new_maps()
            else:
                self._plan_in_place(live_maps)
            # What does not fit is refused in check mode as well.
            self._packed = writing.endpoint_tables(self.planned, document.sizes)
            self._filter_table = (
                pack_filter_table(document.filters, self._filter_ids, document.sizes) if document.filters else None
            )
            self._plan_program(live_maps)
        created = [document.config.backends[key] for key in self.planned.backends.created]
        host_check.refuse_lost_next_hops(created, self._expected_hooks())

    def _refuse_foreign(self) -> None:
        for interface, hooks in self._hooks.items():
            attached = hooks.attached()
            if attached and not self._force and not programs.owns(self._places, interface, attached):
                hooks.refuse_foreign(attached)

    def _examine(self, interface: str) -> NativeHook:
        """Raises EngineError if the native hook is the only one asked for, and is known not to take the program."""
        document, current = self._document, self._current
        preparing = self._places.preparing_file(interface)
        hooks = self._to_try(interface)
        if "native" not in hooks:
            return NativeHook(interface, [], document.settings.prepare, preparing)
        found = examine(interface, document.settings.multi_buffer)
        attached = self._hooks[interface].attached()
        if attached and attached.hook == "native" and programs.owns(self._places, interface, attached):
            # With what is in the way of the program that is there the kernel can live.
            running = current.program.features if current else document.features
            accepted = examine(interface, "multi_buffer" in running)
            found = [problem for problem in found if problem not in accepted]
        native = NativeHook(interface, found, document.settings.prepare, preparing)
        if native.refusal and hooks == ("native",):
            raise EngineError(native.refusal)
        return native

    def _to_try(self, interface: str) -> tuple[str, ...]:
        if not self._document.settings.attached:
            return ()
        return self._hooks[interface].to_try(self._wanted(), self._known(interface))

    def _wanted(self) -> Wanted:
        document = self._document
        return Wanted(document.settings.mode, document.settings.attached, document.settings.prepare, document.features)

    def _known(self, interface: str) -> Known | None:
        current = self._current
        hook = current.program.hooks.get(interface) if current else None
        if current is None or hook is None:
            return None
        return Known(current.document.settings.mode, current.document.settings.prepare, hook.hook, hook.why)

    def _plan_in_place(self, live_maps: maps.Maps) -> None:
        assert self._current is not None
        document = self._document
        current = self._current = settled(self._current, live_maps)
        self.drift = drift.find(current, live_maps)
        self.planned = plan.make(
            current.config,
            current.allocation,
            document.config,
            document.sizes,
            self.drift,
            was_out=current.tables.out,
            out=self._seen.out(document.config),
        )
        self._filter_ids = plan.assign_filters(document.filters, current.filter_ids, document.sizes)
        self.filters_repaired = live_maps.table_id("filters") != current.tables.filters

    def _plan_new_maps(self) -> None:
        """Everything is written. Indexes stay where they can, so that what packets left in the maps stays right."""
        document, current = self._document, self._current
        out = self._seen.out(document.config)
        self.drift, self.filters_repaired = plan.Drift(), False
        self._kept = False
        if current and _readable(self._places, current):
            everything = plan.Drift(True, frozenset(current.allocation.rings.values()), True)
            try:
                self.planned = plan.make(
                    current.config, current.allocation, document.config, document.sizes, everything, out=out
                )
                self._filter_ids = plan.assign_filters(document.filters, current.filter_ids, document.sizes)
                self._kept = _fits(self.planned.allocation, self._filter_ids, document)
            except EngineError:
                # Beside those of the old document there is no room in the new sizes.
                pass
        if not self._kept:
            self.planned = plan.make(EMPTY, plan.Allocation(), document.config, document.sizes, out=out)
            self._filter_ids = plan.assign_filters(document.filters, {}, document.sizes)

    def _plan_program(self, live_maps: maps.Maps | None) -> None:
        """Which features the program has while both documents are live, and whether it has to be put on hooks."""
        document, current = self._document, self._current
        running = frozenset(current.program.features) if current and live_maps else frozenset()
        self._interim = document.features | running
        build = self._build(self._interim)
        self._digest = build.digest()
        same = live_maps is not None and current is not None and current.program.digest == self._digest
        self._reusable = same
        self._due = [
            interface
            for interface in document.interfaces
            if not same or not self._is_right(interface, live_maps)
        ]
        known = [*(current.program.hooks if current else ()), *self._places.pinned_interfaces()]
        self._removed = [interface for interface in dict.fromkeys(known) if interface not in document.interfaces]

    def _is_right(self, interface: str, live_maps: maps.Maps | None) -> bool:
        """Whether an interface has what the document asks for."""
        document, current = self._document, self._current
        known = self._known(interface)
        attached, pinned = self._hooks[interface].attached(), pinned_id(self._places.program(interface))
        if current is None or known is None or pinned is None or live_maps is None:
            return False
        before, after = current.document.settings, document.settings
        if (before.mode, before.prepare) != (after.mode, after.prepare):
            return False
        if not programs.uses_maps(pinned, live_maps):
            return False
        if not after.attached:
            return attached is None or attached.program_id != pinned
        return bool(attached and attached.program_id == pinned and attached.hook in HOOKS_OF_MODE[after.mode])

    def _build(self, features: frozenset[str]) -> compiler.Build:
        return compiler.Build(Path(self._document.settings.source), features, self._document.sizes)

    def _expected_hooks(self) -> dict[str, str]:
        """By interface, the hook that its program is on or that is tried first; empty for none."""
        found = {}
        for interface in self._hooks:
            refused = bool(self._natives[interface].refusal)
            tried = (hook for hook in self._to_try(interface) if not (hook == "native" and refused))
            found[interface] = next(tried, "")
        return found

    @property
    def filters(self) -> plan.Changes:
        return plan.compare(self._before.filters, self._document.filters)

    @property
    def _before(self) -> Document:
        return self._current.document if self._current else Document()

    @property
    def interfaces(self) -> plan.Changes:
        before, after = self._before.interfaces, self._document.interfaces
        return plan.Changes(
            [name for name in after if name not in before],
            [name for name in self._due if name in before],
            [name for name in before if name not in after],
        )

    @property
    def repaired(self) -> bool:
        return bool(self.drift) or self.filters_repaired

    @property
    def program_changes(self) -> bool:
        shrinks = self._interim != self._document.features
        return bool(self._due or self._removed or shrinks or self.details["new_maps"])

    @property
    def changed(self) -> bool:
        settings = self._before.settings != self._document.settings
        return bool(
            self._current is None
            or self.services
            or self.backends
            or self.filters
            or self.repaired
            or settings
            or self.program_changes
        )

    def foresee(self) -> None:
        """What check mode can tell: preparations as if the kernel were as strict as it may be."""
        for native in self._natives.values():
            native.plan()
        self._report_natives()

    @property
    def services(self) -> plan.Changes:
        return plan.compare(self._before.config.services, self._document.config.services)

    @property
    def backends(self) -> plan.Changes:
        return plan.compare(self._before.config.backends, self._document.config.backends)

    # --- carrying it out

    def carry_out(self, applied_by: str) -> state.State:
        """The state afterwards, which is saved."""
        places = self._places
        places.make()
        places.state_directory.mkdir(mode=0o700, exist_ok=True)
        places.compiled.mkdir(mode=0o700, exist_ok=True)
        remove_tree(places.new_maps)
        before = self._current
        try:
            hooks, live_maps = self._put_programs()
        except BaseException:
            remove_tree(places.new_maps)
            if before:
                state.save(places.state_file, before)
            raise
        with live_maps:
            written = self._write_tables(hooks, live_maps)
            self._remove_interfaces()
            written = self._shrink(written, live_maps)
            self.details["write_seconds"] = round(live_maps.write_seconds, 6)
        self._verify(written)
        self._report_natives()
        return self._save(written, applied_by)

    def _put_programs(self) -> tuple[dict[str, state.Hook], maps.Maps]:
        """Have a program that knows both documents on every hook, over the maps that are to be."""
        places, document, current = self._places, self._document, self._current
        known = current.program.hooks if current else {}
        if not self._due:
            hooks = {interface: known[interface] for interface in document.interfaces}
            return hooks, maps.open_pinned(places.maps, document.sizes)
        new_maps = self.details["new_maps"]
        live_maps = self._make_maps() if new_maps else maps.open_pinned(places.maps, document.sizes)
        try:
            with programs.Loader(self._build(self._interim), live_maps, places.compiled) as loader:
                self._load(loader)
                self._save_program_intent()
                if new_maps:
                    self._carry_counters(live_maps)
                if self._interim & REMEMBERING_FEATURES:
                    live_maps.create_flow_tables()
                live_maps.update_control(mtus(document.interfaces))
                found = programs.put_all(
                    places,
                    [
                        programs.Attachment(interface, self._wanted(), self._known(interface), self._natives[interface])
                        for interface in document.interfaces
                        if new_maps or interface in self._due
                    ],
                    loader,
                    lambda: programs.adopt_new_maps(places) if new_maps else None,
                )
                self.details["compiled"] |= loader.compiled
        except BaseException:
            live_maps.close()
            raise
        now = time.time()
        put = {name: state.Hook(hook, why, now if hook else 0.0) for name, (hook, why) in found.items()}
        # Preparing a driver may have changed an MTU.
        live_maps.update_control(mtus(document.interfaces))
        return {name: put.get(name) or known[name] for name in document.interfaces}, live_maps

    def _load(self, loader: programs.Loader) -> None:
        """What the verifier refuses is to be known before anything is touched."""
        for interface, hook in self._expected_hooks().items():
            known = self._known(interface)
            if self._reusable and known and pinned_id(self._places.program(interface)):
                loader.reuse(known.hook == "tc", self._places.program(interface))
            elif hook != "offload":
                loader.program(hook == "tc")

    def _save_program_intent(self) -> None:
        """A killed run leaves a state that is sure of no more than both programs have."""
        current = self._current
        if current:
            both = sorted(self._interim.intersection(current.program.features))
            unsure = replace(current.program, digest="", features=both)
            state.save(self._places.state_file, replace(current, program=unsure))

    def _make_maps(self) -> maps.Maps:
        """New maps with everything that the document declares, and with what packets left in the old ones."""
        places, document, current = self._places, self._document, self._current
        old = maps.open_pinned(places.maps, current.program.sizes) if current and self._kept else None
        try:
            live_maps = maps.create(document.sizes, old)
        finally:
            if old:
                old.close()
        places.new_maps.mkdir(mode=0o700)
        maps.pin(live_maps, places.new_maps)
        tables = writing.write(self.planned, live_maps, state.Tables(), self._packed, linger=False)
        self._new_tables = replace(tables, filters=live_maps.swap_table("filters", self._filter_table))
        return live_maps

    def _carry_counters(self, live_maps: maps.Maps) -> None:
        """Compiling takes a second, in which the old maps go on counting: this comes last."""
        current = self._current
        self._carried = False
        if current is None:
            return
        try:
            old = maps.open_pinned(self._places.maps, current.program.sizes)
        except EngineError:
            # Maps of another layout may count something else.
            return
        with old:
            counters.carry(current, self.planned.allocation, self._filter_ids, old, live_maps)
        self._carried = True

    def _write_tables(self, hooks: dict[str, state.Hook], live_maps: maps.Maps) -> state.State:
        document, current = self._document, self._current or state.State(self._document)
        program = state.ProgramState(self._digest, sorted(self._interim), document.sizes, hooks)
        after = replace(current, document=document, program=program)
        if self.details["new_maps"]:
            departed = current.departed.after({}, {}, document.config.services, document.config.backends)
            settled_allocation = plan.settled(self.planned.allocation)
            since = current.counting_since if self._carried else 0.0
            return replace(
                after,
                allocation=settled_allocation,
                tables=self._new_tables,
                filter_ids=self._filter_ids,
                departed=departed,
                counting_since=since,
            )
        if self.planned.changed:
            # Nobody has these indexes yet: a run killed from here on leaves no backend with another's numbers.
            live_maps.zero_counters("service_counters", self.planned.zero_service_counters)
            live_maps.zero_counters("backend_counters", self.planned.zero_backend_counters)
            counters.resume(current, self.planned, live_maps)
            departed = counters.departed(current, self.planned, live_maps)
            self._save_intent(after, departed, current.tables.filters)
            written = writing.write(self.planned, live_maps, current.tables, self._packed)
            # Until here packets may have been counted for what is removed.
            departed = counters.departed(current, self.planned, live_maps)
            after = replace(
                after, allocation=plan.settled(self.planned.allocation), tables=written, departed=departed
            )
        if self.filters or self.filters_repaired:
            after = self._write_filters(current, after, live_maps)
        return replace(after, filter_ids=self._filter_ids)

    def _save_intent(self, after: state.State, departed: Any, filters: int) -> None:
        """Before the maps are touched: a killed run leaves a state whose indexes are right and whose tables are not."""
        # The filters are written after this; until then the old table is live.
        intent = replace(
            after,
            allocation=self.planned.allocation,
            tables=state.Tables(filters=0 if self.filters else filters),
            filter_ids=self._filter_ids,
            departed=departed,
        )
        state.save(self._places.state_file, intent)

    def _write_filters(self, current: state.State, after: state.State, live_maps: maps.Maps) -> state.State:
        ids = self._filter_ids
        unsure = replace(after, filter_ids=ids, tables=replace(after.tables, filters=0))
        state.save(self._places.state_file, unsure)
        created = [ids[key] for key in ids if key not in current.filter_ids]
        live_maps.zero_counters("filter_counters", created)
        live_maps.reset_limits(created)
        written = live_maps.swap_table("filters", self._filter_table)
        # A limit that was used up under the old rate would be so for as long as that rate says.
        live_maps.reset_limits(ids[key] for key in ids if current.filters.get(key) != self._document.filters[key])
        return replace(after, tables=replace(after.tables, filters=written))

    def _remove_interfaces(self) -> None:
        for interface in self._removed:
            detach(self._places, interface)

    def _shrink(self, written: state.State, live_maps: maps.Maps) -> state.State:
        """Leave out of the program what only the old document needed."""
        document, places = self._document, self._places
        if self._interim == document.features:
            return written
        build = self._build(document.features)
        unsure = replace(written.program, digest="", features=sorted(document.features))
        state.save(places.state_file, replace(written, program=unsure))
        attachments = [
            programs.Attachment(
                interface,
                self._wanted(),
                Known(document.settings.mode, document.settings.prepare, hook.hook, hook.why),
                NativeHook(interface, [], False, places.preparing_file(interface)),
            )
            for interface, hook in written.program.hooks.items()
        ]
        with programs.Loader(build, live_maps, places.compiled) as loader:
            found = programs.put_all(places, attachments, loader, lambda: None)
            self.details["compiled"] |= loader.compiled
        hooks = {
            name: replace(hook, hook=found[name][0], why=found[name][1]) for name, hook in written.program.hooks.items()
        }
        program = replace(
            written.program, digest=build.digest(), features=sorted(document.features), hooks=hooks
        )
        return replace(written, program=program)

    def _verify(self, written: state.State) -> None:
        """The kernel is asked, not what was written down."""
        if not self._document.settings.attached:
            return
        for interface in self._document.interfaces:
            attached = self._hooks[interface].attached()
            if not attached or attached.program_id != pinned_id(self._places.program(interface)):
                raise EngineError(
                    f"{interface}: the program was attached, but is not on the hook any more; somebody else changes "
                    "the hook at the same time, run this again"
                )

    def _report_natives(self) -> None:
        self.details["prepared"] = [entry for native in self._natives.values() for entry in native.prepared]
        self.warnings += [warning for native in self._natives.values() for warning in native.warnings]

    def _save(self, written: state.State, applied_by: str) -> state.State:
        now = time.time()
        saved = replace(
            written,
            generation=written.generation + 1,
            applied_at=now,
            applied_by=applied_by,
            counting_since=written.counting_since or now,
        )
        places = self._places
        history.save(
            places.history, history.Entry(saved.generation, now, applied_by, self._document.as_dict())
        )
        state.save(places.state_file, saved)
        builds = [self._build(frozenset(saved.program.features))]
        compiled.discard_unused(
            places.compiled, {replace(build, tc=tc).digest() for build in builds for tc in (False, True)}
        )
        return saved


def detach(places: Places, interface: str) -> None:
    """Take our program off an interface, wherever it is, and forget it."""
    if link.exists(interface):
        hooks = Hooks(interface)
        attached = hooks.attached()
        if attached and programs.owns(places, interface, attached):
            hooks.detach(attached)
    places.program(interface).unlink(missing_ok=True)


def mtus(interfaces: tuple[str, ...]) -> dict[int, int]:
    """By the interface's index, in bytes without the Ethernet header."""
    return {link.interface_index(name): link.mtu(name) for name in interfaces}


@contextmanager
def _open(places: Places, current: state.State | None, document: Document) -> Iterator[maps.Maps | None]:
    """The pinned maps if the document can be written into them, else None."""
    try:
        live_maps = maps.open_pinned(places.maps, document.sizes)
    except maps.OtherLayout:
        yield None
        return
    with live_maps:
        # An interrupted change of the program left maps in which the state's indexes mean something else.
        unsure = current is None or not current.program.digest
        if current is None or (unsure and drift.table_ids(live_maps) != drift.known_ids(current.tables)):
            yield None
        else:
            yield live_maps


def _readable(places: Places, current: state.State) -> bool:
    """Whether the pinned maps are those that the state tells of."""
    try:
        with maps.open_pinned(places.maps, current.program.sizes) as live_maps:
            return drift.table_ids(live_maps) == drift.known_ids(current.tables)
    except maps.OtherLayout:
        return False


def adopted(places: Places, document: Document) -> state.State | None:
    """Maps whose state file is lost go on as they are; what packets may see in them is not given away."""
    try:
        live_maps = maps.open_pinned(places.maps, document.sizes)
    except maps.OtherLayout:
        return None
    with live_maps:
        entries, size = live_maps.read_backends(), BACKEND.size
        allocation = plan.Allocation(
            retiring_rings=frozenset(live_maps.ring_ids()),
            retiring_backends=frozenset(
                index for index in range(1, len(entries) // size) if any(entries[index * size : (index + 1) * size])
            ),
        )
        ids = drift.table_ids(live_maps)
    return state.State(
        Document(Settings(sizes=document.sizes)),
        state.ProgramState(sizes=document.sizes),
        allocation=allocation,
        tables=state.Tables(*ids),
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
