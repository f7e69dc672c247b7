# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The little type information (BTF) with which the kernel verifies a subprogram once, not at every call.

Documentation/bpf/btf.rst has the format. Every subprogram is u64 f(u64, u64, u64, u64), see SUBPROGRAM in
files/bpf/verifier.h.
"""

from __future__ import annotations

import struct

MAGIC, VERSION = 0xEB9F, 1
HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, header's length, types' offset and length, strings'
TYPE = struct.Struct("<III")  # name, kind << 24 | members or linkage, size or type
PARAMETER = struct.Struct("<II")  # name, type
FUNCTION = struct.Struct("<II")  # struct bpf_func_info: first instruction, type

KIND_INT, KIND_FUNC, KIND_FUNC_PROTO = 1, 12, 13
GLOBAL = 1  # enum btf_func_linkage
NUMBER, PROTOTYPE, FIRST_FUNCTION = 1, 2, 3  # types in their order
PARAMETERS = 4


def describe(starts: list[int]) -> tuple[bytes, bytes]:
    """BTF and array of struct bpf_func_info of a program and of its subprograms, which begin at these instructions."""
    names = ["u64", "number", "balancer", *(f"subprogram_{number}" for number in range(1, len(starts) + 1))]
    strings, offsets = b"\0", []
    for name in names:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    # An integer is followed by its encoding, offset and bits.
    types = TYPE.pack(offsets[0], KIND_INT << 24, 8) + struct.pack("<I", 64)
    types += TYPE.pack(0, KIND_FUNC_PROTO << 24 | PARAMETERS, NUMBER) + PARAMETER.pack(offsets[1], NUMBER) * PARAMETERS
    types += b"".join(TYPE.pack(offset, KIND_FUNC << 24 | GLOBAL, PROTOTYPE) for offset in offsets[2:])
    header = HEADER.pack(MAGIC, VERSION, 0, HEADER.size, 0, len(types), len(types), len(strings))
    functions = [FUNCTION.pack(start, FIRST_FUNCTION + number) for number, start in enumerate([0, *starts])]
    return header + types + strings, b"".join(functions)
