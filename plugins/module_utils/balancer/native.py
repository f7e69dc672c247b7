# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver's hook of an interface: what is in the way of a program there, and what is changed so that it fits.

What is being changed is written down first, so that the next run puts back what a killed one has left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import files, link
from ..kernel.device import find
from ..nic import tuned, tuning
from ..nic.device_info import TUNERS, for_xdp
from ..nic.preflight import LOCK, Change, Problem, problems
from ..nic.tuner import Rules


def examine(interface: str, multi_buffer: bool) -> list[Problem]:
    """Of a bond, those of its members, whose MTU is the bond's."""
    device = find(interface)
    found = []
    for member in device.members():
        for problem in problems(for_xdp(member), multi_buffer):
            change = problem.change
            if change and change.group == "mtu" and member != device:
                problem = replace(problem, change=replace(change, interface=interface))
            found.append(problem)
    return found


class NativeHook:
    """What `changed` names was changed, or in check mode would be; it is put back if the kernel refuses the program."""

    def __init__(self, interface: str, found: list[Problem], prepare: bool, written_down: Path) -> None:
        self.interface, self._problems, self._written_down = interface, found, written_down
        changeable = [problem for problem in found if problem.change] if prepare else []
        self._sure = [problem for problem in changeable if not problem.doubtful]
        self._doubtful = [problem for problem in changeable if problem.doubtful]
        self.changed: list[Problem] = []
        self._taken = False

    @property
    def refusal(self) -> str:
        """Why a program is not even tried; empty if it is."""
        blocking = [problem for problem in self._problems if problem.blocks]
        if all(problem in self._sure for problem in blocking):
            return ""
        words = "; ".join(map(str, blocking))
        if all(problem.change for problem in blocking):
            words += "; or have the engine do that, with prepare: true"
        return words

    @property
    def warnings(self) -> list[str]:
        """About what the kernel has taken, but not without a loss."""
        left = [problem for problem in self._problems if not problem.refuses and problem not in self.changed]
        return [str(problem) for problem in left] if self._taken else []

    @property
    def prepared(self) -> list[dict[str, Any]]:
        return [_entry(problem.change, problem.found) for problem in self.changed if problem.change]

    def plan(self) -> None:
        """Name what attach() changes if the kernel is as strict as it may be."""
        self._taken = not self.refusal
        if self._taken:
            self.changed = self._sure + self._doubtful

    def attach(self, put_on: Callable[[], None]) -> None:
        """`put_on` puts the program on the hook. Whatever it raises, the interface is prepared no more afterwards.

        Raises HookRefused for what the kernel, the driver or a change refuses.
        """
        # nic_profile would take what is changed here for what was there before.
        with tuned.locked(self.interface) if self._sure or self._doubtful else nullcontext():
            self._attach(put_on)

    def _attach(self, put_on: Callable[[], None]) -> None:
        try:
            self._change(self._sure)
            try:
                put_on()
            except link.HookRefused:
                if not self._doubtful:
                    raise
                self._change(self._doubtful)
                put_on()
            self._taken = True
            files.remove(self._written_down)
        except link.HookRefused as error:
            left = [problem for problem in self._problems if problem.effect != LOCK and problem not in self.changed]
            raise link.HookRefused("; ".join([str(error), *map(str, left), *self._put_back()])) from None
        except Exception as error:
            failures = self._put_back()
            if not failures:
                raise
            raise EngineError("; ".join([str(error), *failures])) from error
        except BaseException:
            self._put_back()
            raise

    def undo(self) -> list[str]:
        """Puts back what attach() changed, for a program that is taken off again; returns what failed, in sentences."""
        self._taken = False
        if not self.changed:
            return []
        with tuned.locked(self.interface):
            return self._put_back()

    def _change(self, found: list[Problem]) -> None:
        if found:
            changes = [asdict(_change_of(problem)) for problem in self.changed + found]
            files.write(self._written_down, json.dumps(changes) + "\n")
        for problem in found:
            # First, since it may fail half-way.
            self.changed.append(problem)
            try:
                change = _change_of(problem)
                _apply(change, change.after)
            except (EngineError, OSError) as error:
                raise link.HookRefused(f"native XDP on {self.interface} could not be prepared: {error}") from None

    def _put_back(self) -> list[str]:
        """Returns what failed, in sentences; that stays in `changed` and is written down for the next run."""
        failures: list[str] = []
        failed: list[Problem] = []
        for problem in reversed(self.changed):
            change = _change_of(problem)
            try:
                _apply(change, change.before)
            except Exception as error:
                failed.insert(0, problem)
                values = ", ".join(f"{name}={value}" for name, value in change.before.items())
                failures.append(
                    f"{change.interface}: {values} could not be put back: {error}; the next run tries again"
                )
        self.changed = failed
        if not failures:
            files.remove(self._written_down)
        return failures


def _change_of(problem: Problem) -> Change:
    """Of a problem that was chosen because it has one."""
    if problem.change is None:
        raise EngineError(f"{problem} cannot be changed")
    return problem.change


def finish(interface: str, written_down: Path, attached: bool) -> None:
    """What a killed run prepared is put back, unless its program is on the hook, which needs it. Raises EngineError."""
    with tuned.locked(interface):
        for entry in reversed([] if attached else json.loads(written_down.read_text(encoding="utf-8"))):
            change = Change(**entry)
            if not link.exists(change.interface):
                continue
            try:
                _apply(change, change.before)
            except (EngineError, OSError) as error:
                raise EngineError(
                    f"what a killed run prepared on {change.interface} could not be put back: {error}; set it to "
                    f"{change.before}, remove {written_down} and apply again"
                ) from None
        files.remove(written_down)


def _entry(change: Change, why: str) -> dict[str, Any]:
    rollback = {"interface": change.interface, **change.before}
    return {**asdict(change), "why": why, "rollback": rollback}


def _apply(change: Change, values: dict[str, Any]) -> None:
    if change.group == "mtu":
        link.set_mtu(change.interface, values["mtu"])
    else:
        tuning.apply(change.interface, TUNERS[change.group](values), Rules(), check=False)
