# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hooks of an interface that the program may be on: XDP's, and tc's ingress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from ..errors import EngineError
from ..kernel import bpf, link, tc
from . import compiler
from .native import NativeHook

PROGRAM_NAME = "lbops_balancer"
# In the order in which they are tried: generic XDP costs more than the hook of tc.
HOOKS_OF_MODE = {
    "auto": ("native", "tc", "generic"),
    "native": ("native",),
    "generic": ("generic",),
    "tc": ("tc",),
    "offload": ("offload",),
}


@dataclass(frozen=True)
class Wanted:
    """What is to be on an interface."""

    mode: str
    attached: bool
    features: frozenset[str]
    prepare: bool


@dataclass(frozen=True)
class Known:
    """What the state file says of an interface."""

    mode: str
    hook: str
    why: str
    prepare: bool


class Hooks:
    """The hooks of one interface; `known` is None if the state file does not know it."""

    def __init__(self, interface: str) -> None:
        self._interface = interface

    def attached(self) -> link.Attached | None:
        """The program on the XDP hook, whoever put it there, or ours on that of tc."""
        attached = link.attached(self._interface)
        if attached is None:
            program_id = tc.attached(self._interface)
            attached = link.Attached("tc", program_id) if program_id else None
        return attached

    def to_try(self, wanted: Wanted, known: Known | None) -> tuple[str, ...]:
        """Those to try, in this order."""
        attached = self.attached()
        if known and attached and (attached.hook, wanted.mode) == (known.hook, known.mode):
            # This hook was the best that there was; trying another would take the program off this one first.
            if attached.hook == "native" or known.prepare or not wanted.prepare:
                return (attached.hook,)
        return HOOKS_OF_MODE[wanted.mode]

    def put(
        self,
        program_for: Callable[[bool], int | None],
        wanted: Wanted,
        known: Known | None,
        native: NativeHook,
    ) -> tuple[str, str]:
        """Which hook the program is on, and why; no hook if `program_for` has no program of the kind it takes."""
        attached = self.attached()
        if not wanted.attached:
            if attached:
                self.detach(attached)
            return "", "detached as asked for"
        hooks = self.to_try(wanted, known)
        refusals = []
        with _kept(attached) as previous:
            on_hook = attached
            for hook in hooks:
                try:
                    program = self._program_for(hook, program_for, wanted, native)
                    if program is None:
                        return "", ""
                    if on_hook and on_hook.hook != hook and "tc" not in (on_hook.hook, hook):
                        # XDP on two hooks at once is not allowed, so this switch cannot be seamless.
                        self.detach(on_hook)
                        on_hook = None
                    self._attach(program, hook, on_hook if on_hook and on_hook.hook == hook else None, native)
                except link.HookRefused as error:
                    refusals.append(str(error))
                    continue
                if on_hook and on_hook.hook != hook:
                    self.detach(on_hook)
                if wanted.mode != "auto":
                    return hook, f"mode {wanted.mode} was asked for"
                if known and len(hooks) == 1:
                    return hook, known.why
                return hook, "; ".join(refusals) or f"the driver takes {hook} XDP"
            if attached and not on_hook:
                link.attach(self._interface, previous, attached.hook, None)
        raise EngineError("; ".join(refusals))

    def _program_for(
        self, hook: str, program_for: Callable[[bool], int | None], wanted: Wanted, native: NativeHook
    ) -> int | None:
        """Raises HookRefused for what the hook cannot do."""
        if hook == "native" and native.refusal:
            raise link.HookRefused(native.refusal)
        missing = sorted(wanted.features & compiler.NOT_ON_TC)
        if hook == "tc" and missing:
            raise link.HookRefused(f"tc ingress on {self._interface}: {', '.join(missing)} is possible with XDP only")
        if hook == "offload":
            self._refuse_offload()
        return program_for(hook == "tc")

    def _refuse_offload(self) -> NoReturn:
        """Say why it is refused: the device takes no programs, as the smallest there is tells, or not this one."""
        try:
            os.close(
                bpf.program_load(
                    PROGRAM_NAME, bpf.PASS_PROGRAM, device=link.interface_index(self._interface), log_level=1
                )
            )
        except OSError as error:
            raise link.HookRefused(
                f"offload XDP on {self._interface} (driver {link.driver(self._interface)}): the device takes no "
                f"programs: {error.strerror}"
            ) from None
        # kernel/bpf/offload.c, bpf_map_offload_map_alloc(): arrays and hash tables (Linux 4.16 to 6.18).
        raise link.HookRefused(
            f"offload XDP on {self._interface} (driver {link.driver(self._interface)}): the device takes programs, but "
            "the kernel passes no maps of maps to hardware, and the balancer needs them; use mode: native"
        )

    def _attach(self, program: int, hook: str, attached: link.Attached | None, native: NativeHook) -> None:
        if hook == "tc":
            tc.attach(self._interface, program)
            return
        with _kept(attached) as replaced:
            if hook == "native":
                native.attach(lambda: link.attach(self._interface, program, hook, replaced))
            else:
                link.attach(self._interface, program, hook, replaced)

    def detach(self, attached: link.Attached) -> None:
        if attached.hook == "tc":
            tc.detach(self._interface)
            return
        descriptor = bpf.program_fd(attached.program_id)
        try:
            link.detach(self._interface, attached.hook, descriptor)
        finally:
            os.close(descriptor)


def describe_program(program_id: int) -> str:
    try:
        descriptor = bpf.program_fd(program_id)
    except OSError:
        return f"program {program_id}"
    try:
        info = bpf.program_info(descriptor)
    finally:
        os.close(descriptor)
    return f"program {program_id} ({info.name or 'without a name'}, tag {info.tag})"


@contextmanager
def _kept(attached: link.Attached | None) -> Iterator[int | None]:
    """A descriptor of a program, which keeps it while it is on no hook."""
    descriptor = bpf.program_fd(attached.program_id) if attached else None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
