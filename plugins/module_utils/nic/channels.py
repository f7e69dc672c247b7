# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The number of queues, and what a change of it does to receive-side scaling."""

from __future__ import annotations

from typing import Any

from ..errors import EngineError
from ..kernel import ethtool_ioctl, rss_table
from ..kernel.device import Device
from ..kernel.ethtool import Ethtool
from ..kernel.rss_table import Table
from .tuner import Knob, Plan, supported
from .tuners import Amounts

# IFLA_XDP_ATTACHED: in the driver, and in several places
_NATIVE = (1, 4)


def _virtio_with_program(device: Device) -> bool:
    return device.driver() == "virtio_net" and device.link().xdp_attached in _NATIVE


def _virtio_pairs(device: Device) -> int | None:
    """While a virtio device carries a program, it counts the program's transmit queues as channels; sysfs does not."""
    directory = device.sysfs()
    if directory is None or not _virtio_with_program(device):
        return None
    return sum(path.name.startswith("tx-") for path in (directory / "queues").iterdir())


def rx_queues(device: Device) -> int:
    """The receive queues that packets may be spread over."""
    return _virtio_pairs(device) or ethtool_ioctl.rx_rings(device.index)


def most_rx_queues(device: Device) -> int:
    """Those that there would be with as many channels as the device can have."""
    knobs = Channels.read(device)
    return max(rx_queues(device), *(knobs[name].maximum or 0 for name in ("combined", "rx") if name in knobs), 0)


def _receiving(counts: dict[str, int]) -> int:
    return counts.get("combined", 0) + counts.get("rx", 0)


class Channels(Amounts):
    subject = "channels"
    bounces_link = True
    getter, setter = staticmethod(Ethtool.channels), staticmethod(Ethtool.set_channels)

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        if self._wanted.get("combined") == 0 and not self._wanted.get("rx"):
            raise EngineError("combined=0 leaves no receive queue; ask for 1 or more, or for rx and tx as well")

    @classmethod
    def read(cls, device: Device) -> dict[str, Knob]:
        knobs = super().read(device)
        pairs = _virtio_pairs(device)
        if pairs and "combined" in knobs:
            knobs["combined"] = Knob(pairs, knobs["combined"].maximum)
        return knobs

    @staticmethod
    def _table(device: Device) -> Table:
        rss = supported(lambda: ethtool_ioctl.rss(device.index))
        return rss.table if rss else ()

    def _loses_table(self, device: Device, before: dict[str, Any], after: dict[str, Any]) -> bool:
        table = self._table(device)
        return bool(table) and not rss_table.is_default(table, _receiving(before)) and max(table) >= _receiving(after)

    def consequences(self, device: Device, planned: Plan) -> dict[str, Any]:
        if planned.changes and _virtio_with_program(device):
            raise EngineError(
                f"{device.name}: virtio_net changes no channels while an XDP program is attached; detach it first "
                "(xdp_program state=detached), or set the channels before attaching"
            )
        lost = bool(planned.changes) and self._loses_table(device, planned.before, planned.after)
        return {**super().consequences(device, planned), "rss_table_reset": lost}

    def warnings(self, device: Device, consequences: dict[str, Any]) -> list[str]:
        if not consequences["rss_table_reset"]:
            return []
        return [
            f"{device.name}: the indirection table named queues that are gone, so it is the default over those "
            "that are left; apply nic_rss to make another"
        ]

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        table = self._table(device)
        old, new = _receiving(before), _receiving({**before, **changes})
        # One that somebody made stays if it fits. Any other is to be the default, before the change as well: as long as
        # the kernel takes it for somebody's it refuses the change (ethtool_check_max_channel()), or drivers do.
        stays = bool(table) and not rss_table.is_default(table, old) and max(table) < new
        if not stays:
            self._reset(device, table)
        try:
            super().write(device, changes, before)
        except OSError:
            if table and not stays:
                supported(lambda: ethtool_ioctl.bring_rss_back(device.index, table))
            raise
        current = self._table(device)
        # virtio_net forgets the table when channels change (Linux 6.1), though it reads back the same.
        forgotten = device.driver() == "virtio_net"
        if not stays and (forgotten or not rss_table.is_default(current, new)):
            self._reset(device, current)
        # A driver may have a table of another size for more queues.
        if stays and len(current) == len(table) and (forgotten or current != table):
            ethtool_ioctl.set_rss(device.index, table=table)
        return {}

    @staticmethod
    def _reset(device: Device, table: Table) -> None:
        """Where nobody can set a table, nobody has."""
        if table:
            supported(lambda: ethtool_ioctl.set_rss(device.index, table=()))
