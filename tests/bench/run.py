# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All benchmarks, one after the other: make bench."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from tests.bench import report

# A process each, since some of them move into a network namespace of their own.
BENCHMARKS = ("dataplane", "forwarding", "flood", "control", "exporter")


def main() -> int:
    """Runs all, whatever one of them finds; returns the worst of their statuses."""
    statuses = {}
    for name in BENCHMARKS:
        print(f"=== {name}", flush=True)
        result = subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False)
        statuses[name] = result.returncode
    for name, status in statuses.items():
        if status == report.TOO_NOISY:
            print(f"{name}: too noisy here to say whether its limits hold")
        elif status:
            print(f"{name}: failed, or does not hold a limit")
    return worst(statuses.values())


def worst(statuses: Iterable[int]) -> int:
    """Returns a failure, if there is one, else that it is too noisy somewhere, else 0."""
    found = set(statuses) - {report.HELD}
    if found - {report.TOO_NOISY}:
        return report.EXCEEDED
    return report.TOO_NOISY if found else report.HELD


if __name__ == "__main__":
    sys.exit(main())
