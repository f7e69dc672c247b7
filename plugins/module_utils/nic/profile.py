# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give an interface a profile: arm a timer, change, and keep the change once it is confirmed."""

from __future__ import annotations

from typing import Any

from ..errors import EngineError
from ..kernel.device import find, missing
from ..outcome import Outcome, text_of
from . import link_file, profiles, revert_timer, tuned
from .device_info import of_device
from .preflight import mtu_problem
from .tuned import Tuned, Tuning
from .tuner import check_range
from .way_back import take_back
from .work import Work, lines, work_on


def _settled(work: Work, facts: dict[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for choice in work.choices:
        now = profiles.current(facts, choice)
        if now != choice.value:
            found[choice.name] = [choice.value, now]
    return found


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
            left = take_back(current)
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
        tuned.check_holder(device.members(), interface)
        works = work_on(interface, profile, overrides, current)
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
    interface = tuned.key(interface)
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
