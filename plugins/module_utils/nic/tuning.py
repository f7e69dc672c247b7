# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tuning devices by their plans: all are planned for before the first is touched, and what is written is read back."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from ..kernel.device import Device, find
from ..outcome import Outcome
from .tuner import Plan, Rules, Tuner, nest, refusal, text_of


@dataclass
class _Work:
    """One device: its plan and what became of it."""

    device: Device
    plan: Plan
    consequences: dict[str, Any]
    after: dict[str, Any]
    unsupported: dict[str, str]
    refused: dict[str, str]

    def read_back(self, tuner: Tuner) -> None:
        self.after = {key: knob.value for key, knob in tuner.read(self.device).items()}

    @property
    def written(self) -> bool:
        """Whether anything was written, or would be."""
        return not set(self.plan.changes) <= {*self.unsupported, *self.refused}


def _tune(work: _Work, tuner: Tuner, rules: Rules, steady: bool) -> None:
    device, changes = work.device, work.plan.changes
    up = tuner.risks_link and device.link().up
    for part in tuner.parts(changes):
        try:
            work.refused.update(tuner.write(device, part, work.plan.before))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not rules.skip:
                raise refusal(device, tuner.subject, error, part) from None
            work.unsupported.update(dict.fromkeys(part, f"the driver refuses: {error.strerror}"))
    if up:
        device.wait_for_link(steady)
    try:
        work.read_back(tuner)
    except OSError as error:
        raise refusal(device, f"reading {tuner.subject} back", error) from None
    device.check_name()
    for key, value in changes.items() if not rules.settle else ():
        if key not in work.unsupported and key not in work.refused and work.after.get(key) != value:
            raise EngineError(
                f"{device.name}: {key}={text_of(value)} was written without an objection, but it reads back as "
                f"{text_of(work.after.get(key))}; ask for a value that the driver takes as it is"
            )


@dataclass(frozen=True)
class _Report:
    """The result of a module: the members of a bond by name, any other device plainly."""

    tuner: Tuner
    works: list[_Work]
    bond: bool

    def _by_device(self, values: list[dict[str, Any]]) -> dict[str, Any]:
        return {work.device.name: value for work, value in zip(self.works, values)} if self.bond else values[0]

    def _lines(self, values: list[dict[str, Any]]) -> dict[str, Any]:
        """One knob each, for a difference."""
        if not self.bond:
            return values[0]
        return {
            f"{work.device.name} {key}": value
            for work, knobs in zip(self.works, values)
            for key, value in knobs.items()
        }

    def _rollback(self) -> list[dict[str, Any]]:
        """Arguments of the same module that bring the earlier values back, for each device."""
        arguments = []
        for work in self.works:
            before = work.plan.before
            # A driver may change more than it was asked to.
            aside = [key for key in before if work.after.get(key) != before[key]]
            keys = dict.fromkeys([*work.plan.asked, *aside])
            earlier = {key: before[key] for key in keys if before.get(key) is not None}
            options = self.tuner.arguments(earlier) if earlier else {}
            if options:
                arguments.append({"interface": work.device.name, **options})
        return arguments

    def details(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "clamped": self._by_device([work.plan.clamped for work in self.works]),
            "unsupported": self._by_device([work.unsupported for work in self.works]),
            "rollback": self._rollback(),
        }
        for name in self.works[0].consequences:
            result[name] = any(work.consequences[name] and work.written for work in self.works)
        if any(work.refused for work in self.works):
            result["refused"] = self._by_device([work.refused for work in self.works])
        return result

    def failure(self) -> dict[str, Any]:
        """How far it came."""
        return {"changed": any(work.after != work.plan.before for work in self.works), **self.details()}

    def outcome(self) -> Outcome:
        before, after = [work.plan.before for work in self.works], [work.after for work in self.works]
        warnings = [text for work in self.works for text in self.tuner.warnings(work.device, work.consequences)]
        for work in self.works:
            warnings += [f"{work.device.name}: {key} stays: {reason}" for key, reason in work.refused.items()]
        return Outcome(
            changed=before != after,
            before=self._by_device([nest(values) for values in before]),
            after=self._by_device([nest(values) for values in after]),
            details=self.details(),
            warnings=warnings,
            diff=lambda: (self._lines(before), self._lines(after)),
        )


def apply(interface: str, tuner: Tuner, rules: Rules, check: bool) -> Outcome:
    """Make a device, or the members of a bond one after the other, what the tuner wants. Raises EngineError."""
    device = find(interface)
    members = device.members()
    if not members:
        raise EngineError(f"{device.name} is a bond without members; add them first, or name the devices themselves")
    return apply_to(members, tuner, rules, check, device.link().kind == "bond", steady=True)


def apply_to(
    devices: list[Device], tuner: Tuner, rules: Rules, check: bool, bond: bool = False, steady: bool = False
) -> Outcome:
    """Links that were up must come up again, and if they are to be steady, stay so."""
    works = []
    for member in devices:
        try:
            planned = tuner.plan(member, rules)
            consequences = tuner.consequences(member, planned)
        except OSError as error:
            raise refusal(member, f"reading {tuner.subject}", error) from None
        works.append(
            _Work(member, planned, consequences, planned.after, dict(planned.unsupported), dict(planned.refused))
        )
    if not check:
        try:
            for work in works:
                if work.plan.changes:
                    _tune(work, tuner, rules, steady)
        except EngineError as error:
            for work in works:
                # A device that is gone stays as it was planned.
                with suppress(EngineError, OSError):
                    work.read_back(tuner)
            error.result = _Report(tuner, works, bond).failure()
            raise
    return _Report(tuner, works, bond).outcome()
