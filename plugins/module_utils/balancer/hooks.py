# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hooks of an interface that the program may be on: XDP's, and tc's ingress."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import EngineError
from ..kernel import attachments, bpf, link, tc
from . import compiler
from .native import NativeHook
from .put_back import Kept, undisturbed

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

    def programs(self) -> list[link.Attached]:
        """The program on the XDP hook, whoever put it there, then ours on that of tc."""
        found = link.attached(self._interface)
        program_id = tc.attached(self._interface)
        return [*([found] if found else []), *([link.Attached("tc", program_id)] if program_id else [])]

    def attached(self) -> link.Attached | None:
        """The first of them, which packets meet first."""
        return next(iter(self.programs()), None)

    def shadowed_by(self, attached: link.Attached) -> list[str]:
        """What packets meet before this program and may keep from it: XDP before tc, and what tc has in front of ours.

        Without CAP_NET_ADMIN the kernel does not tell of TCX programs.
        """
        if attached.hook != "tc":
            return []
        xdp = link.attached(self._interface)
        found = [f"XDP {_on_hook(xdp)} ({link.off_command(self._interface, xdp.hook)})"] if xdp else []
        return found + tc.in_front(self._interface)

    def refuse_foreign(self, is_ours: Callable[[link.Attached], bool], force: bool) -> None:
        """Raises EngineError for a program of others that must stay, or that cannot be replaced."""
        for attached in self.programs():
            by_link = link.bpf_link(self._interface) if attached.hook != "tc" else None
            ours = is_ours(attached)
            if ours and not by_link:
                continue
            what = f"{self._interface} carries a program that {'is' if ours else 'is not'} ours: {_on_hook(attached)}"
            if by_link:
                raise EngineError(
                    f"{what}, attached by {by_link}; the balancer cannot replace that, not even with force: true: "
                    f"{by_link.remedy}, then apply again"
                )
            if not force:
                off = self._off_command(attached)
                raise EngineError(f"{what}; detach it with {off}, or have it replaced with force: true")

    def _off_command(self, attached: link.Attached) -> str:
        if attached.hook == "tc":
            return f"tc filter del dev {self._interface} ingress pref {tc.PRIORITY} handle {tc.HANDLE:#x} bpf"
        return link.off_command(self._interface, attached.hook)

    def to_try(self, wanted: Wanted, known: Known | None) -> tuple[str, ...]:
        """Those to try, in this order."""
        attached = self.attached()
        if known and attached and (attached.hook, wanted.mode) == (known.hook, known.mode):
            # This hook was the best that there was; trying another would take the program off this one first.
            kept = attached.hook == "native" or known.prepare or not wanted.prepare
            impossible = attached.hook == "tc" and bool(wanted.features & compiler.NOT_ON_TC)
            if kept and not impossible and not self.shadowed_by(attached):
                return (attached.hook,)
        return HOOKS_OF_MODE[wanted.mode]

    def likely(self, wanted: Wanted, known: Known | None, native: NativeHook) -> str:
        """The first one to try that is not known to be impossible; empty if there is none."""
        if not wanted.attached:
            return ""
        return next((hook for hook in self.to_try(wanted, known) if not self._refusal(hook, wanted, native)), "")

    def refuse_impossible(self, wanted: Wanted, known: Known | None, native: NativeHook) -> None:
        """Raises EngineError if put() is bound to fail with what is known beforehand; changes nothing."""
        if not wanted.attached:
            return
        refusals = [self._refusal(hook, wanted, native) for hook in self.to_try(wanted, known)]
        if all(refusals):
            raise EngineError("; ".join(refusals))

    def put(
        self,
        program_for: Callable[[bool], int | None],
        wanted: Wanted,
        known: Known | None,
        native: NativeHook,
    ) -> tuple[str, str]:
        """Which hook the program is on, and why; no hook if `program_for` has no program of the kind it takes.

        Whatever is raised, the programs that were there before are on their hooks again, or the error says that the
        interface carries none now.
        """
        try:
            return self._put(program_for, wanted, known, native)
        except OSError as error:
            # Kept says so for what fails once something is changed.
            raise EngineError(f"{self._interface}: {error}; its hooks are as they were, apply again") from error

    def _put(
        self,
        program_for: Callable[[bool], int | None],
        wanted: Wanted,
        known: Known | None,
        native: NativeHook,
    ) -> tuple[str, str]:
        if not wanted.attached:
            with Kept(self._interface, self.programs) as kept, undisturbed():
                for attached in kept.programs:
                    self.detach(attached)
            return "", "detached as asked for"
        hooks = self.to_try(wanted, known)
        refusals, put_back = [], ""
        for hook in hooks:
            try:
                refusal = self._refusal(hook, wanted, native)
                if refusal:
                    raise link.HookRefused(refusal)
                program = program_for(hook == "tc")
                if program is None:
                    return "", ""
                with Kept(self._interface, self.programs, native.undo if hook == "native" else None) as kept:
                    kept.tried(program)
                    with undisturbed():
                        self._switch(program, hook, kept, native)
            except link.HookRefused as error:
                refusals.append(str(error))
                put_back = error.put_back or put_back
                continue
            if wanted.mode != "auto":
                return hook, f"mode {wanted.mode} was asked for"
            if known and len(hooks) == 1:
                return hook, known.why
            return hook, "; ".join(refusals) or f"the driver takes {hook} XDP"
        raise EngineError("; ".join([*refusals, put_back] if put_back else refusals))

    def _refusal(self, hook: str, wanted: Wanted, native: NativeHook) -> str:
        """Why the hook is known not to take the program; empty if it may."""
        if hook == "native":
            return native.refusal
        if hook == "tc":
            missing = sorted(wanted.features & compiler.NOT_ON_TC)
            if missing:
                return f"tc ingress on {self._interface}: {', '.join(missing)} is possible with XDP only"
            return tc.refusal(self._interface)
        return self._offload_refusal() if hook == "offload" else ""

    def _offload_refusal(self) -> str:
        """Why the device takes no program at all, as the smallest there is tells; empty if it does."""
        try:
            os.close(
                bpf.program_load(
                    PROGRAM_NAME, bpf.PASS_PROGRAM, device=link.interface_index(self._interface), log_level=1
                )
            )
        except OSError as error:
            return (
                f"offload XDP on {self._interface} (driver {link.driver(self._interface)}): the device takes no "
                f"programs: {error.strerror}"
            )
        return ""

    def _switch(self, program: int, hook: str, kept: Kept, native: NativeHook) -> None:
        """Attaches the program and detaches what was on other hooks, in the order that leaves no moment without one."""
        others = [attached for attached in kept.programs if attached.hook != hook]
        if hook == "tc":
            tc.attach(self._interface, program)
        else:
            for attached in others:
                if attached.hook != "tc":
                    # XDP on two hooks at once is not allowed, so this switch cannot be seamless.
                    self.detach(attached)
            others = [attached for attached in others if attached.hook == "tc"]
            replaced = kept.descriptor(hook)
            if hook == "native":
                native.attach(lambda: link.attach(self._interface, program, hook, replaced))
            else:
                link.attach(self._interface, program, hook, replaced)
        for attached in others:
            self.detach(attached)

    def detach(self, attached: link.Attached) -> None:
        """Raises EngineError."""
        if attached.hook == "tc":
            tc.detach(self._interface)
            return
        descriptor = bpf.program_fd(attached.program_id)
        try:
            link.detach(self._interface, attached.hook, descriptor)
        finally:
            os.close(descriptor)


def _on_hook(attached: link.Attached) -> str:
    return f"{attachments.describe_program(attached.program_id)} on the {attached.hook} hook"
