# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel counts and says of an interface, whatever its driver."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.errors import EngineError
from engine.kernel import ethtool_ioctl
from engine.nic.tuner import supported

from .collector import Collector, Subject
from .devices import Devices
from .exposition import Family, Page

_DIRECTED = ("balancer", "direction", "interface")
_INTERFACE = ("balancer", "interface")
_DIRECTIONS = {"rx": "receive", "tx": "transmit"}

_MAIN = {
    "packets": Family("lbops_interface_packets_total", "counter", "Packets of an interface.", _DIRECTED),
    "bytes": Family("lbops_interface_bytes_total", "counter", "Bytes of an interface.", _DIRECTED),
    "errors": Family("lbops_interface_errors_total", "counter", "Packets with errors.", _DIRECTED),
    "dropped": Family("lbops_interface_dropped_total", "counter", "Packets that were dropped.", _DIRECTED),
}
STATISTIC = Family(
    "lbops_interface_statistic_total",
    "counter",
    "Further counters, by the kernel's names.",
    ("balancer", "interface", "statistic"),
)
MTU = Family("lbops_interface_mtu_bytes", "gauge", "The MTU.", _INTERFACE)
UP = Family("lbops_interface_up", "gauge", "Whether the link is up.", _INTERFACE)
QUEUES = Family("lbops_interface_queues", "gauge", "Queues in use.", _DIRECTED)
SPEED = Family("lbops_interface_speed_bytes", "gauge", "Bytes a second that the link can carry.", _INTERFACE)
INFO = Family(
    "lbops_interface_info",
    "gauge",
    "Driver, firmware, address and queueing discipline; the value is 1.",
    ("address", "balancer", "driver", "firmware", "interface", "qdisc"),
)


def number(path: Path) -> int | None:
    """None for what has no number, or does not tell it now."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


class InterfaceCollector(Collector):
    name = "interface"
    families = (*_MAIN.values(), STATISTIC, MTU, UP, QUEUES, SPEED, INFO)

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def subjects(self) -> Iterable[Subject]:
        return self._devices.subjects()

    def collect(self, page: Page, subject: Subject) -> None:
        device = self._devices.find(subject.interface)
        directory = device.sysfs()
        if directory is None:
            raise EngineError(
                f"{subject.interface} is not in /sys/class/net; mount the sysfs of this network namespace there"
            )
        for path in sorted((directory / "statistics").iterdir()):
            self._statistic(page, subject, path)
        link = device.link()
        page.add(MTU, link.mtu, **subject._asdict())
        page.add(UP, int(link.usable), **subject._asdict())
        queues = [path.name.partition("-")[0] for path in (directory / "queues").iterdir()]
        for short, direction in _DIRECTIONS.items():
            page.add(QUEUES, queues.count(short), direction=direction, **subject._asdict())
        # In Mbit/s; -1 if it is not known.
        speed = number(directory / "speed")
        if speed and speed > 0:
            page.add(SPEED, speed * 1000000 // 8, **subject._asdict())
        driver = supported(lambda: ethtool_ioctl.driver_info(device.index))
        page.add(
            INFO,
            1,
            address=link.address,
            driver=driver.driver if driver else "",
            firmware=driver.firmware if driver else "",
            **subject._asdict(),
            qdisc=link.qdisc,
        )

    @staticmethod
    def _statistic(page: Page, subject: Subject, path: Path) -> None:
        value = int(path.read_text(encoding="ascii"))
        direction, _underscore, kind = path.name.partition("_")
        if direction in _DIRECTIONS and kind in _MAIN:
            page.add(_MAIN[kind], value, direction=_DIRECTIONS[direction], **subject._asdict())
        else:
            page.add(STATISTIC, value, **subject._asdict(), statistic=path.name)
