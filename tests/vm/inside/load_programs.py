# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a guest: its own compiler and its own kernel take the program with all features, with none, and for tc."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, "/usr/lib/lbops")

from engine import bpf, compiler, layout, maps  # noqa: E402

SOURCE = Path("/usr/lib/lbops/bpf")
EVERY = frozenset(compiler.FEATURES)
SIZES = layout.Sizes()
BUILDS = {
    "all": compiler.Build(SOURCE, EVERY, SIZES),
    "tc": compiler.Build(SOURCE, EVERY - compiler.NOT_ON_TC, SIZES, tc=True),
    "none": compiler.Build(SOURCE, frozenset(), SIZES),
}


def load(build: compiler.Build, live: maps.Maps) -> None:
    code = compiler.compile_program(build)
    os.close(
        bpf.program_load(
            "test",
            bpf.relocate(code, list(live.descriptors.values())),
            program_type=build.program_type,
            flags=build.load_flags,
        )
    )


def main() -> int:
    failed = False
    with maps.create(SIZES, 1500) as live:
        for name, build in BUILDS.items():
            start = time.monotonic()
            try:
                load(build, live)
            except bpf.VerifierError as error:
                print(f"{name}: {error}\n{error.log[-3000:]}")
                failed = True
            else:
                print(f"{name}: loaded in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
