# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network devices of the balancers and of what is tuned; of a bond, its members as well."""

from __future__ import annotations

from engine.balancer import state
from engine.errors import EngineError
from engine.kernel.device import Device, find

from .source import interfaces, tuned_interfaces


class Devices:
    def __init__(self, paths: state.Paths = state.HOST_PATHS) -> None:
        self.paths = paths

    def names(self) -> list[str]:
        """Those that are not there are named as well, so that somebody misses them."""
        found: dict[str, None] = {}
        for interface in (*interfaces(self.paths), *tuned_interfaces(self.paths)):
            found[interface] = None
            try:
                found.update(dict.fromkeys(device.name for device in find(interface).members()))
            except EngineError:
                continue
        return list(found)

    @staticmethod
    def find(name: str) -> Device:
        """Raises EngineError if it is not there."""
        return find(name)
