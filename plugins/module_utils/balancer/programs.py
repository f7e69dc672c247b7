# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loaded programs: made from compiled code over a balancer's maps, pinned by interface, and put on hooks together."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ..kernel import bpf, link, tc
from . import compiled, compiler, drift, legacy, map_set, maps, offload_maps, state
from .hooks import PROGRAM_NAME, Hooks, Known, Wanted
from .native import NativeHook
from .places import Places, pinned_id, remove_tree
from .put_back import Kept, undisturbed


class Loader:
    """Programs of one build by the kind of hook they are for, loaded when asked for."""

    def __init__(
        self,
        build: compiler.Build,
        live_maps: maps.Maps | offload_maps.OffloadMaps,
        directory: Path,
        device: int = 0,
    ) -> None:
        """`device`: index of the interface whose hardware is to run them, 0 for the kernel."""
        self._build, self._maps, self._directory, self._device = build, live_maps, directory, device
        self._loaded: dict[bool, int] = {}
        # Whether one of them had to be compiled.
        self.compiled = False

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self._loaded.values():
            os.close(descriptor)
        self._loaded.clear()

    def reuse(self, for_tc: bool, pin: Path) -> None:
        """Take a pinned program, which is of this build, instead of loading another."""
        if for_tc not in self._loaded:
            self._loaded[for_tc] = bpf.object_get(str(pin))

    def program(self, for_tc: bool) -> int:
        """The descriptor. Raises EngineError if the program cannot be compiled or is rejected by the verifier."""
        if for_tc not in self._loaded:
            self._loaded[for_tc] = self._load(replace(self._build, tc=for_tc))
        return self._loaded[for_tc]

    def _load(self, build: compiler.Build) -> int:
        def load_code(code: bytes) -> int:
            return bpf.program_load(
                PROGRAM_NAME,
                bpf.relocate(code, list(self._maps.descriptors.values())),
                program_type=build.program_type,
                flags=build.load_flags,
                attach_type=build.attach_type,
                device=self._device,
            )

        program, compiled_now = compiled.load(build, self._directory, load_code)
        self.compiled |= compiled_now
        return program


@dataclass(frozen=True)
class Attachment:
    """What is to be on one interface, and what is known of it."""

    interface: str
    wanted: Wanted
    known: Known | None
    native: NativeHook


def owns(places: Places, interface: str, attached: link.Attached) -> bool:
    """Whether a program is pinned here or by a balancer of this interface alone, or, its pin lost, uses our maps."""
    former = legacy.pins(places.paths, interface) / "program"
    pins = (places.program(interface), places.new_program(interface), former)
    if attached.program_id in map(pinned_id, pins):
        return True
    try:
        control = bpf.object_get(str(places.maps / "control"))
    except FileNotFoundError:
        return False
    try:
        return bpf.map_info(control).id in _map_ids(attached.program_id)
    finally:
        os.close(control)


def _map_ids(program_id: int) -> set[int]:
    try:
        descriptor = bpf.program_fd(program_id)
    except OSError:
        return set()
    try:
        return set(bpf.program_info(descriptor).map_ids)
    finally:
        os.close(descriptor)


def uses_maps(program_id: int, live_maps: maps.Maps) -> bool:
    """Whether a program uses these maps and no others: after an interrupted change one interface may use old ones."""
    return _map_ids(program_id) <= {bpf.map_info(descriptor).id for descriptor in live_maps.descriptors.values()}


def put_all(
    places: Places,
    attachments: list[Attachment],
    loader: Loader,
    commit: Callable[[dict[str, tuple[str, str]]], None] = lambda _found: None,
    place_maps: Callable[[], None] = lambda: None,
) -> dict[str, tuple[str, str]]:
    """Put programs on the hooks of all interfaces: hook and reason by interface. On an error, all is as it was before.

    `commit` gets these once every hook is switched: until it returns, an error undoes all. `place_maps` follows, and
    then the pins; what is left of that after a failure, complete_interrupted() does.
    """
    places.make()
    found: dict[str, tuple[str, str]] = {}
    pins = [places.new_program(attachment.interface) for attachment in attachments]
    with ExitStack() as switched:
        try:
            with ExitStack() as stack:
                for attachment, pin in zip(attachments, pins):
                    hooks = Hooks(attachment.interface)
                    kept = stack.enter_context(Kept(attachment.interface, hooks.programs, attachment.native.undo))
                    program_for = _pinning(loader, pin, kept)
                    put = hooks.put(program_for, attachment.wanted, attachment.known, attachment.native)
                    if not put[0]:
                        # Detached, but ready to be attached.
                        program_for(False)
                    found[attachment.interface] = put
                # A signal is not to leave the rest to the next run.
                switched.enter_context(undisturbed())
                commit(found)
        except BaseException:
            for pin in pins:
                pin.unlink(missing_ok=True)
            raise
        place_maps()
        for attachment, pin in zip(attachments, pins):
            pin.rename(places.program(attachment.interface))
    return found


def _pinning(loader: Loader, pin: Path, kept: Kept) -> Callable[[bool], int]:
    """The program of the kind that was asked for last is the one that is pinned."""

    def program_for(for_tc: bool) -> int:
        descriptor = loader.program(for_tc)
        kept.tried(descriptor)
        pin.unlink(missing_ok=True)
        bpf.object_pin(descriptor, str(pin))
        return descriptor

    return program_for


def complete_interrupted(places: Places, current: state.State | None) -> None:
    """A run may have been killed before its new programs were in place: keep those that are on their hooks.

    New maps are kept if the state is that of what is in them; else their programs give way to those before.
    """
    if not places.new_programs.exists():
        return
    keep = not places.new_maps.exists() or _is_of(current, places.new_maps)
    if keep and places.new_maps.exists():
        adopt_new_maps(places)
    for pin in sorted(places.new_programs.iterdir()):
        interface = pin.name.replace("%", ".")
        # An interface that went away took its program along.
        found = Hooks(interface).programs() if link.exists(interface) else []
        on_hook = next((attached for attached in found if attached.program_id == pinned_id(pin)), None)
        if on_hook and keep:
            pin.rename(places.program(interface))
            continue
        if on_hook:
            _give_way(places, interface, on_hook, current.program.hooks.get(interface) if current else None)
        pin.unlink()
    remove_tree(places.new_maps)


def _is_of(current: state.State | None, directory: Path) -> bool:
    """Whether the tables in these maps are those that the state names."""
    if current is None or drift.unfinished(current):
        return False
    try:
        with map_set.open_pinned(directory, current.program.sizes) as found:
            return drift.table_ids(found) == drift.known_ids(current.tables)
    except map_set.OtherLayout:
        return False


def _give_way(places: Places, interface: str, attached: link.Attached, known: state.Hook | None) -> None:
    """Have the pinned program on its hook instead of this one, or none if the state knows of none."""
    hooks, before = Hooks(interface), pinned_id(places.program(interface))
    if before is None or known is None or not known.hook:
        hooks.detach(attached)
        return
    with ExitStack() as stack:
        descriptor = bpf.object_get(str(places.program(interface)))
        stack.callback(os.close, descriptor)
        if link.Attached(known.hook, before) not in hooks.programs():
            if known.hook == "tc":
                tc.attach(interface, descriptor)
            elif known.hook == attached.hook:
                replaced = bpf.program_fd(attached.program_id)
                stack.callback(os.close, replaced)
                link.attach(interface, descriptor, known.hook, replaced)
            elif attached.hook == "tc":
                link.attach(interface, descriptor, known.hook, None)
            else:
                # XDP on two hooks at once is not allowed.
                hooks.detach(attached)
                link.attach(interface, descriptor, known.hook, None)
                return
    if known.hook != attached.hook:
        hooks.detach(attached)


def adopt_new_maps(places: Places) -> None:
    """The new maps take the place of those that were there."""
    if places.maps.exists():
        for path in places.maps.iterdir():
            path.unlink()
        places.maps.rmdir()
    places.new_maps.rename(places.maps)
