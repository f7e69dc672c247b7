# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interface was set to before it was tuned, and what it is to be set to at boot.

/var/lib/lbops/nic-<interface>.json, replaced atomically. Of a bond it holds the members.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import cpus, files
from ..kernel.device import Device, Link, find, links, missing
from . import tuning
from .device_info import TUNERS, fact_of
from .irq_affinity import list_text
from .tuner import Rules

SCHEMA = 1
STATE, RUN = files.STATE, Path("/run")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# By group, arguments of its module.
Image = dict[str, dict[str, Any]]


@dataclass
class Tuned:
    """One device."""

    # Before it was tuned at all.
    before: Image
    # What is applied at boot, once it was confirmed.
    saved: Image | None = None
    # What was applied but not confirmed yet, and what to go back to if it never is.
    pending: Image | None = None
    previous: Image | None = None
    # By option, what was asked for and what came of it where that is not the same: not to be tried again.
    settled: dict[str, list[Any]] = field(default_factory=dict)
    # The link, before what is pending.
    was_up: bool = False
    # Which device it is: the card's own address, and the index that it had during that boot.
    address: str = ""
    index: int = 0
    boot: str = ""

    def identify(self, link: Link) -> None:
        self.address, self.index, self.boot = link.permanent_address, link.index, boot_id()

    def locate(self, name: str) -> Device | None:
        """The device, though somebody may have renamed it; one of its name if there is no better one."""
        same_boot = self.boot == boot_id()

        def rank(link: Link) -> tuple[bool, bool, bool]:
            own = link.permanent_address == self.address
            return same_boot and own and link.index == self.index, own and bool(self.address), link.name == name

        best = max(links(), key=rank)
        return Device(best.index, best.name) if any(rank(best)) else None


@dataclass
class Tuning:
    """One interface, as the operator names it."""

    interface: str
    devices: dict[str, Tuned] = field(default_factory=dict)
    # The last change was taken back by the timer.
    reverted: bool = False
    # The unit that takes back what is pending; empty if nothing does.
    timer: str = ""

    @property
    def pending(self) -> bool:
        return any(tuned.pending is not None for tuned in self.devices.values())

    @property
    def rebooted(self) -> bool:
        """Whether what is pending ended with a reboot."""
        return any(tuned.pending is not None and tuned.boot != boot_id() for tuned in self.devices.values())

    def drop_pending(self) -> None:
        """Devices of which nothing was confirmed are forgotten."""
        for name, tuned in list(self.devices.items()):
            if tuned.pending is not None and tuned.saved is None:
                del self.devices[name]
            tuned.pending = tuned.previous = None


def boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()


def path_of(interface: str) -> Path:
    return STATE / f"{files.NIC_PREFIX}{interface}.json"


def key(interface: str) -> str:
    """What the state is kept under: the device's own name, whichever was given, or what it was called when tuned."""
    if "/" in interface or not interface:
        raise missing(interface)
    if path_of(interface).exists():
        return interface
    try:
        return find(interface).name
    except EngineError:
        return interface


def load(interface: str) -> Tuning | None:
    """None if there is none. Raises EngineError for what this engine cannot read."""
    path = path_of(interface)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise EngineError(f"{path} has schema {document['schema']!r}, this engine reads {SCHEMA}; remove it")
        devices = {name: Tuned(**tuned) for name, tuned in document["devices"].items()}
        return Tuning(interface, devices, document["reverted"], document.get("timer", ""))
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {error}); remove it and apply again") from None


def save(tuning_state: Tuning) -> None:
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"schema": SCHEMA, **asdict(tuning_state)}
    files.write(path_of(tuning_state.interface), json.dumps(document, indent=1) + "\n")


def keep(tuning_state: Tuning) -> None:
    """Save it if it says anything."""
    if tuning_state.devices:
        save(tuning_state)
    else:
        files.remove(path_of(tuning_state.interface))


def holder(devices: list[Device], interface: str) -> str | None:
    """Another interface in whose name one of the devices is tuned."""
    for path in sorted(STATE.glob(f"{files.NIC_PREFIX}*.json")):
        other = load(path.stem[len(files.NIC_PREFIX) :])
        if other and other.interface != interface:
            if any(tuned.locate(name) in devices for name, tuned in other.devices.items()):
                return other.interface
    return None


def check_holder(devices: list[Device], interface: str) -> None:
    other = holder(devices, interface)
    if other:
        raise EngineError(
            f"{interface}: its device is tuned as {other} already; go on with that name, or let go of it first, with "
            f"nic_profile interface={other} state=restored"
        )


def end_of_other_boots(tuning_state: Tuning) -> bool:
    """A reboot ends with what was confirmed last; whether there was something else."""
    if not tuning_state.rebooted:
        return False
    tuning_state.drop_pending()
    tuning_state.reverted, tuning_state.timer = True, ""
    return True


@contextmanager
def locked(interface: str, check: bool = False) -> Iterator[None]:
    """One at a time: a timer may run out while a change is still under way. Check mode leaves no file behind."""
    if check:
        yield
        return
    path = RUN / f"lbops-nic-{interface}.lock"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def image(facts: dict[str, Any]) -> Image:
    """Arguments of the modules that bring back what device_info.of_device() found."""
    found = {group: tuner.options(facts.get(fact_of(group), {})) for group, tuner in TUNERS.items()}
    return {group: options for group, options in found.items() if options}


def apply(device: Device, values: Image) -> list[tuple[str, EngineError]]:
    """Set a device up as far as it goes; what did not work, by group. What it makes something else of did work."""
    failures = []
    for group, options in values.items():
        try:
            # A group before may have taken a while.
            device.check_name()
            _apply_group(device, group, options)
        except EngineError as error:
            failures.append((group, error))
        except OSError as error:
            failures.append((group, EngineError(f"{device.name}: {group}: the kernel refused an operation: {error}")))
    return failures


def usable(options: dict[str, Any], online: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of nic_irq_affinity without CPUs that are offline, which a list may well have named before."""

    def left(listed: Any) -> str:
        try:
            return cpus.format_list(set(cpus.parse_list(list_text(listed))) & set(online))
        except ValueError:
            return list_text(listed)

    found = dict(options)
    for name in ("vectors", "xps", "rps"):
        value = options.get(name)
        if isinstance(value, dict):
            found[name] = {queue: left(listed) for queue, listed in value.items() if left(listed)}
        elif value is not None:
            found[name] = left(value)
    return {name: value for name, value in found.items() if value not in ("", {})}


def _apply_group(device: Device, group: str, options: dict[str, Any]) -> None:
    if group == "irq_affinity":
        options = usable(options, cpus.topology().online)
    # A device of the same name may have other queues after a reboot.
    tuning.apply_to([device], TUNERS[group](options), Rules(clamp=True, skip=True, settle=True), check=False)
