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
BUILDS = {"all": (EVERY, False), "tc": (EVERY - compiler.NOT_ON_TC, True), "none": (frozenset(), False)}


def load(features: frozenset[str], for_tc: bool, sizes: layout.Sizes, live: maps.Maps) -> None:
    code = compiler.compile_program(compiler.Build(SOURCE, features, sizes, for_tc))
    os.close(
        bpf.program_load(
            "test",
            bpf.relocate(code, list(live.descriptors.values())),
            program_type=bpf.PROG_TYPE_SCHED_CLS if for_tc else bpf.PROG_TYPE_XDP,
            flags=bpf.PROG_FLAG_XDP_HAS_FRAGS if "multi_buffer" in features and not for_tc else 0,
        )
    )


def main() -> int:
    sizes = layout.Sizes()
    failed = False
    with maps.create(sizes, 1500) as live:
        for name, (features, for_tc) in BUILDS.items():
            start = time.monotonic()
            try:
                load(features, for_tc, sizes, live)
            except bpf.VerifierError as error:
                print(f"{name}: {error}\n{error.log[-3000:]}")
                failed = True
            else:
                print(f"{name}: loaded in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
