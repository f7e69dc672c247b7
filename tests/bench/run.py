# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All benchmarks, one after the other: make bench."""

from __future__ import annotations

import subprocess
import sys

# A process each, since some of them move into a network namespace of their own.
BENCHMARKS = ("dataplane", "forwarding", "flood", "control", "exporter")


def main() -> int:
    for name in BENCHMARKS:
        print(f"=== {name}", flush=True)
        result = subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False)
        if result.returncode:
            return result.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
