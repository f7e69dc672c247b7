# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine with backends that health checks took out, on an interface of a private network."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import observed, state, writing
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.places import remove_tree
from ansible_collections.lbops.xdp.plugins.module_utils.config import model
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import neighbours
from ansible_collections.lbops.xdp.plugins.module_utils.tables import tables

from tests.packet import test_engine as engine
from tests.packet.frames import CLIENT, tcp
from tests.packet.reference import DROP, TX
from tests.packet.test_engine import VIP, WEB, declare, live_maps, run, web
from tests.support.balancer import settings

balancer = engine.balancer
STICKY = {**WEB, "flow_table": True}
NAT = {**WEB, "forwarding": "full_nat", "source": "10.0.0.250"}


def seen(*down: int, up: tuple[int, ...] = (), drop: bool = False) -> observed.Observed:
    healthy = {model.BackendKey("web", f"10.0.0.{host}", None): host in up for host in (*down, *up)}
    return observed.Observed(healthy, frozenset(["web"] if drop else []))


def backend_of(balancer, net, port: int, flags: str = "S") -> str:
    """Where a packet of this client's port goes; nothing if it is dropped."""
    verdict, frame = run(balancer, net, tcp(CLIENT, port, VIP, 80, tcp_flags=flags))
    assert verdict in (TX, DROP)
    return socket.inet_ntoa(frame[30:34]) if verdict == TX else ""


def backends_of(balancer, net, flags: str = "S", flows: int = 1000) -> list[str]:
    return [backend_of(balancer, net, port, flags) for port in range(20000, 20000 + flows)]


def unchanged(balancer, services: list[dict], backends: list[dict]) -> None:
    """No module sees a change, in check mode or without."""
    for check in (True, False):
        for outcome in (
            balancer.apply_services(services, True, check),
            balancer.apply_backends(backends, True, check),
        ):
            assert not outcome.changed and not outcome.details["repaired"] and outcome.before == outcome.after


def test_a_backend_that_is_down_gets_nothing_and_flows_of_others_stay(balancer, net):
    declare(balancer, [WEB], web(1, 2, 3))
    before = backends_of(balancer, net)
    balancer.observe(seen(2))
    after = backends_of(balancer, net)
    assert set(after) == {"10.0.0.1", "10.0.0.3"}
    others = [(old, new) for old, new in zip(before, after) if old != "10.0.0.2"]
    # Maglev moves some; of 3 backends each has 21,845 slots.
    assert sum(old != new for old, new in others) / len(others) < 0.02
    balancer.observe(seen(up=(2,)))
    assert backends_of(balancer, net) == before


def test_what_is_desired_is_neither_revived_nor_changed(balancer, net):
    declare(balancer, [WEB], web(1, 2, 3))
    balancer.observe(seen(2))
    unchanged(balancer, [WEB], web(1, 2, 3))
    assert "10.0.0.2" not in backends_of(balancer, net)
    # A real change of something else.
    assert balancer.apply_backends([*web(1, 2, 3), *web(4)], True, False).changed
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.3", "10.0.0.4"}
    assert balancer.apply_backends([*web(1, 3, 4), *web(2, mac="02:00:00:00:00:07")], True, False).changed
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.3", "10.0.0.4"}
    balancer.observe(seen(up=(1, 2, 3, 4)))
    assert "10.0.0.2" in backends_of(balancer, net)
    healthy = {entry["address"]: entry["healthy"] for entry in balancer.info()["backends"]}
    assert healthy == {f"10.0.0.{host}": True for host in (1, 2, 3, 4)}


def test_health_checks_need_not_wait_for_a_new_backend_that_does_not_answer(balancer, net, monkeypatch):
    declare(balancer, [WEB], web(1, 2))
    resolve, waiting, seen_down = neighbours.resolve, threading.Event(), threading.Event()

    def waited_for(ways: neighbours.Ways, timeout: float) -> dict[str, str]:
        if timeout:
            waiting.set()
            assert seen_down.wait(60)
        return resolve(ways, 0)

    monkeypatch.setattr(neighbours, "resolve", waited_for)
    with ThreadPoolExecutor() as threads:
        adding = threads.submit(balancer.apply_backends, web(1, 2, 230), True, False)
        assert waiting.wait(60)
        threads.submit(Balancer(balancer.name, balancer.paths).observe, seen(2)).result(60)
        seen_down.set()
    [warning] = adding.result().warnings
    assert warning == "backend 10.0.0.230: neighbour 10.0.0.230 does not answer ARP or neighbour discovery"
    assert balancer.apply_backends(web(1, 2), True, False).changed
    assert set(backends_of(balancer, net)) == {"10.0.0.1"}


def test_in_check_mode_no_neighbour_is_asked(balancer, net, monkeypatch):
    def resolve(*_arguments: object) -> None:
        raise AssertionError("asked")

    declare(balancer, [WEB], web(1))
    monkeypatch.setattr(neighbours, "resolve", resolve)
    # One does not answer, to the other there is no way.
    assert balancer.apply_backends([*web(1, 230), {"service": "web", "address": "172.16.3.1"}], True, True).changed


@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
@pytest.mark.parametrize("service", [WEB, STICKY], ids=["hash", "flow table"])
def test_all_down(balancer, net, service, drop):
    declare(balancer, [service], web(1, 2))
    before = backends_of(balancer, net)
    balancer.observe(seen(1, 2, drop=drop))
    assert backends_of(balancer, net) == ([""] * 1000 if drop else before)
    unchanged(balancer, [service], web(1, 2))
    balancer.observe(seen(1, up=(2,), drop=drop))
    assert set(backends_of(balancer, net)) == {"10.0.0.2"}
    balancer.observe(seen(up=(1, 2), drop=drop))
    if service is STICKY:
        # Flows that did not end stay where they went.
        assert set(backends_of(balancer, net)) == {"10.0.0.2"}
        backends_of(balancer, net, "R")
    assert backends_of(balancer, net) == before


def test_the_last_backend_that_was_up_is_removed(balancer, net):
    declare(balancer, [WEB], web(1, 2))
    balancer.observe(seen(1, up=(2,)))
    assert set(backends_of(balancer, net)) == {"10.0.0.2"}
    assert balancer.apply_backends(web(1), True, False).changed
    # Nobody else is left, and the service is to keep its backends then.
    assert set(backends_of(balancer, net)) == {"10.0.0.1"}
    unchanged(balancer, [WEB], web(1))


def test_flows_of_a_backend_that_was_removed_do_not_go_to_one_that_came(balancer, net):
    """It is drained from the beginning, so nothing at all may go there."""
    declare(balancer, [STICKY], web(1, 2))
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.2"}
    balancer.apply_backends([*web(1), *web(3, state="drained")], True, False)
    assert set(backends_of(balancer, net, "A")) == {"10.0.0.1"}


def test_remembered_flows_leave_a_backend_that_is_down_and_others_stay(balancer, net):
    """Unlike those of a drained one."""
    declare(balancer, [STICKY], web(1, 2, 3))
    before = backends_of(balancer, net)
    balancer.apply_backends([*web(1, 3), *web(2, state="drained")], True, False)
    assert backends_of(balancer, net, "A") == before
    balancer.apply_backends(web(1, 2, 3), True, False)
    balancer.observe(seen(2))
    after = backends_of(balancer, net, "A")
    assert "10.0.0.2" not in after
    assert [new for old, new in zip(before, after) if old != "10.0.0.2"] == [old for old in before if old != "10.0.0.2"]
    # And stay where they went when it comes back.
    balancer.observe(seen(up=(2,)))
    assert backends_of(balancer, net, "A") == after
    backends_of(balancer, net, "R")
    assert "10.0.0.2" in backends_of(balancer, net, "S")
    unchanged(balancer, [STICKY], web(1, 2, 3))


def test_sessions_of_a_backend_that_is_down_begin_anew(balancer, net):
    declare(balancer, [NAT], web(1, 2))
    before = backends_of(balancer, net, flows=100)
    balancer.observe(seen(2, up=(1,)))
    assert set(backends_of(balancer, net, "A", flows=100)) == {"10.0.0.1"}
    balancer.observe(seen(up=(1, 2)))
    assert set(before) == set(backends_of(balancer, net, "S", flows=100)) | {"10.0.0.2"}


def test_a_restore_after_a_reboot_knows_who_was_down(balancer, net):
    declare(balancer, [WEB], web(1, 2, 3))
    balancer.observe(seen(2))
    remove_tree(balancer.places.pins)
    engine.ip(f"link set {engine.FRONT} xdp off")
    balancer.restore()
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.3"}
    unchanged(balancer, [WEB], web(1, 2, 3))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_rings_are_written(balancer, net, moment):
    """The next module neither tells of a change nor leaves the ring half-way."""
    declare(balancer, [WEB], web(1, 2, 3))
    child = os.fork()
    if not child:
        write = writing.write_in_turns

        def dying(*arguments):
            if moment == "after":
                write(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        writing.write_in_turns = dying
        balancer.observe(seen(2))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    unchanged(balancer, [WEB], web(1, 2, 3))
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.3"}
    assert not state.load(balancer.state_file).tables.following


def test_drift_is_still_told_of(balancer, net):
    declare(balancer, [WEB], web(1, 2, 3))
    with live_maps(balancer) as live:
        place = state.load(balancer.state_file).allocation.rings["web"]
        live.write_rings({place: None}, {})
    balancer.observe(seen(up=(1,)))
    assert balancer.apply_backends(web(1, 2, 3), True, False).details["repaired"]


def test_a_run_that_was_killed_is_finished_before_a_backend_is_taken_out(balancer, net):
    declare(balancer, [WEB], web(1, 2))
    engine.killed_before_writing(balancer, web(1, 2, 3))
    balancer.observe(seen(2))
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.3"}
    unchanged(balancer, [WEB], web(1, 2, 3))


def test_nothing_is_checked_any_more(balancer, net):
    declare(balancer, [WEB], web(1, 2))
    balancer.observe(seen(2))
    balancer.forget_health()
    assert set(backends_of(balancer, net)) == {"10.0.0.1", "10.0.0.2"}
    assert not balancer.health_file.exists()
    assert [entry["healthy"] for entry in balancer.info()["backends"]] == [None, None]
    unchanged(balancer, [WEB], web(1, 2))


# --- one server in many services

MANY = [{**WEB, "name": f"web{n}", "port": 80 + n} for n in range(20)]


def in_many(*hosts: int) -> list[dict]:
    return [{"service": service["name"], "address": f"10.0.0.{host}"} for service in MANY for host in hosts]


def seen_in_many(*down: int, services: list[dict] = MANY) -> observed.Observed:
    keys = [model.BackendKey(service["name"], f"10.0.0.{host}", None) for service in services for host in down]
    return observed.Observed(dict.fromkeys(keys, False))


def hosts_in(balancer, net, number: int, flags: str = "S") -> set[str]:
    """Those of one of the services."""
    frames = [tcp(CLIENT, port, VIP, 80 + number, tcp_flags=flags) for port in range(20000, 20060)]
    return {socket.inet_ntoa(run(balancer, net, frame)[1][30:34]) for frame in frames}


def settled(balancer, net, hosts: set[str]) -> None:
    for number in range(len(MANY)):
        assert hosts_in(balancer, net, number) == hosts
    unchanged(balancer, MANY, in_many(1, 2, 3))
    assert not state.load(balancer.state_file).tables.following


@pytest.fixture
def computing(monkeypatch):
    """What is called with the service's name before its ring is computed."""
    hooks, pack = [], tables.pack_ring

    def packing(service, *arguments):
        for hook in hooks:
            hook(service.name)
        return pack(service, *arguments)

    monkeypatch.setattr(tables, "pack_ring", packing)
    return hooks


def test_the_first_ring_is_written_before_the_last_is_computed(balancer, net, computing):
    declare(balancer, MANY, in_many(1, 2, 3))
    places = state.load(balancer.state_file).allocation.rings
    with live_maps(balancer) as live:
        before, written = live.ring_ids(), []

        def look(_name: str) -> None:
            now = live.ring_ids()
            written.append(sum(now[place] != before[place] for place in places.values()))

        computing.append(look)
        balancer.observe(seen_in_many(2))
    assert written == list(range(20))
    computing.clear()
    settled(balancer, net, {"10.0.0.1", "10.0.0.3"})
    balancer.observe(observed.Observed())
    settled(balancer, net, {"10.0.0.1", "10.0.0.2", "10.0.0.3"})


def test_news_do_not_wait_for_all_rings(balancer, net, computing):
    """While a server leaves all services but the last, another one fails in that."""
    declare(balancer, MANY, in_many(1, 2, 3))
    order: list[str] = []
    computing.append(order.append)
    first = seen_in_many(2, services=MANY[:-1])
    both = observed.Observed(first.healthy | seen_in_many(3, services=MANY[-1:]).healthy)
    balancer.observe(first, lambda: both if len(order) == 3 else None)
    assert order.index("web19") <= 4 and len(order) == 20
    assert balancer.observed() == both
    computing.clear()
    assert hosts_in(balancer, net, 19) == {"10.0.0.1", "10.0.0.2"}
    assert hosts_in(balancer, net, 18) == {"10.0.0.1", "10.0.0.3"}
    unchanged(balancer, MANY, in_many(1, 2, 3))


def test_one_that_comes_back_while_it_leaves(balancer, net):
    declare(balancer, MANY, in_many(1, 2, 3))
    asked = []

    def news() -> observed.Observed | None:
        asked.append(1)
        return observed.Observed() if len(asked) == 5 else None

    balancer.observe(seen_in_many(2), news)
    assert 5 < len(asked) < 15
    settled(balancer, net, {"10.0.0.1", "10.0.0.2", "10.0.0.3"})


def test_one_that_leaves_while_it_comes_back(balancer, net):
    """Its remembered flows are chosen anew, also where the ring had not been written yet."""
    declare(balancer, [{**service, "flow_table": True} for service in MANY], in_many(1, 2, 3))
    assert all("10.0.0.2" in hosts_in(balancer, net, number) for number in range(len(MANY)))
    down = seen_in_many(2)
    balancer.observe(down)
    asked = []

    def news() -> observed.Observed | None:
        asked.append(1)
        return down if len(asked) == 5 else None

    balancer.observe(observed.Observed(), news)
    assert 5 < len(asked) < 15
    for number in range(len(MANY)):
        assert hosts_in(balancer, net, number, "A") == {"10.0.0.1", "10.0.0.3"}


@pytest.mark.parametrize("flags", ["S", "A"], ids=["new", "remembered"])
def test_killed_between_two_services(balancer, net, computing, flags):
    sticky = [{**service, "flow_table": True} for service in MANY]
    declare(balancer, sticky, in_many(1, 2, 3))
    before = [hosts_in(balancer, net, number) for number in range(20)]
    assert before[0] == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    child = os.fork()
    if not child:
        computed = []
        computing.append(
            lambda name: computed.append(name) or len(computed) == 8 and os.kill(os.getpid(), signal.SIGKILL)
        )
        balancer.observe(seen_in_many(2))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    unchanged(balancer, sticky, in_many(1, 2, 3))
    for number in range(20):
        assert hosts_in(balancer, net, number, flags) == {"10.0.0.1", "10.0.0.3"}


# --- a full disk


@pytest.fixture
def small_disk(net) -> Iterator[Balancer]:
    """With its state on a disk of its own."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "lbops-test", directory], check=True)
        try:
            made = Balancer("main", state.Paths(Path("/sys/fs/bpf") / f"lbops-test-{os.getpid()}", Path(directory)))
            engine.attach(made)
            yield made
            made.remove(check=False)
        finally:
            subprocess.run(["umount", directory], check=True)


@contextmanager
def full(balancer) -> Iterator[None]:
    filler = balancer.state_file.with_name("filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


def test_a_full_disk_keeps_no_dead_backend_in_its_ring(small_disk, net):
    declare(small_disk, [WEB], web(1, 2, 3))
    files = small_disk.state_file, small_disk.health_file
    small_disk.observe(seen(up=(1, 2, 3)))
    before = [file.read_bytes() for file in files]
    with full(small_disk):
        assert small_disk.observe(seen(2)).refusal == f"{small_disk.health_file}: No space left on device"
        assert set(backends_of(small_disk, net)) == {"10.0.0.1", "10.0.0.3"}
        followed = small_disk.observe(seen(2, 3))
        assert followed.refusal and followed.out == set(seen(2, 3).healthy)
        assert set(backends_of(small_disk, net)) == {"10.0.0.1"}
        with live_maps(small_disk) as live:
            rings = live.ring_ids()
            # Nothing is new but that it is tried again to save it.
            assert small_disk.observe(seen(2, 3)).refusal and live.ring_ids() == rings
        assert [file.read_bytes() for file in files] == before
    assert not small_disk.observe(seen(2, 3)).refusal
    assert small_disk.observed() == seen(2, 3)
    unchanged(small_disk, [WEB], web(1, 2, 3))
    assert set(backends_of(small_disk, net)) == {"10.0.0.1"}


def test_killed_on_a_full_disk(small_disk, net):
    """What is on disk tells nothing of the ring: the next start writes it anew, a module tells of a repair."""
    declare(small_disk, [WEB], web(1, 2, 3))
    with full(small_disk):
        small_disk.observe(seen(2))
    again = Balancer("main", small_disk.paths)
    assert not again.observe(seen(2, up=(1, 3))).refusal
    assert set(backends_of(again, net)) == {"10.0.0.1", "10.0.0.3"}
    assert again.apply_services([WEB], True, False).details["repaired"]
    unchanged(again, [WEB], web(1, 2, 3))
    assert set(backends_of(again, net)) == {"10.0.0.1", "10.0.0.3"}


def test_a_module_that_comes_between_is_right(small_disk, net):
    declare(small_disk, [WEB], web(1, 2, 3))
    with full(small_disk):
        small_disk.observe(seen(2))
    other = Balancer("main", small_disk.paths)
    assert other.apply_backends(web(1, 2, 3, 4), True, False).changed
    assert not small_disk.observe(seen(2)).refusal
    assert set(backends_of(small_disk, net)) == {"10.0.0.1", "10.0.0.3", "10.0.0.4"}
    unchanged(small_disk, [WEB], web(1, 2, 3, 4))


def test_whose_configuration_it_is(balancer):
    declare(balancer, [WEB], web(1, 2))
    before = balancer.configured()
    balancer.observe(seen(2))
    assert balancer.configured() == before
    balancer.observe(seen(up=(1, 2)))
    assert balancer.configured() == before
    declare(balancer, [WEB], web(1, 2, 3))
    after = balancer.configured()
    assert after != before
    balancer.observe(seen(2))
    assert balancer.configured() == after


def test_a_thousand_backends(balancer, net):
    """One leaves within the half second that it has."""
    hosts = [
        {"service": "web", "address": f"10.1.{n // 250}.{n % 250 + 1}", "mac": "02:00:00:00:00:07"} for n in range(1000)
    ]
    balancer.apply_program(settings(engine.FRONT, sizes=replace(engine.SIZES, max_backends=2048)), check=False)
    declare(balancer, [WEB], hosts)
    keys = list(state.load(balancer.state_file).config.backends)
    started = time.monotonic()
    balancer.observe(observed.Observed({**dict.fromkeys(keys, True), keys[0]: False}))
    elapsed = time.monotonic() - started
    print(f"1000 backends: {elapsed:.3f} s")
    assert elapsed < 0.4
