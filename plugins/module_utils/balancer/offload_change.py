# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of a balancer of mode offload: worked out before anything is touched, and carried out.

A change fills the half of the tables that packets do not see and switches halves. Where a program with larger maps is
needed, it is loaded with the new tables and takes the place of the old one on the hook.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ..config.model import Config
from ..errors import EngineError, Problems
from ..kernel import bpf, link
from ..tables import offload as tables
from ..tables.layout import MAX_REASONS
from . import compiled, consequences, history, host_check, observed, offload_limits, offload_maps, programs, state
from .change import Change
from .document import Document
from .hooks import HOOKS_OF_MODE
from .native import NativeHook
from .offload import MODE, is_mode_of, live_interface, open_live, places_of, refuse_other_mode, switch
from .offload_maps import OffloadMaps, Row
from .places import Places, pinned_id, remove_if_empty, remove_tree
from .plan import Allocation
from .transaction import Transaction, detach

# netdevsim takes two entries.
ENTRIES_OF_RECORDS = 4
K = TypeVar("K")


def device_of(interface: str) -> int:
    """The device whose hardware gets program and maps, by its index."""
    return link.interface_index(interface)


class OffloadChange(Change):
    """What there is to do for a document of mode offload, worked out before anything is touched, and done."""

    def work_out(self) -> None:
        document, current = self.document, self.current
        refusals = offload_limits.beyond(document)
        if refusals:
            raise Problems(refusals)
        (self.interface,) = document.interfaces
        link.interface_index(self.interface)
        host_check.refuse_shared_interfaces(self.places, self.present)
        self._refuse_foreign()
        self.natives = {self.interface: NativeHook(self.interface, [], False, self._preparing)}
        self.hooks[self.interface].refuse_impossible(self.wanted(), None, self.natives[self.interface])
        self.device = device_of(self.interface)
        self.shape = tables.Shape.of(document.config, self._needs_whole_values())
        self.out = observed.load(self.places.health_file).out(document.config)
        build = offload_maps.build(Path(document.settings.source), self.shape, document.settings.hash_seed)
        self.program_build, self.digest = build, build.digest()
        self._drifted = False
        self._counters: tables.Places | None = None
        live = open_live(self._pin)
        if live is not None:
            with live:
                self._compare(live)
        self.details["new_maps"] = self._counters is None
        # Those of the maps in use, or of the new ones.
        self._counted = self._counters or _allocate(document.config, Allocation(), self.shape)
        # What does not fit is refused in check mode as well.
        self.content = tables.pack_half(document.config, self._counted, self.shape, self.out)
        right = not self.details["new_maps"] and self._is_attached_right()
        self.due = [] if right else [self.interface]
        known = [*(current.program.hooks if current else ()), *self.places.pinned_interfaces()]
        self.removed = [name for name in dict.fromkeys(known) if name != self.interface]
        if self.changed:
            self.warnings += host_check.warnings(document) + consequences.resets(self.before, document)

    @property
    def _pin(self) -> Path:
        return self.places.program(self.interface)

    @property
    def _preparing(self) -> Path:
        return self.places.preparing_file(self.interface)

    @property
    def _where(self) -> str:
        return f"offload XDP on {self.interface} (driver {link.driver(self.interface)})"

    def _needs_whole_values(self) -> bool:
        """Whether the device takes few entries only. Raises EngineError if it takes no maps at all."""
        for entries in (ENTRIES_OF_RECORDS, 1):
            try:
                os.close(bpf.map_create("probe", bpf.MAP_TYPE_ARRAY, 8, entries, device=self.device))
                return entries == 1
            except OSError as error:
                refusal = error
        raise EngineError(
            f"{self._where}: the device takes programs, but no maps: {refusal.strerror}; use mode: native"
        )

    def _compare(self, live: OffloadMaps) -> None:
        """Whether the live tables are those of the state file, and whether the document's fit beside them."""
        current = self.current
        if current is None:
            return
        half, known = live.read_control()
        self._live_content = live.read_half(half)
        self._live_known = known
        with suppress(EngineError):
            expected = tables.pack_half(current.config, places_of(current.allocation), live.shape, current.tables.out)
            self._drifted = (self._live_content, known) != (expected, self._known_now)
        if current.program.digest == self.digest and live.shape == self.shape:
            with suppress(_NoRoom):
                self._counters = _allocate(self.document.config, current.allocation, self.shape)

    @cached_property
    def _known_now(self) -> bytes:
        return offload_maps.known_of(live_interface(self.interface))

    def _is_attached_right(self) -> bool:
        attached, pinned = self.hooks[self.interface].attached(), pinned_id(self._pin)
        ours = attached is not None and attached.program_id == pinned
        if not self.document.settings.attached:
            return not ours
        return bool(ours and attached and attached.hook in HOOKS_OF_MODE[MODE])

    @property
    def repaired(self) -> bool:
        return self._drifted

    @property
    def program_changes(self) -> bool:
        return bool(self.due or self.removed)

    # --- doing it

    def carry_out(self, applied_by: str) -> state.State:
        """Under the engine's lock. Returns the state that is saved."""
        places, before = self.places, self.current
        places.make()
        for directory in (places.state_directory, places.compiled):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._switched, started = False, time.monotonic()
        written = self._state(applied_by)
        try:
            written = self._put(written) if self.due else self._write(written)
        except BaseException:
            if not self._switched:
                self._leave_as_before(before)
            raise
        for interface in self.removed:
            detach(places, interface)
        self._verify()
        state.save(places.state_file, written)
        compiled.discard_unused(places.compiled, {self.digest})
        self.details["write_seconds"] = round(time.monotonic() - started, 6)
        return written

    def _state(self, applied_by: str) -> state.State:
        """With the document and the records of its counters; a generation more if the document is another one."""
        document, before = self.document, self.current or state.State(self.document)
        hooks = {name: hook for name, hook in before.program.hooks.items() if name == self.interface}
        program = state.ProgramState(self.digest, sorted(document.features), document.sizes, hooks)
        made = replace(
            before,
            document=document,
            program=program,
            allocation=_allocation(document.config, self._counted),
            tables=state.Tables(out=self.out),
            counting_since=before.counting_since or time.time(),
        )
        if self.current is not None and self.current.document == document:
            return made
        now, generation = time.time(), before.generation + 1
        history.save(self.places.history, generation, now, applied_by, document)
        return replace(made, generation=generation, applied_at=now, applied_by=applied_by)

    def _write(self, written: state.State) -> state.State:
        """Into the half that packets do not see. The state comes first, so that its records of counters are right."""
        state.save(self.places.state_file, written)
        # From here on the next run repairs what a failure leaves.
        self._switched = True
        if self._live_content == self.content and self._live_known == self._known_now:
            return written
        live = open_live(self._pin)
        if live is None:
            raise EngineError(f"{self.interface}: its network card is gone; apply again once it is back")
        with live:
            before = self.current.allocation if self.current else Allocation()
            live.set_counters(dict.fromkeys(_new_records(before, self._counted), (0, 0)))
            switch(live, self.content, live_interface(self.interface))
        return written

    def _put(self, written: state.State) -> state.State:
        """A program over new maps, which hold the document and the counters so far, takes the place of the old one."""
        if not self.details["new_maps"]:
            written = self._write(written)
            self._switched = False
        places, saved = self.places, written

        def commit(found: dict[str, tuple[str, str]]) -> None:
            nonlocal saved
            hook, why = found[self.interface]
            hooks = {self.interface: state.Hook(hook, why, time.time() if hook else 0.0)}
            saved = replace(written, program=replace(written.program, hooks=hooks))
            state.save(places.state_file, saved)
            self._switched = True

        kept = None if self.details["new_maps"] else open_live(self._pin)
        with kept or self._new_maps() as maps:
            with programs.Loader(self.program_build, maps, places.compiled, self.device) as loader:
                if kept is not None:
                    loader.reuse(False, self._pin)
                programs.put_all(places, [self.attachment(self.interface)], loader, commit)
                self.details["compiled"] |= loader.compiled
        return saved

    def _new_maps(self) -> OffloadMaps:
        try:
            maps = offload_maps.create(self.shape, self.device)
        except OSError as error:
            raise EngineError(
                f"{self._where}: the device has no room for the maps of {len(self.document.config.services)} services "
                f"and {len(self.document.config.backends)} backends: {error.strerror}; declare fewer, or use mode: "
                "native"
            ) from None
        try:
            maps.write_half(0, self.content)
            maps.write_control(0, live_interface(self.interface))
            maps.set_counters(self._carried())
        except BaseException:
            maps.close()
            raise
        return maps

    def _carried(self) -> dict[int, Row]:
        """What the old maps counted, by record of the new ones."""
        current, live = self.current, open_live(self._pin)
        if live is None:
            return {}
        with live:
            rows = live.read_counters()
        carried = dict(enumerate(rows[:MAX_REASONS]))
        if current is not None:
            before, after = places_of(current.allocation), self._counted
            carried |= _moved(before.services, after.services, rows) | _moved(before.backends, after.backends, rows)
        return {place: row for place, row in carried.items() if any(row)}

    def _leave_as_before(self, before: state.State | None) -> None:
        """Nothing of a change that was refused stays."""
        places = self.places
        if before is not None and places.state_file.exists():
            state.save(places.state_file, before)
            return
        if not places.pinned_interfaces():
            remove_tree(places.pins)
            remove_if_empty(places.paths.pins)
            remove_tree(places.state_directory)

    def _verify(self) -> None:
        """The kernel is asked, not what was written down."""
        if not self._is_attached_right():
            raise EngineError(
                f"{self.interface}: the program was attached, but is not on the hook any more; somebody else changes "
                "the hook at the same time, run this again"
            )


def plan_change(places: Places, current: state.State | None, document: Document, force: bool, repair: bool) -> Change:
    """The change to this document, worked out."""
    refuse_other_mode(places.name, current, document)
    change = (OffloadChange if is_mode_of(document) else Change)(places, current, document, force, repair)
    change.work_out()
    return change


def carry_out(change: Change, applied_by: str) -> state.State:
    if isinstance(change, OffloadChange):
        return change.carry_out(applied_by)
    return Transaction(change).carry_out(applied_by)


class _NoRoom(Exception):
    """No counters are left beside those that packets may still count in."""


def _allocate(config: Config, known: Allocation, shape: tables.Shape) -> tables.Places:
    """Records for counters. Nobody gets one of another before packets have left that one's tables."""
    first = MAX_REASONS + shape.services
    return tables.Places(
        _records(config.services, known.service_counters, range(MAX_REASONS, first)),
        _records(config.backends, known.backend_counters, range(first, first + shape.backends)),
    )


def _records(keys: Iterable[K], known: dict[K, int], room: range) -> dict[K, int]:
    free = iter(sorted(set(room) - set(known.values())))
    found = {}
    for key in keys:
        place = known.get(key, -1)
        if place not in room:
            place = next(free, -1)
        if place < 0:
            raise _NoRoom
        found[key] = place
    return found


def _allocation(config: Config, places: tables.Places) -> Allocation:
    return Allocation(
        {name: number for number, name in enumerate(config.services)},
        places.services,
        {key: number for number, key in enumerate(config.backends, 1)},
        places.backends,
    )


def _new_records(before: Allocation, after: tables.Places) -> list[int]:
    services = [place for key, place in after.services.items() if before.service_counters.get(key) != place]
    return services + [place for key, place in after.backends.items() if before.backend_counters.get(key) != place]


def _moved(before: dict[K, int], after: dict[K, int], rows: list[Row]) -> dict[int, Row]:
    """By their new records, the rows of those that stay."""
    return {after[key]: rows[place] for key, place in before.items() if key in after}
