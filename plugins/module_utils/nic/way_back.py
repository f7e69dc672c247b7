# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: take back a change that nobody confirmed, or put back what was there before the first one."""

from __future__ import annotations

from ..errors import EngineError
from ..kernel import link
from ..kernel.device import Device, find
from ..outcome import Outcome, text_of
from . import link_file, revert_timer, tuned
from .device_info import of_device
from .tuned import Image, Tuning


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


def take_back(current: Tuning) -> list[str]:
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
        return True, take_back(current)


def _restore_untuned(interface: str, check: bool) -> Outcome:
    """Without a state there may be files for udev that somebody's end left."""
    devices = find(interface).members() if link.exists(interface) else []
    tuned.check_holder(devices, interface)
    names = dict.fromkeys([interface, *(device.name for device in devices)])
    left = [name for name in names if link_file.differs(name, "")]
    for name in left if not check else ():
        link_file.write(name, "")
    return Outcome(bool(left), {}, {}, {"interface": interface}, [])


def restore(interface: str, check: bool) -> Outcome:
    """Put back what was there before the first change, and forget it."""
    interface = tuned.key(interface)
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
