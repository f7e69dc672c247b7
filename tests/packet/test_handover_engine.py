# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two balancers with equal documents: what one of them does with connections that began on the other, over a change."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set, observed, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet import reference
from tests.packet.frames import tcp
from tests.packet.network import BACK, BACK_MAC, FRONT, FRONT_MAC, mac, write_setting
from tests.support import balancer as support
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

VIP = "203.0.113.10"
FLOWS = range(2000)


def service(**keys) -> dict:
    return {"name": "web", "address": VIP, "protocol": "tcp", "port": 80, "flow_table": True, **keys}


def web(*hosts: int, **keys) -> list[dict]:
    return [{"service": "web", "address": f"10.0.0.{host}", **keys} for host in hosts]


class Host:
    """A balancer, as if on a host of its own."""

    def __init__(self, balancer: Balancer, interface: str, address: str) -> None:
        self.balancer, self.interface, self.address = balancer, interface, mac(address)
        self.index = socket.if_nametoindex(interface)

    def apply(self, backends: list[dict], **keys) -> bool:
        document = declared(settings(self.interface, mode="generic"), [service(**keys)], backends)
        return self.balancer.apply(document, check=False).changed

    def send(self, numbers: Iterable[int], flags: str) -> list[str]:
        """The backend of each flow."""
        descriptor = bpf.object_get(str(self.balancer.places.program(self.interface)))
        try:
            found = []
            for number in numbers:
                frame = tcp(f"198.51.100.{number % 250}", 1024 + number, VIP, 80, tcp_flags=flags)
                output = bpf.test_run(descriptor, self.address + frame[6:], 1, self.index)[1]
                found.append(socket.inet_ntoa(output[30:34]))
            return found
        finally:
            os.close(descriptor)

    def handed_over(self) -> int:
        with map_set.open_pinned(self.balancer.places.maps, SIZES) as live:
            return live.read_reasons()[layout.REASONS.index(("handover", "forward"))]

    def previous_tables(self) -> int:
        with map_set.open_pinned(self.balancer.places.maps, SIZES) as live:
            return len(live.table_ids("previous"))

    def boot(self) -> None:
        """Nothing in memory is left; the engine restores what is on disk."""
        attached = link.attached(self.interface)
        assert attached
        descriptor = bpf.program_fd(attached.program_id)
        link.detach(self.interface, attached.hook, descriptor)
        os.close(descriptor)
        shutil.rmtree(self.balancer.places.pins)
        assert self.balancer.restore().changed


@pytest.fixture
def hosts(net) -> Iterator[tuple[Host, Host]]:
    write_setting(f"ipv4/conf/{BACK}/forwarding", 1)
    with support.balancer("one") as one, support.balancer("two") as two:
        yield Host(one, FRONT, FRONT_MAC), Host(two, BACK, BACK_MAC)


@cache
def _model(addresses: tuple[str, ...]) -> reference.Balancer:
    backends = [{"service": "web", "address": address} for address in addresses]
    return reference.Balancer([service()], backends)


def by_table(backends: list[dict], numbers: Iterable[int]) -> list[str]:
    """What a lookup table of these backends gives to flows that nobody remembers."""
    model = _model(tuple(backend["address"] for backend in backends if backend.get("state") != "drained"))
    (found,) = model.services.values()
    flows = ((f"198.51.100.{number % 250}", 1024 + number) for number in numbers)
    return [
        model._hashed(found, ("web", 6, socket.inet_aton(client), port.to_bytes(2, "big"), bytes((0, 80)))).target
        for client, port in flows
    ]


def both(hosts: tuple[Host, Host], backends: list[dict], **keys) -> None:
    for host in hosts:
        host.apply(backends, **keys)


def test_connections_of_another_balancer_go_on_after_a_backend_is_added(hosts):
    one, two = hosts
    both(hosts, web(1, 2, 3))
    begun = one.send(FLOWS, "S")
    assert begun == by_table(web(1, 2, 3), FLOWS)
    both(hosts, web(1, 2, 3, 4))
    assert one.send(FLOWS, "A") == begun and one.handed_over() == 0
    moved = sum(a != b for a, b in zip(begun, by_table(web(1, 2, 3, 4), FLOWS)))
    assert two.send(FLOWS, "A") == begun
    assert two.handed_over() == moved > 400
    # They are remembered now, and new ones go by the new table.
    assert two.send(FLOWS, "A") == begun and two.handed_over() == moved
    others = range(5000, 5500)
    assert two.send(others, "S") == by_table(web(1, 2, 3, 4), others)


def test_connections_go_on_after_a_boot_and_until_the_time_is_up(hosts):
    one, two = hosts
    both(hosts, web(1, 2, 3), handover_seconds=4)
    before, after = (by_table(backends, FLOWS) for backends in (web(1, 2, 3), web(1, 2, 3, 4)))
    both(hosts, web(1, 2, 3, 4), handover_seconds=4)
    changed = time.time()
    two.boot()
    assert time.time() < changed + 3, "this machine is too slow for this test"
    assert two.send(FLOWS[:1000], "A") == before[:1000]
    # A tick is a bit more than a second.
    time.sleep(max(0.0, changed + 4 + 2 * layout.TICK - time.time()))
    assert two.send(FLOWS[1000:], "A") == after[1000:]
    assert one.send(FLOWS, "A") == after
    # The next run removes the table, which is no change.
    assert one.previous_tables() == 1
    assert not one.apply(web(1, 2, 3, 4), handover_seconds=4)
    assert one.previous_tables() == 0 and not state.load(one.balancer.state_file).previous


def test_drained_and_removed_backends(hosts):
    _one, two = hosts
    both(hosts, web(1, 2, 3))
    before = by_table(web(1, 2, 3), FLOWS)
    left = [*web(1), *web(2, state="drained")]
    both(hosts, left)
    now = by_table(left, FLOWS)
    assert two.send(FLOWS, "A") == [old if old != "10.0.0.3" else new for old, new in zip(before, now)]


def test_of_several_changes_the_first_one_counts(hosts):
    _one, two = hosts
    both(hosts, web(1, 2, 3))
    both(hosts, web(1, 2, 3, 4))
    both(hosts, web(1, 2, 3, 4, 5))
    assert two.send(FLOWS, "A") == by_table(web(1, 2, 3), FLOWS)
    two.boot()
    assert two.send(FLOWS, "A") == by_table(web(1, 2, 3), FLOWS)


def test_health_checks_leave_the_previous_table_alone(hosts):
    _one, two = hosts
    both(hosts, web(1, 2, 3))
    before = by_table(web(1, 2, 3), FLOWS)
    both(hosts, web(1, 2, 3, 4))
    seen = {key: key.address != "10.0.0.2" for key in state.load(two.balancer.state_file).config.backends}
    two.balancer.observe(observed.Observed(seen))
    now = by_table(web(1, 3, 4), FLOWS)
    assert two.send(FLOWS[:1000], "A") == [old if old != "10.0.0.2" else new for old, new in zip(before, now)][:1000]
    two.balancer.observe(observed.Observed(dict.fromkeys(seen, True)))
    assert two.send(FLOWS[1000:], "A") == before[1000:]


def test_health_checks_alone_make_no_previous_table(hosts):
    _one, two = hosts
    both(hosts, web(1, 2, 3))
    seen = {key: key.address != "10.0.0.2" for key in state.load(two.balancer.state_file).config.backends}
    two.balancer.observe(observed.Observed(seen))
    assert two.previous_tables() == 0


def test_what_is_missing_is_put_back_and_nothing_stays_of_a_service(hosts):
    one, _two = hosts
    one.apply(web(1, 2, 3))
    one.apply(web(1, 2, 3, 4))
    assert not one.apply(web(1, 2, 3, 4))
    with map_set.open_pinned(one.balancer.places.maps, SIZES) as live:
        live.swap_table("previous", None)
    assert one.apply(web(1, 2, 3, 4)) and one.previous_tables() == 1
    assert not one.apply(web(1, 2, 3, 4))
    one.apply(web(1, 2, 3, 4), handover_seconds=0)
    assert one.previous_tables() == 0
    one.apply(web(1, 2, 3, 4, 5))
    one.apply(web(1, 2, 3, 4))
    assert one.previous_tables() == 1
    one.balancer.apply_services([], True, False)
    assert one.previous_tables() == 0


def test_new_maps_have_the_previous_table(hosts):
    _one, two = hosts
    both(hosts, web(1, 2, 3))
    both(hosts, web(1, 2, 3, 4))
    raw = {**settings(BACK, mode="generic").as_dict(), "sizes": {**vars(SIZES), "max_endpoints": 8192}}
    two.balancer.apply(
        support.document.parse_document({**raw, "services": [service()], "backends": web(1, 2, 3, 4)}), False
    )
    assert two.send(FLOWS, "A") == by_table(web(1, 2, 3), FLOWS)
