# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a change: a packet meets the old document or the new one, never a mix.

New programs and maps come first, where they are needed; then tables, adding, switching in one step, removing last; then
what nothing uses any more is taken away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import EngineError
from ..kernel import link
from ..tables.layout import MAX_INTERFACES
from . import compiled, counters, handover, history, map_set, maps, plan, programs, state, writing
from .change import REMEMBERING_FEATURES, Change
from .hooks import Hooks, Known
from .interfaces import known_interfaces
from .moving import moved
from .native import NativeHook
from .places import Places, pinned_id, remove_if_empty, remove_tree
from .retained import Retained


class Transaction:
    """Of a planned change, under the engine's lock. All methods raise EngineError."""

    def __init__(self, change: Change) -> None:
        self._change = change
        # Whether all hooks have the new programs, which stay then whatever fails.
        self._switched = False
        self._applied_by = ""

    def carry_out(self, applied_by: str) -> state.State:
        """The state afterwards, which is saved."""
        self._applied_by = applied_by
        places = self._change.places
        places.make()
        places.state_directory.mkdir(mode=0o700, exist_ok=True)
        places.compiled.mkdir(mode=0o700, exist_ok=True)
        remove_tree(places.new_maps)
        before = self._change.current
        try:
            hooks, live_maps = self._put_programs()
        except BaseException:
            if not self._switched:
                self._leave_as_before(before)
            raise
        with live_maps:
            written = self._write_tables(hooks, live_maps)
            # The program of the old maps, which share the links, or a killed run's may have used others until now.
            live_maps.set_links(link.links_up(self._change.document.config.redirect_interfaces()))
            self._remove_interfaces()
            written = self._shrink(written, live_maps)
            self._change.next_program.leave(live_maps)
            self._change.details["write_seconds"] = round(live_maps.write_seconds, 6)
        self._verify(written)
        self._change.report_natives()
        return self._save(written)

    def _leave_as_before(self, before: state.State | None) -> None:
        """Nothing of a change that was refused stays: no pins, no compiled program, no directories."""
        places = self._change.places
        remove_tree(places.new_maps)
        if before and places.state_file.exists():
            state.save(places.state_file, before)
        if not places.maps.exists():
            remove_tree(places.pins)
            remove_if_empty(places.paths.pins)
        if places.state_file.exists():
            self._discard_compiled(frozenset(before.program.features if before else ()))
        # What a driver could not be given back is written down there.
        elif not list(places.state_directory.glob("preparing-*")):
            remove_tree(places.state_directory)

    def _discard_compiled(self, features: frozenset[str]) -> None:
        """Keep what was compiled for these features, for the next boot."""
        build = self._change.build(features)
        used = {replace(build, tc=tc).digest() for tc in (False, True)}
        compiled.discard_unused(self._change.places.compiled, used)

    def _put_programs(self) -> tuple[dict[str, state.Hook], maps.Maps]:
        """Have a program that knows both documents on every hook, over the maps that are to be."""
        places, document, current = self._change.places, self._change.document, self._change.current
        known = current.program.hooks if current else {}
        if not self._change.due:
            hooks = {name: known[name] for name in document.interfaces if name in known}
            live_maps = map_set.open_pinned(places.maps, document.sizes)
            live_maps.set_virtual_macs(document.settings.virtual_macs)
            self._change.next_program.enter(live_maps)
            return hooks, live_maps
        new_maps = self._change.details["new_maps"]
        live_maps = self._make_maps() if new_maps else map_set.open_pinned(places.maps, document.sizes)
        try:
            with programs.Loader(self._change.build(self._change.interim), live_maps, places.compiled) as loader:
                self._load(loader)
                self._save_program_intent()
                if new_maps:
                    self._carry_counters(live_maps)
                if self._change.interim & REMEMBERING_FEATURES:
                    live_maps.create_flow_tables()
                # An interface that leaves has its program until the end.
                leaving = tuple(name for name in self._change.removed if link.exists(name))
                present = (*self._change.present, *leaving)[:MAX_INTERFACES]
                live_maps.update_control(known_interfaces(present))
                live_maps.set_virtual_macs(document.settings.virtual_macs)
                self._change.next_program.enter(live_maps)
                with self._moving(live_maps):
                    found = programs.put_all(
                        places,
                        [self._change.attachment(interface) for interface in self._change.due],
                        loader,
                        self._commit,
                        lambda: programs.adopt_new_maps(places) if new_maps else None,
                    )
                self._change.details["compiled"] |= loader.compiled
        except BaseException:
            if current and not self._switched:
                live_maps.set_virtual_macs(current.document.settings.virtual_macs)
                self._change.next_program.undo(live_maps)
            live_maps.close()
            raise
        # Preparing a driver may have changed an MTU.
        live_maps.update_control(known_interfaces(present))
        return self._hooks(found), live_maps

    @contextmanager
    def _moving(self, live_maps: maps.Maps) -> Iterator[None]:
        """Flow tables and sessions go on in new maps whose sizes of them are others."""
        current = self._change.current
        if current is None or not self._change.details["new_maps"] or not self._change.kept:
            yield
            return
        with map_set.open_shareable(self._change.places.maps, current.program.sizes) as old:
            # Entries of a former layout are others.
            if old.former_control != (0, 0):
                yield
                return
            wanted = self._change.planned.allocation.pools
            kept = [pool for pool, place in current.allocation.pools.items() if wanted.get(pool) == place]
            with moved(old, live_maps, [(wanted[pool].first_session, pool.ports) for pool in kept]):
                yield

    def _hooks(self, found: dict[str, tuple[str, str]]) -> dict[str, state.Hook]:
        """By interface of the document; `found` are those that were switched now."""
        now, current = time.time(), self._change.current
        hooks = dict(current.program.hooks) if current else {}
        hooks.update((name, state.Hook(hook, why, now if hook else 0.0)) for name, (hook, why) in found.items())
        return {name: hooks[name] for name in self._change.document.interfaces if name in hooks}

    def _commit(self, found: dict[str, tuple[str, str]]) -> None:
        """With new maps, the state comes first: by it the next run knows which maps a killed one was to leave."""
        hooks = {**self._change.expected_hooks, **{name: hook for name, (hook, _why) in found.items()}}
        if hooks != self._change.expected_hooks:
            # A driver refused what was expected of it, so that mode auto took another hook.
            self._change.refuse_lost_next_hops(hooks)
        if self._change.details["new_maps"]:
            self._moved = self._in_new_maps(self._hooks(found))
            unfinished = replace(self._moved, program=replace(self._moved.program, digest=""))
            state.save(self._change.places.state_file, unfinished)
        self._switched = True

    def _load(self, loader: programs.Loader) -> None:
        """What the verifier refuses is to be known before anything is touched."""
        for interface, hook in self._change.expected_hooks.items():
            known = self._change.known(interface)
            if self._change.reusable and known and pinned_id(self._change.places.program(interface)):
                loader.reuse(known.hook == "tc", self._change.places.program(interface))
            elif hook != "offload":
                loader.program(hook == "tc")

    def _save_program_intent(self) -> None:
        """A killed run leaves a state that is sure of no more than both programs have."""
        current = self._change.current
        if current:
            both = sorted(self._change.interim.intersection(current.program.features))
            unsure = replace(current.program, digest="", features=both)
            state.save(self._change.places.state_file, replace(current, program=unsure))

    def _make_maps(self) -> maps.Maps:
        """New maps with everything that the document declares, and with what packets left in the old ones."""
        places, document, current = self._change.places, self._change.document, self._change.current
        old = map_set.open_shareable(places.maps, current.program.sizes) if current and self._change.kept else None
        try:
            live_maps = map_set.create(document.sizes, old)
        finally:
            if old:
                old.close()
        if self._change.kept and current:
            # Maps that are shared still have what was counted for those that were removed before.
            live_maps.zero_counters("service_counters", self._change.planned.zero_service_counters)
            live_maps.zero_counters("backend_counters", self._change.planned.zero_backend_counters)
            self._begin_filters(current, live_maps)
        places.new_maps.mkdir(mode=0o700)
        map_set.pin(live_maps, places.new_maps)
        tables = writing.write(self._change.planned, live_maps, state.Tables(), self._change.packed, in_use=False)
        self._new_tables = replace(
            tables,
            filters=live_maps.swap_table("filters", self._change.filter_table),
            previous=self._write_previous(live_maps, {}),
        )
        return live_maps

    def _write_previous(self, live_maps: maps.Maps, known: dict[int, int]) -> dict[int, int]:
        allocation = self._change.planned.allocation
        return handover.write(self._change.handover, live_maps, allocation.rings, allocation.backends, known)

    def _carry_counters(self, live_maps: maps.Maps) -> None:
        """Compiling takes a second, in which the old maps go on counting: this comes last."""
        current, planned = self._change.current, self._change.planned
        config = planned.desired
        self._carried = False
        self._retained = Retained()
        if current is None:
            return
        counters.resume(current, planned, live_maps)
        self._reset_changed_limits(current, live_maps)
        self._retained = current.retained.after({}, {}, config.services, config.backends)
        try:
            old = map_set.open_shareable(self._change.places.maps, current.program.sizes)
        except EngineError:
            # Maps of another layout may count something else.
            return
        with old:
            counters.carry(current, planned.allocation, self._change.filter_ids, old, live_maps)
            self._retained = counters.retained(current, planned, old)
        self._carried = True

    def _counted(self, current: state.State) -> state.State:
        """With the generation of the new document; a repair of the same document is no other one.

        This comes before the state file has the document: the next run after a killed one takes it for a repair.
        """
        document, before = self._change.document, self._change.current
        if before is not None and before.document == document:
            return current
        generation, now = current.generation + 1, time.time()
        history.save(self._change.places.history, generation, now, self._applied_by, document)
        return replace(current, generation=generation, applied_at=now, applied_by=self._applied_by)

    def _after(self, hooks: dict[str, state.Hook]) -> tuple[state.State, state.State]:
        """The state as it was, and with the document and the program."""
        document, current = self._change.document, self._change.current or state.State(self._change.document)
        program = state.ProgramState(self._change.digest, sorted(self._change.interim), document.sizes, hooks)
        previous = self._change.handover.wanted
        after = replace(self._counted(current), document=document, program=program, leaving=(), previous=previous)
        return current, after

    def _in_new_maps(self, hooks: dict[str, state.Hook]) -> state.State:
        current, after = self._after(hooks)
        return replace(
            after,
            allocation=plan.settled(self._change.planned.allocation),
            tables=self._new_tables,
            filter_ids=self._change.filter_ids,
            retained=self._retained,
            counting_since=current.counting_since if self._carried else 0.0,
        )

    def _write_tables(self, hooks: dict[str, state.Hook], live_maps: maps.Maps) -> state.State:
        if self._change.details["new_maps"]:
            return self._moved
        current, after = self._after(hooks)
        filters_change = bool(self._change.filters or self._change.filters_repaired)
        if filters_change:
            self._begin_filters(current, live_maps)
        if self._change.planned.changed:
            # Nobody has these indexes yet: a run killed from here on leaves no backend with another's numbers.
            live_maps.zero_counters("service_counters", self._change.planned.zero_service_counters)
            live_maps.zero_counters("backend_counters", self._change.planned.zero_backend_counters)
            counters.resume(current, self._change.planned, live_maps)
            retained = counters.retained(current, self._change.planned, live_maps)
            self._save_intent(after, retained, current.tables.filters)
            if self._change.interim_filter_table is not None:
                live_maps.swap_table("filters", self._change.interim_filter_table)
            # Before the lookup table that it precedes is out of use.
            previous = self._write_previous(live_maps, current.tables.previous)
            known = replace(current.tables, previous=previous)
            written = writing.write(self._change.planned, live_maps, known, self._change.packed)
            handover.remove_others(live_maps, previous)
            # Until here packets may have been counted for what is removed.
            retained = counters.retained(current, self._change.planned, live_maps)
            after = replace(
                after, allocation=plan.settled(self._change.planned.allocation), tables=written, retained=retained
            )
        if filters_change:
            after = self._write_filters(current, after, live_maps)
        return replace(after, filter_ids=self._change.filter_ids)

    def _save_intent(self, after: state.State, retained: Any, filters: int) -> None:
        """Before the maps are touched: a killed run leaves a state whose indexes are right and whose tables are not."""
        # The filters are written after this; until then the old table is live, or the interim one.
        intent = replace(
            after,
            allocation=self._change.planned.allocation,
            tables=state.Tables(filters=filters if self._change.interim_filter_table is None else state.UNKNOWN_TABLE),
            filter_ids=self._change.filter_ids,
            leaving=self._change.leaving,
            retained=retained,
        )
        state.save(self._change.places.state_file, intent)

    def _write_filters(self, current: state.State, after: state.State, live_maps: maps.Maps) -> state.State:
        ids = self._change.filter_ids
        # With an interim table the intent has said so. A save that failed here would leave that table live.
        if self._change.interim_filter_table is None:
            tables = replace(after.tables, filters=state.UNKNOWN_TABLE)
            unsure = replace(after, filter_ids=ids, leaving=self._change.leaving, tables=tables)
            state.save(self._change.places.state_file, unsure)
        written = live_maps.swap_table("filters", self._change.filter_table)
        self._reset_changed_limits(current, live_maps)
        return replace(after, tables=replace(after.tables, filters=written))

    def _begin_filters(self, current: state.State, live_maps: maps.Maps) -> None:
        """Let those that are new count from zero, before a table has them."""
        created = [number for key, number in self._change.filter_ids.items() if key not in current.filter_ids]
        live_maps.zero_counters("filter_counters", created)
        live_maps.reset_limits(created)

    def _reset_changed_limits(self, current: state.State, live_maps: maps.Maps) -> None:
        """A limit that was used up under the old rate would be so for as long as that rate says."""
        wanted, repaired = self._change.document.filters, self._change.filters_repaired
        live_maps.reset_limits(
            number
            for key, number in self._change.filter_ids.items()
            if repaired or current.filters.get(key) != wanted[key]
        )

    def _remove_interfaces(self) -> None:
        for interface in self._change.removed:
            detach(self._change.places, interface)

    def _shrink(self, written: state.State, live_maps: maps.Maps) -> state.State:
        """Leave out of the program what only the old document needed."""
        document, places = self._change.document, self._change.places
        if self._change.interim == document.features:
            return written
        build = self._change.build(document.features)
        unsure = replace(written.program, digest="", features=sorted(document.features))
        state.save(places.state_file, replace(written, program=unsure))
        attachments = [
            programs.Attachment(
                interface,
                self._change.wanted(),
                Known(document.settings.mode, hook.hook, hook.why, document.settings.prepare),
                # What the put before prepared stays; without one, the smaller program may be the first to need it.
                NativeHook(interface, [], False, places.preparing_file(interface))
                if interface in self._change.due
                else self._change.natives[interface],
            )
            for interface, hook in written.program.hooks.items()
            if interface in self._change.present
        ]
        with programs.Loader(build, live_maps, places.compiled) as loader:
            found = programs.put_all(places, attachments, loader)
            self._change.details["compiled"] |= loader.compiled
        hooks = {
            name: replace(hook, hook=found[name][0], why=found[name][1]) if name in found else hook
            for name, hook in written.program.hooks.items()
        }
        program = replace(written.program, digest=build.digest(), features=sorted(document.features), hooks=hooks)
        return replace(written, program=program)

    def _verify(self, written: state.State) -> None:
        """The kernel is asked, not what was written down."""
        if not self._change.document.settings.attached:
            return
        for interface in self._change.present:
            attached = self._change.hooks[interface].attached()
            if not attached or attached.program_id != pinned_id(self._change.places.program(interface)):
                raise EngineError(
                    f"{interface}: the program was attached, but is not on the hook any more; somebody else changes "
                    "the hook at the same time, run this again"
                )

    def _save(self, written: state.State) -> state.State:
        places = self._change.places
        saved = replace(written, counting_since=written.counting_since or time.time())
        state.save(places.state_file, saved)
        self._discard_compiled(frozenset(saved.program.features))
        return saved


def detach(places: Places, interface: str) -> None:
    """Take our program off an interface, wherever it is, and forget it."""
    if link.exists(interface):
        hooks = Hooks(interface)
        for attached in hooks.programs():
            if programs.owns(places, interface, attached):
                hooks.detach(attached)
    places.program(interface).unlink(missing_ok=True)
