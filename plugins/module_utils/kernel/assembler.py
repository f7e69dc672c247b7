# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small assembler for BPF programs that need no compiler (Documentation/bpf/standardization/instruction-set.rst).

A register is its name, such as "r1"; a number is an immediate. Loads and stores have 32 bits.
"""

from __future__ import annotations

from typing import Union

from .bpf import INSTRUCTION, LOAD_IMMEDIATE_64, PSEUDO_MAP_VALUE

Operand = Union[str, int]

FROM_REGISTER = 0x08
FULL_WIDTH = 0x03  # 64 bits instead of 32
ARITHMETIC = {"+": 0x07, "-": 0x17, "*": 0x27, "&": 0x57, "<<": 0x67, "s>>": 0xC7, "=": 0xB7}
JUMPS = {"==": 0x15, ">": 0x25, ">=": 0x35, "!=": 0x55, "<": 0xA5, "<=": 0xB5}  # unsigned
JUMP, LOAD_32, STORE_32, EXIT = 0x05, 0x61, 0x63, 0x95


def _number(register: str) -> int:
    return int(register[1:])


class Assembler:
    """Instructions in the order they are added; jumps go to labels, before or behind."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}  # by the offset of the instruction

    def _emit(self, code: int, to: str = "r0", source: str = "r0", offset: int = 0, immediate: int = 0) -> None:
        self._code += INSTRUCTION.pack(code, _number(to) | _number(source) << 4, offset, immediate)

    def _emit_with(self, code: int, to: str, operand: Operand) -> None:
        if isinstance(operand, str):
            self._emit(code | FROM_REGISTER, to, operand)
        else:
            self._emit(code, to, immediate=operand)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def set(self, to: str, operator: str, operand: Operand) -> None:
        """`to` = `operand`, or `to` = `to` + `operand` and so on, with 64 bits."""
        self._emit_with(ARITHMETIC[operator], to, operand)

    def set32(self, to: str, operator: str, operand: Operand) -> None:
        """The same with 32 bits; the upper half becomes zero."""
        self._emit_with(ARITHMETIC[operator] - FULL_WIDTH, to, operand)

    def load(self, to: str, base: str, offset: int) -> None:
        self._emit(LOAD_32, to, base, offset)

    def store(self, base: str, offset: int, source: str) -> None:
        self._emit(STORE_32, base, source, offset)

    def load_map_value(self, to: str, descriptor: int) -> None:
        """The address of the value of a map with one entry (kernel 5.2)."""
        self._code += INSTRUCTION.pack(LOAD_IMMEDIATE_64, _number(to) | PSEUDO_MAP_VALUE << 4, 0, descriptor)
        self._code += INSTRUCTION.pack(0, 0, 0, 0)

    def jump(self, label: str) -> None:
        self._jumps[len(self._code)] = label
        self._emit(JUMP)

    def jump_if(self, register: str, comparison: str, operand: Operand, label: str) -> None:
        self._jumps[len(self._code)] = label
        self._emit_with(JUMPS[comparison], register, operand)

    def exit(self) -> None:
        self._emit(EXIT)

    def code(self) -> bytes:
        """Raises KeyError for a label that is nowhere."""
        for start, label in self._jumps.items():
            operation, registers, _offset, immediate = INSTRUCTION.unpack_from(self._code, start)
            distance = (self._labels[label] - start) // INSTRUCTION.size - 1
            INSTRUCTION.pack_into(self._code, start, operation, registers, distance, immediate)
        return bytes(self._code)
