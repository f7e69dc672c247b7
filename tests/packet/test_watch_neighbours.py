# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Neighbours that move, vanish and come back, and scans of a network: what is forgotten, and how often."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set, watch
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, neighbours
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.frames import CLIENT, tcp
from tests.packet.network import ip, mac, write_setting
from tests.packet.watching import Service, make, until, watching
from tests.support import balancer as support
from tests.support import namespace
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

ARM = "arm0"
VIP, BACKEND, ON_LINK_CLIENT, OTHER = "203.0.113.10", "10.0.0.1", "10.0.9.9", "10.0.0.3"
SERVICE = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}
FIRST, SECOND = "02:00:00:00:00:01", "02:00:00:00:00:02"
# By whose next hop it takes: a request that goes to the backend, a reply that goes to the client.
FRAMES = {BACKEND: tcp(CLIENT, 20000, VIP, 80), ON_LINK_CLIENT: tcp(BACKEND, 80, ON_LINK_CLIENT, 20000)}
# Fewer at once than the kernel keeps for all namespaces together (gc_thresh2).
BATCH = 200


def neighbour(address: str, lladdr: str) -> str:
    return f"neighbour replace {address} lladdr {lladdr} dev {ARM} nud permanent"


@pytest.fixture
def balancer(root) -> Iterator[Balancer]:
    with namespace.private("net"):
        # Addresses of links are checked for a second, and come with routes.
        write_setting("ipv6/conf/default/addr_gen_mode", 1)
        write_setting("ipv6/conf/default/router_solicitations", 0)
        make(ARM)
        for family in ("ipv4", "ipv6"):
            write_setting(f"{family}/neigh/{ARM}/retrans_time_ms", 20)
            write_setting(f"{family}/neigh/{ARM}/mcast_solicit", 1)
        ip(
            f"address add 10.0.0.254/16 dev {ARM}",
            f"address add 2001:db8::fe/64 dev {ARM} nodad",
            *(neighbour(address, FIRST) for address in (BACKEND, ON_LINK_CLIENT, OTHER)),
        )
        with support.balancer() as made:
            made.apply(declared(settings(ARM), [SERVICE], [{"service": "web", "address": BACKEND}]), check=False)
            yield made


def destination(address: str) -> bytes | None:
    """The Ethernet address that the program sends the packet to; None if it does not know any."""
    attached = link.attached(ARM)
    assert attached
    descriptor = bpf.program_fd(attached.program_id)
    try:
        output = bpf.test_run(descriptor, FRAMES[address], 1, link.interface_index(ARM))[1]
    finally:
        os.close(descriptor)
    return output[:6] if output[:6] != FRAMES[address][:6] else None


def generation(balancer: Balancer) -> int:
    """How often the program was made to forget, and once more."""
    with map_set.open_pinned(balancer.places.maps, SIZES) as live_maps:
        control = bpf.map_lookup(live_maps["control"], layout.index(0), layout.CONTROL.size)
    found: int = layout.CONTROL.unpack(control)[1]
    return found


@pytest.fixture(params=FRAMES, ids=["backend", "client"])
def address(request) -> str:
    """Of a neighbour, the next hop to which is cached."""
    chosen: str = request.param
    return chosen


def test_a_neighbour_that_was_there_before_the_service_and_moves(balancer, address, tmp_path):
    with watching(balancer, tmp_path / "log"):
        assert destination(address) == mac(FIRST)
        ip(neighbour(address, SECOND))
        until(lambda: destination(address) == mac(SECOND))


def test_a_neighbour_that_is_deleted_and_comes_back_with_another_address(balancer, address, tmp_path):
    with watching(balancer, tmp_path / "log"):
        assert destination(address) == mac(FIRST)
        ip(f"neighbour delete {address} dev {ARM}")
        until(lambda: destination(address) is None)
        forgotten = generation(balancer)
        ip(neighbour(address, SECOND))
        assert destination(address) == mac(SECOND)
        # That was resolved for the first time since, so nothing was to be forgotten; now there is.
        ip(neighbour(address, FIRST))
        until(lambda: destination(address) == mac(FIRST))
        assert generation(balancer) == forgotten + 1


def test_a_neighbour_that_is_deleted_and_comes_back_with_another_address_at_once(balancer, address, tmp_path):
    with watching(balancer, tmp_path / "log"):
        for lladdr in (SECOND, FIRST, SECOND, FIRST):
            destination(address)
            ip(f"neighbour delete {address} dev {ARM}", neighbour(address, lladdr))
            until(lambda lladdr=lladdr: destination(address) == mac(lladdr))


def test_a_neighbour_that_moves_while_messages_are_lost(balancer, address, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "BUFFER", 4096)
    with watching(balancer, tmp_path / "log") as service:
        assert destination(address) == mac(FIRST)
        os.kill(service.process, signal.SIGSTOP)
        ip(*(neighbour(OTHER, lladdr) for lladdr in 100 * (SECOND, FIRST)), neighbour(address, SECOND))
        assert destination(address) == mac(FIRST)
        os.kill(service.process, signal.SIGCONT)
        until(lambda: destination(address) == mac(SECOND))
        assert service.events("messages_lost")


def states() -> list[int]:
    """Of the neighbours of all links."""
    return [neighbours.NDMSG.unpack_from(payload)[2] for payload in neighbours.dump()]


# --- verification


def test_a_permanent_neighbour_stays_permanent(balancer, tmp_path):
    """NTF_USE makes the kernel ask for one as if it had no address."""
    with watching(balancer, tmp_path / "log") as service:
        before = generation(balancer)
        ip(f"neighbour add 10.0.0.4 lladdr {FIRST} dev {ARM} nud permanent")
        time.sleep(1)
        assert states().count(neighbours.NUD_PERMANENT) == 4 and neighbours.NUD_FAILED not in states()
        assert generation(balancer) == before and not service.events("next_hops_changed")


# --- scans


def resident(service: Service) -> int:
    """Memory of the process in KiB."""
    lines = Path(f"/proc/{service.process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def scan(first: int, count: int) -> None:
    """Have the kernel look for neighbours that are not there, and delete them."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        for start in range(first, first + count, BATCH):
            for number in range(start, start + BATCH):
                sender.sendto(b"", (f"2001:db8::1:{number:x}", 9))
            until(lambda: states().count(neighbours.NUD_FAILED) == BATCH)
            ip(f"-6 neighbour flush dev {ARM}")


def come_and_go(first: int, count: int) -> None:
    """Have the kernel resolve neighbours and delete them."""
    for start in range(first, first + count, BATCH):
        found = [f"10.0.{number >> 8}.{number & 0xFF}" for number in range(start, start + BATCH)]
        ip(*(f"neighbour add {address} lladdr {FIRST} dev {ARM} nud reachable" for address in found))
        ip(*(f"neighbour delete {address} dev {ARM}" for address in found))


def settle(balancer: Balancer, address: str) -> int:
    """Have a neighbour that is in use move, and wait for it: all messages before have been heard. Its generation."""
    assert destination(address) == mac(FIRST)
    ip(neighbour(address, SECOND))
    until(lambda: destination(address) == mac(SECOND))
    return generation(balancer)


def test_a_scan_of_a_network_where_nobody_answers(balancer, tmp_path):
    with watching(balancer, tmp_path / "log") as service:
        scan(0, 1000)
        before, used = generation(balancer), resident(service)
        scan(1000, 4000)
        assert settle(balancer, BACKEND) == before + 1
        assert resident(service) - used < 256


def test_a_scan_of_a_network_where_all_answer(balancer, tmp_path):
    """The kernel deletes them, so that the program has to forget, but not time and again."""
    with watching(balancer, tmp_path / "log") as service:
        begun, before = time.monotonic(), generation(balancer)
        come_and_go(0x1000, 4000)
        time.sleep(watch.LOST_INTERVAL)
        used = resident(service)
        come_and_go(0x3000, 4000)
        flushes = settle(balancer, BACKEND) - 1 - before
        assert 1 <= flushes <= 1 + (time.monotonic() - begun) / watch.LOST_INTERVAL
        assert resident(service) - used < 256
