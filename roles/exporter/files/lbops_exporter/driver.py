# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What drivers count, by their own names: packets by queue, everything about XDP, and the rest summed over queues."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from engine.kernel import ethtool_ioctl
from engine.nic.tuner import supported

from .collector import Collector, Subject
from .devices import Devices
from .exposition import Family, Page

QUEUE = Family(
    "lbops_interface_queue_packets_total",
    "counter",
    "Packets by queue, where the driver tells.",
    ("balancer", "direction", "interface", "queue"),
)
XDP = Family(
    "lbops_interface_xdp_total",
    "counter",
    "What the driver counts about XDP, by its own names, summed over queues.",
    ("balancer", "interface", "statistic"),
)
OTHER = Family(
    "lbops_interface_driver_statistic",
    "untyped",
    "What else the driver counts, by its own names, summed over queues.",
    ("balancer", "interface", "statistic"),
)
# rx_queue_0_packets (virtio_net, veth, igb, ixgbe), rx-0.packets (i40e, ice), rx0_packets (mlx5), queue_0_rx_cnt (ena),
# [0]: rx_ucast_packets (bnxt)
_OF_QUEUE = (
    re.compile(r"^(?P<direction>[rt]x)_queue_(?P<queue>\d+)_(?P<what>.+)$"),
    re.compile(r"^(?P<direction>[rt]x)-?(?P<queue>\d+)[._](?P<what>.+)$"),
    re.compile(r"^queue_(?P<queue>\d+)_(?P<direction>[rt]x)_(?P<what>.+)$"),
    re.compile(r"^\[(?P<queue>\d+)\]: (?P<direction>[rt]x)_(?P<what>.+)$"),
)
_OF_CHANNEL = re.compile(r"^ch-?\d+_(?P<what>.+)$")
_PACKETS = frozenset(("packets", "cnt", "ucast_packets"))
_DIRECTIONS = {"rx": "receive", "tx": "transmit"}


def sort_out(statistics: dict[str, int]) -> tuple[dict[tuple[str, int], int], dict[str, int], dict[str, int]]:
    """Packets by direction and queue, what is about XDP, and the rest; both summed over queues.

    Where a driver has a sum of its own, that counts: it knows of queues that are no more.
    """
    packets: dict[tuple[str, int], int] = {}
    # What veth says of a queue is only what a program saw of it, and that is everything.
    seen: dict[tuple[str, int], int] = {}
    of_device: dict[str, int] = {}
    summed: Counter[str] = Counter()
    for name, value in statistics.items():
        match = next(filter(None, (pattern.match(name) for pattern in _OF_QUEUE)), None)
        if match:
            direction, queue, what = match["direction"], int(match["queue"]), match["what"]
            if what in _PACKETS:
                packets[(_DIRECTIONS[direction], queue)] = value
                continue
            if what == "xdp_packets":
                seen[(_DIRECTIONS[direction], queue)] = value
            summed[_named(f"{direction}_{what}")] += value
        elif match := _OF_CHANNEL.match(name):
            summed[_named(f"ch_{match['what']}")] += value
        else:
            of_device[_named(name)] = value
    found = {**summed, **of_device}
    xdp = {name: value for name, value in found.items() if "xdp" in name}
    others = {name: value for name, value in found.items() if name not in xdp}
    return {**seen, **packets}, xdp, others


def _named(name: str) -> str:
    return name.strip().replace(" ", "_")


class DriverCollector(Collector):
    name = "driver"
    families = (QUEUE, XDP, OTHER)

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def subjects(self) -> Iterable[Subject]:
        return self._devices.subjects()

    def collect(self, page: Page, subject: Subject) -> None:
        index = self._devices.find(subject.interface).index
        packets, xdp, others = sort_out(supported(lambda: ethtool_ioctl.statistics(index)) or {})
        for (direction, queue), value in packets.items():
            page.add(QUEUE, value, direction=direction, **subject._asdict(), queue=queue)
        for family, found in ((XDP, xdp), (OTHER, others)):
            for name, value in found.items():
                page.add(family, value, **subject._asdict(), statistic=name)
