# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a program many times on one frame, restored each time by wrapper.c."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.bench import network, report
from tests.bench.scenes import Case

MAP_TYPE_PROG_ARRAY = 3
MOV_IMMEDIATE, CALL, EXIT = 0xB7, 0x85, 0x95
ADJUST_HEAD = 44  # BPF_FUNC_xdp_adjust_head
SCENE = struct.Struct("<80sIIII")  # struct scene of wrapper.c


def return_program(verdict: int) -> int:
    """Loads a program that does nothing."""
    code = bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 0, 0, verdict) + bpf.INSTRUCTION.pack(EXIT, 0, 0, 0)
    return bpf.program_load("empty", code)


def growing_program(verdict: int, bytes_more: int) -> int:
    """Loads a program that only makes room in front of the frame."""
    code = bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 2, 0, -bytes_more) + bpf.INSTRUCTION.pack(CALL, 0, 0, ADJUST_HEAD)
    code += bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 0, 0, verdict) + bpf.INSTRUCTION.pack(EXIT, 0, 0, 0)
    return bpf.program_load("growing", code)


def compile_wrapper() -> bytes:
    from bcc import BPF

    program = BPF(text=Path(__file__).with_name("wrapper.c").read_bytes())
    try:
        return program.dump_func(b"wrapper")
    finally:
        program.cleanup()


def timed_run(program: int, case: Case, repeat: int, interface: int) -> float:
    """Returns nanoseconds per packet. Raises report.Failure for another verdict than the case's."""
    # The kernel's own figure has whole nanoseconds. CPU time would leave out where the thread waits, but the accounting
    # of a virtual machine jumps now and then, and the shortest of many slices has no wait in it.
    frame = case.wire
    started = time.perf_counter_ns()
    verdict, _output, _duration = bpf.test_run(program, frame, repeat, interface)
    elapsed = (time.perf_counter_ns() - started) / repeat
    if verdict != case.verdict:
        raise report.Failure(f"{case.name}: the verdict is {verdict}, not {case.verdict}")
    return elapsed


class Wrapper:
    """One load of wrapper.c. All programs of a load run behind it, so that its own place in memory does not matter.

    It is attached to an interface. BPF_PROG_TEST_RUN of a program that is attached nowhere has the kernel patch its
    dispatcher of XDP programs twice, which takes a millisecond, and waits for RCU.
    """

    def __init__(self, code: bytes, interface: int) -> None:
        self._interface = interface
        self._targets = bpf.map_create("target", MAP_TYPE_PROG_ARRAY, 4, 1)
        self._scene = bpf.map_create("scene", bpf.MAP_TYPE_ARRAY, SCENE.size, 1)
        self._fd = bpf.program_load("wrapper", bpf.relocate(code, [self._targets, self._scene]))
        self._flow: dict[str, int] = {}
        link.attach(network.PEER, self._fd, "native", None)

    def close(self) -> None:
        link.detach(network.PEER, "native", self._fd)
        # The kernel empties a program array when user space holds it no longer, so it stays open until now.
        for descriptor in (self._fd, self._targets, self._scene):
            os.close(descriptor)

    def run(self, program: int, case: Case, repeat: int) -> float:
        """Returns nanoseconds per packet, the wrapper's included. Flows continue where the case's last run ended."""
        flow = self._flow.get(case.name, 0)
        self._flow[case.name] = (flow + repeat) & 0xFFFFFFFF
        packed = SCENE.pack(case.wire[:80], len(case.wire), case.flows - 1, flow, int(case.is_ipv6))
        bpf.map_update(self._scene, layout.index(0), packed)
        bpf.map_update(self._targets, layout.index(0), layout.index(program))
        return timed_run(self._fd, case, repeat, self._interface)

    @contextmanager
    def replaced_by(self, program: int) -> Iterator[None]:
        """Attach another program instead for a while, so that it can be run directly."""
        link.attach(network.PEER, program, "native", self._fd)
        try:
            yield
        finally:
            link.attach(network.PEER, self._fd, "native", program)
