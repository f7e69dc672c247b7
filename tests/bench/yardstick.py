# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads yardstick.c, the program in whose time dataplane.py states its aims."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.bench import report, scenes
from tests.bench.scenes import Case

LOOKUPS = 9
STEP = struct.Struct("<I60x")  # struct step of yardstick.c
STEPS = 256
BACKEND = "10.0.0.1"
CASE = Case("yardstick", scenes.frame4(scenes.udp()))


def compile_yardstick() -> bytes:
    from bcc import BPF

    numbers = {
        "OLD_SOURCE": _word(scenes.CLIENT),
        "OLD_DESTINATION": _word(scenes.VIP),
        "NEW_SOURCE": _word(scenes.BALANCER),
        "NEW_DESTINATION": _word(BACKEND),
        "OLD_PORT": socket.htons(scenes.SERVICE_PORT),
        "NEW_PORT": socket.htons(scenes.BACKEND_PORT),
    }
    flags = [f"-D{name}={number}U" for name, number in numbers.items()]
    program = BPF(text=Path(__file__).with_name("yardstick.c").read_bytes(), cflags=flags)
    try:
        return program.dump_func(b"yardstick")
    finally:
        program.cleanup()


def _word(address: str) -> int:
    """Returns an address as a little-endian load has it."""
    return int.from_bytes(socket.inet_aton(address), "little")


class Yardstick:
    """The program and its maps."""

    def __init__(self, code: bytes) -> None:
        self._steps = [bpf.map_create("steps", bpf.MAP_TYPE_ARRAY, STEP.size, STEPS) for _lookup in range(LOOKUPS)]
        self._counter = bpf.map_create("counter", bpf.MAP_TYPE_PERCPU_ARRAY, 8, 1)
        # The chain begins at the last octet of the VIP and ends with 0.
        index = socket.inet_aton(scenes.VIP)[3]
        for number, step in enumerate(self._steps):
            following = (index * 5 + 31) % STEPS if number < LOOKUPS - 1 else 0
            bpf.map_update(step, layout.index(index), STEP.pack(following))
            index = following
        self.fd = bpf.program_load("yardstick", bpf.relocate(code, [*self._steps, self._counter]))

    def close(self) -> None:
        for descriptor in (self.fd, *self._steps, self._counter):
            os.close(descriptor)


def check(program: int, interface: int) -> None:
    """Raises report.Failure unless the frame leaves as scapy writes it."""
    wanted = scenes.frame4(scenes.udp(scenes.BACKEND_PORT), BACKEND)
    wanted.src, wanted.dst = "02:00:00:00:00:02", "02:00:00:00:00:01"
    wanted.payload.src = scenes.BALANCER
    verdict, output, _nanoseconds = bpf.test_run(program, CASE.wire, 1, interface)
    if (verdict, output) != (CASE.verdict, Case("wanted", wanted).wire):
        raise report.Failure(f"yardstick: {verdict} {output.hex(' ')}")
