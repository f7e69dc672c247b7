# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services whose lookup tables have other sizes than the default."""

from __future__ import annotations

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout, tables

from tests.packet.frames import CLIENT, udp
from tests.support.program import Program

VIP, MAC = "203.0.113.10", "52:54:00:00:00:01"
SIZES = (251, 1021, 1031, 4093, 4099, 16381, 65537, 131071)
SERVICES = [
    {"name": f"size{size}", "address": VIP, "protocol": "udp", "port": 1000 + place, "table_size": size}
    for place, size in enumerate(SIZES)
] + [
    {"name": "turns", "address": VIP, "protocol": "udp", "port": 2000, "scheduler": "round_robin"},
    {"name": "known", "address": VIP, "protocol": "udp", "port": 2001, "flow_table": True, "table_size": 509},
    {"name": "modulo", "address": VIP, "protocol": "udp", "port": 2002, "scheduler": "hash"},
]
BACKENDS = [
    {"service": service["name"], "address": f"10.0.{place}.{host}", "port": 8080, "mac": MAC, "weight": host}
    for place, service in enumerate(SERVICES)
    for host in (1, 2, 3)
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service["name"])
def test_every_table_is_found_and_used_as_the_model_has_it(rig, service):
    for port in range(20000, 20100):
        rig.send(udp(CLIENT, port, VIP, service["port"]))
        assert rig.model.last_reason is None


def live(program: Program, name: str) -> dict[int, int]:
    """The rooms in which a service has a table, with how many slots are in use."""
    found = {}
    for room in layout.TABLE_ROOMS:
        try:
            number = bpf.map_lookup(program.maps[f"lookup_{room}"], layout.index(program.rings[name]), 4)
        except FileNotFoundError:
            continue
        descriptor = bpf.map_fd(int.from_bytes(number, "little"))
        found[room] = bpf.map_lookup(descriptor, layout.index(0), layout.table_bytes(room))[4:8]
    return {room: int.from_bytes(length, "little") for room, length in found.items()}


def test_a_table_of_another_size_takes_the_place_of_the_old_one():
    services = [{"name": "web", "address": VIP, "protocol": "udp", "port": 53}]
    backends = [{"service": "web", "address": f"10.0.0.{host}"} for host in (1, 2)]
    program = Program(services, backends)
    try:
        for size, room in ((251, 1021), (131071, 131071), (4093, 4093), (65537, 65537), (65521, 65537), (16381, 16381)):
            service = next(iter(parse_services([{**services[0], "table_size": size}]).values()))
            packed = tables.pack_ring(service, program.config.backends.values(), program.backend_ids)
            ids: dict[int, int] = {}
            program.maps.write_rings({program.rings["web"]: packed}, ids)
            assert live(program, "web") == {room: size}
            assert program.maps.ring_ids() == ids
        program.maps.write_rings({program.rings["web"]: None}, ids)
        assert live(program, "web") == {} == program.maps.ring_ids() == ids
    finally:
        program.close()
