# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks by the way that packets take, of servers on loopback, which hold the VIP."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins import module_utils
from ansible_collections.lbops.xdp.plugins.module_utils.config import health
from scapy.layers.inet import UDP

from tests.packet.network import ip, write_setting
from tests.support import namespace

# The program finds the engine by the name it has on a host; modules of their own, apart from the collection's.
engine = types.ModuleType("engine")
engine.__path__ = list(module_utils.__path__)
sys.modules.setdefault("engine", engine)

from engine.config.model import Backend, Service  # noqa: E402

from roles.health.files import end_to_end, frames, listeners, way  # noqa: E402
from roles.health.files.checks import problem_of  # noqa: E402
from roles.health.files.common import CannotCheck, Target  # noqa: E402

SOURCE = {4: "192.0.2.1", 6: "2001:db8::1"}
VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
NOBODYS = {4: "192.0.2.11", 6: "2001:db8::11"}
PORT = 8080


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network of this test's own, in which no socket of another's is."""
    with namespace.private("net"):
        held = [
            *(f"{found[4]} dev lo" for found in (SOURCE, VIP)),
            *(f"{found[6]} dev lo nodad" for found in (SOURCE, VIP)),
        ]
        ip("link set lo up", *(f"address add {address}" for address in held))
        write_setting("ipv4/conf/all/accept_local", 1)
        wait_for_routes(SOURCE[6], VIP[6])
        monkeypatch.setattr(way, "_frames_out", cache(way._frames_out.__wrapped__))
        monkeypatch.setattr(end_to_end, "LISTENERS", listeners.Listeners())
        yield


def wait_for_routes(*addresses: str) -> None:
    """The kernel makes those of IPv6 after it has taken the address."""
    routes = ""
    while not all(f"local {address} " in routes for address in addresses):
        time.sleep(0.01)
        command = ["ip", "-6", "route", "show", "table", "local"]
        routes = subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def servers(loopback: None) -> Iterator[None]:
    """One of TCP, and one of UDP that repeats what it is told, until it is told to end."""
    opened, threads = [], []
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        opened.append(socket.create_server((VIP[version], PORT), family=family, backlog=1000))
        repeating = socket.socket(family, socket.SOCK_DGRAM)
        repeating.bind((VIP[version], PORT))
        opened.append(repeating)
        threads.append(threading.Thread(target=repeat, args=(repeating,), daemon=True))
        threads[-1].start()
    yield
    for family, vip in ((socket.AF_INET, VIP[4]), (socket.AF_INET6, VIP[6])):
        with socket.socket(family, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", (vip, PORT))
    for each in (*threads, *opened):
        each.join() if isinstance(each, threading.Thread) else each.close()


def repeat(channel: socket.socket) -> None:
    datagram = b""
    while datagram != b"end":
        datagram, peer = channel.recvfrom(65535)
        channel.sendto(datagram, peer)


def target(version: int, check: str, vip: str = "", interfaces: tuple[str, ...] = ("lo",), **options: object) -> Target:
    protocol = "tcp" if check == "tcp" else "udp"
    given = {"check": check, "end_to_end": True, "timeout": 1, "source": SOURCE[version], **options}
    if check == "udp":
        given.setdefault("request", "?")
    service = Service("web", vip or VIP[version], protocol, PORT, PORT, "maglev", "dsr")
    backend = Backend("web", SOURCE[version], None, 1, "enabled", "00:00:00:00:00:00", None)
    return Target(health.parse_one("web", given), service, backend, interfaces)


def packet_sockets() -> list[str]:
    """What tells them apart: their inodes."""
    return sorted(line.split()[-1] for line in Path("/proc/thread-self/net/packet").read_text().splitlines()[1:])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("check", ["tcp", "udp", "icmp"])
def test_what_answers_and_what_does_not(servers, version, check):
    async def checks() -> None:
        assert await problem_of(target(version, check)) == ""
        assert await problem_of(target(version, check, NOBODYS[version], timeout=0.2)) == "timed out"
        if check != "icmp":
            closed = target(version, check, port=PORT + 1, timeout=0.2)
            assert await problem_of(closed) == {"tcp": "Connection refused", "udp": "timed out"}[check]

    asyncio.run(checks())


@pytest.mark.parametrize("version", [4, 6])
def test_a_probe_of_gue(version):
    """As scapy and draft-ietf-intarea-gue-09, section 3, have it."""
    inner = bytes(range(60))
    packet = frames.gue(7000, {4: 4, 6: 41}[version], inner)
    header = UDP(packet)
    assert (header.sport >= 49152, header.dport, header.len, header.chksum) == (True, 7000, len(packet), 0)
    assert packet[8:] == bytes((0, {4: 4, 6: 41}[version], 0, 0)) + inner


def test_a_probe_leaves_by_the_first_interface_whose_link_is_up(servers):
    async def checks() -> None:
        subprocess.run("ip link add down0 type veth peer name down1".split(), check=True)
        assert await problem_of(target(4, "udp", interfaces=("gone0", "down0", "lo"))) == ""
        with pytest.raises(CannotCheck, match="no link of the balancer is up: gone0, down0"):
            await problem_of(target(4, "udp", interfaces=("gone0", "down0")))

    asyncio.run(checks())


def test_answers_go_to_those_who_asked(servers):
    """Many at once, of all kinds, each with a question of its own."""

    async def checks() -> None:
        asked = [target(4, "udp", request=f"number {n}.", response=f"number {n}.") for n in range(100)]
        asked += [target(4, "icmp"), target(4, "tcp")] * 50
        assert await asyncio.gather(*map(problem_of, asked)) == [""] * 200
        others = await problem_of(target(4, "udp", request="mine", response="yours"))
        assert others == "the answer does not hold the response"

    asyncio.run(checks())


def test_no_socket_that_hears_frames_is_closed_between_checks(servers):
    async def checks() -> None:
        assert await problem_of(target(4, "udp")) == ""
        opened = packet_sockets()
        # One to send, one to hear.
        assert len(opened) == 2
        for check in ("tcp", "udp", "icmp"):
            assert await problem_of(target(4, check)) == ""
        assert await problem_of(target(4, "udp", port=PORT + 1, timeout=0.2)) == "timed out"
        assert packet_sockets() == opened

    asyncio.run(checks())


def test_one_that_nobody_needs_any_more_is_closed(servers, monkeypatch):
    monkeypatch.setattr(listeners, "IDLE", 1.5)

    async def until(count: int, used: list[Target]) -> list[str]:
        for _wait in range(100):
            if len(found := packet_sockets()) == count:
                return found
            assert [await problem_of(each) for each in used] == [""] * len(used)
            await asyncio.sleep(0.05)
        raise AssertionError(found)

    async def checks() -> None:
        assert await problem_of(target(6, "udp")) == ""
        kept = packet_sockets()
        assert await problem_of(target(4, "udp")) == "" and len(packet_sockets()) == 3
        assert await until(2, [target(6, "udp")]) == kept
        await until(1, [])
        assert await problem_of(target(6, "udp")) == "" and len(packet_sockets()) == 2

    asyncio.run(checks())


def test_nothing_but_answers_is_heard(servers):
    """Not even what came while it was opened."""
    from engine.config.addresses import Address

    stop = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            while not stop.is_set():
                channel.sendto(b"noise", (SOURCE[4], 9))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _number in range(20):
            with listeners.listening(Address(VIP[4]), Address(SOURCE[4])) as heard:
                with pytest.raises(BlockingIOError):
                    heard.recv(100)
    finally:
        stop.set()
        thread.join()
