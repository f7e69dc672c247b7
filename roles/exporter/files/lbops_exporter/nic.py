# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What network devices are set to, and where that is not what was declared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.nic import device_info, profiles, tuned
from engine.nic.profiles import Choice
from engine.outcome import text_of

from .collector import Collector, Subject
from .devices import Devices
from .exposition import Family, Page
from .interface import number

IPV4_SETTINGS = Path("/proc/sys/net/ipv4/conf")
_OPTION = ("balancer", "group", "interface", "option")
SETTING = Family(
    "lbops_nic_setting", "gauge", "Numbers and switches of a device: rings, channels, coalescing, features.", _OPTION
)
SETTING_INFO = Family(
    "lbops_nic_setting_info",
    "gauge",
    "What of a device is not a number: CPUs of interrupts and queues, hash fields; the value is 1.",
    ("balancer", "group", "interface", "option", "value"),
)
DRIFT = Family("lbops_nic_setting_drifted", "gauge", "Whether a setting is not what was declared.", _OPTION)
PENDING = Family(
    "lbops_nic_pending", "gauge", "Whether a change of the settings waits to be confirmed.", ("balancer", "interface")
)
REVERTED = Family(
    "lbops_nic_reverted",
    "gauge",
    "Whether the last change was taken back, since nobody confirmed it.",
    ("balancer", "interface"),
)
IPV4_SETTING = Family(
    "lbops_interface_ipv4_setting",
    "gauge",
    "Settings of IPv4, net.ipv4.conf.<interface>.*.",
    ("balancer", "interface", "setting"),
)
# Reading takes the lock that changes of interfaces take, and drivers that ask their device take their time.
MAX_AGE = 15.0  # seconds
# irqbalance answers root only.
_UNKNOWN = frozenset((("irq_affinity", "irqbalance_ban"),))


def settings(image: tuned.Image) -> Iterator[tuple[str, str, Any]]:
    """Group, option and value, of a dictionary each of its own."""
    for group, options in image.items():
        for option, value in options.items():
            # Whoever knows the hash key can have all packets come to one queue.
            if (group, option) == ("rss", "key"):
                continue
            if isinstance(value, dict):
                for part, found in value.items():
                    yield group, f"{option}.{part}", found
            else:
                yield group, option, value


def drifted(facts: dict[str, Any], entry: tuned.Tuned) -> Iterator[tuple[str, str, bool]]:
    """Group, option and whether it is not what was declared; what the device made of it at once is no drift."""
    for group, options in (entry.saved or {}).items():
        for option, value in options.items():
            if (group, option) in _UNKNOWN:
                continue
            choice = Choice(group, option, value, "")
            now = profiles.current(facts, choice)
            yield group, option, now != value and entry.settled.get(choice.name) != [value, now]


def ipv4_settings(subject: Subject) -> Page:
    page = Page()
    for path in sorted((IPV4_SETTINGS / subject.interface).iterdir()):
        value = number(path)
        if value is not None:
            page.add(IPV4_SETTING, value, **subject._asdict(), setting=path.name)
    return page


@dataclass(frozen=True)
class Settings:
    read_at: float
    facts: dict[str, Any]
    ipv4: Page


class NicCollector(Collector):
    name = "nic"
    families = (SETTING, SETTING_INFO, DRIFT, PENDING, REVERTED, IPV4_SETTING)

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._known: dict[Subject, Settings] = {}

    def subjects(self) -> Iterable[Subject]:
        return self._devices.subjects()

    def _read(self, subject: Subject) -> Settings:
        known = self._known.pop(subject, None)
        if known is None or time.monotonic() - known.read_at > MAX_AGE:
            facts = device_info.of_device(self._devices.find(subject.interface))
            known = Settings(time.monotonic(), facts, ipv4_settings(subject))
        self._known[subject] = known
        return known

    def collect(self, page: Page, subject: Subject) -> None:
        known = self._read(subject)
        facts = known.facts
        page.merge(known.ipv4)
        for group, option, value in settings(tuned.image(facts)):
            labels = {"group": group, **subject._asdict(), "option": option}
            if isinstance(value, (bool, int)):
                page.add(SETTING, int(value), **labels)
            elif value is not None:
                page.add(SETTING_INFO, 1, value=value if isinstance(value, str) else text_of(value), **labels)
        self._declared(page, subject, facts)

    def _declared(self, page: Page, subject: Subject, facts: dict[str, Any]) -> None:
        for name in self._devices.tuned():
            try:
                known = tuned.load(name)
            except EngineError:
                # It is that interface of which not everything can be read.
                if name == subject.interface:
                    raise
                continue
            if known is None or subject.interface not in known.devices:
                continue
            for group, option, differs in drifted(facts, known.devices[subject.interface]):
                page.add(DRIFT, int(differs), group=group, **subject._asdict(), option=option)
            page.add(PENDING, int(known.devices[subject.interface].pending is not None), **subject._asdict())
            page.add(REVERTED, int(known.reverted), **subject._asdict())
