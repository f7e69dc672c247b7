# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tuning a network device: from what it is set to and what is wanted to what must be written. Pure functions, no I/O.

Everything that a module may set is a knob with a name, such as rx or hash_fields.udp4.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import outcome
from ..errors import EngineError, errno_name
from ..kernel.device import Device

T = TypeVar("T")


@dataclass(frozen=True)
class Knob:
    value: Any
    maximum: int | None = None
    fixed: bool = False


@dataclass(frozen=True)
class Rules:
    """What to do about values beyond the maximum, about knobs that a device lacks or fixes, and about values that it
    makes something else of without an objection. In check mode, a task before may have been to make more queues."""

    clamp: bool = False
    skip: bool = False
    settle: bool = False
    check: bool = False


@dataclass(frozen=True)
class Plan:
    before: dict[str, Any]
    asked: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    clamped: dict[str, dict[str, Any]] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    # What the kernel is known not to do; nobody tries.
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def after(self) -> dict[str, Any]:
        return {**self.before, **self.changes}


def clamp(name: str, knob: str, value: int, maximum: int, rules: Rules) -> int:
    """The maximum, if that is what the rules say about a value beyond it."""
    if not rules.clamp:
        raise EngineError(
            f"{name}: {knob}={value} is more than the device's maximum of {maximum}; ask for no more than that, "
            "or set on_exceed=clamp"
        )
    return maximum


def plan(name: str, knobs: dict[str, Knob], wanted: dict[str, Any], rules: Rules) -> Plan:
    """What differs. Raises EngineError for what the device called `name` does not have, unless rules say skip."""
    changes, clamped, unsupported = {}, {}, {}
    for key, value in wanted.items():
        knob = knobs.get(key)
        if knob is None or (knob.fixed and knob.value != value):
            problem = (
                f"the device has no {key}{_alternatives(key, knobs)}"
                if knob is None
                else f"the device's {key} is fixed at {text_of(knob.value)}"
            )
            if not rules.skip:
                raise EngineError(f"{name}: {problem}; leave it out, or set on_unsupported=skip")
            unsupported[key] = problem
            continue
        if knob.maximum is not None and value > knob.maximum:
            given = clamp(name, key, value, knob.maximum, rules)
            clamped[key] = {"asked": value, "given": given}
            value = given
        if value != knob.value:
            changes[key] = value
    return Plan({key: knob.value for key, knob in knobs.items()}, tuple(wanted), changes, clamped, unsupported)


def _alternatives(key: str, knobs: dict[str, Knob]) -> str:
    """What it has instead: others of the same group, or the groups."""
    group, dot, _member = key.partition(".")
    alike = [other for other in knobs if dot and other.startswith(f"{group}.")]
    names = alike or dict.fromkeys(other.partition(".")[0] for other in knobs)
    return f"; it has {', '.join(names)}" if names else ", nor anything of the kind"


def text_of(value: Any) -> str:
    """Switches as ethtool shows them."""
    return ("on" if value else "off") if isinstance(value, bool) else outcome.text_of(value)


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """hash_fields.udp4 becomes udp4 in hash_fields, as in a module's arguments."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, member = key.partition(".")
        if dot:
            result.setdefault(group, {})[member] = value
        else:
            result[key] = value
    return result


def check_range(knob: str, value: int | None, least: int, most: int = 0xFFFFFFFF) -> None:
    if value is not None and not least <= value <= most:
        raise EngineError(f"{knob}={value} is not a number from {least} to {most}")


class Tuner:
    """One module's knobs: subclasses read and write them. Both may raise OSError."""

    # For messages: what the knobs are about.
    subject = ""
    # Most drivers take the link down for a moment.
    bounces_link = False
    # Some drivers reset the card.
    risks_link = False

    def __init__(self, options: dict[str, Any]) -> None:
        """Takes the module's options. Raises EngineError for values that no device takes."""
        raise NotImplementedError

    @staticmethod
    def read(device: Device) -> dict[str, Knob]:
        """Empty if the device has nothing of the kind."""
        raise NotImplementedError

    def wanted(self, device: Device, knobs: dict[str, Knob], rules: Rules) -> dict[str, Any]:
        """Values by knob. Raises EngineError for what makes no sense on this device."""
        raise NotImplementedError

    def plan(self, device: Device, rules: Rules) -> Plan:
        knobs = self.read(device)
        return plan(device.name, knobs, self.wanted(device, knobs, rules), rules)

    def parts(self, changes: dict[str, Any]) -> list[dict[str, Any]]:
        """Changes in the groups in which the kernel takes or refuses them."""
        return [changes] if changes else []

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        """Returns what the kernel refused though the rest may stand: the reason by knob."""
        raise NotImplementedError

    def consequences(self, device: Device, planned: Plan) -> dict[str, Any]:
        """What else the result says about this device's changes."""
        return {"link_bounced": bool(planned.changes)} if self.bounces_link else {}

    def warnings(self, device: Device, consequences: dict[str, Any]) -> list[str]:
        return []

    @staticmethod
    def options(found: dict[str, Any]) -> dict[str, Any]:
        """What was read, as the module's options that bring it back."""
        return {name: value for name, value in found.items() if value is not None}

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values by knob as arguments of the module."""
        return self.options(nest(values))


def supported(call: Callable[[], T]) -> T | None:
    """What it returns, None if the driver has nothing of the kind."""
    try:
        return call()
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise


def refusal(device: Device, subject: str, error: OSError, changes: dict[str, Any] | None = None) -> EngineError:
    """What the kernel's error means, and the remedy."""
    if error.errno == errno.ENODEV or (error.errno == errno.ENOENT and not device.exists()):
        return device.gone()
    words = f"{error.strerror} ({errno_name(error.errno)})"
    what = f"{device.name}: {subject}"
    if changes:
        what += " " + " ".join(f"{key}={text_of(value)}" for key, value in changes.items())
    if error.filename:
        what += f" ({error.filename})"
    if error.errno in (errno.EPERM, errno.EACCES):
        return EngineError(f"{what}: {words}; this needs root with CAP_NET_ADMIN")
    if error.errno == errno.EROFS:
        return EngineError(f"{what}: {words}; in a container, tune the device from the host that owns it")
    if error.errno == errno.EOPNOTSUPP and changes:
        return EngineError(f"{what}: {words}; leave it out, or set on_unsupported=skip")
    return EngineError(f"{what}: the kernel refuses: {words}")
