# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Knobs that a device takes as they are: ring sizes, interrupt coalescing, features."""

from __future__ import annotations

from typing import Any, Callable

from ..errors import EngineError
from ..kernel.device import Device
from ..kernel.ethtool import Amount, Ethtool, Feature
from .tuner import Knob, Rules, Tuner, check_range, supported

# An option's features by the kernel's names. NETIF_F_CSUM_MASK is what a driver has one of, or one per address family.
FEATURES = {
    "lro": ("rx-lro",),
    "gro_hw": ("rx-gro-hw",),
    "rx_checksum": ("rx-checksum",),
    "tx_checksum": ("tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"),
    "rx_vlan_offload": ("rx-vlan-hw-parse",),
    "tx_vlan_offload": ("tx-vlan-hw-insert",),
    "rx_vlan_filter": ("rx-vlan-filter",),
    "ntuple": ("rx-ntuple-filter",),
}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not left out. Raises EngineError if all are."""
    found = {name: value for name, value in options.items() if value is not None}
    if not found:
        raise EngineError(f"nothing to set: give at least one of {', '.join(options)}")
    return found


class Plain(Tuner):
    """Knobs whose wanted values are the module's options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._wanted = given(options)

    def wanted(self, device: Device, knobs: dict[str, Knob], rules: Rules) -> dict[str, Any]:
        return self._wanted


class Amounts(Plain):
    """Numbers that one request of ethtool's reads and another one sets."""

    risks_link = True
    least = 0
    getter: Callable[[Ethtool], dict[str, Amount]]
    setter: Callable[[Ethtool, dict[str, Any]], None]

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        for name, value in self._wanted.items():
            check_range(name, value, self.least)

    @classmethod
    def read(cls, device: Device) -> dict[str, Knob]:
        with Ethtool(device.index) as ethtool:
            amounts = supported(lambda: cls.getter(ethtool)) or {}
        return {name: Knob(amount.value, amount.maximum) for name, amount in amounts.items()}

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        with Ethtool(device.index) as ethtool:
            self.setter(ethtool, changes)
        return {}


class Rings(Amounts):
    subject = "ring sizes"
    bounces_link = True
    least = 1
    getter, setter = staticmethod(Ethtool.rings), staticmethod(Ethtool.set_rings)


class Coalesce(Amounts):
    subject = "interrupt coalescing"
    getter, setter = staticmethod(Ethtool.coalesce), staticmethod(Ethtool.set_coalesce)

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        for direction in ("rx", "tx"):
            usecs = self._wanted.get(f"{direction}_usecs")
            if self._wanted.get(f"adaptive_{direction}") and usecs is not None:
                raise EngineError(
                    f"adaptive_{direction}=true and {direction}_usecs={usecs} contradict each other: the driver "
                    f"changes the delay all the time; leave out one of the two"
                )

    def wanted(self, device: Device, knobs: dict[str, Knob], rules: Rules) -> dict[str, Any]:
        """A delay beside adaptive coalescing is refused without words (ice_set_coalesce()) or does not last (DIM)."""
        for direction in ("rx", "tx"):
            usecs, adaptive = f"{direction}_usecs", f"adaptive_{direction}"
            if usecs in self._wanted and adaptive not in self._wanted and adaptive in knobs and knobs[adaptive].value:
                raise EngineError(
                    f"{device.name}: {usecs}={self._wanted[usecs]}: the driver changes the delay all the time while "
                    f"{adaptive} is on; set {adaptive}=false as well"
                )
        return super().wanted(device, knobs, rules)

    @staticmethod
    def options(found: dict[str, Any]) -> dict[str, Any]:
        # The driver changes that delay all the time.
        adaptive = {f"{direction}_usecs" for direction in ("rx", "tx") if found.get(f"adaptive_{direction}")}
        return {name: value for name, value in found.items() if name not in adaptive}


def feature_knob(features: list[Feature]) -> Knob | None:
    """One option for several features: neither on nor off when only some are on, fixed when none can be changed."""
    changeable = {feature.active for feature in features if feature.changeable}
    if changeable:
        return Knob(changeable.pop() if len(changeable) == 1 else None)
    return Knob(any(feature.active for feature in features), fixed=True) if features else None


class Features(Plain):
    subject = "features"
    risks_link = True

    @staticmethod
    def _of_device(device: Device) -> dict[str, Feature]:
        with Ethtool(device.index) as ethtool:
            return ethtool.features()

    @staticmethod
    def read(device: Device) -> dict[str, Knob]:
        present = Features._of_device(device)
        knobs = {
            option: feature_knob([present[name] for name in names if name in present])
            for option, names in FEATURES.items()
        }
        return {option: knob for option, knob in knobs.items() if knob is not None}

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        present = self._of_device(device)
        values = {
            name: value
            for option, value in changes.items()
            for name in FEATURES[option]
            if name in present and present[name].changeable
        }
        with Ethtool(device.index) as ethtool:
            ethtool.set_features(values)
        return {}
