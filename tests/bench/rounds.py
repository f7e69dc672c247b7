# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dataplane.py computes from its rounds.

A run loads programs and maps several times; a load has many short rounds, in which every program has one slice of time.

Of the slices of a load the shortest counts: everything that disturbs a slice makes it longer. Of the loads of a run the
lower quartile counts: where code and maps lie in memory differs between loads, and in some of them makes a program
slower by a quarter; another tenant of the same core slows whole loads.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Two runs agree if their ratios differ by at most this share, or by RESOLUTION if that is more.
TOLERANCE = 0.05
RESOLUTION = 0.02

# By name, nanoseconds per packet: all slices of a load, and what a load makes of them.
Slices = dict[str, list[float]]
Load = dict[str, float]
Run = list[Load]


@dataclass(frozen=True)
class Ratio:
    """A figure by another one: of all loads, and of each of the two runs."""

    value: float
    runs: tuple[float, float]

    @property
    def noise(self) -> float:
        """The share by which the runs differ; infinite if one of them is not positive."""
        least = min(self.runs)
        return abs(self.runs[0] - self.runs[1]) / least if least > 0 else float("inf")

    @property
    def too_noisy(self) -> bool:
        return self.noise > TOLERANCE and abs(self.runs[0] - self.runs[1]) > RESOLUTION


def lower_quartile(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=4, method="inclusive")[0] if len(samples) > 1 else samples[0]


def figure(loads: Run, name: str) -> float:
    """Returns nanoseconds per packet."""
    return lower_quartile([load[name] for load in loads])


def ratio(runs: tuple[Run, Run], name: str, base: str) -> Ratio:
    first, second = (figure(run, name) / figure(run, base) for run in runs)
    loads = runs[0] + runs[1]
    return Ratio(figure(loads, name) / figure(loads, base), (first, second))
