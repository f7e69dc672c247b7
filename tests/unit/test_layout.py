# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""layout.py and the C headers describe the same bytes: a C compiler says what the headers mean."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils import bpf, layout

BPF = Path(__file__).resolve().parents[2] / "files" / "bpf"
SIZES = layout.Sizes(max_services=64, max_backends=1024, max_endpoints=4096)

# Each C structure with its fields, and the format that packs them. Several Python fields may make up one C field.
STRUCTURES = {
    "endpoint": (layout.ENDPOINT, ["key key key key", "id", "unused"]),
    "endpoint_table": (layout.ENDPOINT_TABLE_HEADER, ["shift", "unused", "slots"]),
    "ring": (layout.RING, ["scheduler", "length", "slots", "unused"]),
    "backend": (
        layout.BACKEND,
        [
            "address",
            "port",
            "forwarding",
            "has_mac",
            "mac",
            "vip_port",
            "vip",
            "ip_delta",
            "l4_delta",
            "reply_ip_delta",
            "reply_l4_delta",
            "service_counters",
            "backend_counters",
            "unused",
        ],
    ),
    "counters": (layout.COUNTERS, ["packets", "bytes", "reply_packets", "reply_bytes"]),
    "next_hop": (layout.NEXT_HOP, ["address", "generation", "interface", "destination", "source"]),
    "control": (layout.CONTROL, ["layout_version", "next_hop_generation"]),
}


def without_comments(header: str) -> str:
    return re.sub(r"/\*.*?\*/", "", (BPF / header).read_text(encoding="utf-8"), flags=re.DOTALL)


LAYOUT, REASONS, MAPS = without_comments("layout.h"), without_comments("reasons.h"), without_comments("maps.h")


def declared_structures() -> dict[str, list[str]]:
    """The fields of every structure of layout.h, in their order."""
    return {
        name: re.findall(r"(\w+)\s*(?:\[[^]]*\])*\s*;", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", LAYOUT, re.DOTALL)
    }


def declared_enumerators(source: str) -> list[str]:
    bodies = re.findall(r"enum \w+ \{(.*?)\}", source, re.DOTALL)
    return [name for body in bodies for name in re.findall(r"^\s*([A-Z]\w*)", body, re.MULTILINE)]


def declared_constants() -> list[str]:
    return re.findall(r"^#define (\w+) +\S", LAYOUT, re.MULTILINE)


def python_fields(packing: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of every field of a format without padding."""
    fields, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", packing.format.removeprefix("<")):
        size = struct.calcsize(f"<{count}{code}")
        # A count before "s" is the length of one field; before anything else it is an array, one field as well.
        fields.append((offset, size))
        offset += size
    assert offset == packing.size
    return fields


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, int]:
    """What the compiler makes of every structure, field, enumerator and constant."""
    lines = []
    for name, fields in declared_structures().items():
        lines.append(f'SHOW("sizeof {name}", sizeof(struct {name}));')
        for field in fields:
            lines.append(f'SHOW("offset {name}.{field}", offsetof(struct {name}, {field}));')
            lines.append(f'SHOW("size {name}.{field}", sizeof(((struct {name} *)0)->{field}));')
    for name in declared_enumerators(LAYOUT) + declared_enumerators(REASONS) + declared_constants():
        lines.append(f'SHOW("{name}", {name});')
    directory = tmp_path_factory.mktemp("layout")
    source, program = directory / "layout.c", directory / "layout"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        '#include "layout.h"\n#include "reasons.h"\n'
        '#define SHOW(name, value) printf("%s=%llu\\n", name, (unsigned long long)(value))\n'
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n",
        encoding="utf-8",
    )
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler, "no C compiler: install gcc or clang"
    subprocess.run(
        [compiler, f"-I{BPF}", f"-DENDPOINT_SLOTS={SIZES.endpoint_slots}", "-o", str(program), str(source)], check=True
    )
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _separator, value in (line.partition("=") for line in output.splitlines())}


def test_every_structure_is_known():
    assert set(declared_structures()) == set(STRUCTURES)


@pytest.mark.parametrize("name", STRUCTURES)
def test_fields_are_the_same_in_the_same_order(name):
    assert declared_structures()[name] == [fields.split()[0] for fields in STRUCTURES[name][1]]


@pytest.mark.parametrize("name", STRUCTURES)
def test_offsets_and_sizes(compiled, name):
    packing, fields = STRUCTURES[name]
    found = python_fields(packing)
    wanted = []
    for field in fields:
        count = len(field.split())
        field = field.split()[0]
        if (name, field) == ("endpoint_table", "slots"):
            # Packed one by one behind the header.
            assert compiled["offset endpoint_table.slots"] == packing.size
            continue
        parts, found = found[:count], found[count:]
        assert parts, f"{field} is missing in layout.py"
        wanted.append((field, parts[0][0], sum(size for _offset, size in parts)))
    assert not found, "layout.py has more fields"
    assert wanted == [
        (field, compiled[f"offset {name}.{field}"], compiled[f"size {name}.{field}"])
        for field, _offset, _size in wanted
    ]


@pytest.mark.parametrize("name", sorted(set(STRUCTURES) - {"endpoint_table"}))
def test_size_of_the_whole(compiled, name):
    assert STRUCTURES[name][0].size == compiled[f"sizeof {name}"]


def test_size_of_the_endpoint_table(compiled):
    assert SIZES.endpoint_table_bytes == compiled["sizeof endpoint_table"]


def test_ring_header_is_the_start_of_a_ring(compiled):
    assert layout.RING_HEADER.size == compiled["offset ring.slots"]
    assert layout.RING.format.startswith(layout.RING_HEADER.format)


def test_endpoint_key_is_composed_as_the_packet_lies():
    """address | port << 32 | protocol << 48 | kind << 56."""
    packed = layout.ENDPOINT.pack(b"\x01\x02\x03\x04", b"\x05\x06", 0x07, 0x08, 9, 0)
    assert int.from_bytes(packed[:8], "little") == 0x04030201 | 0x0605 << 32 | 0x07 << 48 | 0x08 << 56


@pytest.mark.parametrize("name", declared_constants())
def test_constant(compiled, name):
    assert getattr(layout, name) == compiled[name]


def test_endpoint_kinds(compiled):
    kinds = {name: value for name, value in vars(layout).items() if name in declared_enumerators(LAYOUT)}
    assert kinds == {name: compiled[name] for name in declared_enumerators(LAYOUT) if name.startswith("ENDPOINT_")}


@pytest.mark.parametrize("prefix, names", [("SCHEDULER_", layout.SCHEDULERS), ("FORWARDING_", layout.FORWARDINGS)])
def test_choices(compiled, prefix, names):
    enumerators = [name for name in declared_enumerators(LAYOUT) if name.startswith(prefix)]
    assert {prefix + name.upper(): number for name, number in names.items()} == {
        name: compiled[name] for name in enumerators
    }


def test_every_enumerator_is_looked_at():
    prefixes = ("ENDPOINT_", "SCHEDULER_", "FORWARDING_")
    assert all(name.startswith(prefixes) for name in declared_enumerators(LAYOUT))


def test_reasons(compiled):
    names = [f"{verdict}_{label}".upper() for label, verdict in layout.REASONS]
    assert [*names, "REASONS"] == declared_enumerators(REASONS)
    assert [compiled[name] for name in names] == list(range(compiled["REASONS"]))


def test_maps_by_number():
    numbered = re.findall(r"^#define MAP_(\w+) MAP\((\d+)\)", MAPS, re.MULTILINE)
    assert len(numbered) == len(re.findall(r"^#define MAP_", MAPS, re.MULTILINE))
    specs = layout.map_specs(SIZES)
    assert [(name.lower(), int(number)) for name, number in numbered] == [
        (spec.name, number) for number, spec in enumerate(specs)
    ]


def test_values_of_maps(compiled):
    sizes = {
        "control": compiled["sizeof control"],
        "endpoints": compiled["sizeof endpoint_table"],
        "rings": compiled["sizeof ring"],
        "backends": compiled["sizeof backend"],
        "service_counters": compiled["sizeof counters"],
        "backend_counters": compiled["sizeof counters"],
        "reasons": 8,
        "round_robin": 4,
        "backend_next_hops": compiled["sizeof next_hop"],
        "client_next_hops": compiled["sizeof next_hop"],
    }
    assert {spec.name: spec.value_size for spec in layout.map_specs(SIZES)} == sizes


def test_entries_of_maps(compiled):
    entries = {
        "control": 1,
        "endpoints": 1,
        "rings": 64,
        "backends": 1024,
        "service_counters": 64,
        "backend_counters": 1024,
        "reasons": compiled["REASONS"],
        "round_robin": 64,
        "backend_next_hops": 1024,
        "client_next_hops": compiled["CLIENT_NEXT_HOPS"],
    }
    assert {spec.name: spec.max_entries for spec in layout.map_specs(SIZES)} == entries


def test_names_of_maps_fit_into_the_kernels():
    """16 bytes with the zero at the end; a longer name would be cut off, and two might look the same."""
    names = [spec.name[: bpf.NAME_LENGTH] for spec in layout.map_specs(SIZES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("endpoints, slots", [(1, 4), (3, 16), (4, 16), (5, 32), (4096, 16384), (32768, 131072)])
def test_endpoint_slots_are_a_power_of_two_and_a_quarter_used(endpoints, slots):
    assert layout.Sizes(max_endpoints=endpoints).endpoint_slots == slots
