# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The little type information (BTF) with which the kernel verifies a global subprogram once, not at every call.

Documentation/bpf/btf.rst has the format. Every global subprogram is u64 f(u64, u64, u64, u64), see GLOBAL_SUBPROGRAM in
files/bpf/verifier.h. A program that describes some of its functions has to describe all, and the kernel ignores the
types of those that are not global.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC, VERSION = 0xEB9F, 1
HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, header's length, types' offset and length, strings'
TYPE = struct.Struct("<III")  # name, kind << 24 | members or linkage, size or type
PARAMETER = struct.Struct("<II")  # name, type
FUNCTION = struct.Struct("<II")  # struct bpf_func_info: first instruction, type

KIND_INT, KIND_FUNC, KIND_FUNC_PROTO = 1, 12, 13
STATIC, GLOBAL = 0, 1  # enum btf_func_linkage
NUMBER, PROTOTYPE, FIRST_FUNCTION = 1, 2, 3  # types in their order
PARAMETERS = 4


# struct bpf_insn: code, registers, offset, immediate; a 64-bit load takes two of them.
INSTRUCTION = struct.Struct("=BBhi")
MOVE_IMMEDIATE_64, CALL, PSEUDO_CALL = 0xB7, 0x85, 1
# Of files/bpf/verifier.h: a subprogram that moves it to a register is global.
GLOBAL_MARK = 0x676C6F62


class Subprogram(NamedTuple):
    start: int  # its first instruction
    is_global: bool


def subprograms(code: bytes) -> list[Subprogram]:
    """Those that are called, in the order in which they lie in the program."""
    instructions = list(INSTRUCTION.iter_unpack(code))
    calls = {
        place + 1 + distance
        for place, (operation, registers, _offset, distance) in enumerate(instructions)
        if operation == CALL and registers >> 4 == PSEUDO_CALL
    }
    marks = [
        place
        for place, (operation, _registers, _offset, number) in enumerate(instructions)
        if operation == MOVE_IMMEDIATE_64 and number == GLOBAL_MARK
    ]
    starts = sorted(calls)
    ends = [*starts[1:], len(instructions)]
    return [
        Subprogram(start, any(start <= mark < end for mark in marks)) for start, end in zip(starts, ends, strict=False)
    ]


def describe(subprograms: list[Subprogram]) -> tuple[bytes, bytes]:
    """BTF and array of struct bpf_func_info of a program and of its subprograms, in the order of their instructions."""
    functions = [Subprogram(0, True), *subprograms]
    names = ["u64", "number", "balancer", *(f"subprogram_{number}" for number in range(1, len(functions)))]
    strings, offsets = b"\0", []
    for name in names:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    # An integer is followed by its encoding, offset and bits.
    types = TYPE.pack(offsets[0], KIND_INT << 24, 8) + struct.pack("<I", 64)
    types += TYPE.pack(0, KIND_FUNC_PROTO << 24 | PARAMETERS, NUMBER) + PARAMETER.pack(offsets[1], NUMBER) * PARAMETERS
    for offset, function in zip(offsets[2:], functions, strict=True):
        types += TYPE.pack(offset, KIND_FUNC << 24 | (GLOBAL if function.is_global else STATIC), PROTOTYPE)
    header = HEADER.pack(MAGIC, VERSION, 0, HEADER.size, 0, len(types), len(types), len(strings))
    described = [FUNCTION.pack(function.start, FIRST_FUNCTION + number) for number, function in enumerate(functions)]
    return header + types + strings, b"".join(described)
