# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill Maglev tables in the kernel, some twenty times as fast as lookup.fill() and with the same result.

A small program, assembled here so that no compiler is needed, runs with BPF_PROG_TEST_RUN; nothing is attached. It
keeps its state in maps that this process has mapped. It is a socket filter, a type for which CAP_BPF is enough: health
checks have no more. If the kernel refuses the program, lookup.fill() does the work.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import threading
from array import array

from ..errors import errno_name
from ..kernel import bpf
from ..kernel.assembler import Assembler
from ..tables import lookup

# What the program works on: its state, then the members.
_STATE = struct.Struct("=6I")
_TURN, _HAS_TURN, _FREE_SLOTS, _COUNT, _LARGEST, _SIZE = range(0, _STATE.size, 4)
_MEMBER = struct.Struct("=6I")
_SLOT, _STEP, _CREDIT, _WEIGHT, _ID = (_STATE.size + 4 * field for field in range(5))
# Room for MAX_TABLE_SIZE members and slots; both are counted with these bits.
_MASK = 0x1FFFF
# A round adds a member's weight, probes a slot, or does both. One system call has enough rounds to visit all members
# and all slots once, so it fills at least one slot.
_ROUNDS, _RUNS = 32, 8192
# The program does not look at it. Some kernels refuse one that is empty behind the Ethernet header.
_FRAME = bytes(64)


def _program(members: int, table: int) -> bytes:
    """The loop of lookup.fill(), resumed where the last run left it. Members and table are descriptors of maps.

    The loop is unrolled: without CAP_PERFMON the verifier also follows speculative paths, on which a loop has no bound.
    Masks change no number; they let the verifier see that every round starts from the same state.
    """
    turn, slot, step, member, at, word, wrap, slots, state = (f"r{number}" for number in range(1, 10))
    code = Assembler()
    code.load_map_value(state, members)
    code.load_map_value(slots, table)
    code.load(word, state, _FREE_SLOTS)
    code.jump_if(word, "==", 0, "exit")
    code.load(turn, state, _TURN)
    code.set(turn, "&", _MASK)
    code.load(word, state, _HAS_TURN)
    code.jump_if(word, "==", 0, "add weight 0")
    _point_to_member(code, member, turn, state)
    code.load(step, member, _STEP)
    code.load(slot, member, _SLOT)
    code.jump("probe 0")

    for number in range(_ROUNDS):
        code.label(f"add weight {number}")
        _point_to_member(code, member, turn, state)
        code.load(slot, member, _CREDIT)
        code.load(word, member, _WEIGHT)
        code.set(slot, "+", word)
        code.load(word, state, _LARGEST)
        code.jump_if(slot, ">=", word, f"has turn {number}")
        code.store(member, _CREDIT, slot)
        code.jump(f"next member {number}")
        code.label(f"has turn {number}")
        code.set(slot, "-", word)
        code.store(member, _CREDIT, slot)
        code.load(step, member, _STEP)
        code.load(slot, member, _SLOT)

        code.label(f"probe {number}")
        code.set(at, "=", slot)
        code.set(at, "&", _MASK)
        code.set(at, "<<", 2)
        code.set(at, "+", slots)
        # Half of all steps wrap around; without a jump the CPU need not guess which.
        code.set32(slot, "+", step)
        code.set32(wrap, "=", slot)
        code.set32(wrap, "s>>", 31)
        code.load(word, state, _SIZE)
        code.set32(wrap, "&", word)
        code.set32(slot, "+", wrap)
        code.load(word, at, 0)
        code.jump_if(word, "!=", 0, f"probe {number + 1}")
        code.load(word, member, _ID)
        code.store(at, 0, word)
        code.store(member, _SLOT, slot)
        code.load(word, state, _FREE_SLOTS)
        code.set(word, "-", 1)
        code.store(state, _FREE_SLOTS, word)
        code.jump_if(word, "==", 0, "exit")

        code.label(f"next member {number}")
        code.set(turn, "+", 1)
        code.load(word, state, _COUNT)
        code.jump_if(turn, "<", word, f"same cycle {number}")
        code.set(turn, "-", word)
        code.label(f"same cycle {number}")
        code.set(turn, "&", _MASK)
        code.jump(f"add weight {number + 1}")

    code.label(f"probe {_ROUNDS}")
    code.store(member, _SLOT, slot)
    code.set(word, "=", 1)
    code.jump("pause")
    code.label(f"add weight {_ROUNDS}")
    code.set(word, "=", 0)
    code.label("pause")
    code.store(state, _HAS_TURN, word)
    code.store(state, _TURN, turn)
    code.label("exit")
    code.set("r0", "=", 0)
    code.exit()
    return code.code()


def _point_to_member(code: Assembler, member: str, turn: str, state: str) -> None:
    code.set(member, "=", turn)
    code.set(member, "*", _MEMBER.size)
    code.set(member, "+", state)


class KernelFill:
    """Fills tables as lookup.fill() does. Raises OSError if the kernel refuses maps or program."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        try:
            self._members = self._map("members", _STATE.size + _MEMBER.size * (_MASK + 1))
            self._slots = self._map("slots", 4 * (_MASK + 1))
            self._program = bpf.program_load(
                "lbops_fill", _program(*self._descriptors), program_type=bpf.PROG_TYPE_SOCKET_FILTER
            )
            self._descriptors.append(self._program)
        except OSError:
            self.close()
            raise

    def _map(self, name: str, size: int) -> mmap.mmap:
        descriptor = bpf.map_create(name, bpf.MAP_TYPE_ARRAY, size, 1, flags=bpf.MAP_FLAG_MMAPABLE)
        self._descriptors.append(descriptor)
        # mmap(2) takes whole pages of a map.
        return mmap.mmap(descriptor, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __call__(self, found: lookup.Members) -> array[int]:
        with self._lock:
            self._start(found)
            while self._state()[_FREE_SLOTS // 4]:
                before = self._state()
                try:
                    bpf.test_run(self._program, _FRAME, _RUNS, program_type=bpf.PROG_TYPE_SOCKET_FILTER)
                except InterruptedError:
                    # By a signal. The next call goes on where this one was.
                    continue
                if self._state() == before:
                    raise OSError(errno.EIO, f"the program fills no slot of a table of {found.size}")
            return array("I", self._slots[: 4 * found.size])

    def _start(self, found: lookup.Members) -> None:
        count, fields = len(found.ids), _MEMBER.size // 4
        rows = array("I", bytes(_MEMBER.size * count))
        # A step adds the skip and takes away the size; the program adds that again if the sum is negative.
        steps = array("I", [(1 << 32) + skip - found.size for skip in found.skips])
        credits = array("I", [found.largest - weight for weight in found.weights])
        columns = (found.offsets, steps, credits, found.weights, found.ids)
        for field, column in enumerate(columns):
            rows[field::fields] = column
        state = _STATE.pack(0, 0, found.size, count, found.largest, found.size)
        self._members[: _STATE.size + _MEMBER.size * count] = state + rows.tobytes()
        self._slots[: 4 * found.size] = bytes(4 * found.size)

    def _state(self) -> tuple[int, ...]:
        return _STATE.unpack(self._members[: _STATE.size])


class Fastest:
    """Fills tables in the kernel, or with lookup.fill() where the kernel refuses; `problem` then says so."""

    def __init__(self) -> None:
        self._kernel: KernelFill | None = None
        self.problem = ""

    def __call__(self, found: lookup.Members) -> array[int]:
        if not self.problem:
            try:
                # Kept open, since the verifier takes some milliseconds.
                self._kernel = self._kernel or KernelFill()
                return self._kernel(found)
            except OSError as error:
                self.problem = (
                    f"the kernel does not run the program that fills lookup tables ({errno_name(error.errno)}: "
                    f"{error.strerror}); they are computed in Python, with the same result but some 50 ms for each "
                    "service; is BPF_PROG_TEST_RUN or the JIT restricted on this host?"
                )
                logging.getLogger(__name__).warning(self.problem)
        return lookup.fill(found)


# Of this process.
FASTEST = Fastest()


def problems() -> list[str]:
    """What an operator should know of the way that tables were filled; nothing if all is well."""
    return [FASTEST.problem] if FASTEST.problem else []
