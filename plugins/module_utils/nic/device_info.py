# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that can be read of a network device."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..kernel import cpus, ethtool_ioctl
from ..kernel.device import Device, find
from ..kernel.ethtool import Ethtool
from ..kernel.link import HOOKS
from ..kernel.veth import other_end
from ..kernel.xdp_features import xdp_features
from . import irq_affinity
from .channels import Channels
from .irq_affinity import IrqAffinity
from .rss import Rss
from .tuner import Tuner, nest, refusal, supported
from .tuners import Coalesce, Features, Rings

# What a page holds besides a packet's payload: XDP_PACKET_HEADROOM, struct skb_shared_info, the Ethernet header.
PAGE_OVERHEAD = 256 + 320 + 14
# Found by attaching a program at every MTU; the others' limits are from their source.
MEASURED = ("virtio_net", "veth", "vmxnet3")
# What drivers keep free in the page besides: vmxnet3; a VLAN tag and the checksum (mlx5e_xdp_max_mtu(),
# ENA_XDP_MAX_MTU); a VLAN tag (BNXT_MAX_PAGE_MODE_MTU).
DRIVER_OVERHEAD = {"vmxnet3": 12, "mlx5_core": 8, "ena": 8, "bnxt_en": 4}
# Drivers with smaller receive buffers, less the headers: igb_xdp_setup() (IGB_RXBUFFER_3072, IGB_ETH_PKT_HDR_PAD),
# i40e_xdp_setup() (i40e_max_vsi_frame_size(), I40E_PACKET_HDR_PAD), ice_xdp_setup_prog() (ice_max_xdp_frame_size(),
# ICE_ETH_PKT_HDR_PAD), ixgbe_xdp_setup() (ixgbe_rx_bufsz(); one VLAN tag), gve's verify_xdp_configuration()
# (GVE_DEFAULT_RX_BUFFER_SIZE, GVE_RX_PAD). igc_xdp_set_prog() takes ETH_DATA_LEN.
BUFFERS = {
    "igb": 3072 - 26,
    "i40e": 3072 - 26,
    "ice": 3072 - 26,
    "ixgbe": 3072 - 22,
    "gve": 2048 - 16,
    "igc": 1500,
}

# include/uapi/linux/virtio_net.h; names as hypervisors have them
VIRTIO_CTRL_GUEST_OFFLOADS = 2
VIRTIO_GUEST_OFFLOADS = {
    1: "guest_csum",
    7: "guest_tso4",
    8: "guest_tso6",
    9: "guest_ecn",
    10: "guest_ufo",
    54: "guest_uso4",
    55: "guest_uso6",
}

# In the order in which they are set up: queues first, since the rest is about them.
TUNERS: dict[str, type[Tuner]] = {
    "channels": Channels,
    "features": Features,
    "rings": Rings,
    "coalesce": Coalesce,
    "rss": Rss,
    "irq_affinity": IrqAffinity,
}


def fact_of(group: str) -> str:
    """Where the facts have what the module of this group sets."""
    return "queues" if group == "irq_affinity" else group


def xdp_mtu_limit(driver: str, page_size: int) -> tuple[int, bool]:
    """The largest MTU at which a program without multi_buffer can be attached, and whether that was measured."""
    limit = page_size - PAGE_OVERHEAD - DRIVER_OVERHEAD.get(driver, 0)
    return min(limit, BUFFERS.get(driver, limit)), driver in MEASURED


def _identity(device: Device) -> dict[str, Any]:
    info = supported(lambda: ethtool_ioctl.driver_info(device.index))
    return {
        "driver": info.driver if info else None,
        "driver_version": info.version if info else None,
        "firmware": (info.firmware or None) if info else None,
        "bus": (info.bus or None) if info else None,
    }


def _link(device: Device) -> dict[str, Any]:
    link = device.link()
    with Ethtool(device.index) as ethtool:
        speed, duplex = supported(ethtool.link_modes) or (None, None)
    return {
        "address": link.address,
        "mtu": link.mtu,
        "max_mtu": link.max_mtu,
        "link": {"enabled": link.enabled, "state": link.operstate, "speed": speed, "duplex": duplex},
    }


def _xdp(device: Device, driver: str) -> dict[str, Any]:
    link = device.link()
    limit, measured = xdp_mtu_limit(driver, os.sysconf("SC_PAGE_SIZE"))
    return {
        "hook": HOOKS.get(link.xdp_attached),
        "program_id": link.xdp_program,
        "features": xdp_features(device.index),
        "mtu_limit": limit,
        "mtu_limit_measured": measured,
        "peer": other_end(device) if driver == "veth" else None,
        "fixed_offloads": _fixed_offloads(device) if driver == "virtio_net" else [],
    }


def fixed_offloads(bits: str) -> list[str]:
    """Of a virtio device's features, those that the guest cannot switch off."""
    if bits[VIRTIO_CTRL_GUEST_OFFLOADS] == "1":
        return []
    return [name for bit, name in VIRTIO_GUEST_OFFLOADS.items() if bits[bit] == "1"]


def _fixed_offloads(device: Device) -> list[str]:
    directory = device.sysfs()
    path = directory / "device" / "features" if directory else None
    return fixed_offloads(path.read_text(encoding="ascii")) if path and path.exists() else []


def _cpus(device: Device) -> dict[str, Any]:
    topology, node = cpus.topology(), device.numa_node()
    return {
        "numa_node": node,
        "cpus": {
            "preferred": list(topology.preferred(node)),
            "cores": list(topology.cores(node)),
            "online": cpus.format_list(topology.online),
            "possible": cpus.format_list(topology.possible),
            "isolated": cpus.format_list(topology.isolated),
        },
    }


def _knobs(device: Device, groups: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in groups:
        knobs, fact = TUNERS[group].read(device), fact_of(group)
        found[fact] = nest({key: knob.value for key, knob in knobs.items()})
        maxima = {key: knob.maximum for key, knob in knobs.items() if knob.maximum is not None}
        if maxima:
            found[f"{fact}_maximum"] = maxima
    return found


def for_xdp(device: Device, groups: Iterable[str] = ("channels", "features")) -> dict[str, Any]:
    """What decides whether the driver takes a program."""
    identity = _identity(device)
    try:
        return {
            "interface": device.name,
            **identity,
            **_link(device),
            **_cpus(device),
            "xdp": _xdp(device, identity["driver"] or ""),
            **_knobs(device, groups),
        }
    except OSError as error:
        raise refusal(device, "reading", error) from None


def of_device(device: Device) -> dict[str, Any]:
    facts = for_xdp(device, TUNERS)
    try:
        vectors = irq_affinity.of_device(device)
        irqs = {queue: vector.irq for queue, vector in vectors.items()}
        return {**facts, "irqs": irqs, "irqbalance_fits": not irqs or irq_affinity.bans_fit(vectors.values())}
    except OSError as error:
        raise refusal(device, "reading", error) from None


def info(interface: str) -> dict[str, Any]:
    """Of a bond, also everything of its members. Raises EngineError."""
    device = find(interface)
    members = [] if device.link().kind != "bond" else device.members()
    return {**of_device(device), "members": [of_device(member) for member in members]}
