# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU lists as the kernel writes them, and which CPUs a device's work belongs on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EngineError

_PART = re.compile(r"(\d+)(?:-(\d+))?")
# More than any kernel is built for.
_MOST = 1 << 16


def parse_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list such as 0-3,8 in ascending order. Raises ValueError that completes a sentence about it."""
    found: set[int] = set()
    for part in map(str.strip, text.split(",")):
        match = _PART.fullmatch(part)
        if not match:
            raise ValueError(f"is not a CPU list such as 0-3,8: {part!r} is neither a CPU nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"is not a CPU list: the range {part} runs backwards")
        if last >= _MOST:
            raise ValueError(f"is not a CPU list: no host has a CPU {last}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_list(cpus: Iterable[int]) -> str:
    """The shortest form, as the kernel writes it."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_mask(text: str) -> tuple[int, ...]:
    """The CPUs of a mask as in xps_cpus: hexadecimal words of 32 bits, the last one for CPUs 0 to 31."""
    bits = int(text.replace(",", "").strip() or "0", 16)
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def format_mask(cpus: Iterable[int]) -> str:
    bits = sum(1 << cpu for cpu in set(cpus))
    words: list[str] = []
    while bits or not words:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))


@dataclass(frozen=True)
class Topology:
    possible: tuple[int, ...]
    online: tuple[int, ...]
    isolated: tuple[int, ...] = ()
    nodes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    # distances[a][b], in the order of the nodes' numbers
    distances: dict[int, tuple[int, ...]] = field(default_factory=dict)
    # The threads of each CPU's core, where there are several.
    siblings: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def check(self, what: str, cpus: Iterable[int]) -> None:
        """Raises EngineError, beginning with `what`, unless all of them can take interrupts."""
        for cpu in cpus:
            if cpu not in self.possible:
                raise EngineError(f"{what}: this host has no CPU {cpu}; it has {format_list(self.possible)}")
            if cpu not in self.online:
                raise EngineError(f"{what}: CPU {cpu} is offline; bring it online or leave it out")

    def check_mask(self, what: str, cpus: Iterable[int]) -> None:
        """As check(), of an interrupt's mask: the kernel's own has all possible CPUs, and needs one that is online."""
        named = set(cpus)
        if named.isdisjoint(self.online):
            self.check(what, sorted(named))
        self.check(what, sorted(named - set(self.possible)))

    def preferred(self, node: int | None) -> tuple[int, ...]:
        """CPUs for a device's queues: online, not isolated, those of the device's NUMA node first, then the nearest."""
        usable = [cpu for cpu in self.online if cpu not in self.isolated] or list(self.online)
        if node is None or node not in self.nodes:
            return tuple(usable)
        order = sorted(self.nodes)
        distance = dict(zip(order, self.distances.get(node, ())))
        rank = {}
        for other, cpus in self.nodes.items():
            rank.update(dict.fromkeys(cpus, (other != node, distance.get(other, 0), other)))
        return tuple(sorted(usable, key=lambda cpu: (rank.get(cpu, (True, 0, 0)), cpu)))

    def cores(self, node: int | None) -> tuple[int, ...]:
        """One CPU of each physical core for a device's queues, of its NUMA node only."""
        preferred = self.preferred(node)
        near = [cpu for cpu in preferred if cpu in self.nodes.get(node, ())] if node is not None else []
        found: dict[tuple[int, ...], int] = {}
        # A node without CPUs, or with none that is usable, leaves those of the others.
        for cpu in near or preferred:
            found.setdefault(self.siblings.get(cpu, (cpu,)), cpu)
        return tuple(sorted(found.values()))


def _read(path: Path) -> tuple[int, ...]:
    """A list in sysfs, empty if it is empty or missing."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return ()
    return parse_list(text) if text else ()


def topology(sys: Path = Path("/sys")) -> Topology:
    cpu, node = sys / "devices/system/cpu", sys / "devices/system/node"
    numbers = _read(node / "online")
    distances = {}
    for number in numbers:
        path = node / f"node{number}" / "distance"
        if path.exists():
            distances[number] = tuple(int(word) for word in path.read_text(encoding="ascii").split())
    online = _read(cpu / "online")
    siblings = {number: _read(cpu / f"cpu{number}" / "topology/thread_siblings_list") for number in online}
    return Topology(
        possible=_read(cpu / "possible"),
        online=online,
        isolated=_read(cpu / "isolated"),
        nodes={number: _read(node / f"node{number}" / "cpulist") for number in numbers},
        distances=distances,
        siblings={number: threads for number, threads in siblings.items() if threads},
    )
