# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give an interface a profile: arm a timer, change, and keep the change once it is confirmed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError
from ..kernel import link
from ..kernel.device import Device, find, missing
from ..outcome import Outcome, text_of
from . import link_file, profiles, revert_timer, tuned
from .device_info import TUNERS, of_device
from .preflight import mtu_problem
from .profiles import Choice
from .tuned import Image, Tuned, Tuning
from .tuner import check_range


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
            TUNERS[group](options)
        left_out = profiles.lacking(facts, choices)
        kept = [choice for choice in choices if choice not in left_out]
        works.append(Work(device, facts, kept, known.devices.get(device.name) if known else None, left_out))
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
        failed: list[str] = []
        try:
            # One that went away took the change with it.
            device = entry.locate(name)
            if device:
                put_back, unmet = _put_back(device, entry.previous or entry.before)
                failed += put_back + unmet
            if device or entry.saved is None:
                _write_link_file(name, link_file.desired(device, entry.saved) if device and entry.saved else "")
        except (EngineError, OSError) as error:
            failed.append(str(error))
        entry.pending = entry.previous = None
        if entry.saved is None and not failed:
            del current.devices[name]
        failures += failed
    tuned.keep(current)
    return failures


def _write_link_file(name: str, text: str) -> None:
    if link_file.differs(name, text):
        link_file.write(name, text)


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
    failures = tuned.apply(work.device, work.untried) if work.differing else []
    if failures:
        return [str(error) for _group, error in failures], {}
    try:
        if work.differing and was_up:
            work.device.wait_for_link(steady=True)
        return [], _settled(work, of_device(work.device))
    except EngineError as error:
        return [str(error)], {}


def _change(current: Tuning, works: list[Work], timer: str) -> list[str]:
    """What the device took otherwise than it was asked to, in sentences."""
    unmet = []
    if not timer and current.pending and revert_timer.armed(current.timer):
        timer = current.timer
    current.reverted, current.timer = False, timer
    for work in works:
        earlier = tuned.image(work.facts)
        entry = current.devices.setdefault(work.device.name, Tuned(before=earlier))
        now = work.device.link()
        entry.identify(now)
        if entry.pending is None:
            entry.previous, entry.was_up = earlier, now.up
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


def _check_holder(devices: list[Device], interface: str) -> None:
    other = tuned.holder(devices, interface)
    if other:
        raise EngineError(
            f"{interface}: its device is tuned as {other} already; go on with that name, or let go of it first, with "
            f"nic_profile interface={other} state=restored"
        )


def _follow(current: Tuning, check: bool) -> None:
    """Members that were renamed."""
    for name, entry in list(current.devices.items()):
        device = entry.locate(name)
        if device and device.name not in current.devices:
            current.devices[device.name] = current.devices.pop(name)
            if not check:
                link_file.write(name, "")


def apply(interface: str, profile: str, overrides: dict[str, Any], revert_after: int, check: bool) -> Outcome:
    """Raises EngineError, with everything as it was, if it cannot be done."""
    check_range("revert_after", revert_after, 0)
    device = find(interface)
    interface = device.name
    with tuned.locked(interface, check):
        current = tuned.load(interface)
        if current:
            tuned.end_of_other_boots(current)
            _follow(current, check)
        _check_holder(device.members(), interface)
        works = _works(interface, profile, overrides, current)
        changes = any(work.differing for work in works)
        unsaved = [work for work in works if not work.saved]
        pending = bool(unsaved) or changes
        warnings = [note for work in works for note in work.notes]
        warnings += [str(problem) for work in works if (problem := mtu_problem(work.facts))]
        if pending and not check:
            current, timer = current or Tuning(interface), ""
            if revert_after and (changes or current.pending):
                revert_timer.check()
                timer = revert_timer.arm(interface, revert_after)
            warnings += _change(current, works, timer)
    drift = [work for work in works if link_file.differs(work.device.name, link_file.desired(work.device, work.values))]
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for work in works:
        prefix = f"{work.device.name} " if len(works) > 1 else ""
        for target, found in zip((before, after), lines(work.plan(), prefix)):
            target.update(found)
        for what, lacking in (("applied at boot", work in unsaved), ("set up by udev", work in drift)):
            if lacking:
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
        diff=lambda: (before, after),
    )


def _nested(plan: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {entry["option"]: entry[key] for entry in plan}


def _key(interface: str) -> str:
    """What the state is kept under: the device's own name, whichever was given, or what it was called when tuned."""
    if "/" in interface or not interface:
        raise missing(interface)
    if tuned.path_of(interface).exists():
        return interface
    try:
        return find(interface).name
    except EngineError:
        return interface


def _check_confirmable(current: Tuning) -> None:
    """Raises EngineError if what is pending ended, or made the host worse."""
    interface = current.interface
    if current.rebooted:
        raise EngineError(
            f"{interface}: the host was booted after the change, which ended with that; see whether the change brought "
            "it down before you apply it again"
        )
    if current.pending and current.timer and not revert_timer.armed(current.timer):
        raise EngineError(
            f"{interface}: {current.timer}.timer, which would have taken the change back, is gone; see what became of "
            f"it with journalctl -u {current.timer}, and apply again"
        )
    for name, entry in current.devices.items():
        device = entry.locate(name) if entry.pending is not None and entry.was_up else None
        if device and not device.link().up:
            raise EngineError(
                f"{name}: the link was up before the change and is down now, so the change is not confirmed; look at "
                "the cable and the switch port and confirm again before the change is taken back"
            )


def confirm(interface: str, check: bool) -> Outcome:
    """Keep the change: have it applied at boot, and stop the timer. Raises EngineError if it was taken back."""
    interface = _key(interface)
    with tuned.locked(interface, check):
        current = tuned.load(interface)
        if current is None or current.reverted:
            raise EngineError(
                f"{interface}: there is nothing to confirm: the change was taken back after revert_after seconds or by "
                "a reboot, or there was none; see what kept the host from being reached, or set revert_after higher"
            )
        _check_confirmable(current)
        devices = {name: device for name, entry in current.devices.items() if (device := entry.locate(name))}
        if not devices:
            raise missing(interface)
        texts = {
            name: link_file.desired(device, current.devices[name].pending or current.devices[name].saved or {})
            for name, device in devices.items()
        }
        stale = [name for name, text in texts.items() if link_file.differs(name, text)]
        pending = current.pending
        if pending and not check:
            for name in devices:
                entry = current.devices[name]
                entry.saved = entry.saved if entry.pending is None else entry.pending
            # Members that a bond has lost have nothing to confirm.
            current.drop_pending()
            # First: a file for udev without it would be applied at boot though it was never confirmed.
            tuned.keep(current)
        for name in stale if not check else ():
            link_file.write(name, texts[name])
        # Last: one that runs out meanwhile finds nothing to take back.
        if pending and not check:
            revert_timer.disarm(interface)
        return Outcome(pending or bool(stale), {}, {}, {}, [])


def _restore_untuned(interface: str, check: bool) -> Outcome:
    """Without a state there may be files for udev that somebody's end left."""
    devices = find(interface).members() if link.exists(interface) else []
    _check_holder(devices, interface)
    names = dict.fromkeys([interface, *(device.name for device in devices)])
    left = [name for name in names if link_file.differs(name, "")]
    for name in left if not check else ():
        link_file.write(name, "")
    return Outcome(bool(left), {}, {}, {"interface": interface}, [])


def restore(interface: str, check: bool) -> Outcome:
    """Put back what was there before the first change, and forget it."""
    interface = _key(interface)
    if tuned.load(interface) is None:
        return _restore_untuned(interface, check)
    with tuned.locked(interface, check):
        current = tuned.load(interface) or Tuning(interface)
        entries = dict(current.devices)
        before = {name: entry.saved or entry.pending or {} for name, entry in entries.items()}
        after = {name: entry.before for name, entry in entries.items()}
        failures, warnings = [], []
        if not check:
            for entry in entries.values():
                entry.pending = entry.previous = None
            tuned.keep(current)
            revert_timer.disarm(interface)
        for name, entry in entries.items():
            device, failed = entry.locate(name), []
            if not check:
                link_file.write(name, "")
            if device is None:
                address = f" ({entry.address})" if entry.address else ""
                failed = [
                    f"{name}{address} is not there; bring it back, or remove {tuned.path_of(interface)} if what it was "
                    "set to need not be known any more"
                ]
            elif not check:
                failed, unmet = _put_back(device, entry.before)
                warnings += unmet
            if not failed:
                del current.devices[name]
            failures += failed
        if not check:
            tuned.keep(current)
        if failures:
            raise EngineError(f"not all could be put back, so the earlier values are kept: {'; '.join(failures)}")
        diff = _options(before), _options(after)
        return Outcome(True, before, after, {"interface": interface}, warnings, lambda: diff)


def _options(devices: dict[str, Image]) -> dict[str, str]:
    return {
        f"{name} {group}.{option}": text_of(value)
        for name, values in devices.items()
        for group, options in values.items()
        for option, value in options.items()
    }
