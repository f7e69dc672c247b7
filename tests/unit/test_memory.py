# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's memory for maps: what a document needs, and what a host refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import host_check, map_set, map_specs, plan
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, Settings
from ansible_collections.lbops.xdp.plugins.module_utils.config import model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import memory
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

DATA_PLANE = Path(__file__).resolve().parents[2] / "docs" / "data-plane.md"
EMPTY = model.Config({}, {})
KIB, MIB = 1 << 10, 1 << 20


def service(name: str = "web", last: int = 10, **keys) -> dict:
    return {"name": name, "address": f"192.0.2.{last}", "protocol": "tcp", "port": 80, **keys}


def document(services: list[dict], backends: list[dict], **sizes: int) -> Document:
    config = model.Config(parse_services(services), parse_backends(backends))
    return Document(Settings(("eth0",), sizes=Sizes(**sizes)), config)


WEB = document([service()], [{"service": "web", "address": "198.51.100.1"}])


def planned(wanted: Document, before: Document | None = None) -> plan.Plan:
    if before is None:
        return plan.make(EMPTY, plan.Allocation(), wanted.config, wanted.sizes)
    allocation = plan.settled(planned(before).allocation)
    return plan.make(before.config, allocation, wanted.config, wanted.sizes)


def needs(wanted: Document, before: Document | None = None, **others) -> memory.Needs:
    facts = {"former": None, "new_maps": before is None, "new_flow_tables": False, "filters": False, **others}
    return host_check.needed_memory(planned(wanted, before), wanted, **facts)


@pytest.mark.parametrize(("slots", "kib"), [(251, 8), (1021, 8), (4093, 32), (16381, 68), (65537, 260), (131071, 516)])
def test_a_lookup_table_takes_what_the_documentation_says(slots, kib):
    made = parse_services([service(table_size=slots)])
    assert memory.lookup_tables(made.values()) == {"table_size": kib * KIB}


def test_options_take_what_the_documentation_says():
    """Of each option: bytes of one more, bytes of one more on each CPU."""
    section = DATA_PLANE.read_text().split("## Memory of the kernel")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) \| (\d+) \|", section, re.MULTILINE)
    many = 1 << 16
    for option, fixed, each in rows:
        sizes = [Sizes(**{option: many * factor}) for factor in (1, 2)]
        for cpus in (1, 4):
            before, after = (whole(size, cpus) for size in sizes)
            # Whole pages.
            assert (after - before) / many == pytest.approx(int(fixed) + int(each) * cpus, abs=1), option
    assert {option for option, *_bytes in rows} == {
        "max_services", "max_backends", "max_endpoints", "max_flows", "max_sessions", "max_filters"
    }  # fmt: skip


def whole(sizes: Sizes, cpus: int) -> int:
    """Everything but the lookup tables."""
    found = map_specs.memory_of(map_specs.map_specs(sizes), cpus)
    found += memory.flow_tables(sizes, cpus) + memory.filter_table(sizes) + memory.endpoint_tables(sizes, ipv6=True)
    return sum(found.values())


def test_the_first_document_needs_all_maps_and_its_tables():
    found = needs(WEB)
    assert found["table_size"] == 260 * KIB
    assert found["max_endpoints"] > Sizes().endpoint_table_bytes
    assert found["max_backends"] > 16384 * (112 + 64 * bpf.possible_cpus())
    assert found["max_flows"] == 0


def test_what_is_there_already_is_paid_for():
    assert sum(needs(WEB, WEB).values()) == 0


def test_another_weight_needs_a_second_lookup_table():
    backends = [{"service": "web", "address": f"198.51.100.{last}"} for last in (1, 2)]
    before = document([service(), service("other", 11)], backends)
    after = document([service(), service("other", 11)], [{**backends[0], "weight": 2}, backends[1]])
    assert needs(after, before) == {"table_size": 260 * KIB}


def test_new_maps_share_what_stays():
    """Of larger maps of backends only these are new."""
    larger = document([service()], [{"service": "web", "address": "198.51.100.1"}], max_backends=65536)
    found = needs(larger, former=Sizes(), new_maps=True)
    assert found["max_backends"] > 65536 * (112 + 64 * bpf.possible_cpus())
    assert found["max_sessions"] == 0
    names = [spec.name for spec in map_set.unshared(larger.sizes, Sizes())]
    assert "backend_counters" in names and "service_counters" not in names


def test_flow_tables_are_one_for_each_cpu():
    found = needs(WEB, new_flow_tables=True)
    assert found["max_flows"] == pytest.approx(bpf.possible_cpus() * 2 * 262144 * 8, rel=0.01)


def test_what_does_not_fit_names_the_option_that_takes_most(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:     8000000 kB\nMemFree:      1000 kB\nMemAvailable:  102400 kB\n")
    monkeypatch.setattr(host_check, "MEMINFO", meminfo)
    host_check.refuse_lack_of_memory(memory.Needs({"max_flows": 100 * MIB}))
    with pytest.raises(EngineError) as caught:
        host_check.refuse_lack_of_memory(memory.Needs({"max_flows": 99 * MIB, "max_backends": 1 * MIB, "": 1}))
    assert str(caught.value) == (
        f"new maps and tables need 101 MiB of the kernel's memory, and 100 MiB are available (MemAvailable of {meminfo}"
        "); lower max_flows, which takes 99 MiB of them, or give the host more memory"
    )
    with pytest.raises(EngineError, match="lower table_size of services, which takes 200 MiB"):
        host_check.refuse_lack_of_memory(memory.Needs({"max_flows": 1 * MIB, "table_size": 200 * MIB}))


def test_a_host_that_does_not_say_refuses_nothing(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    monkeypatch.setattr(host_check, "MEMINFO", tmp_path / "meminfo")
    host_check.refuse_lack_of_memory(memory.Needs({"max_flows": 1 << 60}))
