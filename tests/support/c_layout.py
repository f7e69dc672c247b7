# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a C compiler makes of the headers of files/bpf."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

BPF = Path(__file__).resolve().parents[2] / "files" / "bpf"


def values(directory: Path, expressions: Mapping[str, str], *headers: str, endpoint_slots: int) -> dict[str, int]:
    """The values of C expressions by name, with these headers; `directory` is scratch."""
    shown = [f'printf("%s=%llu\\n", "{name}", (unsigned long long)({text}));' for name, text in expressions.items()]
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "#include <linux/types.h>",
        "#define __always_inline inline",
        "static void *bpf_map_lookup_elem(void *map, const void *key) { return NULL; }",
        *(f'#include "{header}"' for header in headers),
        "int main(void)",
        "{",
        *shown,
        "return 0;",
        "}",
        "",
    ]
    source, program = directory / "layout.c", directory / "layout"
    source.write_text("\n".join(lines), encoding="utf-8")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler, "no C compiler: install gcc or clang"
    subprocess.run([compiler, f"-I{BPF}", f"-DENDPOINT_SLOTS={endpoint_slots}", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _separator, value in (line.partition("=") for line in output.splitlines())}
