# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel's receive path has no time for: /proc/net/softnet_stat, one line for each CPU."""

from __future__ import annotations

from pathlib import Path

from .collector import Collector, Subject
from .exposition import Family, Page

STATISTICS = Path("/proc/net/softnet_stat")
SETTINGS = Path("/proc/sys/net/core")
# Of the columns, net/core/net-procfs.c: softnet_seq_show().
_COLUMNS = (
    (0, "lbops_softnet_processed_total", "Packets that the kernel took from devices."),
    (1, "lbops_softnet_dropped_total", "Packets dropped since the backlog of a CPU was full."),
    (2, "lbops_softnet_squeezed_total", "How often NAPI's budget was used up with packets still waiting."),
    (9, "lbops_softnet_received_rps_total", "How often a CPU was woken for packets that another one steered to it."),
    (10, "lbops_softnet_flow_limited_total", "Packets dropped since their flow had too large a share of the backlog."),
)
_BACKLOG = 11
LABELS = ("cpu",)
BACKLOG = Family("lbops_softnet_backlog_packets", "gauge", "Packets that wait in the backlogs of CPUs.")
BUDGET = Family(
    "lbops_softnet_budget_packets", "gauge", "Packets that a round of NAPI may take, net.core.netdev_budget."
)
BUDGET_TIME = Family(
    "lbops_softnet_budget_seconds", "gauge", "Time that one round of NAPI may take, net.core.netdev_budget_usecs."
)


def rows(text: str) -> list[list[int]]:
    return [[int(word, 16) for word in line.split()] for line in text.splitlines()]


class Unwrapped:
    """The kernel writes 32 bits of these counters; a scrape comes more often than they overflow."""

    def __init__(self) -> None:
        # By CPU and column.
        self._last: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, key: tuple[int, int], value: int) -> int:
        last, beyond = self._last.get(key, (0, 0))
        beyond += (value < last) << 32
        self._last[key] = value, beyond
        return beyond + value

    def total(self, column: int) -> int:
        """Of CPUs that were taken offline, too, of which the kernel tells nothing until they are back."""
        return sum(sum(numbers) for (_cpu, found), numbers in self._last.items() if found == column)


def read() -> list[tuple[int, list[int]]]:
    """By CPU; lines only ever get longer with new kernels."""
    found = rows(STATISTICS.read_text(encoding="ascii"))
    return [(row[12] if len(row) > 12 else place, row) for place, row in enumerate(found)]


class Processed:
    """Packets that each CPU took from devices."""

    def __init__(self) -> None:
        self._unwrapped = Unwrapped()

    def by_cpu(self) -> dict[int, int]:
        return {cpu: self._unwrapped.add((cpu, 0), row[0]) for cpu, row in read()}


class SoftnetCollector(Collector):
    name = "softnet"

    def __init__(self, per_cpu: bool) -> None:
        self._per_cpu = per_cpu
        self._unwrapped = Unwrapped()
        labels = LABELS if per_cpu else ()
        self._counters = [(column, Family(name, "counter", text, labels)) for column, name, text in _COLUMNS]
        self.families = (*(family for _column, family in self._counters), BACKLOG, BUDGET, BUDGET_TIME)

    def collect(self, page: Page, subject: Subject) -> None:
        found = read()
        for column, family in self._counters:
            values = [(cpu, self._unwrapped.add((cpu, column), row[column])) for cpu, row in found]
            if self._per_cpu:
                for cpu, value in values:
                    page.add(family, value, cpu=cpu)
            else:
                page.add(family, self._unwrapped.total(column))
        if all(len(row) > _BACKLOG for _cpu, row in found):
            page.add(BACKLOG, sum(row[_BACKLOG] for _cpu, row in found))
        for family, setting, unit in ((BUDGET, "netdev_budget", 1), (BUDGET_TIME, "netdev_budget_usecs", 1e6)):
            path = SETTINGS / setting
            # The network namespaces of containers do not have them.
            if path.exists():
                page.add(family, int(path.read_text(encoding="ascii")) / unit)
