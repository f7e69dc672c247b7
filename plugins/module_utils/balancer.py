# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer of one interface: what modules, the boot-time restore and the exporter do to it.

Pins: <pins>/<interface>/program and <pins>/<interface>/maps/<map>, directories with mode 0700.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import bpf, compiler, link, maps, model, next_hops, plan, state, tables
from .errors import EngineError
from .layout import BACKEND, REASONS, Sizes

INTERFACE_PATTERN = re.compile(r"[^/\s]{1,15}")
PROGRAM_NAME = "lbops_balancer"
HOOKS_OF_MODE = {"auto": ("native", "generic"), "native": ("native",), "generic": ("generic",)}
# Beyond these, maps take gigabytes, or are refused by the kernel without a word why.
SIZE_LIMITS = {"max_services": 65536, "max_backends": 1048576, "max_endpoints": 1048576}
# How long replies of a removed backend may still be under way.
REPLY_LINGER = 0.2  # seconds
# How long the first packets' neighbours get to answer before they are needed.
RESOLVE_TIMEOUT = 3.0  # seconds
# Rings of new services are computed and written in batches, a quarter of a megabyte each.
RINGS_AT_ONCE = 100


@dataclass(frozen=True)
class ProgramRequest:
    """The arguments of xdp_program."""

    mode: str
    features: frozenset[str]
    sizes: Sizes
    source: Path
    attached: bool = True
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a module returns."""

    changed: bool
    before: Any
    after: Any
    details: dict[str, Any]
    warnings: list[str]


def used_features(config: model.Config) -> frozenset[str]:
    """The features that a configuration needs compiled in."""
    needed = {service.forwarding for service in config.services.values()}
    needed |= {service.scheduler for service in config.services.values()}
    return frozenset(needed & compiler.FEATURES.keys())


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
            before = self._program_facts(current)
            self._refuse_foreign(request)
            config = current.config if current else model.Config({}, {})
            # Live services keep what they need until they are gone.
            features = request.features | used_features(config)
            build = compiler.Build(request.source, features, request.sizes)
            digest = build.digest()
            wanted = {
                "attached": request.attached,
                "mode": request.mode,
                "features": sorted(features),
                "digest": digest,
            }
            live = {name: before.get(name) for name in wanted}
            if live == wanted and self._pinned_maps_fit(request.sizes):
                return Outcome(False, before, before, {}, [])
            # What does not fit is refused before anything is touched, in check mode as well.
            planned = plan.make(model.Config({}, {}), plan.Allocation(), config, request.sizes)
            _endpoint_tables(planned, request.sizes)
            if check:
                return Outcome(True, before, {**before, **wanted}, {}, [])
            after, details = self._put_program(current, request, build, digest)
            return Outcome(True, before, after, details, [])

    def _finish_replacement(self) -> None:
        """A run may have been killed, or have failed, before its new program was in place."""
        if not self.pins.exists():
            return
        pending = self.pins / "program_new"
        attached = link.attached(self.interface)
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
        attached = link.attached(self.interface)
        if attached is None or self._is_ours(attached) or request.force:
            return
        raise EngineError(
            f"{self.interface} carries a program that is not ours: {_describe_program(attached.program_id)} on the "
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
        self, current: state.State | None, request: ProgramRequest, build: compiler.Build, digest: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        details = {"compiled": False, "new_maps": False}
        known = current and current.program.digest == digest and self.program_pin.exists()
        if known and self._pinned_maps_fit(request.sizes):
            program = bpf.object_get(str(self.program_pin))
            try:
                hook, why = self._put_on_hook(program, request, current)
            finally:
                os.close(program)
        else:
            code = compiler.compile_program(build)
            replaced = _pinned_program_id(self.program_pin)
            self._save_program_intent(current, build)
            try:
                current, hook, why, details["new_maps"] = self._replace_program(current, request, code)
            except (EngineError, OSError):
                self._finish_replacement()
                if current and _pinned_program_id(self.program_pin) == replaced:
                    state.save(self.state_file, current)
                raise
            details["compiled"] = True
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
        )
        after = replace(current, program=program_state) if current else state.State(program_state)
        state.save(self.state_file, after)
        return self._program_facts(after), details

    def _save_program_intent(self, current: state.State | None, build: compiler.Build) -> None:
        """Before the hook is touched: a killed run leaves a state that is sure of no more than both programs have."""
        if current:
            both = sorted(build.features.intersection(current.program.features))
            unsure = replace(current.program, digest="", features=both)
            state.save(self.state_file, replace(current, program=unsure))

    def _replace_program(
        self, current: state.State | None, request: ProgramRequest, code: bytes
    ) -> tuple[state.State | None, str, str, bool]:
        """Load and attach new code: the state with its places in the maps, hook, why, whether the maps are new."""
        _make_private(self.paths.pins)
        _make_private(self.pins)
        live_maps = self._open_maps_if_fit(request.sizes, current)
        new_maps = live_maps is None
        if live_maps is None:
            _remove_pins(self.pins / "maps_new")
            live_maps = maps.create(request.sizes)
        with live_maps:
            if new_maps:
                current = self._fill_new_maps(current, live_maps, request.sizes)
            elif current is None:
                current = self._adopt_maps(live_maps, request)
            program = self._load(code, live_maps)
            try:
                pending = self.pins / "program_new"
                pending.unlink(missing_ok=True)
                bpf.object_pin(program, str(pending))
                hook, why = self._put_on_hook(program, request, current)
                if new_maps:
                    self._adopt_new_maps()
                pending.rename(self.program_pin)
            finally:
                os.close(program)
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
        if current is not None and live_maps.endpoints_id() != current.tables.endpoints:
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
        planned = plan.make(model.Config({}, {}), plan.Allocation(), current.config, sizes)
        written = self._write(planned, live_maps, state.Tables(), _endpoint_tables(planned, sizes))
        self._carry_counters(current, planned.allocation, live_maps)
        return replace(current, allocation=planned.allocation, tables=written)

    def _carry_counters(self, current: state.State, allocation: plan.Allocation, live_maps: maps.Maps) -> None:
        try:
            old = maps.open_pinned(self.maps_directory, current.program.sizes)
        except EngineError:
            # Maps of another layout may count something else.
            return
        with old:
            for name, before, after in (
                ("service_counters", current.allocation.service_counters, allocation.service_counters),
                ("backend_counters", current.allocation.backend_counters, allocation.backend_counters),
            ):
                rows = old.read_counters(name)
                live_maps.set_counters(name, {after[key]: rows[place] for key, place in before.items()})

    def _load(self, code: bytes, live_maps: maps.Maps) -> int:
        try:
            return bpf.program_load(PROGRAM_NAME, bpf.relocate(code, list(live_maps.descriptors.values())))
        except bpf.VerifierError as error:
            raise EngineError(
                f"the kernel's verifier rejects the program for {self.interface}: {error.strerror}\n{error.log[-4000:]}"
            ) from None

    def _put_on_hook(self, program: int, request: ProgramRequest, current: state.State | None) -> tuple[str, str]:
        """Which hook the program is on, and why."""
        attached = link.attached(self.interface)
        if not request.attached:
            if attached:
                self._detach(attached)
            return "", "detached as asked for"
        hooks = HOOKS_OF_MODE[request.mode]
        if current and attached and (attached.hook, request.mode) == (current.program.hook, current.program.mode):
            # This hook was the best that there was; trying another would take the program off this one first.
            hooks = (attached.hook,)
        refusals = []
        with _kept(attached) as previous:
            on_hook = attached
            for hook in hooks:
                if on_hook and on_hook.hook != hook:
                    # Two hooks at once are not allowed, so this switch cannot be seamless.
                    self._detach(on_hook)
                    on_hook = None
                try:
                    self._attach(program, hook, on_hook)
                except link.HookRefused as error:
                    refusals.append(str(error))
                    continue
                if request.mode != "auto":
                    return hook, f"mode {request.mode} was asked for"
                if current and len(hooks) == 1:
                    return hook, current.program.why
                return hook, "; ".join(refusals) or f"the driver takes {hook} XDP"
            if attached and not on_hook:
                link.attach(self.interface, previous, attached.hook, None)
        raise EngineError("; ".join(refusals))

    def _attach(self, program: int, hook: str, attached: link.Attached | None) -> None:
        if attached is None:
            link.attach(self.interface, program, hook, None)
            return
        replaced = bpf.program_fd(attached.program_id)
        try:
            link.attach(self.interface, program, hook, replaced)
        finally:
            os.close(replaced)

    def _detach(self, attached: link.Attached) -> None:
        descriptor = bpf.program_fd(attached.program_id)
        try:
            link.detach(self.interface, attached.hook, descriptor)
        finally:
            os.close(descriptor)

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
            before = self._program_facts(current) if exists else {"attached": False}
            if exists and not check:
                self._remove()
        return Outcome(exists, before, {"attached": False}, {}, [])

    def _remove(self) -> None:
        if link.exists(self.interface):
            attached = link.attached(self.interface)
            if attached and self._is_ours(attached):
                self._detach(attached)
        _remove_pins(self.pins)
        state.remove(self.state_file)
        self._remove_pin_directories()

    def _remove_pin_directories(self) -> None:
        """Those that are empty."""
        for directory in (self.pins, self.paths.pins):
            try:
                directory.rmdir()
            except OSError:
                # Other interfaces have pins there.
                pass

    def _program_facts(self, current: state.State | None) -> dict[str, Any]:
        """What is really on the hook, with what the state file knows about it."""
        attached = link.attached(self.interface) if link.exists(self.interface) else None
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
                program_id=ours,
                max_services=known.sizes.max_services,
                max_backends=known.sizes.max_backends,
                max_endpoints=known.sizes.max_endpoints,
            )
        return facts

    # --- services and backends

    def apply_services(self, raw: list[dict[str, Any]], purge: bool, check: bool) -> Outcome:
        """Make these the services; backends of services that go away go with them."""
        declared = model.parse_services(raw)
        with self._locked(check) as locked_state:
            current = self._live(locked_state)
            services = declared if purge else {**current.config.services, **declared}
            if not purge:
                # The merged list is checked as a whole, ports that clash included.
                services = model.parse_services([service.as_dict() for service in services.values()])
            missing = used_features(model.Config(services, {})) - set(current.program.features)
            if missing:
                raise EngineError(
                    f"the program on {self.interface} was compiled without {', '.join(sorted(missing))}; "
                    f"add it to the features of xdp_program"
                )
            kept = {key: backend for key, backend in current.config.backends.items() if key.service in services}
            unfit = _unfit(current.config.services, services, kept)
            desired = model.Config(services, {key: backend for key, backend in kept.items() if key not in unfit})
            outcome = self._apply(current, desired, check, "services")
            return replace(outcome, warnings=[*outcome.warnings, *unfit.values()])

    def apply_backends(
        self, raw: list[dict[str, Any]], purge: bool, check: bool, service: str | None = None
    ) -> Outcome:
        """Make these the backends: of one service if `service` is given, else of all."""
        declared = model.parse_backends(
            [{"service": service, **entry} if service and isinstance(entry, dict) else entry for entry in raw]
            if isinstance(raw, list)
            else raw
        )
        with self._locked(check) as locked_state:
            current = self._live(locked_state)
            if service is not None:
                if service not in current.config.services:
                    known = ", ".join(current.config.services) or "none"
                    raise EngineError(f"service: unknown service {service!r}; known services: {known}")
                strange = next((key for key in declared if key.service != service), None)
                if strange:
                    raise EngineError(
                        f"backend {strange.address} is of service {strange.service}, but only those of service "
                        f"{service} are declared here"
                    )
            kept = {
                key: backend
                for key, backend in current.config.backends.items()
                if not purge or (service is not None and key.service != service)
            }
            desired = model.Config(current.config.services, {**kept, **declared})
            return self._apply(current, desired, check, "backends", only=service)

    def _apply(
        self, current: state.State, desired: model.Config, check: bool, what: str, only: str | None = None
    ) -> Outcome:
        model.check(desired)
        sizes = current.program.sizes
        with maps.open_pinned(self.maps_directory, sizes) as live_maps:
            drift = self._drift(current, live_maps)
            planned = plan.make(current.config, current.allocation, desired, sizes, drift)
            warnings: list[str] = []
            details: dict[str, Any] = {"repaired": bool(drift)}
            # What does not fit is refused before anything is touched, in check mode as well.
            packed = _endpoint_tables(planned, sizes)
            if planned.changed and not check:
                self._save_intent(current, planned)
                warnings = self._resolve(planned)
                written = self._write(planned, live_maps, current.tables, packed)
                details["write_seconds"] = round(live_maps.write_seconds, 6)
                self._save_result(current, planned, written)
        changes = planned.services if what == "services" else planned.backends
        before = [_public(entry) for entry in getattr(current.config, what).values() if _in_slice(entry, only)]
        after = [_public(entry) for entry in getattr(desired, what).values() if _in_slice(entry, only)]
        details.update(
            created=[_label(key) for key in changes.created],
            modified=[_label(key) for key in changes.modified],
            removed=[_label(key) for key in changes.removed],
        )
        return Outcome(planned.changed, before, after, details, warnings)

    def _drift(self, current: state.State, live_maps: maps.Maps) -> plan.Drift:
        """Compare the maps with what was written last."""
        known = current.tables
        live_rings = live_maps.ring_ids()
        # A killed run left no ids: what it should have written may be missing altogether.
        unfinished = bool(current.allocation.rings) and not known.endpoints
        return plan.Drift(
            endpoints=unfinished or live_maps.endpoints_id() != known.endpoints,
            rings=frozenset(
                ring
                for ring in current.allocation.rings.values()
                if unfinished or live_rings.get(ring, 0) != known.rings.get(ring, 0)
            ),
            backends=_backends_digest(live_maps.read_backends(), current.allocation) != known.backends,
        )

    def _save_intent(self, current: state.State, planned: plan.Plan) -> None:
        """Before the maps are touched: a killed run leaves a state whose places are right and whose tables are not."""
        state.save(
            self.state_file,
            replace(current, config=planned.desired, allocation=planned.allocation, tables=state.Tables()),
        )

    def _save_result(self, current: state.State, planned: plan.Plan, written: state.Tables) -> None:
        settled = replace(planned.allocation, retiring_rings=frozenset(), retiring_backends=frozenset())
        state.save(self.state_file, replace(current, config=planned.desired, allocation=settled, tables=written))

    def _resolve(self, planned: plan.Plan) -> list[str]:
        """Neighbours of new backends, before a packet needs them."""
        backends = planned.desired.backends
        addresses = {backends[key].address for key in planned.backends.created if not backends[key].mac}
        problems = next_hops.resolve(sorted(addresses), RESOLVE_TIMEOUT) if addresses else {}
        return [f"backend {address}: {problem}" for address, problem in sorted(problems.items())]

    def _write(
        self, planned: plan.Plan, live_maps: maps.Maps, known: state.Tables, packed: tuple[bytes | None, bytes | None]
    ) -> state.Tables:
        """Carry out a plan; each step leaves packets with the old or the new configuration, never with a mix."""
        allocation, desired = planned.allocation, planned.desired
        members = desired.backends_of()
        table_ids = dict(known.rings)
        endpoints_id = known.endpoints

        def pack(names: list[str]) -> dict[int, bytes | None]:
            return {
                allocation.rings[name]: tables.pack_ring(desired.services[name], members[name], allocation.backends)
                for name in names
            }

        # Everything that takes time to compute is ready before packets see the first change.
        entries = {allocation.backends[key]: self._entry(planned, key) for key in planned.written_backends}
        swapped = pack(planned.swapped_rings)
        final, interim = packed

        live_maps.write_backends(entries)
        live_maps.zero_counters("service_counters", planned.zero_service_counters)
        live_maps.zero_counters("backend_counters", planned.zero_backend_counters)
        for start in range(0, len(planned.new_rings), RINGS_AT_ONCE):
            live_maps.write_rings(pack(planned.new_rings[start : start + RINGS_AT_ONCE]), table_ids)
        if interim is not None:
            endpoints_id = live_maps.swap_endpoints(interim)
            live_maps.write_rings(swapped, table_ids)
            if planned.replies_linger:
                time.sleep(REPLY_LINGER)
            endpoints_id = live_maps.swap_endpoints(final)
        else:
            if final is not None:
                endpoints_id = live_maps.swap_endpoints(final)
            live_maps.write_rings(swapped, table_ids)
        live_maps.write_rings(dict.fromkeys(planned.removed_rings), table_ids)
        return state.Tables(endpoints_id, table_ids, _backends_digest(live_maps.read_backends(), allocation))

    def _entry(self, planned: plan.Plan, key: model.BackendKey) -> bytes:
        return tables.pack_backend(
            planned.desired.services[key.service],
            planned.desired.backends[key],
            planned.allocation.service_counters[key.service],
            planned.allocation.backend_counters[key],
        )

    # --- reading

    def info(self) -> dict[str, Any]:
        """Everything live: program, services and backends with their counters, packets by reason."""
        self._check_host()
        # No lock: the state file is replaced as a whole, and a reader must not wait for a long apply.
        current = state.load(self.state_file)
        facts = self._program_facts(current)
        if current is None or not self.program_pin.exists():
            return {"program": facts, "services": [], "backends": [], "reasons": []}
        facts.update(_kernel_facts(self.program_pin))
        with maps.open_pinned(self.maps_directory, current.program.sizes) as live_maps:
            service_rows = live_maps.read_counters("service_counters")
            backend_rows = live_maps.read_counters("backend_counters")
            reasons = live_maps.read_reasons()
        allocation, config = current.allocation, current.config
        return {
            "program": facts,
            "services": [
                {**_public(service), **_counters(service_rows[allocation.service_counters[name]])}
                for name, service in config.services.items()
            ],
            "backends": [
                {**_public(backend), **_counters(backend_rows[allocation.backend_counters[key]])}
                for key, backend in config.backends.items()
            ],
            "reasons": [
                {"reason": reason, "verdict": verdict, "packets": packets}
                for (reason, verdict), packets in zip(REASONS, reasons)
            ],
        }

    # --- what runs on the host without a controller

    def next_hop_addresses(self) -> list[str]:
        """The backends whose next hop the kernel's tables decide."""
        current = state.load(self.state_file)
        if current is None:
            return []
        return sorted({backend.address for backend in current.config.backends.values() if not backend.mac})

    def forget_next_hops(self) -> None:
        """Routes or neighbours changed: the program asks the kernel's tables again."""
        current = state.load(self.state_file)
        if current is None:
            return
        with maps.open_pinned(self.maps_directory, current.program.sizes) as live_maps:
            live_maps.forget_next_hops()

    def restore(self) -> Outcome:
        """Put back what the state file declares: program, maps and their content."""
        current = state.load(self.state_file)
        if current is None:
            raise EngineError(f"{self.state_file} does not exist, so there is nothing to restore on {self.interface}")
        known = current.program
        return self.apply_program(
            ProgramRequest(
                mode=known.mode,
                features=frozenset(known.requested_features),
                sizes=known.sizes,
                source=Path(known.source),
                attached=known.attached,
            ),
            check=False,
        )


def _check_sizes(sizes: Sizes) -> None:
    for option, limit in SIZE_LIMITS.items():
        if not 1 <= getattr(sizes, option) <= limit:
            raise EngineError(f"{option} {getattr(sizes, option)} is not between 1 and {limit}")


def _unfit(
    before: dict[str, model.Service], after: dict[str, model.Service], backends: dict[model.BackendKey, model.Backend]
) -> dict[model.BackendKey, str]:
    """Backends that a changed service can no longer have, with the reason."""
    reasons = {}
    for key, backend in backends.items():
        service = after[key.service]
        if before[key.service] == service:
            continue
        try:
            model.check(model.Config({service.name: service}, {key: backend}))
        except EngineError as error:
            reasons[key] = f"{error}; removed until xdp_backends declares it anew"
    return reasons


def _endpoint_tables(planned: plan.Plan, sizes: Sizes) -> tuple[bytes | None, bytes | None]:
    """The final and the interim one, where the plan has them. Raises EngineError for what does not fit."""

    def pack(found: tables.Endpoints | None) -> bytes | None:
        return None if found is None else tables.pack_endpoint_table(found, sizes)

    return pack(planned.endpoints), pack(planned.interim_endpoints)


def _in_slice(entry: Any, service: str | None) -> bool:
    return service is None or entry.service == service


def _public(entry: model.Service | model.Backend) -> dict[str, Any]:
    """An entry as modules return it, without what was not given."""
    return {key: value for key, value in entry.as_dict().items() if value is not None}


def _label(key: Any) -> str:
    if isinstance(key, str):
        return key
    return f"{key.service} {key.address}" + (f":{key.port}" if key.port is not None else "")


def _counters(row: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("packets", "bytes", "reply_packets", "reply_bytes"), row))


def _backends_digest(entries: bytes, allocation: plan.Allocation) -> str:
    """Of the entries in use, wherever they lie."""
    if not allocation.backends:
        return ""
    size = BACKEND.size
    digest = hashlib.sha256()
    for place in sorted(allocation.backends.values()):
        digest.update(entries[place * size : (place + 1) * size])
    return digest.hexdigest()


def _kernel_facts(pin: Path) -> dict[str, Any]:
    descriptor = bpf.object_get(str(pin))
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


@contextmanager
def _kept(attached: link.Attached | None) -> Iterator[int | None]:
    """A descriptor of a program, which keeps it while it is on no hook."""
    descriptor = bpf.program_fd(attached.program_id) if attached else None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _pinned_program_id(pin: Path) -> int | None:
    try:
        descriptor = bpf.object_get(str(pin))
    except FileNotFoundError:
        return None
    try:
        return bpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def _describe_program(program_id: int) -> str:
    try:
        descriptor = bpf.program_fd(program_id)
    except OSError:
        return f"program {program_id}"
    try:
        info = bpf.program_info(descriptor)
    finally:
        os.close(descriptor)
    return f"program {program_id} ({info.name or 'without a name'}, tag {info.tag})"


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)


def _remove_pins(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
