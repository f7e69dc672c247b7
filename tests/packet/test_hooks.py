# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs on real hooks: every switch with every request to the kernel failing, and programs that others attached."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import put_back
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.hooks import Hooks, Wanted
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.native import NativeHook
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from ansible_collections.lbops.xdp.plugins.module_utils.nic import tuned
from ansible_collections.lbops.xdp.plugins.module_utils.nic.preflight import Change, Problem

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


@pytest.fixture(scope="module", autouse=True)
def interface(one_cpu) -> Iterator[None]:
    with namespace.private("net"):
        ip(f"link add {FRONT} type veth peer name front-peer", f"link set {FRONT} up", "link set front-peer up")
        yield


class Programs:
    """Two generations of a program that passes everything, for XDP and for tc."""

    def __init__(self) -> None:
        passes = {bpf.PROG_TYPE_XDP: 2, bpf.PROG_TYPE_SCHED_CLS: -1}
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


def put(
    programs: dict[int, int], mode: str, interface: str = FRONT, native: NativeHook | None = None
) -> tuple[str, str]:
    wanted = Wanted("auto" if mode == "detached" else mode, mode != "detached", frozenset(), False)
    native = native or NativeHook(interface, [], False, Path("/nonexistent"))
    return Hooks(interface).put(
        lambda for_tc: programs[bpf.PROG_TYPE_SCHED_CLS if for_tc else bpf.PROG_TYPE_XDP], wanted, None, native
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


def faults(place: int, request: str) -> tuple[Fault, ...]:
    """All of them for requests that change something, one of them for those that look."""
    return FAULTS if request.startswith(("link", "tc")) else (FAULTS[place % len(FAULTS)],)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", START)
def test_a_switch_that_fails_anywhere_leaves_a_program_where_it_was(programs, monkeypatch, start, mode):
    requests = Requests(monkeypatch)
    before = begin(programs, start)
    requests.fail(0, FAULTS[0])
    put(programs.new, mode)
    names = list(requests.names)
    assert any(name.startswith(("link", "tc")) for name in names) or (start, mode) == ("", "detached")
    for place, name in enumerate(names, 1):
        for fault in faults(place, name):
            requests.fail(0, fault)
            if on_hooks(FRONT) != before:
                before = begin(programs, start)
            requests.fail(place, fault)
            what = f"{start or 'none'} -> {mode}, request {place}, {name} ({fault})"
            try:
                put(programs.new, mode)
            except (EngineError, KeyboardInterrupt) as error:
                assert on_hooks(FRONT) == before, f"{what}: {error}"
                assert has_clsact(FRONT) == (start == "tc"), f"{what}: {error}"
                assert "could not be put back" not in str(error), what
                assert FRONT in str(error) or isinstance(error, KeyboardInterrupt), what
            else:
                after = on_hooks(FRONT)
                assert set(after.values()) <= programs.ids and len(after) == (mode != "detached"), what
    requests.fail(0, FAULTS[0])
    clear()


SWITCHES = [("native", "generic"), ("generic", "native")]


@pytest.mark.parametrize("start, mode", SWITCHES)
def test_the_error_says_that_the_program_is_back(programs, monkeypatch, start, mode):
    before = begin(programs, start)
    attach = link.attach

    def refuse(interface: str, program: int, hook: str, replaces: int | None) -> None:
        if hook == mode:
            raise link.HookRefused("out of queues")
        attach(interface, program, hook, replaces)

    monkeypatch.setattr(link, "attach", refuse)
    with pytest.raises(
        EngineError, match=rf"^out of queues; program {before[start]} \(test, .*is back on the {start} hook"
    ):
        put(programs.new, mode)
    assert on_hooks(FRONT) == before


@pytest.mark.parametrize("start, mode", SWITCHES)
def test_a_driver_that_takes_the_old_program_no_more_leaves_an_error_that_says_so(programs, monkeypatch, start, mode):
    before = begin(programs, start)

    def refuse(*_arguments: object) -> None:
        raise link.HookRefused("out of queues")

    with monkeypatch.context() as patch:
        patch.setattr(link, "attach", refuse)
        patch.setattr(put_back, "PAUSE", 0)
        with pytest.raises(EngineError) as caught:
            put(programs.new, mode)
    assert not on_hooks(FRONT)
    for words in (
        f"out of queues; program {before[start]} (test",
        f"on the {start} hook could not be put back: out of queues",
        f"{FRONT} carries no program, so its packets are not balanced now: apply the balancer again",
    ):
        assert words in str(caught.value)


def test_a_driver_that_is_busy_for_a_moment_gets_the_old_program_back(programs, monkeypatch):
    before = begin(programs, "native")
    attach, tries = link.attach, []

    def busy(interface: str, program: int, hook: str, replaces: int | None) -> None:
        tries.append(hook)
        if len(tries) < 4:
            raise link.HookRefused("busy")
        attach(interface, program, hook, replaces)

    monkeypatch.setattr(link, "attach", busy)
    with pytest.raises(EngineError, match="is back on the native hook"):
        put(programs.new, "generic")
    assert tries == ["generic", "native", "native", "native"] and on_hooks(FRONT) == before


def test_what_others_attach_in_the_moment_of_a_switch_stays(programs, monkeypatch):
    begin(programs, "native")
    foreign, attach, done = load(bpf.PROG_TYPE_XDP, 2, "foreign"), link.attach, []

    def race(interface: str, program: int, hook: str, replaces: int | None) -> None:
        if not done:
            done.append(attach(interface, foreign, "generic", None))
        attach(interface, program, hook, replaces)

    monkeypatch.setattr(put_back, "PAUSE", 0)
    monkeypatch.setattr(link, "attach", race)
    with pytest.raises(EngineError) as caught:
        put(programs.new, "generic")
    assert on_hooks(FRONT) == {"generic": id_of(foreign)}
    what = f"program {id_of(foreign)} (foreign, tag {bpf.program_info(foreign).tag})"
    assert f"the hook was changed meanwhile, {what} is on the generic hook now" in str(caught.value)
    assert f"somebody else attached {what} to the generic hook meanwhile" in str(caught.value)
    clear()
    os.close(foreign)


def test_an_interface_that_goes_away_in_the_middle(programs, monkeypatch):
    ip("link add gone type veth peer name gone-peer", "link set gone up")
    detach = link.detach

    def vanish(interface: str, hook: str, program: int) -> None:
        detach(interface, hook, program)
        ip("link del gone")

    put(programs.old, "native", interface="gone")
    monkeypatch.setattr(link, "detach", vanish)
    with pytest.raises(EngineError, match="gone went away"):
        put(programs.new, "generic", interface="gone")


@pytest.mark.parametrize("threads", [0, 1])
def test_a_signal_waits_for_the_end_of_a_switch(programs, monkeypatch, threads):
    # A thread that does not block the signal takes it.
    ended = threading.Event()
    for _number in range(threads):
        threading.Thread(target=ended.wait).start()
    before, seen, attach = begin(programs, "native"), [], link.attach

    def signalled(*arguments) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        attach(*arguments)
        seen.append(on_hooks(FRONT))

    def end(_number, _frame) -> None:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        monkeypatch.setattr(link, "attach", signalled)
        with pytest.raises(SystemExit):
            put(programs.new, "generic")
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, previous)
    assert seen and on_hooks(FRONT) == before


def mtu_of(interface: str) -> int:
    return json.loads(subprocess.check_output(["ip", "-j", "link", "show", "dev", interface]))[0]["mtu"]


def test_what_was_prepared_is_put_back_with_the_program(programs, monkeypatch, tmp_path):
    """The program leaves tc for the driver's hook, for which the MTU is lowered first."""
    requests = Requests(monkeypatch)
    change = Change(FRONT, "mtu", {"mtu": 1500}, {"mtu": 1400})
    problem = Problem(FRONT, "veth", "its MTU is 1500", "lower it", change=change)

    def native() -> NativeHook:
        return NativeHook(FRONT, [problem], True, tmp_path / "preparing")

    before = begin(programs, "tc")
    monkeypatch.setattr(tuned, "locked", lambda _interface: nullcontext())
    requests.fail(0, FAULTS[0])
    put(programs.new, "native", native=native())
    assert mtu_of(FRONT) == 1400
    names = list(requests.names)
    assert names.count("link set") == 2
    for place, name in enumerate(names, 1):
        for fault in faults(place, name):
            requests.fail(0, fault)
            ip(f"link set {FRONT} mtu 1500")
            if on_hooks(FRONT) != before:
                before = begin(programs, "tc")
            requests.fail(place, fault)
            what = f"request {place}, {name} ({fault})"
            try:
                put(programs.new, "native", native=native())
            except (EngineError, KeyboardInterrupt) as error:
                assert (on_hooks(FRONT), mtu_of(FRONT)) == (before, 1500), f"{what}: {error}"
            else:
                assert set(on_hooks(FRONT)) == {"native"} and mtu_of(FRONT) == 1400, what
            assert not list(tmp_path.iterdir()), what
    requests.fail(0, FAULTS[0])
    ip(f"link set {FRONT} mtu 1500")
    clear()
