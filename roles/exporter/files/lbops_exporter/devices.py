# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network devices of the balancers and of what is tuned; of a bond, its members as well."""

from __future__ import annotations

from engine.errors import EngineError
from engine.kernel.device import Device, find

from .collector import Subject
from .source import Sources, tuned_interfaces


class Devices:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def subjects(self) -> list[Subject]:
        """With the balancer that each belongs to. Those that do not exist are named, so that somebody misses them."""
        found: dict[str, Subject] = {}
        for balancer in self._sources.balancers():
            for interface in self._interfaces(balancer):
                found.update((name, Subject(balancer, name)) for name in _with_members(interface))
        for interface in self.tuned():
            for name in _with_members(interface):
                found.setdefault(name, Subject("", name))
        return list(found.values())

    def _interfaces(self, balancer: str) -> tuple[str, ...]:
        try:
            return self._sources.interfaces(balancer)
        except (EngineError, OSError):
            # The collectors of the balancer say so.
            return ()

    def tuned(self) -> list[str]:
        """The interfaces with a file of their tuning. Raises OSError if the state directory cannot be read."""
        return tuned_interfaces(self._sources.paths)

    @staticmethod
    def find(name: str) -> Device:
        """Raises EngineError if it is not there."""
        return find(name)


def _with_members(interface: str) -> list[str]:
    try:
        return [interface, *(device.name for device in find(interface).members() if device.name != interface)]
    except EngineError:
        return [interface]
