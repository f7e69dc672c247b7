# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets by queue and by CPU, for those who look often: two system calls an interface instead of a page of metrics."""

from __future__ import annotations

import json
import time
from typing import Any

from engine.errors import EngineError
from engine.kernel import ethtool_ioctl
from engine.nic.tuner import supported

from .devices import Devices
from .driver import sort_out
from .softnet import Processed


class Queues:
    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._processed = Processed()

    def document(self) -> tuple[bytes, bool]:
        """As JSON, and whether everything could be read."""
        interfaces: dict[str, Any] = {}
        errors: dict[str, str] = {}
        cpus: dict[int, int] = {}
        try:
            names = [subject.interface for subject in self._devices.subjects()]
            cpus = self._processed.by_cpu()
        except OSError as error:
            names, errors[""] = [], str(error)
        for name in names:
            try:
                interfaces[name] = self._packets(name)
            except (EngineError, OSError) as error:
                errors[name] = str(error)
        document = {"timestamp": time.time(), "interfaces": interfaces, "cpus": cpus}
        if errors:
            document["errors"] = errors
        return json.dumps(document).encode() + b"\n", not errors

    def _packets(self, name: str) -> dict[str, dict[int, int]]:
        """By direction and queue."""
        index = self._devices.find(name).index
        packets, _xdp, _others = sort_out(supported(lambda: ethtool_ioctl.statistics(index)) or {})
        found: dict[str, dict[int, int]] = {"receive": {}, "transmit": {}}
        for (direction, queue), value in packets.items():
            found[direction][queue] = value
        return found
