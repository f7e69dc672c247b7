# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer of one interface: what modules, the boot-time restore and the exporter do to it.

Pins: <pins>/<interface>/program and <pins>/<interface>/maps/<map>, directories with mode 0700.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config import filters, model
from ..config.features import used_features
from ..errors import EngineError
from ..kernel import bpf, files, link, neighbours
from ..kernel.xdp_features import xdp_features
from ..outcome import Outcome
from ..tables import filter_table
from ..tables.layout import BACKEND, Sizes
from . import compiled, compiler, counters, drift, fill, live, maps, notes, observed, plan, state, writing
from .departed import Departed
from .hooks import PROGRAM_NAME, Hooks, describe_program
from .native import NativeHook, examine, finish
from .program_request import ProgramRequest

INTERFACE_PATTERN = re.compile(r"[^/\s]{1,15}")
# Beyond these, maps take gigabytes, or are refused by the kernel without a word why.
SIZE_LIMITS = {
    "max_services": 65536,
    "max_backends": 1048576,
    "max_endpoints": 1048576,
    "max_flows": 16777216,
    "max_sessions": 1048576,
    "max_filters": 1048576,
    "max_new_flows": 100000000,
}
REMEMBERING_FEATURES = frozenset(("flow_table", "full_nat"))
# How long the first packets' neighbours get to answer before they are needed.
RESOLVE_TIMEOUT = 3.0  # seconds


@dataclass(frozen=True)
class Followed:
    """What came of what health checks saw."""

    # Backends that are out.
    out: frozenset[model.BackendKey]
    # Why the disk did not take all that is to outlive the process; nothing if it did.
    refusal: str


class Balancer:
    """All methods raise EngineError; none of them changes anything when `check` is true."""

    def __init__(self, interface: str, paths: state.Paths = state.HOST_PATHS) -> None:
        if not INTERFACE_PATTERN.fullmatch(interface) or interface in (".", ".."):
            raise EngineError(f"interface {interface!r} is not a name of an interface")
        self.interface = interface
        self.paths = paths
        # The BPF file system refuses dots; the kernel allows no "%" in the name of a VLAN interface, "eth0.7" say.
        self.pins = paths.pins / interface.replace(".", "%")
        self.program_pin = self.pins / "program"
        self.maps_directory = self.pins / "maps"
        self.state_file = paths.state_file(interface)
        self.preparing_file = paths.preparing_file(interface)
        self.health_file = paths.health_file(interface)
        self._hooks = Hooks(interface)
        self._notes = notes.Notes(self.state_file, self.health_file)
        # Whether the program that was loaded last had to be.
        self._compiled = False

    # --- what every operation begins with

    def _check_host(self) -> None:
        if os.geteuid() != 0:
            raise EngineError("BPF programs and maps need root; use become: true")
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        if not any(line.split()[2] == "bpf" and self.paths.pins.is_relative_to(line.split()[1]) for line in mounts):
            raise EngineError(
                f"no BPF file system is mounted for {self.paths.pins}; run mount -t bpf bpf /sys/fs/bpf, or apply the "
                "role lbops.xdp.balancer, which mounts it at boot"
            )

    @contextmanager
    def _locked(self, check: bool) -> Iterator[state.State | None]:
        self._check_host()
        with state.locked(self.paths, create=not check):
            yield state.load(self.state_file)

    def _live(self, current: state.State | None) -> state.State:
        if current is None or not self.program_pin.exists():
            raise EngineError(
                f"no program of ours is on {self.interface}; run xdp_program with interface={self.interface} first"
            )
        return current

    # --- the program

    def apply_program(self, request: ProgramRequest, check: bool) -> Outcome:
        """Attach, replace or detach the program; the maps and what they hold stay."""
        link.interface_index(self.interface)
        _check_sizes(request.sizes)
        with self._locked(check) as current:
            if not check:
                self._finish_replacement()
                self._finish_preparation()
            before = self.program_facts(current)
            self._refuse_foreign(request)
            config = current.config if current else model.Config({}, {})
            # Live services keep what they need until they are gone.
            features = request.features | used_features(config, current.filters if current else None)
            build = compiler.Build(request.source, features, request.sizes)
            # Detached, the program is on no hook; what it was compiled for its digest says.
            for_tc = replace(build, tc=True)
            if before.get("hook") == "tc" or (not before.get("hook") and before.get("digest") == for_tc.digest()):
                build = for_tc
            digest = build.digest()
            wanted = {
                "attached": request.attached,
                "mode": request.mode,
                "features": sorted(features),
                "digest": digest,
                "prepare": request.prepare,
            }
            live = {name: before.get(name) for name in wanted}
            if live == wanted and self._pinned_maps_fit(request.sizes):
                return Outcome(False, before, before, {}, [])
            # What does not fit is refused before anything is touched, in check mode as well.
            planned = plan.make(model.Config({}, {}), plan.Allocation(), config, request.sizes)
            writing.endpoint_tables(planned, request.sizes)
            if current and current.filters:
                filter_table.pack_filter_table(current.filters, current.filter_ids, request.sizes)
            native = self._examine(request, features, current)
            if check:
                native.plan()
                after, details = {**before, **wanted}, {}
            else:
                after, details = self._put_program(current, request, build, digest, native)
            details["prepared"] = native.prepared
            warnings = [*native.warnings, *fill.problems()]
            return Outcome(True, before, after, details, warnings, _with_prepared(before, after, native))

    def _examine(self, request: ProgramRequest, features: frozenset[str], current: state.State | None) -> NativeHook:
        """Raises EngineError if the native hook is the only one asked for, and is known not to take the program."""
        hooks = self._hooks.to_try(request, current) if request.attached else ()
        if "native" not in hooks:
            return NativeHook(self.interface, [], request.prepare, self.preparing_file)
        found = examine(self.interface, "multi_buffer" in features)
        attached = self._hooks.attached()
        if attached and attached.hook == "native" and self._is_ours(attached):
            # With what is in the way of the program that is there the kernel can live.
            running = current.program.features if current else features
            accepted = examine(self.interface, "multi_buffer" in running)
            found = [problem for problem in found if problem not in accepted]
        native = NativeHook(self.interface, found, request.prepare, self.preparing_file)
        if native.refusal and hooks == ("native",):
            raise EngineError(native.refusal)
        return native

    def _finish_preparation(self) -> None:
        """What a killed run prepared stays only if its program is on the driver's hook."""
        if not self.preparing_file.exists():
            return
        attached = self._hooks.attached() if link.exists(self.interface) else None
        ours = bool(attached and attached.hook == "native" and self._is_ours(attached))
        finish(self.interface, self.preparing_file, ours)

    def _finish_replacement(self) -> None:
        """A run may have been killed, or have failed, before its new program was in place."""
        if not self.pins.exists():
            return
        pending = self.pins / "program_new"
        attached = self._hooks.attached()
        if attached and attached.program_id == _pinned_program_id(pending):
            if (self.pins / "maps_new").exists():
                self._adopt_new_maps()
            pending.rename(self.program_pin)
        pending.unlink(missing_ok=True)
        for leftover in ("maps_new", "maps_old"):
            _remove_pins(self.pins / leftover)
        if not any(self.pins.iterdir()):
            self._remove_pin_directories()

    def _adopt_new_maps(self) -> None:
        old = self.pins / "maps_old"
        _remove_pins(old)
        if self.maps_directory.exists():
            self.maps_directory.rename(old)
        (self.pins / "maps_new").rename(self.maps_directory)
        _remove_pins(old)

    def _refuse_foreign(self, request: ProgramRequest) -> None:
        attached = self._hooks.attached()
        if attached is None or self._is_ours(attached) or request.force:
            return
        raise EngineError(
            f"{self.interface} carries a program that is not ours: {describe_program(attached.program_id)} on the "
            f"{attached.hook} hook; detach it, or let xdp_program replace it with force: true"
        )

    def _is_ours(self, attached: link.Attached) -> bool:
        """Whether a program is pinned here, or, its pin lost, uses the maps that are."""
        if attached.program_id in (_pinned_program_id(self.program_pin), _pinned_program_id(self.pins / "program_new")):
            return True
        try:
            control = bpf.object_get(str(self.maps_directory / "control"))
        except FileNotFoundError:
            return False
        try:
            program = bpf.program_fd(attached.program_id)
            try:
                return bpf.map_info(control).id in bpf.program_info(program).map_ids
            finally:
                os.close(program)
        finally:
            os.close(control)

    def _pinned_maps_fit(self, sizes: Sizes) -> bool:
        try:
            maps.open_pinned(self.maps_directory, sizes).close()
        except maps.OtherLayout:
            return False
        return True

    def _put_program(
        self,
        current: state.State | None,
        request: ProgramRequest,
        build: compiler.Build,
        digest: str,
        native: NativeHook,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        details = {"compiled": False, "new_maps": False}
        known = current and current.program.digest == digest and self.program_pin.exists()
        hook = ""
        if known and self._pinned_maps_fit(request.sizes):
            pinned = bpf.object_get(str(self.program_pin))
            try:
                hook, why = self._hooks.put({build.tc: pinned}.get, request, current, native)
            finally:
                os.close(pinned)
        if not hook and (request.attached or not known):
            replaced = _pinned_program_id(self.program_pin)
            self._save_program_intent(current, build)
            try:
                current, hook, why, details["new_maps"] = self._replace_program(current, request, build, native)
            except (EngineError, OSError):
                self._finish_replacement()
                if current and _pinned_program_id(self.program_pin) == replaced:
                    state.save(self.state_file, current)
                compiled.discard_unused(self.paths)
                raise
            details["compiled"] = self._compiled
            digest = replace(build, tc=hook == "tc").digest()
        program_state = state.ProgramState(
            attached=request.attached,
            mode=request.mode,
            hook=hook,
            why=why,
            features=sorted(build.features),
            requested_features=sorted(request.features),
            source=str(request.source),
            digest=digest,
            sizes=request.sizes,
            prepare=request.prepare,
            attached_at=time.time() if hook else 0.0,
        )
        if native.changed:
            with maps.open_pinned(self.maps_directory, request.sizes) as live_maps:
                live_maps.update_control(link.mtu(self.interface))
        after = replace(current, program=program_state) if current else state.State(program_state)
        if not after.counting_since:
            after = replace(after, counting_since=time.time())
        saved = self._save(after)
        compiled.discard_unused(self.paths)
        return self.program_facts(saved), details

    def _save(self, done: state.State) -> state.State:
        """What is live from now on."""
        saved = replace(done, generation=done.generation + 1, applied_at=time.time())
        state.save(self.state_file, saved)
        return saved

    def _save_program_intent(self, current: state.State | None, build: compiler.Build) -> None:
        """Before the hook is touched: a killed run leaves a state that is sure of no more than both programs have."""
        if current:
            both = sorted(build.features.intersection(current.program.features))
            unsure = replace(current.program, digest="", features=both)
            state.save(self.state_file, replace(current, program=unsure))

    def _replace_program(
        self, current: state.State | None, request: ProgramRequest, build: compiler.Build, native: NativeHook
    ) -> tuple[state.State | None, str, str, bool]:
        """Load and attach new code: the state with its places in the maps, hook, why, whether the maps are new."""
        _make_private(self.paths.pins)
        _make_private(self.pins)
        live_maps = self._open_maps_if_fit(request.sizes, current)
        new_maps = live_maps is None
        if live_maps is None:
            _remove_pins(self.pins / "maps_new")
            live_maps = maps.create(request.sizes, link.mtu(self.interface))
        with live_maps:
            before = current
            if new_maps:
                current = self._fill_new_maps(current, live_maps, request.sizes)
            elif current is None:
                current = self._adopt_maps(live_maps, request)
            if build.features & REMEMBERING_FEATURES:
                live_maps.create_flow_tables()
            pending = self.pins / "program_new"
            with _Programs(self, build, live_maps, pending) as programs:
                if new_maps and before and current:
                    # Compiling takes a second, in which the old maps go on counting.
                    programs.program(build.tc)
                    if not self._carry_counters(before, current.allocation, live_maps):
                        current = replace(current, counting_since=0.0)
                hook, why = self._hooks.put(programs.program, request, current, native)
                if not hook:
                    # Detached, but ready to be attached.
                    programs.program(build.tc)
                if new_maps:
                    self._adopt_new_maps()
                pending.rename(self.program_pin)
        return current, hook, why, new_maps

    def _adopt_maps(self, live_maps: maps.Maps, request: ProgramRequest) -> state.State:
        """Maps whose state file is lost go on as they are; what packets may see in them is not given away."""
        size = BACKEND.size
        entries = live_maps.read_backends()
        allocation = plan.Allocation(
            retiring_rings=frozenset(live_maps.ring_ids()),
            retiring_backends=frozenset(
                place for place in range(1, len(entries) // size) if any(entries[place * size : (place + 1) * size])
            ),
        )
        unknown = state.ProgramState(False, request.mode, "", "", [], [], "", "", request.sizes)
        return state.State(unknown, allocation=allocation)

    def _open_maps_if_fit(self, sizes: Sizes, current: state.State | None) -> maps.Maps | None:
        try:
            live_maps = maps.open_pinned(self.maps_directory, sizes)
        except maps.OtherLayout:
            return None
        if current is not None and drift.table_ids(live_maps) != drift.known_ids(current.tables):
            # A killed run left maps in which the state file's places mean something else.
            live_maps.close()
            return None
        return live_maps

    def _fill_new_maps(self, current: state.State | None, live_maps: maps.Maps, sizes: Sizes) -> state.State | None:
        """Everything the state file declares, written into maps that no program uses yet."""
        directory = self.pins / "maps_new"
        _make_private(directory)
        maps.pin(live_maps, directory)
        if current is None:
            return None
        out = self.observed().out(current.config)
        planned = plan.make(model.Config({}, {}), plan.Allocation(), current.config, sizes, out=out)
        written = writing.write(planned, live_maps, state.Tables(), writing.endpoint_tables(planned, sizes))
        if current.filters:
            table = filter_table.pack_filter_table(current.filters, current.filter_ids, sizes)
            written = replace(written, filters=live_maps.swap_table("filters", table))
        return replace(current, allocation=planned.allocation, tables=written)

    def _carry_counters(self, current: state.State, allocation: plan.Allocation, live_maps: maps.Maps) -> bool:
        try:
            old = maps.open_pinned(self.maps_directory, current.program.sizes)
        except EngineError:
            # Maps of another layout may count something else.
            return False
        with old:
            counters.carry(current, allocation, old, live_maps)
        return True

    def load(self, build: compiler.Build, live_maps: maps.Maps) -> int:
        code, self._compiled = compiled.program(build, self.paths)
        try:
            return bpf.program_load(
                PROGRAM_NAME,
                bpf.relocate(code, list(live_maps.descriptors.values())),
                program_type=build.program_type,
                flags=build.load_flags,
            )
        except bpf.VerifierError as error:
            raise EngineError(
                f"the kernel's verifier rejects the program for {self.interface}: {error.strerror}\n{error.log[-4000:]}"
            ) from None

    def remove_program(self, check: bool, force: bool = False) -> Outcome:
        """Detach our program and remove its pins and state; a foreign program stays."""
        self._check_host()
        with state.locked(self.paths, create=False):
            try:
                current = state.load(self.state_file)
            except EngineError:
                if not force:
                    raise
                current = None
            exists = self.pins.exists() or self.state_file.exists()
            before = self.program_facts(current) if exists else {"attached": False}
            if exists and not check:
                self._remove()
        return Outcome(exists, before, {"attached": False}, {}, [])

    def _remove(self) -> None:
        if link.exists(self.interface):
            attached = self._hooks.attached()
            if attached and self._is_ours(attached):
                self._hooks.detach(attached)
        self._finish_preparation()
        _remove_pins(self.pins)
        files.remove(self.state_file)
        files.remove(self.health_file)
        compiled.discard_unused(self.paths)
        self._remove_pin_directories()

    def _remove_pin_directories(self) -> None:
        """Those that are empty."""
        for directory in (self.pins, self.paths.pins):
            try:
                directory.rmdir()
            except OSError:
                # Other interfaces have pins there.
                pass

    def program_facts(self, current: state.State | None) -> dict[str, Any]:
        """What is really on the hook, with what the state file knows about it."""
        attached = self._hooks.attached() if link.exists(self.interface) else None
        ours = _pinned_program_id(self.program_pin)
        facts: dict[str, Any] = {"attached": bool(attached and ours and attached.program_id == ours)}
        if current is not None and ours:
            known = current.program
            facts.update(
                mode=known.mode,
                hook=attached.hook if attached and facts["attached"] else "",
                why=known.why,
                features=known.features,
                digest=known.digest,
                prepare=known.prepare,
                program_id=ours,
                **asdict(known.sizes),
            )
        return facts

    # --- services and backends

    def apply_services(
        self, raw: list[dict[str, Any]], purge: bool, check: bool, features: list[str] | None = None
    ) -> Outcome:
        """Make these the services; backends of services that go away go with them.

        `features`: those that the program would have by now, had this run not been one in check mode.
        """
        declared = model.parse_services(raw)
        with self._locked(check) as locked_state:
            current = self._live(locked_state)
            services = declared if purge else {**current.config.services, **declared}
            if not purge:
                # The merged list is checked as a whole, ports that clash included.
                services = model.parse_services([service.as_dict() for service in services.values()])
            kept = {key: backend for key, backend in current.config.backends.items() if key.service in services}
            unfit = _unfit(current.config.services, services, kept)
            desired = model.Config(services, {key: backend for key, backend in kept.items() if key not in unfit})
            model.check(desired)
            self._require(used_features(desired), current, features if check else None)
            outcome = self._apply(current, desired, check, "services", {})
            return replace(outcome, warnings=[*outcome.warnings, *unfit.values()])

    def _require(self, used: frozenset[str], current: state.State, planned: list[str] | None) -> None:
        missing = used - set(current.program.features) - set(planned or ())
        if missing:
            raise EngineError(
                f"the program on {self.interface} was compiled without {', '.join(sorted(missing))}; "
                f"add it to the features of xdp_program"
            )

    def apply_backends(
        self,
        raw: list[dict[str, Any]],
        purge: bool,
        check: bool,
        service: str | None = None,
        services: list[dict[str, Any]] | None = None,
    ) -> Outcome:
        """Make these the backends: of one service if `service` is given, else of all.

        `services`: those that there would be by now, had this run not been one in check mode.
        """
        declared = model.parse_backends(
            [{"service": service, **entry} if service and isinstance(entry, dict) else entry for entry in raw]
            if isinstance(raw, list)
            else raw
        )
        known_services = model.parse_services(services) if check and services is not None else None
        asked = False
        while True:
            with self._locked(check) as locked_state:
                current = self._live(locked_state)
                desired = _with_backends(current.config, declared, purge, service, known_services)
                created = [backend for key, backend in declared.items() if key not in current.config.backends]
                ways = neighbours.ways(_addresses_of_kernel(created))
                self._refuse_lost_ways(created, ways, current.program.hook)
                problems = {} if check else neighbours.resolve(ways, 0)
                if check or asked or problems == ways.problems:
                    return self._apply(current, desired, check, "backends", problems, only=service)
            # Before a packet needs them; health checks need not wait for those that do not answer.
            neighbours.resolve(ways, RESOLVE_TIMEOUT)
            asked = True

    def _apply(
        self,
        current: state.State,
        desired: model.Config,
        check: bool,
        what: str,
        problems: dict[str, str],
        only: str | None = None,
    ) -> Outcome:
        """Make a checked configuration the live one; `problems` are those of the ways to backends that are new."""
        sizes = current.program.sizes
        with maps.open_pinned(self.maps_directory, sizes) as live_maps:
            current = self._settled(current, live_maps, check)
            found = drift.find(current, live_maps)
            out = self.observed().out(desired)
            planned = plan.make(
                current.config, current.allocation, desired, sizes, found, was_out=current.tables.out, out=out
            )
            warnings: list[str] = []
            details: dict[str, Any] = {"repaired": bool(found)}
            # What does not fit is refused before anything is touched, in check mode as well.
            packed = writing.endpoint_tables(planned, sizes)
            if planned.changed and not check:
                # Nobody has these places yet: a run killed from here on leaves no backend with another's numbers.
                live_maps.zero_counters("service_counters", planned.zero_service_counters)
                live_maps.zero_counters("backend_counters", planned.zero_backend_counters)
                counters.resume(current, planned, live_maps)
                self._save_intent(current, planned, counters.departed(current, planned, live_maps))
                warnings = [f"backend {address}: {problem}" for address, problem in sorted(problems.items())]
                written = writing.write(planned, live_maps, current.tables, packed)
                warnings += fill.problems()
                details["write_seconds"] = round(live_maps.write_seconds, 6)
                # Until here packets may have been counted for what is removed.
                departed = counters.departed(current, planned, live_maps)
                self._save(replace(_result(current, planned, written), departed=departed))
        changes = planned.services if what == "services" else planned.backends
        before = [live.public(entry) for entry in getattr(current.config, what).values() if _in_slice(entry, only)]
        after = [live.public(entry) for entry in getattr(desired, what).values() if _in_slice(entry, only)]
        details.update(
            created=[_label(key) for key in changes.created],
            modified=[_label(key) for key in changes.modified],
            removed=[_label(key) for key in changes.removed],
        )
        return Outcome(planned.changed, before, after, details, warnings)

    def _save_intent(self, current: state.State, planned: plan.Plan, departed: Departed) -> None:
        """Before the maps are touched: a killed run leaves a state whose places are right and whose tables are not."""
        state.save(
            self.state_file,
            replace(
                current,
                config=planned.desired,
                allocation=planned.allocation,
                tables=state.Tables(filters=current.tables.filters),
                departed=departed,
            ),
        )

    def _refuse_lost_ways(self, created: list[model.Backend], ways: neighbours.Ways, hook: str) -> None:
        """Raises EngineError for an interface that is not there, or that takes no packets.

        A frame that native XDP sends to a device without ndo_xdp_xmit, such as a bridge or a VLAN, is lost.
        """
        reached_over = {link.interface_index(backend.interface): backend for backend in created if backend.interface}
        if hook != "native":
            return
        by_address = {backend.address: backend for backend in created if not backend.mac}
        for neighbour, address in ways.neighbours.items():
            reached_over.setdefault(neighbour.interface, by_address[address])
        reached_over.pop(link.interface_index(self.interface), None)
        for index, backend in sorted(reached_over.items()):
            features = xdp_features(index)
            if features is not None and "ndo_xmit" not in features:
                name = socket.if_indextoname(index)
                raise EngineError(
                    f"backend {backend.target} of service {backend.service} is reached over {name}, which takes no "
                    f"packets from native XDP on {self.interface} (its driver has no ndo_xdp_xmit, or not now); attach "
                    f"the program with mode: tc or mode: generic, or to the interface that {name} is made of"
                )

    # --- what health checks see

    def observe(self, seen: observed.Observed, news: writing.News = lambda: None) -> Followed:
        """Have rings and remembered flows follow what health checks saw; what is desired stays as it is.

        `news` is asked between rings, and returns what was seen since, or None.
        """
        self._check_host()

        def newer() -> observed.Observed | None:
            found = news()
            if found is not None:
                self._notes.save_seen(found)
            return found

        # No directory is made: where there is none, there is no balancer either.
        with state.locked(self.paths, create=False):
            current = self._live(self._notes.load())
            self._notes.save_seen(seen)
            with maps.open_pinned(self.maps_directory, current.program.sizes) as live_maps:
                followed = self._follow(current, live_maps, seen, self._notes.save, newer)
        return Followed(followed.tables.out, self._notes.refusal)

    def configured(self) -> notes.Version | None:
        """Another one when a module has written the state since, but not when observe() has."""
        return self._notes.configured()

    def forgotten(self) -> bool:
        """Whether somebody else changed or removed what observe() wrote down."""
        return self._notes.forgotten()

    def forget_health(self) -> None:
        """Nothing is checked any more: what is desired is all there is to go by."""
        if state.load(self.state_file) is not None and self.program_pin.exists():
            refusal = self.observe(observed.Observed()).refusal
            if refusal:
                raise EngineError(f"{refusal}; every backend has what is desired, but it is not written down")
        files.remove(self.health_file)

    def observed(self) -> observed.Observed:
        """What health checks saw last."""
        return observed.load(self.health_file)

    def _follow(
        self,
        current: state.State,
        live_maps: maps.Maps,
        seen: observed.Observed,
        save: Callable[[state.State], None],
        news: writing.News = lambda: None,
    ) -> state.State:
        """Drift is left for a module to tell of, except where a killed run left no more to go by."""
        known, sizes = current.tables, current.program.sizes
        out = seen.out(current.config)
        if out == known.out and not known.following:
            return current
        found = drift.find(current, live_maps)
        repaired = found if known.following or drift.unfinished(current) else plan.Drift()
        planned = writing.plan_out(current, repaired, known.out, out)
        save(replace(current, tables=replace(known, following=True)))
        if writing.swaps_rings_only(planned):
            written = writing.write_in_turns(current, planned, live_maps, news)
        else:
            packed = writing.endpoint_tables(planned, sizes) if repaired.endpoints else (None, None)
            written = writing.write(planned, live_maps, known, packed)
        if found.backends and not repaired.backends:
            written = replace(written, backends=known.backends)
        followed = _result(current, planned, written)
        save(followed)
        return followed

    def _settled(self, current: state.State, live_maps: maps.Maps, check: bool) -> state.State:
        """What health checks were killed at is finished first, and is no change of whoever comes next."""
        if not current.tables.following:
            return current
        if not check:
            return self._follow(current, live_maps, self.observed(), partial(state.save, self.state_file))
        allocation, live_rings = current.allocation, live_maps.ring_ids()
        rings = {place: live_rings[place] for place in allocation.rings.values() if place in live_rings}
        digest = drift.backends_digest(live_maps.read_backends(), allocation)
        return replace(current, tables=replace(current.tables, rings=rings, backends=digest))

    # --- filters

    def apply_filters(
        self, raw: list[dict[str, Any]], purge: bool, check: bool, features: list[str] | None = None
    ) -> Outcome:
        """Make these the filters, all at once; `features` as for services."""
        declared = filters.parse_filters(raw)
        with self._locked(check) as locked_state:
            current = self._live(locked_state)
            desired = declared if purge else {**current.filters, **declared}
            self._require(used_features(model.Config({}, {}), desired), current, features if check else None)
            ids = plan.assign_filters(desired, current.filter_ids, current.program.sizes)
            changes = plan.compare(current.filters, desired)
            table = filter_table.pack_filter_table(desired, ids, current.program.sizes) if desired else None
            details: dict[str, Any] = {
                "created": [_label(key) for key in changes.created],
                "modified": [_label(key) for key in changes.modified],
                "removed": [_label(key) for key in changes.removed],
            }
            with maps.open_pinned(self.maps_directory, current.program.sizes) as live_maps:
                details["repaired"] = live_maps.table_id("filters") != current.tables.filters
                changed = bool(changes or details["repaired"])
                if changed and not check:
                    self._write_filters(current, desired, ids, table, live_maps)
                    details["write_seconds"] = round(live_maps.write_seconds, 6)
        before = [live.public(item) for item in current.filters.values()]
        return Outcome(changed, before, [live.public(item) for item in desired.values()], details, [])

    def _write_filters(
        self,
        current: state.State,
        desired: filters.Filters,
        ids: dict[filters.FilterKey, int],
        table: bytes | None,
        live_maps: maps.Maps,
    ) -> None:
        unsure = replace(current, filters=desired, filter_ids=ids, tables=replace(current.tables, filters=0))
        state.save(self.state_file, unsure)
        created = [ids[key] for key in ids if key not in current.filter_ids]
        live_maps.zero_counters("filter_counters", created)
        live_maps.reset_limits(created)
        written = live_maps.swap_table("filters", table)
        # A limit that was used up under the old rate would be so for as long as that rate says.
        live_maps.reset_limits(ids[key] for key in ids if current.filters.get(key) != desired[key])
        self._save(replace(unsure, tables=replace(current.tables, filters=written)))

    # --- reading

    def info(self) -> dict[str, Any]:
        """Everything live: program, services and backends with their counters, packets by reason."""
        self._check_host()
        # No lock: the state file is replaced as a whole, and a reader must not wait for a long apply.
        return self.read(state.load(self.state_file)).info()

    def read(self, current: state.State | None) -> live.Reading:
        """What is live of what the state file says. Asks for nothing but reading."""
        facts = self.program_facts(current)
        if current is None or "program_id" not in facts:
            return live.Reading(facts)
        facts.update(_kernel_facts(self.program_pin))
        facts.update(
            attached_at=current.program.attached_at,
            generation=current.generation,
            applied_at=current.applied_at,
            counting_since=current.counting_since,
        )
        with maps.open_pinned(self.maps_directory, current.program.sizes, read_only=True) as live_maps:
            return live.read(facts, current, live_maps, self.observed().healthy)

    # --- what runs on the host without a controller

    def next_hop_addresses(self) -> list[str]:
        """The backends whose next hop the kernel's tables decide."""
        current = state.load(self.state_file)
        if current is None:
            return []
        return _addresses_of_kernel(current.config.backends.values())

    def forget_next_hops(self) -> None:
        """Routes, links or neighbours changed: the program asks the kernel's tables again."""
        current = state.load(self.state_file)
        # An interface that went away took the program along.
        if current is None or not link.exists(self.interface):
            return
        with maps.open_pinned(self.maps_directory, current.program.sizes) as live_maps:
            live_maps.update_control(link.mtu(self.interface))
            live_maps.set_links(link.links_up(current.config.redirect_interfaces()))

    def restore(self) -> Outcome:
        """Put back what the state file declares: program, maps and their content."""
        current = state.load(self.state_file)
        if current is None:
            raise EngineError(f"{self.state_file} does not exist, so there is nothing to restore on {self.interface}")
        known = current.program
        if known.attached:
            # The first packets would be lost; whoever does not answer is known by and by.
            neighbours.resolve(neighbours.ways(self.next_hop_addresses()), RESOLVE_TIMEOUT)
        return self.apply_program(
            ProgramRequest(
                mode=known.mode,
                features=frozenset(known.requested_features),
                sizes=known.sizes,
                source=Path(known.source),
                attached=known.attached,
                prepare=known.prepare,
            ),
            check=False,
        )


def _check_sizes(sizes: Sizes) -> None:
    for option, limit in SIZE_LIMITS.items():
        if not 1 <= getattr(sizes, option) <= limit:
            raise EngineError(f"{option} {getattr(sizes, option)} is not between 1 and {limit}")


def _with_prepared(before: dict[str, Any], after: dict[str, Any], native: NativeHook) -> tuple[Any, Any]:
    """A line for each value that is changed for the program's sake, in the difference."""
    found = dict(before), dict(after)
    for entry in native.prepared:
        for values, key in zip(found, ("before", "after")):
            values.update({f"{entry['interface']} {name}": value for name, value in entry[key].items()})
    return found


def _addresses_of_kernel(backends: Iterable[model.Backend]) -> list[str]:
    """Those whose next hop the kernel's tables decide."""
    return sorted({backend.address for backend in backends if backend.address and not backend.mac})


def _unfit(
    before: dict[str, model.Service], after: dict[str, model.Service], backends: dict[model.BackendKey, model.Backend]
) -> dict[model.BackendKey, str]:
    """Backends that a changed service can no longer have, with the reason."""
    changed = {name for name, service in before.items() if after.get(name, service) != service}
    if not changed:
        return {}
    # Where two are in each other's way, it is that of the changed service that goes.
    ordered = sorted(backends, key=lambda key: key.service in changed)
    problems = model.backend_problems(model.Config(after, {key: backends[key] for key in ordered}))
    return {
        key: f"{problem}; removed until xdp_backends declares it anew"
        for key, problem in problems.items()
        if key.service in changed
    }


def _result(current: state.State, planned: plan.Plan, written: state.Tables) -> state.State:
    """What the plan leaves once it is written."""
    settled = replace(planned.allocation, retiring_rings=frozenset(), retiring_backends=frozenset())
    return replace(current, config=planned.desired, allocation=settled, tables=written)


class _Programs:
    """Loaded programs by the kind of hook they are for, made when asked for; the last one asked for is pinned."""

    def __init__(self, balancer: Balancer, build: compiler.Build, live_maps: maps.Maps, pin: Path) -> None:
        self._balancer, self._build, self._maps, self._pin = balancer, build, live_maps, pin
        self._loaded: dict[bool, int] = {}

    def __enter__(self) -> _Programs:
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self._loaded.values():
            os.close(descriptor)

    def program(self, for_tc: bool) -> int:
        """Its descriptor."""
        if for_tc not in self._loaded:
            self._loaded[for_tc] = self._balancer.load(replace(self._build, tc=for_tc), self._maps)
        self._pin.unlink(missing_ok=True)
        bpf.object_pin(self._loaded[for_tc], str(self._pin))
        return self._loaded[for_tc]


def _with_backends(
    config: model.Config,
    declared: dict[model.BackendKey, model.Backend],
    purge: bool,
    service: str | None,
    services: dict[str, model.Service] | None,
) -> model.Config:
    """Raises EngineError for backends that do not fit their services: `services`, or those of `config`."""
    services = config.services if services is None else services
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
        for key, backend in config.backends.items()
        if key.service in services and (not purge or (service is not None and key.service != service))
    }
    desired = model.Config(services, {**kept, **declared})
    model.check(desired)
    return desired


def _in_slice(entry: Any, service: str | None) -> bool:
    return service is None or entry.service == service


def _label(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, filters.FilterKey):
        return key.prefix + (f" {key.protocol}" if key.protocol != "any" else "")
    return f"{key.service} {key.address}" + (f":{key.port}" if key.port is not None else "")


def _kernel_facts(pin: Path) -> dict[str, Any]:
    descriptor = bpf.object_get(str(pin), read_only=True)
    try:
        info = bpf.program_info(descriptor)
    finally:
        os.close(descriptor)
    return {
        "name": info.name,
        "tag": info.tag,
        "jited_bytes": info.jited_size,
        "verified_instructions": info.verified_instructions,
        "run_time_ns": info.run_time_ns,
        "run_count": info.run_count,
    }


def _pinned_program_id(pin: Path) -> int | None:
    try:
        descriptor = bpf.object_get(str(pin), read_only=True)
    except FileNotFoundError:
        return None
    try:
        return bpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)


def _remove_pins(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
