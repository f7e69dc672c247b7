# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service that checks, with the engine, real maps and servers of this network namespace."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from ansible_collections.lbops.xdp.plugins import module_utils
from ansible_collections.lbops.xdp.plugins.module_utils.config import health

from tests.packet import test_engine
from tests.packet.network import BACK_ADDRESS, FRONT_ADDRESS
from tests.packet.test_engine import WEB, declare, live_maps

# The program finds the engine by the name it has on a host; modules of their own, apart from the collection's.
engine = types.ModuleType("engine")
engine.__path__ = list(module_utils.__path__)
sys.modules.setdefault("engine", engine)

from engine.balancer.balancer import Balancer  # noqa: E402
from engine.balancer.state import Paths, load  # noqa: E402

from roles.health.files import __main__ as program  # noqa: E402
from roles.health.files import config  # noqa: E402

balancer = test_engine.balancer
MAC = "02:00:00:00:00:07"
PORT = 8080
SERVICES = [{**WEB, "name": name, "port": 80 + number} for number, name in enumerate(("web", "other"))]
CHECK = {"check": "tcp", "port": PORT, "interval": 0.2, "timeout": 0.1, "rise": 2, "fall": 2}
# Interval times fall and what the ring may take, on a machine that does other things, too.
BOUND = 2.5


def backends(**keys) -> list[dict]:
    """Each at an address of this namespace, where its server is."""
    names = [service["name"] for service in SERVICES]
    return [
        {"service": name, "address": address, "mac": MAC, "weight": keys.get("weight", 1)}
        for name in names
        for address in (FRONT_ADDRESS, BACK_ADDRESS)
    ]


def server(address: str) -> socket.socket:
    return socket.create_server((address, PORT), backlog=1000)


class Running:
    """The service, what it said, and the rings it wrote."""

    def __init__(self, balancer, service, capsys: pytest.CaptureFixture[str]) -> None:
        self.balancer, self.service, self._capsys, self.lines = balancer, service, capsys, []

    def events(self, event: str) -> list[str]:
        self.lines += self._capsys.readouterr().out.splitlines()
        return [line for line in self.lines if f" event={event} " in f"{line} "]

    def rings(self) -> dict[int, int]:
        with live_maps(self.balancer) as live:
            return live.ring_ids()

    def out(self) -> set[tuple[str, str]]:
        return {key[:2] for key in load(self.balancer.state_file).tables.out}

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> float:
        """How long it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, self.lines
            await asyncio.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture
def running(balancer, monkeypatch, tmp_path, capsys):
    """Start it as systemd would."""
    declare(balancer, SERVICES, backends())
    checks = [health.parse_one(service["name"], CHECK).as_dict() for service in SERVICES]
    (tmp_path / f"health-{balancer.name}.json").write_text(json.dumps(checks))
    paths = Paths(balancer.paths.pins, balancer.paths.state)
    monkeypatch.setattr(program, "Balancer", lambda name: Balancer(name, paths))
    monkeypatch.setattr(program, "read_checks", lambda name: config.read_checks(name, tmp_path))

    @asynccontextmanager
    async def start() -> AsyncIterator[Running]:
        service = program.Service(balancer.name)
        task = asyncio.ensure_future(service.run())
        made = Running(balancer, service, capsys)
        try:
            await made.until(lambda: made.events("started"))
            yield made
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            # Also those checks that Python has swallow their cancellation.
            service._rounds.set({})

    return start


def test_a_server_stops_and_comes_back(running):
    async def run() -> None:
        with server(FRONT_ADDRESS):
            other = server(BACK_ADDRESS)
            async with running() as service:
                await service.until(lambda: set(service.service.seen().healthy.values()) == {True})
                other.close()
                gone = {("web", BACK_ADDRESS), ("other", BACK_ADDRESS)}
                assert await service.until(lambda: service.out() == gone) < BOUND
                with server(BACK_ADDRESS):
                    assert await service.until(lambda: not service.out()) < BOUND
                assert len(service.events("down")) == len(service.events("up")) == 2
                assert not service.events("all_down") and not service.events("not_applied")
                assert all(re.match(r"health balancer=main event=\w+( |$)", line) for line in service.lines)

    asyncio.run(run())


def test_what_it_writes_itself_is_not_read_again_and_what_modules_write_is(running, monkeypatch):
    reads = []
    read = config.Targets.read
    monkeypatch.setattr(config.Targets, "read", lambda self: reads.append(1) or read(self))

    async def run() -> None:
        with server(FRONT_ADDRESS):
            async with running() as service:
                await service.until(lambda: len(service.out()) == 2)
                await asyncio.sleep(1.2)
                assert len(reads) == 1
                tasks = dict(service.service._rounds._tasks)
                balancer = service.balancer
                # Elsewhere than on the loop, as a module does.
                await asyncio.to_thread(balancer.apply_backends, backends(weight=5), True, False)
                await service.until(lambda: len(reads) == 2)
                assert service.service._rounds._tasks == tasks and len(service.out()) == 2
                await asyncio.to_thread(balancer.apply_backends, backends()[:2], True, False)
                await service.until(lambda: len(service.service._statuses) == 2)
                assert service.out() == {("web", BACK_ADDRESS)}

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["removed", "garbage"])
def test_what_was_seen_is_written_again_whoever_lost_it(running, balancer, damage):
    async def run() -> None:
        gone = {("web", BACK_ADDRESS), ("other", BACK_ADDRESS)}
        with server(FRONT_ADDRESS):
            async with running() as service:
                await service.until(lambda: service.out() == gone)
                if damage == "removed":
                    balancer.health_file.unlink()
                else:
                    balancer.health_file.write_text("garbage")
                # A module may come before the service looks.
                await asyncio.to_thread(balancer.apply_backends, backends(weight=3), True, False)
                assert await service.until(lambda: service.out() == gone) < BOUND
                assert {key[:2] for key, well in balancer.observed().healthy.items() if not well} == gone

    asyncio.run(run())


def test_all_down_is_told_once_whatever_a_drained_one_does(running, balancer):
    drained = [
        {**backend, "state": "drained"} if backend["address"] == FRONT_ADDRESS else backend for backend in backends()
    ]
    balancer.apply_backends(drained, True, False)

    async def run() -> None:
        with server(FRONT_ADDRESS):
            async with running() as service:
                await service.until(lambda: len(service.events("down")) == 2)
                # The drained ones are well, but no packet goes there.
                await service.until(lambda: len(service.events("all_down")) == 2)
                assert service.out() == set()

    asyncio.run(run())
