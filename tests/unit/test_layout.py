# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""layout.py and the C headers describe the same bytes: a C compiler says what the headers mean."""

from __future__ import annotations

import re
import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_specs
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import SIZE_LIMITS
from ansible_collections.lbops.xdp.plugins.module_utils.config import vocabulary
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.support import c_layout

SIZES = layout.Sizes(max_services=64, max_backends=1024, max_endpoints=4096)

ENDPOINT_TABLE_FIELDS = ["shift", "unused", "service_ports", "backend_ports", "unused2", "address_bloom"]

# Each C structure with the format that packs it and its fields, but for those that are padding to Python. Several
# Python fields may make up one C field.
STRUCTURES = {
    "endpoint": (layout.ENDPOINT, ["key key key key", "id", "unused"]),
    "endpoint_table": (layout.ENDPOINT_TABLE_HEADER, ENDPOINT_TABLE_FIELDS),
    "endpoint6": (layout.ENDPOINT6, ["address", "key key key", "id"]),
    "endpoint6_table": (layout.ENDPOINT_TABLE_HEADER, ENDPOINT_TABLE_FIELDS),
    "lookup_table": (layout.LOOKUP_TABLE, ["scheduler", "length", "flags", "idle_timeout"]),
    "previous_header": (layout.PREVIOUS_HEADER, ["seed", "until", "length", "affinity_prefix"]),
    "backend": (layout.BACKEND, layout.BACKEND_FIELDS),
    "counters": (layout.COUNTERS, ["packets", "bytes", "reply_packets", "reply_bytes", "new_flows"]),
    "flow_bucket": (layout.FLOW_BUCKET, ["flows"]),
    "session": (
        layout.SESSION,
        ["client", "client_port", "vip_port", "backend", "service", "seen", "timeout", "protocol", "state"]
        + ["address_delta", "l4_delta", "unused2", "identity", "idle_timeout", "started"],
    ),
    "source_range": (layout.SOURCE_RANGE, ["length", "service", "address"]),
    "pool": (layout.POOL, ["first_session", "first_port", "ports"]),
    "budget": (layout.BUDGET, ["tick", "errors", "searches", "flows"]),
    "latency": (layout.LATENCY, ["nanoseconds", "packets"]),
    "next_hop": (layout.NEXT_HOP, ["generation", "interface", "mtu", "on_link", "destination", "source"]),
    "backend_counters": (layout.BACKEND_COUNTERS, [" ".join(["counters"] * 5)]),
    "client_next_hop": (layout.CLIENT_NEXT_HOP, ["address", "next_hop"]),
    "interface": (layout.INTERFACE, ["index", "mtu", "address", "master"]),
    "control": (layout.CONTROL, ["layout_version", "next_hop_generation", "seed", "interfaces", "virtual_macs"]),
    "filter_rule": (layout.FILTER_RULE, ["id", "action", "interval", "burst"]),
    "filter_header": (
        layout.FILTER_HEADER,
        ["first4", "first6", "shift4", "shift6", "first_verdict", "any4", "any6", "count4", "count6"]
        + ["lengths4", "unused", "lengths6"],
    ),
    "filter_slot4": (layout.FILTER_SLOT4, ["key", "verdict", "unused"]),
    "filter_slot6": (layout.FILTER_SLOT6, ["address address", "length", "verdict", "unused"]),
    "filter_counters": (layout.FILTER_COUNTERS, ["packets", "dropped"]),
}
# Tables are packed slot by slot behind their headers.
TABLES = {"endpoint_table": SIZES.endpoint_table_bytes, "endpoint6_table": SIZES.endpoint6_table_bytes}


def without_comments(header: str) -> str:
    return re.sub(r"/\*.*?\*/", "", (c_layout.BPF / header).read_text(encoding="utf-8"), flags=re.DOTALL)


LAYOUT, REASONS, MAPS = without_comments("layout.h"), without_comments("reasons.h"), without_comments("maps.h")


def declared_structures() -> dict[str, list[str]]:
    """The fields of every structure of layout.h, in their order, but for the line of filters, which is a union."""
    found = {
        name: re.findall(r"(\w+)\s*(?:\[[^]]*\])*\s*[;,]", body)
        for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", LAYOUT, re.MULTILINE | re.DOTALL)
    }
    del found["filter_line"]
    return found


def declared_enumerators(source: str) -> list[str]:
    bodies = re.findall(r"enum \w+ \{(.*?)\}", source, re.DOTALL)
    return [name for body in bodies for name in re.findall(r"^\s*([A-Z]\w*)", body, re.MULTILINE)]


def declared_constants() -> list[str]:
    return re.findall(r"^#define (\w+) +\S", LAYOUT, re.MULTILINE)


def python_fields(packing: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of every field of a format."""
    fields, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", packing.format.removeprefix("<")):
        size = struct.calcsize(f"<{count}{code}")
        # A count before "s" is the length of one field; before anything else it is an array, one field as well.
        if code != "x":
            fields.append((offset, size))
        offset += size
    assert offset == packing.size
    return fields


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, int]:
    """What the compiler makes of every structure, field, enumerator and constant."""
    expressions = {"sizeof filter_line": "sizeof(struct filter_line)"}
    for name, fields in declared_structures().items():
        expressions[f"sizeof {name}"] = f"sizeof(struct {name})"
        for field in fields:
            expressions[f"offset {name}.{field}"] = f"offsetof(struct {name}, {field})"
            expressions[f"size {name}.{field}"] = f"sizeof(((struct {name} *)0)->{field})"
    named = declared_enumerators(LAYOUT) + declared_enumerators(REASONS) + declared_constants()
    expressions |= {name: name for name in named}
    directory = tmp_path_factory.mktemp("layout")
    return c_layout.values(directory, expressions, "layout.h", "reasons.h", endpoint_slots=SIZES.endpoint_slots)


def test_every_structure_is_known():
    assert set(declared_structures()) == set(STRUCTURES)


@pytest.mark.parametrize("name", STRUCTURES)
def test_fields_are_the_same_in_the_same_order(name):
    named = [fields.split()[0] for fields in STRUCTURES[name][1]]
    rest = [field for field in declared_structures()[name] if field not in named]
    assert [field for field in declared_structures()[name] if field in named] == named
    assert all(field.startswith("unused") or field in ("slots", "next_hop") for field in rest)


@pytest.mark.parametrize("name", STRUCTURES)
def test_offsets_and_sizes(compiled, name):
    packing, fields = STRUCTURES[name]
    found = python_fields(packing)
    wanted = []
    for field in fields:
        count = len(field.split())
        field = field.split()[0]
        parts, found = found[:count], found[count:]
        assert parts, f"{field} is missing in layout.py"
        wanted.append((field, parts[0][0], sum(size for _offset, size in parts)))
    assert not found, "layout.py has more fields"
    assert wanted == [
        (field, compiled[f"offset {name}.{field}"], compiled[f"size {name}.{field}"])
        for field, _offset, _size in wanted
    ]


@pytest.mark.parametrize("name", sorted(set(STRUCTURES) - set(TABLES)))
def test_size_of_the_whole(compiled, name):
    assert STRUCTURES[name][0].size == compiled[f"sizeof {name}"]


@pytest.mark.parametrize("name", TABLES)
def test_size_of_tables(compiled, name):
    assert compiled[f"offset {name}.slots"] == layout.ENDPOINT_TABLE_HEADER.size
    assert TABLES[name] == compiled[f"sizeof {name}"]


def test_size_of_a_filter_line(compiled):
    assert layout.FILTER_LINE == compiled["sizeof filter_line"]
    assert layout.FILTER_HEADER.size == 3 * layout.FILTER_LINE


def test_slots_of_a_lookup_table_follow_its_header(compiled):
    assert compiled["sizeof lookup_table"] == layout.LOOKUP_TABLE.size
    assert layout.table_bytes(65537) == 16 + 4 * 65537


def test_a_line_of_a_previous_table_is_as_long_as_its_header(compiled):
    assert compiled["sizeof previous_header"] == 4 * compiled["IDS_PER_LINE"]


def test_program_and_engine_agree_on_the_rooms_of_lookup_tables():
    """The order too, since of two tables of a service the first one counts."""
    select = without_comments("subprograms.h")
    used = re.findall(r"use\(MAP_LOOKUP_(\d+), (\d+)\)", select)
    assert [(int(name), int(size)) for name, size in used] == [(room, room) for room in layout.TABLE_ROOMS]
    assert max(layout.TABLE_ROOMS) == vocabulary.MAX_TABLE_SIZE


@pytest.mark.parametrize(
    "slots, room", [(251, 1021), (1021, 1021), (1031, 4093), (16381, 16381), (16411, 65537), (65539, 131071)]
)
def test_room_of_a_table(slots, room):
    assert layout.table_room(slots) == room


def test_endpoint_key_is_composed_as_the_packet_lies():
    """address | port << 32 | protocol << 48 | kind << 56."""
    packed = layout.ENDPOINT.pack(b"\x01\x02\x03\x04", b"\x05\x06", 0x07, 0x08, 9, 0)
    assert int.from_bytes(packed[:8], "little") == 0x04030201 | 0x0605 << 32 | 0x07 << 48 | 0x08 << 56


# What only the program looks at.
C_ONLY = {"FRAGMENT_SHIFT", "FLOW_IS_SESSION"}
C_ONLY_CHOICES = ("FLOW_", "SESSION_", "SEARCH")


@pytest.mark.parametrize("name", sorted(set(declared_constants()) - C_ONLY))
def test_constant(compiled, name):
    assert getattr(layout, name) == compiled[name]


def test_fragment_shift(compiled):
    assert 1 << 64 - compiled["FRAGMENT_SHIFT"] == layout.FRAGMENT_BUCKETS


def test_a_session_is_beyond_every_backend(compiled):
    assert compiled["FLOW_IS_SESSION"] == SIZE_LIMITS["max_backends"] == SIZE_LIMITS["max_sessions"]


@pytest.mark.parametrize("prefix", ["ENDPOINT_", "SERVICE_"])
def test_numbers_by_name(compiled, prefix):
    names = [name for name in declared_enumerators(LAYOUT) if name.startswith(prefix)]
    assert {name: getattr(layout, name) for name in names} == {name: compiled[name] for name in names}


CHOICES = {
    "SCHEDULER_": vocabulary.SCHEDULERS,
    "FORWARDING_": {**vocabulary.FORWARDINGS, "local": vocabulary.LOCAL_FORWARDING},
    "FILTER_": {
        **vocabulary.FILTER_ACTIONS,
        **{name: number for number, name in enumerate((*vocabulary.FILTER_CLASSES, "classes"))},
    },
}


@pytest.mark.parametrize("prefix", CHOICES)
def test_choices(compiled, prefix):
    enumerators = [name for name in declared_enumerators(LAYOUT) if name.startswith(prefix)]
    assert {prefix + name.upper(): number for name, number in CHOICES[prefix].items()} == {
        name: compiled[name] for name in enumerators
    }


def test_every_enumerator_is_looked_at():
    prefixes = ("ENDPOINT_", "SERVICE_", *C_ONLY_CHOICES, *CHOICES)
    assert all(name.startswith(prefixes) for name in declared_enumerators(LAYOUT))


def test_reasons(compiled):
    names = [f"{verdict}_{label}".upper() for label, verdict in layout.REASONS]
    assert [*names, "REASONS"] == declared_enumerators(REASONS)
    assert [compiled[name] for name in names] == list(range(compiled["REASONS"]))


def test_maps_by_number():
    numbered = re.findall(r"^#define MAP_(\w+) MAP\((\d+)\)", MAPS, re.MULTILINE)
    assert len(numbered) == len(re.findall(r"^#define MAP_", MAPS, re.MULTILINE))
    specs = map_specs.map_specs(SIZES)
    assert [(name.lower(), int(number)) for name, number in numbered] == [
        (spec.name, number) for number, spec in enumerate(specs)
    ]


def test_values_of_maps(compiled):
    sizes = {
        "control": compiled["sizeof control"],
        "endpoints": compiled["sizeof endpoint_table"],
        "lookup_65537": 16 + 4 * 65537,
        "backends": compiled["sizeof backend"],
        "service_counters": compiled["sizeof counters"],
        "backend_counters": compiled["sizeof backend_counters"],
        "reasons": 8,
        "round_robin": 4,
        "client_next_hops": compiled["sizeof client_next_hop"],
        "endpoints6": compiled["sizeof endpoint6_table"],
        "flows": compiled["sizeof flow_bucket"],
        "fragments": compiled["sizeof flow_bucket"],
        "budget": compiled["sizeof budget"],
        "sessions": compiled["sizeof session"],
        "pools": compiled["sizeof pool"],
        "links": 4,
        "filters": compiled["sizeof filter_line"],
        "filter_counters": compiled["sizeof filter_counters"],
        "filter_limits": 8,
        "latency": compiled["sizeof latency"],
        "lookup_1021": 16 + 4 * 1021,
        "lookup_4093": 16 + 4 * 4093,
        "lookup_16381": 16 + 4 * 16381,
        "lookup_131071": 16 + 4 * 131071,
        "previous": compiled["sizeof previous_header"],
        "source_ranges": 1,
        "next_program": 4,
        "next_program_frags": 4,
    }
    key_sizes = {spec.name: spec.key_size for spec in map_specs.map_specs(SIZES) if spec.key_size != 4}
    assert key_sizes == {"source_ranges": compiled["sizeof source_range"]}
    assert {spec.name: spec.value_size for spec in map_specs.map_specs(SIZES)} == sizes


def test_entries_of_maps(compiled):
    entries = {
        "control": 1,
        "endpoints": 1,
        "lookup_65537": 64,
        "backends": 1024,
        "service_counters": 64,
        "backend_counters": 1024,
        "reasons": 64,
        "round_robin": 64,
        "client_next_hops": compiled["CLIENT_NEXT_HOPS"],
        "endpoints6": 1,
        "flows": bpf.possible_cpus(),
        "fragments": compiled["FRAGMENT_BUCKETS"],
        "budget": 1,
        "sessions": SIZES.max_sessions,
        "pools": compiled["MAX_POOLS"],
        "links": 256,
        "filters": 1,
        "filter_counters": SIZES.max_filters,
        "filter_limits": SIZES.max_filters,
        "latency": 1,
        "lookup_1021": 64,
        "lookup_4093": 64,
        "lookup_16381": 64,
        "lookup_131071": 64,
        "previous": 64,
        "source_ranges": 2 * vocabulary.MAX_SOURCE_RANGES,
        "next_program": 1,
        "next_program_frags": 1,
    }
    assert {spec.name: spec.max_entries for spec in map_specs.map_specs(SIZES)} == entries


def test_values_of_the_default_sizes_fit_into_old_kernels():
    """KMALLOC_MAX_SIZE of x86 before Linux 6.0, which array_map_alloc_check() compares with."""
    largest = max(spec.value_size for spec in map_specs.map_specs(layout.Sizes()))
    assert largest <= 4 << 20


def test_names_of_maps_fit_into_the_kernels():
    """16 bytes with the zero at the end; a longer name would be cut off, and two might look the same."""
    names = [spec.name[: bpf.NAME_LENGTH] for spec in map_specs.map_specs(SIZES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("endpoints, slots", [(1, 4), (3, 16), (4, 16), (5, 32), (4096, 16384), (32768, 131072)])
def test_endpoint_slots_are_a_power_of_two_and_a_quarter_used(endpoints, slots):
    assert layout.Sizes(max_endpoints=endpoints).endpoint_slots == slots
