# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all benchmarks write: build/bench/<name>.json, a table and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "build" / "bench"
SCHEMA = 1

Quantity = dict[str, float]
# Case to quantity to its summary.
Cases = dict[str, dict[str, Quantity]]


class Failure(Exception):
    """What was measured did not do what its case says."""


# Exit statuses of a benchmark: every limit holds; a limit or a claim does not; it is too noisy here to say whether.
HELD, EXCEEDED, TOO_NOISY = 0, 1, 3


@dataclass(frozen=True)
class Aim:
    """What a figure should be at most, and the limit that it must not exceed; at least, if more is better."""

    should: float
    must: float | None = None
    at_least: bool = False

    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.should:g}" + (f", must {sign} {self.must:g}" if self.must is not None else "")

    def met(self, value: float) -> bool:
        return self._within(value, self.should)

    def exceeds_limit(self, value: float) -> bool:
        return self.must is not None and not self._within(value, self.must)

    def verdict(self, value: float) -> str:
        if self.exceeds_limit(value):
            return "EXCEEDED"
        return "met" if self.met(value) else "missed"

    def _within(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


def judge(judged: list[tuple[str, float, Aim]]) -> int:
    """Prints a note for every aim that is missed, an error for every limit; returns the exit status."""
    status = HELD
    for name, value, aim in judged:
        if aim.exceeds_limit(value):
            print(f"error: {name} is {_number(value)}, limit {aim.text()}")
            status = EXCEEDED
        elif not aim.met(value):
            print(f"note: {name} is {_number(value)}, which misses its aim {aim.text()}")
    return status


def judge_cases(cases: Cases, aims: dict[str, Aim]) -> int:
    """The same for the median of each case's first quantity."""
    return judge([(case, _first(cases[case])["median"], aim) for case, aim in aims.items() if case in cases])


def _first(quantities: dict[str, Quantity]) -> Quantity:
    return next(iter(quantities.values()))


def summary(samples: list[float]) -> Quantity:
    return {
        "median": round(statistics.median(samples), 4),
        "min": round(min(samples), 4),
        "max": round(max(samples), 4),
        "rounds": len(samples),
    }


def machine() -> dict[str, Any]:
    fields = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        key, _colon, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return {
        "architecture": platform.machine(),
        "cpu": fields.get("model name", "unknown"),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "bpf_jit": _setting("/proc/sys/net/core/bpf_jit_enable"),
        "spectre_v2": _setting("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        "python": platform.python_version(),
    }


def _setting(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def commit() -> str:
    """The checkout's commit, with -dirty if it was changed since."""
    result = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"


def write(name: str, method: str, cases: Cases) -> Path:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.json"
    content = {"schema": SCHEMA, "machine": machine(), "commit": commit(), "method": method, "cases": cases}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def table(cases: Cases, aims: dict[str, Aim]) -> str:
    width = 2 + max(len(case) for case in ("case", *cases))
    lines = [f"{'case':<{width}}{'quantity':<16}{'median':>8}{'min':>8}{'max':>8}{'rounds':>8}  aim"]
    for case, quantities in cases.items():
        for position, (quantity, found) in enumerate(quantities.items()):
            line = f"{case if not position else '':<{width}}{quantity:<16}"
            line += "".join(f"{_number(found[key]):>8}" for key in ("median", "min", "max")) + f"{found['rounds']:>8}"
            if not position and case in aims:
                line += f"  {aims[case].text()}: {aims[case].verdict(found['median'])}"
            lines.append(line)
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def plot(name: str, title: str, unit: str, quantity: str, cases: Cases, aims: dict[str, Aim]) -> Path:
    """A horizontal bar for each case that has the quantity, whiskers from min to max, a tick at each aim."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(case, quantities[quantity]) for case, quantities in cases.items() if quantity in quantities]
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.38 * len(rows)), layout="constrained")
    places = range(len(rows))
    medians = [found["median"] for _case, found in rows]
    spans = [
        [found["median"] - found["min"] for _case, found in rows],
        [found["max"] - found["median"] for _case, found in rows],
    ]
    axes.barh(places, medians, height=0.62, color="#4c78a8", label="median")
    axes.errorbar(
        medians, places, xerr=spans, fmt="none", ecolor="#222222", elinewidth=1, capsize=3, label="min to max"
    )
    for kind, colour in (("should", "#2e8b57"), ("must", "#c0392b")):
        marks = [
            (getattr(aims[case], kind), place)
            for place, (case, _found) in enumerate(rows)
            if case in aims and getattr(aims[case], kind) is not None
        ]
        if marks:
            values, at = zip(*marks)
            axes.vlines(
                values,
                [place - 0.42 for place in at],
                [place + 0.42 for place in at],
                color=colour,
                linewidth=2.2,
                label="aim" if kind == "should" else "limit",
            )
    right = max(
        [found["max"] for _case, found in rows]
        + [aims[case].must or aims[case].should for case, _found in rows if case in aims]
    )
    for place, (_case, found) in enumerate(rows):
        axes.text(right * 1.03, place, _number(found["median"]), va="center", ha="left", fontsize=9)
    axes.set_yticks(places, [case for case, _found in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, right * 1.12)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.grid(True, color="#dddddd")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.png"
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
