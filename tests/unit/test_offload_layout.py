# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tables/offload.py and offload_layout.h describe the same bytes: a C compiler says what the header means."""

from __future__ import annotations

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey, Config
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables import offload
from ansible_collections.lbops.xdp.plugins.module_utils.tables.lookup import HASH_SLOTS

from tests.support import c_layout
from tests.unit.test_layout import python_fields

STRUCTURES = {
    "offload_control": (offload.CONTROL, ["half", "mtu", "address"]),
    "offload_backend": (offload.OFFLOAD_BACKEND, offload.OFFLOAD_BACKEND_FIELDS),
    "offload_counters": (offload.OFFLOAD_COUNTERS, ["packets", "bytes"]),
}
CONSTANTS = ("OFFLOAD_SLOTS_SHIFT", "OFFLOAD_PROBES", "OFFLOAD_MULTIPLIER")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, int]:
    """What the compiler makes of every structure, field and constant."""
    expressions = {name: name for name in CONSTANTS}
    for name, (_packing, fields) in STRUCTURES.items():
        expressions[name] = f"sizeof(struct {name})"
        expressions |= {f"{name}.{field}": f"offsetof(struct {name}, {field})" for field in fields}
    return c_layout.values(tmp_path_factory.mktemp("offload"), expressions, "offload_layout.h", endpoint_slots=16)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(compiled, name):
    packing, fields = STRUCTURES[name]
    assert packing.size == compiled[name]
    assert [offset for offset, _size in python_fields(packing)] == [compiled[f"{name}.{field}"] for field in fields]


def test_constants(compiled):
    assert compiled["OFFLOAD_PROBES"] == offload.PROBES
    assert compiled["OFFLOAD_MULTIPLIER"] == offload.MULTIPLIER
    assert 1 << compiled["OFFLOAD_SLOTS_SHIFT"] == HASH_SLOTS


def config(services: int, backends: int, ports: int = 1) -> Config:
    declared = [
        {
            "name": f"s{number}",
            "address": f"203.0.{number // 200}.{number % 200 + 1}",
            "protocol": "udp",
            "port": f"1000-{999 + ports}" if ports > 1 else 1000,
            "forwarding": "dsr",
            "scheduler": "hash",
        }
        for number in range(services)
    ]
    hosts = [
        {"service": f"s{number}", "address": f"10.{number}.{host // 200}.{host % 200 + 1}", "mac": "52:54:00:00:00:01"}
        for number in range(services)
        for host in range(backends)
    ]
    return Config(parse_services(declared), parse_backends(hosts))


@pytest.mark.parametrize(
    "counts, wanted", [((1, 1), (256, 16, 128)), ((17, 8), (256, 32, 256)), ((1, 127), (256, 16, 128))]
)
def test_maps_are_as_small_as_a_configuration_allows(counts, wanted):
    shape = offload.Shape.of(config(*counts), whole=False)
    assert (shape.endpoints, shape.services, shape.backends) == wanted
    assert shape.counters >= 64 + shape.services + shape.backends


def test_a_half_holds_every_endpoint_and_backend():
    found = config(20, 3, ports=40)
    shape = offload.Shape.of(found, whole=True)
    places = offload.Places(
        {name: 64 + number for number, name in enumerate(found.services)},
        {key: 100 + number for number, key in enumerate(found.backends)},
    )
    out = {BackendKey("s3", "10.3.0.2", None)}
    packed = offload.pack_half(found, places, shape, out)
    assert {name: len(content) for name, content in packed.items()} == {
        "endpoints": 16 * shape.endpoints,
        "slots": 4 * 512 * shape.services,
        "backends": 32 * shape.backends,
    }
    keys = {packed["endpoints"][place : place + 8] for place in range(0, len(packed["endpoints"]), 16)}
    # 40 ports of each service, its VIP, and what is empty.
    assert len(keys) == 20 * 41 + 1
    slots = [int.from_bytes(packed["slots"][place : place + 4], "little") for place in range(0, 4 * 512 * 20, 4)]
    assert set(slots[3 * 512 : 4 * 512]) == {10, 12} and set(slots[:512]) == {1, 2, 3}


def test_endpoints_that_cluster_are_refused():
    found = config(1, 1, ports=200)
    shape = offload.Shape(64, 16, 128, 256, False)
    places = offload.Places({"s0": 64}, dict.fromkeys(found.backends, 65))
    with pytest.raises(EngineError, match="201 endpoints .* mode: native"):
        offload.pack_half(found, places, shape)
