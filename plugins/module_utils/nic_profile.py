# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give an interface a profile: arm a timer, change, and keep the change once it is confirmed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import link, link_file, profiles, revert_timer, state, tuned
from .device import Device, find
from .device_info import of_device
from .errors import EngineError
from .nic import check_range
from .outcome import Outcome, text_of
from .preflight import mtu_problem
from .profiles import Choice
from .tuned import Image, Tuned, Tuning


@dataclass
class Work:
    """One device: what is chosen for it, and what of that it is not yet."""

    device: Device
    facts: dict[str, Any]
    choices: list[Choice]
    tuned: Tuned | None
    differing: list[Choice] = field(default_factory=list)
    # By option, what the device made of what it was asked for.
    unmet: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settled = self.tuned.settled if self.tuned else {}
        for choice in self.choices:
            now = profiles.current(self.facts, choice)
            if now != choice.value and settled.get(choice.name) != [choice.value, now]:
                self.differing.append(choice)

    @property
    def values(self) -> Image:
        return profiles.arguments(self.choices)

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


def _settled(work: Work, facts: dict[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for choice in work.choices:
        now = profiles.current(facts, choice)
        if now != choice.value:
            found[choice.name] = [choice.value, now]
    return found


def _works(interface: str, profile: str, overrides: dict[str, Any], known: Tuning | None) -> list[Work]:
    devices = find(interface).members()
    if not devices:
        raise EngineError(f"{interface} is a bond without members; add them first, or name the devices themselves")
    works = []
    for device in devices:
        facts = of_device(device)
        choices = profiles.choose(facts, profile, overrides)
        # What makes no sense is refused before anything is touched.
        for group, options in profiles.arguments(choices).items():
            tuned.TUNERS[group](options)
        works.append(Work(device, facts, choices, known.devices.get(device.name) if known else None))
    return works


def _put_back(device: Device, earlier: Image) -> tuple[list[str], list[str]]:
    """What did not work, and what the device made something else of, in sentences."""
    failures = [str(error) for _group, error in tuned.apply(device, earlier)]
    now = tuned.image(of_device(device))
    unmet = [
        f"{device.name}: {group}.{option} was {text_of(value)}, and {text_of(now[group][option])} is what the device "
        "makes of that now"
        for group, options in earlier.items()
        for option, value in options.items()
        if now.get(group, {}).get(option, value) != value
    ]
    return failures, unmet


def _take_back(current: Tuning) -> list[str]:
    """Every pending change, as far as it goes; what did not work, in sentences."""
    failures = []
    for name, entry in list(current.devices.items()):
        if entry.pending is None:
            continue
        try:
            failed, unmet = _put_back(find(name), entry.previous or entry.before)
            failures += failed + unmet
        except EngineError as error:
            failures.append(str(error))
        entry.pending = entry.previous = None
        if entry.saved is None and not failures:
            del current.devices[name]
    _keep(current)
    return failures


def _keep(current: Tuning) -> None:
    if current.devices:
        tuned.save(current)
    else:
        tuned.remove(current.interface)


def revert(interface: str) -> tuple[bool, list[str]]:
    """Take back what was never confirmed: whether there was something, and what of it did not work."""
    with tuned.locked(interface):
        current = tuned.load(interface)
        if current is None or not current.pending:
            return False, []
        current.reverted = True
        return True, _take_back(current)


def _tune(work: Work, was_up: bool) -> tuple[list[str], dict[str, list[Any]]]:
    """What did not work, and what the device made something else of. A link that was up must be so again."""
    failures = tuned.apply(work.device, work.values) if work.differing else []
    if failures:
        return [str(error) for _group, error in failures], {}
    try:
        if work.differing and was_up:
            work.device.wait_for_link(steady=True)
        return [], _settled(work, of_device(work.device))
    except EngineError as error:
        return [str(error)], {}


def _change(current: Tuning, works: list[Work]) -> list[str]:
    """What the device took otherwise than it was asked to, in sentences."""
    unmet = []
    current.reverted = False
    for work in works:
        earlier = tuned.image(work.facts)
        entry = current.devices.setdefault(work.device.name, Tuned(before=earlier))
        if entry.pending is None:
            entry.previous, entry.was_up = earlier, work.device.link().up
        entry.pending = work.values
    # The timer's process reads it.
    tuned.save(current)
    for work in works:
        failures, settled = _tune(work, current.devices[work.device.name].was_up)
        if failures:
            left = _take_back(current)
            revert_timer.disarm(current.interface)
            back = f"taken back, but for this: {'; '.join(left)}" if left else "all of the change was taken back"
            raise EngineError(f"{'; '.join(failures)} ({back})")
        current.devices[work.device.name].settled = settled
        for name, (asked, now) in settled.items():
            if name in profiles.RECOGNIZED_BY_RESULT:
                continue
            work.unmet[name] = now
            option = f"{work.device.name}: {name}={text_of(asked)}"
            unmet.append(f"{option} was asked for, and {text_of(now)} is what the device makes of it")
    tuned.save(current)
    return unmet


def apply(interface: str, profile: str, overrides: dict[str, Any], revert_after: int, check: bool) -> Outcome:
    """Raises EngineError, with everything as it was, if it cannot be done."""
    check_range("revert_after", revert_after, 0)
    with tuned.locked(interface, check):
        current = tuned.load(interface)
        works = _works(interface, profile, overrides, current)
        changes = any(work.differing for work in works)
        unsaved = [work for work in works if not work.saved]
        pending = bool(unsaved) or changes
        warnings = [str(problem) for work in works if (problem := mtu_problem(work.facts))]
        if pending and not check:
            current = current or Tuning(interface)
            if changes and revert_after:
                revert_timer.check()
                revert_timer.arm(interface, revert_after)
            warnings += _change(current, works)
    drift = [work for work in works if link_file.differs(work.device.name, link_file.desired(work.device, work.values))]
    before, after = {}, {}
    for work in works:
        prefix = f"{work.device.name} " if len(works) > 1 else ""
        for target, found in zip((before, after), lines(work.plan(), prefix)):
            target.update(found)
        for what, missing in (("applied at boot", work in unsaved), ("set up by udev", work in drift)):
            if missing:
                before[prefix + what], after[prefix + what] = "no", "yes, with these values"
    return Outcome(
        changed=pending or bool(drift),
        before={work.device.name: _nested(work.plan(), "before") for work in works},
        after={work.device.name: _nested(work.plan(), "after") for work in works},
        details={
            "plan": {work.device.name: work.plan() for work in works},
            "pending": (pending or bool(drift)) and not check,
        },
        warnings=warnings,
        diff=(before, after),
    )


def _nested(plan: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {entry["option"]: entry[key] for entry in plan}


def confirm(interface: str, check: bool) -> Outcome:
    """Keep the change: stop the timer, and have it applied at boot. Raises EngineError if it was taken back."""
    with tuned.locked(interface, check):
        current = tuned.load(interface)
        if current is None or current.reverted:
            raise EngineError(
                f"{interface}: there is nothing to confirm: the change was taken back after revert_after seconds, or "
                "there was none; see what kept the host from being reached, or set revert_after higher"
            )
        for name, entry in current.devices.items():
            if entry.pending is not None and entry.was_up and not find(name).link().up:
                raise EngineError(
                    f"{name}: the link was up before the change and is down now, so the change is not confirmed; look "
                    "at the cable and the switch port and confirm again before the change is taken back"
                )
        changed = current.pending
        for name, entry in current.devices.items():
            changed |= _write_link_file(name, entry.pending or entry.saved or {}, check)
        if current.pending and not check:
            revert_timer.disarm(interface)
            for entry in current.devices.values():
                if entry.pending is not None:
                    entry.saved, entry.pending, entry.previous = entry.pending, None, None
            tuned.save(current)
        return Outcome(changed, {}, {}, {}, [])


def _write_link_file(name: str, values: Image, check: bool) -> bool:
    text = link_file.desired(find(name), values)
    if not link_file.differs(name, text):
        return False
    if not check:
        path = link_file.path_of(name)
        if text:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # udev reads it as root, people may as anybody.
            state.write(path, text, 0o644)
        else:
            path.unlink()
    return True


def restore(interface: str, check: bool) -> Outcome:
    """Put back what was there before the first change, and forget it. A device that is gone needs nothing."""
    if tuned.load(interface) is None:
        return Outcome(False, {}, {}, {}, [])
    with tuned.locked(interface, check):
        current = tuned.load(interface) or Tuning(interface)
        before, after, failures, warnings = {}, {}, [], []
        for name, entry in current.devices.items():
            before[name], after[name] = entry.saved or entry.pending or {}, entry.before
            if check:
                continue
            link_file.path_of(name).unlink(missing_ok=True)
            if link.exists(name):
                failed, unmet = _put_back(find(name), entry.before)
                failures += failed
                warnings += unmet
        if not check:
            revert_timer.disarm(interface)
            if failures:
                raise EngineError(f"not all could be put back, so the earlier values are kept: {'; '.join(failures)}")
            tuned.remove(interface)
        return Outcome(True, before, after, {}, warnings, diff=(_options(before), _options(after)))


def _options(devices: dict[str, Image]) -> dict[str, str]:
    return {
        f"{name} {group}.{option}": text_of(value)
        for name, values in devices.items()
        for group, options in values.items()
        for option, value in options.items()
    }
