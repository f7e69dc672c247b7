# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs on real hooks: every switch with every request to the kernel failing, and programs that others attached."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.hooks import Hooks, Known, Wanted
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.native import NativeHook
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf

from tests.packet.faults import Fault, Requests, has_clsact, on_hooks
from tests.packet.network import ip
from tests.support import namespace

FRONT = "front"
START = ("", "native", "generic", "tc")
MODES = ("native", "generic", "tc", "auto", "detached")
# One after the other, each for the next request: what drivers and kernel refuse with, and what only gets lost.
FAULTS = (
    Fault(errno.EBUSY),
    Fault(errno.ETIMEDOUT, happens=True),
    Fault(errno.EEXIST),
    Fault(None),
    Fault(errno.ENODEV),
    Fault(errno.EINTR),
    Fault(errno.EPERM),
    Fault(None, happens=True),
    Fault(errno.ENOMEM),
)
WAITING = {"bpf 10"}


@pytest.fixture(scope="module", autouse=True)
def interface(one_cpu) -> Iterator[None]:
    with namespace.private("net"):
        ip(f"link add {FRONT} type veth peer name front-peer", f"link set {FRONT} up", "link set front-peer up")
        yield


class Programs:
    """Two generations of a program that passes everything, for XDP and for tc."""

    def __init__(self) -> None:
        passes = {kind: verdict for kind, verdict in ((bpf.PROG_TYPE_XDP, 2), (bpf.PROG_TYPE_SCHED_CLS, -1))}
        self.old = {kind: load(kind, verdict) for kind, verdict in passes.items()}
        self.new = {kind: load(kind, verdict) for kind, verdict in passes.items()}
        self.ids = {id_of(descriptor) for descriptor in self.new.values()}

    def close(self) -> None:
        for descriptor in (*self.old.values(), *self.new.values()):
            os.close(descriptor)


def load(kind: int, verdict: int, name: str = "test") -> int:
    code = bpf.INSTRUCTION.pack(0xB7, 0, 0, verdict) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)
    return bpf.program_load(name, code, program_type=kind)


def id_of(descriptor: int) -> int:
    return bpf.program_info(descriptor).id


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    made = Programs()
    yield made
    made.close()


def put(programs: dict[int, int], mode: str, known: Known | None = None) -> tuple[str, str]:
    wanted = Wanted("auto" if mode == "detached" else mode, mode != "detached", frozenset(), False)
    native = NativeHook(FRONT, [], False, Path("/nonexistent"))
    return Hooks(FRONT).put(
        lambda for_tc: programs[bpf.PROG_TYPE_SCHED_CLS if for_tc else bpf.PROG_TYPE_XDP], wanted, known, native
    )


def clear() -> None:
    for attached in Hooks(FRONT).programs():
        Hooks(FRONT).detach(attached)
    assert not on_hooks(FRONT)


def begin(programs: Programs, start: str) -> dict[str, int]:
    """What is on the hooks at the beginning."""
    clear()
    if start:
        put(programs.old, start)
    return on_hooks(FRONT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", START)
def test_a_switch_that_fails_anywhere_leaves_a_program_where_it_was(programs, monkeypatch, start, mode):
    with monkeypatch.context() as patch:
        requests = Requests(patch)
        before = begin(programs, start)
        requests.fail(0, FAULTS[0])
        put(programs.new, mode)
        count = len(requests.names)
        assert set(on_hooks(FRONT).values()) <= programs.ids and count >= (2 if start or mode != "detached" else 0)
        for place in range(1, count + 1):
            fault = FAULTS[(place + len(start) + len(mode)) % len(FAULTS)]
            requests.fail(0, fault)
            if on_hooks(FRONT) != before:
                before = begin(programs, start)
            requests.fail(place, fault)
            what = f"{start or 'none'} -> {mode}, request {place}: "
            try:
                put(programs.new, mode)
            except (EngineError, KeyboardInterrupt) as error:
                what += f"{requests.names[place - 1]} ({fault}): {error}"
                assert on_hooks(FRONT) == before, what
                assert bool(start == "tc") == has_clsact(FRONT), what
                assert "put back: " not in str(error), what
            else:
                what += f"{requests.names[place - 1]} ({fault})"
                after = on_hooks(FRONT)
                assert set(after.values()) <= programs.ids and bool(after) == (mode != "detached"), what
        requests.fail(0, FAULTS[0])
        clear()
