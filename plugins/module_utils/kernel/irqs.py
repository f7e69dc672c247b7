# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interrupt vectors of a device and the CPUs of its queues: /proc/irq, and queues/ in sysfs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .cpus import format_list, format_mask, parse_list, parse_mask
from .device import Device

PROC_IRQ = Path("/proc/irq")
SYS_IRQ = Path("/sys/kernel/irq")
SOCKET_FLOWS = Path("/proc/sys/net/core/rps_sock_flow_entries")

# How drivers name the vectors of their queues: eth0-TxRx-0, eth0-rx-0, eth0-rxtx-0, virtio0-input.0, eth0-Tx-Rx-0,
# mlx5_comp0@pci:0000:01:00.0, eth0-fp-0, eth0-q0.
_QUEUE = re.compile(
    r"(?<![a-z])(?P<kind>tx-?rx|rx-?tx|rx|tx|input|output|comp|fp|q|queue)[-._ ]?(?P<number>\d+)(?!\d)", re.IGNORECASE
)
_KINDS = {"rx": "rx", "input": "rx", "tx": "tx", "output": "tx"}
# Flow director and control queue have names like those of queues, i40e-0000:18:00.0:fdir-TxRx-0 (i40e_vsi_open(),
# ice_vsi_open_ctrl()).
_NO_QUEUE = re.compile(r"[:-](fdir|ctrl)\b")
# Of gve, the first half is for transmit queues, the other for receive queues (gve_tx_idx_to_ntfy(),
# gve_rx_idx_to_ntfy()). mlx4 counts from 1, leaving out the one for events (mlx4_assign_eq()).
_GVE, _MLX4 = re.compile(r"gve-ntfy-blk(\d+)@"), re.compile(r"mlx4-(\d+)@")


@dataclass(frozen=True)
class Vector:
    """An interrupt that serves a queue: rx-0, tx-0, or combined-0 for both directions of one."""

    irq: int
    queue: str

    @property
    def path(self) -> Path:
        return PROC_IRQ / str(self.irq) / "smp_affinity_list"


def queue_of(name: str, interface: str) -> str | None:
    """The queue that a vector's name says it serves; None for link state, mailboxes and the like."""
    if _NO_QUEUE.search(name):
        return None
    matches = list(_QUEUE.finditer(name))
    if matches:
        match = matches[-1]
        return f"{_KINDS.get(match['kind'].lower(), 'combined')}-{int(match['number'])}"
    plain = re.fullmatch(re.escape(interface) + r"-(\d+)", name)
    return f"combined-{int(plain[1])}" if plain else None


def _numbered(names: dict[int, str], pattern: re.Pattern[str]) -> list[int]:
    """The interrupts with names of that form, in the order of the numbers in these."""
    found = {int(match[1]): irq for irq, name in names.items() if (match := pattern.match(name))}
    return [found[number] for number in sorted(found)]


def _names(name: str, interface: str) -> bool:
    return bool(re.search(rf"\b{re.escape(interface)}\b", name))


def assign_queues(names: dict[int, str], interface: str) -> list[Vector]:
    """From the names of a device's interrupts; a device with one interrupt has one for everything."""
    if len(names) == 1:
        return [Vector(irq, "combined-0") for irq in names]
    queue_by_irq = {irq: queue_of(name, interface) for irq, name in names.items()}
    blocks = _numbered(names, _GVE)
    half = len(blocks) // 2
    queue_by_irq.update({irq: f"tx-{place}" for place, irq in enumerate(blocks[:half])})
    queue_by_irq.update({irq: f"rx-{place}" for place, irq in enumerate(blocks[half:])})
    queue_by_irq.update({irq: f"combined-{place}" for place, irq in enumerate(_numbered(names, _MLX4))})
    # Of several that look like a queue's, it is the one that names the interface.
    own = {queue for irq, queue in queue_by_irq.items() if _names(names[irq], interface)}
    return [
        Vector(irq, queue)
        for irq, queue in sorted(queue_by_irq.items())
        if queue and (queue not in own or _names(names[irq], interface))
    ]


def _bus_device(directory: Path) -> Path:
    """Where the interrupts are: of a virtio device they are those of the bus device below it."""
    bus_device = (directory / "device").resolve()
    subsystem = bus_device / "subsystem"
    return bus_device.parent if subsystem.exists() and subsystem.resolve().name == "virtio" else bus_device


def _irq_names(directory: Path, interface: str) -> dict[int, str]:
    bus_device = _bus_device(directory)
    if (bus_device / "msi_irqs").is_dir():
        numbers = sorted(int(path.name) for path in (bus_device / "msi_irqs").iterdir())
    elif (bus_device / "irq").exists():
        numbers = [number for number in [int((bus_device / "irq").read_text(encoding="ascii"))] if number > 0]
    else:
        numbers = []
    names = {}
    for number in numbers:
        actions = SYS_IRQ / str(number) / "actions"
        name = actions.read_text(encoding="ascii").strip() if actions.exists() else ""
        if name:
            names[number] = name
    own = {number: name for number, name in names.items() if _names(name, interface)}
    # A card with several ports may have the vectors of all of them in one place.
    siblings = list((bus_device / "net").iterdir()) if (bus_device / "net").is_dir() else []
    return own if own and len(siblings) > 1 else names


def vectors(device: Device) -> list[Vector]:
    """The vectors of queues in use. Virtual devices have none; a device that is down may have requested none yet."""
    directory = device.sysfs()
    if directory is None:
        return []
    counts = {kind: len(queues(directory, kind)) for kind in ("rx", "tx")}
    counts["combined"] = max(counts.values())
    found = []
    for vector in assign_queues(_irq_names(directory, device.name), device.name):
        kind, number = vector.queue.rsplit("-", 1)
        # Some drivers keep the vectors of queues that are switched off.
        if int(number) < counts[kind]:
            found.append(vector)
    return found


def movable(vector: Vector) -> bool:
    """Since Linux 6.11 the file says whether the kernel manages the vector itself; before, only trying does."""
    return bool(vector.path.stat().st_mode & 0o200)


def queues(directory: Path, kind: str) -> list[str]:
    """The names rx-0, rx-1 and so on, of the queues in use."""
    names = [path.name for path in (directory / "queues").iterdir() if path.name.startswith(kind)]
    return sorted(names, key=lambda name: int(name.rsplit("-", 1)[1]))


def affinity(vector: Vector) -> str:
    return format_list(parse_list(vector.path.read_text(encoding="ascii").strip()))


def read_mask(path: Path) -> str | None:
    """As a CPU list; None if the device has no such choice."""
    try:
        return format_list(parse_mask(path.read_text(encoding="ascii")))
    except OSError:
        # ENOENT on a device with one queue, which has nothing to choose from.
        return None


def write_mask(path: Path, cpus: str) -> None:
    path.write_text(format_mask(parse_list(cpus) if cpus else ()), encoding="ascii")
