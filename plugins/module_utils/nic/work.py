# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a profile has to do on each device of an interface, planned and shown before it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError
from ..kernel.device import Device, find
from ..outcome import text_of
from . import profiles
from .device_info import TUNERS, of_device
from .profiles import Choice
from .tuned import Image, Tuned, Tuning


@dataclass
class Work:
    """One device: what is chosen for it, and what of that it is not yet."""

    device: Device
    facts: dict[str, Any]
    choices: list[Choice]
    tuned: Tuned | None
    # Options that the device lacks.
    left_out: list[Choice] = field(default_factory=list)
    differing: list[Choice] = field(default_factory=list)
    # Those of which the device is known to make something else.
    settled: list[Choice] = field(default_factory=list)
    # By option, what the device made of what it was asked for.
    unmet: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settled = self.tuned.settled if self.tuned else {}
        for choice in self.choices:
            now = profiles.current(self.facts, choice)
            if now != choice.value:
                known = settled.get(choice.name) == [choice.value, now]
                (self.settled if known else self.differing).append(choice)

    @property
    def values(self) -> Image:
        return profiles.arguments(self.choices)

    @property
    def untried(self) -> Image:
        """The values without those that would take the link down once more for nothing."""
        return profiles.arguments(
            [choice for choice in self.choices if choice not in self.settled or not TUNERS[choice.group].risks_link]
        )

    @property
    def notes(self) -> list[str]:
        return [
            f"{self.device.name}: the device has no {choice.name}, so {text_of(choice.value)} is left out"
            for choice in self.left_out
        ]

    @property
    def saved(self) -> bool:
        """Whether that is what is applied at boot."""
        return self.tuned is not None and self.tuned.saved == self.values and self.tuned.pending is None

    def _entry(self, choice: Choice) -> dict[str, Any]:
        before = after = profiles.current(self.facts, choice)
        why = choice.why
        if choice in self.differing:
            after = self.unmet.get(choice.name, choice.value)
        elif choice.name in profiles.RECOGNIZED_BY_RESULT:
            before = after = choice.value
        if after != choice.value:
            why += f"; the device makes that of {text_of(choice.value)}"
        return {"option": choice.name, "before": before, "after": after, "changes": before != after, "why": why}

    def plan(self) -> list[dict[str, Any]]:
        return [self._entry(choice) for choice in self.choices]


def lines(plan: list[dict[str, Any]], prefix: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """Before and after, a line an option, with the reason; a line that is in both is one that stays as it is."""
    before, after = {}, {}
    for entry in plan:
        key, reason = prefix + entry["option"], f"  # {entry['why']}"
        after[key] = f"{text_of(entry['after'])}{reason}"
        before[key] = text_of(entry["before"]) if entry["changes"] else after[key]
    return before, after


def work_on(interface: str, profile: str, overrides: dict[str, Any], known: Tuning | None) -> list[Work]:
    """For each device of an interface, a bond's members each by itself. Raises EngineError for what makes no sense."""
    devices = find(interface).members()
    if not devices:
        raise EngineError(f"{interface} is a bond without members; add them first, or name the devices themselves")
    works = []
    for device in devices:
        facts = of_device(device)
        choices = profiles.choose(facts, profile, overrides)
        # What makes no sense is refused before anything is touched.
        for group, options in profiles.arguments(choices).items():
            TUNERS[group](options)
        left_out = profiles.lacking(facts, choices)
        kept = [choice for choice in choices if choice not in left_out]
        works.append(Work(device, facts, kept, known.devices.get(device.name) if known else None, left_out))
    return works
