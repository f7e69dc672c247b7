# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a guest: its own compiler and its own kernel take the program with all features."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, "/usr/lib/lbops/current")

from engine.balancer import compiler, map_set  # noqa: E402
from engine.kernel import bpf  # noqa: E402
from engine.tables import layout  # noqa: E402

SIZES = layout.Sizes()
BUILD = compiler.Build(Path("/usr/lib/lbops/current/bpf"), frozenset(compiler.FEATURES), SIZES)


def main() -> int:
    start = time.monotonic()
    code = compiler.compile_program(BUILD)
    with map_set.create(SIZES) as live:
        relocated = bpf.relocate(code, list(live.descriptors.values()))
        try:
            os.close(bpf.program_load("test", relocated, program_type=BUILD.program_type, flags=BUILD.load_flags))
        except bpf.VerifierError as error:
            print(f"{error}\n{error.log[-3000:]}")
            return 1
    print(f"loaded in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
