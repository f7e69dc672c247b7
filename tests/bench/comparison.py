# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the program with the one of another checkout: dataplane.py --before."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bench import report
from tests.bench.rounds import TOLERANCE, Run, figure, ratio

# What is appended to a case's name for the other program.
BEFORE = " before"


def refuse_other_layout(before: Path, source: Path) -> None:
    """Raises report.Failure if the program of `before` cannot use maps of this checkout's layout."""
    versions = [_layout_version(directory) for directory in (before, source)]
    if versions[0] != versions[1]:
        raise report.Failure(
            f"{before} has version {versions[0]} of the maps' layout, this checkout has version {versions[1]}: both "
            "programs cannot use the same maps, so their costs cannot be compared in one run"
        )


def _layout_version(directory: Path) -> int:
    try:
        found = re.search(r"^#define LAYOUT_VERSION (\d+)$", (directory / "layout.h").read_text("utf-8"), re.MULTILINE)
    except OSError as error:
        raise report.Failure(
            f"{directory} has no layout.h ({error.strerror}); it must be a directory files/bpf"
        ) from None
    if not found:
        raise report.Failure(f"{directory}/layout.h does not define LAYOUT_VERSION")
    return int(found[1])


def compare(runs: tuple[Run, Run], names: list[str], limit: float | None) -> int:
    """Prints what each case costs compared with before; returns the exit status, if there is a limit."""
    loads = runs[0] + runs[1]
    width = max(len(name) for name in names) + 2
    print(f"{'case':<{width}}{'before':>8}{'after':>8}{'ratio':>8}{'noise':>8}")
    exceeded, refused = [], []
    for name in names:
        found = ratio(runs, name, name + BEFORE)
        before, after = figure(loads, name + BEFORE), figure(loads, name)
        line = f"{name:<{width}}{before:>8.1f}{after:>8.1f}{found.value:>8.3f}{found.noise:>8.1%}"
        if found.too_noisy:
            refused.append(name)
            line += "  too noisy"
        elif limit is not None and found.value > limit:
            exceeded.append(name)
            line += f"  exceeds {limit:g}"
        print(line)
    if refused:
        print(f"too noisy here: two runs differ by more than {TOLERANCE:.0%}, no verdict on {', '.join(refused)}")
    if exceeded:
        print(f"error: {', '.join(exceeded)} cost more than {limit:g} of what they cost before")
        return report.EXCEEDED
    return report.TOO_NOISY if refused and limit is not None else report.HELD
