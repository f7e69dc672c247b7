# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel in memory: BPF maps, programs, pins and hooks, for the engine above kernel/bpf.py, link.py and tc.py.

Every change that packets, the disk or the next run could see is a step that can be watched. A snapshot before a step is
what a run leaves that is killed there. An object is a file, so that descriptors, pins and their renaming are the file
system's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import (
    change,
    compiler,
    fill,
    hooks,
    host_check,
    map_specs,
    places,
    programs,
    state,
)
from ansible_collections.lbops.xdp.plugins.module_utils.config.vocabulary import FEATURES
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import attachments, bpf, device, link, neighbours, tc
from ansible_collections.lbops.xdp.plugins.module_utils.tables import lookup
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

CPUS = 2
# Begins the name of a step that is not the first of its system call.
WITHIN = "then "
MAP_NAMES = tuple(spec.name for spec in map_specs.map_specs(Sizes()))
TABLES = tuple(spec.name for spec in map_specs.map_specs(Sizes()) if spec.holds_maps)
# Keys of other maps are places in an array.
KEYED = (bpf.MAP_TYPE_DEVMAP_HASH, bpf.MAP_TYPE_LPM_TRIE)
INTERFACES = ("eth0", "eth1", "eth2", "out0", "out1", "out2")


class Interrupted(BaseException):
    """Ends a run as a signal with a handler does: what cleans up still runs."""


@dataclass
class Map:
    id: int
    type: int
    value_size: int
    max_entries: int
    name: str
    flags: int = 0
    values: dict[int, Any] = field(default_factory=dict)
    frozen: bool = False
    is_table: bool = False  # within an array of maps
    whole: bytes | None = None  # of a frozen map, once it was read
    # Size of a value and number of them, of the maps in an array of maps; number 0: any.
    holds: tuple[int, int] | None = None

    def content(self) -> bytes:
        """The values of a frozen map, one after the other."""
        if self.whole is None:
            if self.values.keys() == {0}:
                self.whole = self.values[0]
            else:
                empty = bytes(self.value_size)
                self.whole = b"".join(self.values.get(key, empty) for key in range(max(self.values, default=-1) + 1))
        return self.whole


@dataclass
class Program:
    id: int
    type: int
    features: frozenset[str]
    maps: dict[str, Map]


@dataclass(frozen=True)
class Snapshot:
    """All that outlives a run that is killed."""

    step: str
    values: dict[int, dict[int, Any]]  # of the maps by their ids
    xdp: dict[str, tuple[str, Program]]
    tc: dict[str, Program]
    # By path below the root: the id of a pinned object, a file's content, None for a directory.
    files: dict[str, int | bytes | None]


class Steps:
    """Says what a run changes: `watch` is called before each step."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.watch: Callable[[str], None] = lambda _name: None

    def take(self, name: str) -> None:
        self.watch(name)
        self.names.append(name)


class Kernel:
    """Objects by the file that stands for each, and the programs on the hooks of each interface."""

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, root / "objects"
        self.files.mkdir(parents=True)
        self.paths = state.Paths(root / "pins", root / "state")
        self.steps = Steps()
        self.last_id = 0
        self.objects: dict[int, Map | Program] = {}
        self.by_id: dict[int, Map | Program] = {}
        self.xdp: dict[str, tuple[str, Program]] = {}
        self.tc: dict[str, Program] = {}
        self.links_up = {"out0", "out1", "out2"}
        # Which writing of a file fails for want of space, counted from 0, and whether all after it fail, too.
        self.full_at: int | None = None
        self.stays_full = False
        self.written_files = 0

    def _new(self, found: Map | Program) -> int:
        path = self.files / str(found.id)
        descriptor = os.open(path, os.O_CREAT | os.O_RDONLY)
        self.objects[os.fstat(descriptor).st_ino] = self.by_id[found.id] = found
        return descriptor

    def _next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def _of(self, descriptor: int) -> Any:
        return self.objects[os.fstat(descriptor).st_ino]

    def by_descriptor_id(self, number: int) -> int:
        if number not in self.by_id:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.open(self.files / str(number), os.O_RDONLY)

    # --- what a killed run leaves

    def snapshot(self, step: str = "") -> Snapshot:
        values = {found.id: dict(found.values) for found in self.by_id.values() if isinstance(found, Map)}
        found: dict[str, int | bytes | None] = {}
        for top in ("pins", "state"):
            for directory, _directories, names in os.walk(self.root / top):
                # relpath() takes ten times as long.
                where = directory[len(str(self.root)) + 1 :]
                found[where] = None
                for name in names:
                    path = os.path.join(directory, name)
                    pinned = self.objects.get(os.stat(path).st_ino)
                    content = pinned.id if pinned else Path(path).read_bytes()
                    found[f"{where}/{name}"] = content
        return Snapshot(step, values, dict(self.xdp), dict(self.tc), found)

    def restore(self, snapshot: Snapshot) -> None:
        for number, values in snapshot.values.items():
            found = self.by_id[number]
            assert isinstance(found, Map)
            found.values = dict(values)
        self.xdp, self.tc = dict(snapshot.xdp), dict(snapshot.tc)
        present = self.snapshot().files
        for name in reversed(present):
            if name not in snapshot.files or snapshot.files[name] != present[name]:
                path = self.root / name
                os.rmdir(path) if present[name] is None else os.unlink(path)
        for name, content in snapshot.files.items():
            path = self.root / name
            if name in present and present[name] == content:
                continue
            if content is None:
                path.mkdir(mode=0o700)
            elif isinstance(content, int):
                os.link(self.files / str(content), path)
            else:
                path.write_bytes(content)

    # --- bpf.py: maps

    def map_create(
        self,
        name: str,
        map_type: int,
        value_size: int,
        max_entries: int,
        *,
        inner: int = 0,
        key_size: int = 4,
        flags: int = 0,
    ) -> int:
        found = Map(self._next_id(), map_type, value_size, max_entries, name, flags=flags)
        # Only what lies in an array of maps is of a size that another has, too; nobody sees it before it is put there.
        found.is_table = name in TABLES and not inner
        if inner:
            # BPF_F_INNER_MAP
            any_length = self._of(inner).flags & 1 << 12
            found.holds = self._of(inner).value_size, 0 if any_length else self._of(inner).max_entries
        return self._new(found)

    def _set(self, found: Map, number: int, value: bytes, within: str = "") -> None:
        if number >= found.max_entries and found.type not in KEYED:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        if found.frozen:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if found.is_table:
            found.values[number] = value
            return
        self.steps.take(f"{within}{found.name}[{number}]")
        if found.type == bpf.MAP_TYPE_ARRAY_OF_MAPS:
            held = self._of(int.from_bytes(value, "little"))
            if (held.value_size, held.max_entries if found.holds[1] else 0) != found.holds:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            found.values[number] = held
        else:
            found.values[number] = value

    def map_update(self, descriptor: int, key: bytes, value: bytes) -> None:
        self._set(self._of(descriptor), int.from_bytes(key, "little"), value)

    def map_update_batch(self, descriptor: int, keys: bytes, values: bytes, count: int) -> None:
        if not count:
            return
        found, size = self._of(descriptor), len(values) // count
        assert len(keys) == 4 * count and len(values) == size * count
        if found.is_table or found.name == "sessions":
            # One step for all of them, or there would be thousands.
            if not found.is_table:
                self.steps.take(f"{found.name}[...]")
            for place in range(count):
                number = int.from_bytes(keys[4 * place : 4 * place + 4], "little")
                found.values[number] = values[size * place : size * place + size]
            return
        for place in range(count):
            number = int.from_bytes(keys[4 * place : 4 * place + 4], "little")
            # A run is not killed within a system call, but packets come in between.
            self._set(found, number, values[size * place : size * place + size], WITHIN if place else "")

    def _get(self, found: Map, number: int, size: int) -> bytes:
        may_be_empty = found.type in (bpf.MAP_TYPE_ARRAY_OF_MAPS, bpf.MAP_TYPE_PROG_ARRAY)
        if number >= found.max_entries or may_be_empty and number not in found.values:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        value = found.values.get(number, bytes(size))
        return value.id.to_bytes(4, "little") if isinstance(value, Map) else value

    def map_lookup(self, descriptor: int, key: bytes, size: int) -> bytes:
        return self._get(self._of(descriptor), int.from_bytes(key, "little"), size)

    def map_delete(self, descriptor: int, key: bytes) -> None:
        found, number = self._of(descriptor), int.from_bytes(key, "little")
        if number >= found.max_entries and found.type not in KEYED:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        if number not in found.values:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.steps.take(f"delete {found.name}[{number}]")
        del found.values[number]

    def map_keys(self, descriptor: int, size: int = 4) -> bytes:
        return b"".join(key.to_bytes(size, "little") for key in self._of(descriptor).values)

    def map_lookup_batch(
        self, descriptor: int, count: int, value_size: int, key_size: int = 4, after: bytes | None = None
    ) -> tuple[bytes, bytes]:
        found = self._of(descriptor)
        first = int.from_bytes(after, "little") + 1 if after is not None else 0
        numbers: Any = range(first, min(first + count, found.max_entries))
        if found.type == bpf.MAP_TYPE_ARRAY_OF_MAPS:
            numbers = sorted(number for number in found.values if number >= first)[:count]
        keys = b"".join(number.to_bytes(4, "little") for number in numbers)
        return keys, b"".join(self._get(found, number, value_size) for number in numbers)

    def map_freeze(self, descriptor: int) -> None:
        self._of(descriptor).frozen = True

    def map_info(self, descriptor: int) -> bpf.MapInfo:
        found = self._of(descriptor)
        value_size = 4 if found.type == bpf.MAP_TYPE_ARRAY_OF_MAPS else found.value_size
        return bpf.MapInfo(found.type, found.id, 4, value_size, found.max_entries, found.name)

    # --- bpf.py: pins and programs

    def object_pin(self, descriptor: int, path: str) -> None:
        self.steps.take(f"pin {path}")
        os.link(self.files / str(self._of(descriptor).id), path)

    def object_get(self, path: str, read_only: bool = False) -> int:
        return os.open(path, os.O_RDONLY)

    def program_load(
        self,
        name: str,
        code: bytes,
        *,
        program_type: int = 0,
        flags: int = 0,
        device: int = 0,
        log_level: int = 0,
        attach_type: int = 0,
    ) -> int:
        found, features = {}, 0
        for operation, registers, _offset, number in bpf.INSTRUCTION.iter_unpack(code):
            if operation == bpf.LOAD_IMMEDIATE_64 and registers >> 4 == bpf.PSEUDO_MAP_FD:
                found[MAP_NAMES[len(found)]] = self._of(number)
            elif operation == 0xB7:
                features = number
        named = frozenset(name for place, name in enumerate(FEATURES) if features >> place & 1)
        return self._new(Program(self._next_id(), program_type, named, found))

    def program_info(self, descriptor: int) -> bpf.ProgramInfo:
        found = self._of(descriptor)
        ids = tuple(entry.id for entry in found.maps.values())
        return bpf.ProgramInfo(found.type, found.id, "tag", 0, 0, 0, "lbops_balancer", 0, 0, 0, ids)

    # --- link.py, tc.py

    def xdp_attached(self, interface: str) -> link.Attached | None:
        found = self.xdp.get(interface)
        return link.Attached(found[0], found[1].id) if found else None

    def xdp_attach(self, interface: str, program: int, hook: str, replaces: int | None) -> None:
        on_hook = self.xdp.get(interface)
        expected = self._of(replaces) if replaces is not None else None
        if (on_hook[1] if on_hook else None) is not expected or on_hook and on_hook[0] != hook:
            raise EngineError(f"{interface}: the hook was changed meanwhile")
        self.steps.take(f"attach {interface} {hook}")
        self.xdp[interface] = (hook, self._of(program))

    def xdp_detach(self, interface: str, hook: str, program: int) -> None:
        if self.xdp[interface] != (hook, self._of(program)):
            raise EngineError(f"{interface}: the hook was changed meanwhile")
        self.steps.take(f"detach {interface} {hook}")
        del self.xdp[interface]

    def tc_attached(self, interface: str) -> int | None:
        return self.tc[interface].id if interface in self.tc else None

    def tc_attach(self, interface: str, program: int) -> None:
        self.steps.take(f"attach {interface} tc")
        self.tc[interface] = self._of(program)

    def tc_detach(self, interface: str) -> None:
        self.steps.take(f"detach {interface} tc")
        del self.tc[interface]

    def on_hook(self, interface: str) -> Program | None:
        """The program that packets meet."""
        found = self.xdp.get(interface)
        return found[1] if found else self.tc.get(interface)

    # --- files

    def fsync(self, _descriptor: int) -> None:
        """Once for a file and once for its directory; there is no power to fail here."""
        if Path(os.readlink(f"/proc/self/fd/{_descriptor}")).is_dir():
            return
        number, self.written_files = self.written_files, self.written_files + 1
        if self.full_at is not None and (number == self.full_at or self.stays_full and number > self.full_at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def ours(self, path: Any, dir_fd: int | None = None) -> str | None:
        """A path to name in a step; None for what is not of the engine's directories."""
        if dir_fd is not None:
            path = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"
        name = os.fspath(path)
        root = str(self.root)
        if not isinstance(name, str) or not name.startswith((f"{root}/pins", f"{root}/state")):
            return None
        return name[len(root) + 1 :]


def index_of(interface: str) -> int:
    return INTERFACES.index(interface) + 2


def compile_program(build: compiler.Build) -> bytes:
    """All maps in their order, and the features as the bits of a number."""
    code = b""
    for number in range(len(MAP_NAMES)):
        code += bpf.INSTRUCTION.pack(bpf.LOAD_IMMEDIATE_64, bpf.PSEUDO_MAP_FD << 4 | 1, 0, number)
        code += bpf.INSTRUCTION.pack(0, 0, 0, 0)
    features = sum(1 << place for place, name in enumerate(FEATURES) if name in build.features)
    return code + bpf.INSTRUCTION.pack(0xB7, 0, 0, features) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)


def interface_index(interface: str) -> int:
    if interface not in INTERFACES:
        raise device.missing(interface)
    return index_of(interface)


@contextmanager
def installed(kernel: Kernel, patch: Any) -> Iterator[Kernel]:
    """The engine on this kernel; `patch` is pytest's monkeypatch."""
    # There is no kernel that fills lookup tables.
    patch.setattr(fill.Fastest, "__call__", lambda _fastest, found: lookup.fill(found))
    for name in (
        "map_create map_update map_update_batch map_lookup map_delete map_keys map_lookup_batch map_freeze map_info "
        "object_pin object_get program_load program_info"
    ).split():
        patch.setattr(bpf, name, getattr(kernel, name))
    patch.setattr(bpf, "possible_cpus", lambda: CPUS)
    patch.setattr(bpf, "program_fd", kernel.by_descriptor_id)
    patch.setattr(bpf, "map_fd", kernel.by_descriptor_id)
    patch.setattr(compiler, "compile_program", compile_program)
    patch.setattr(compiler, "version", lambda: "a compiler")
    patch.setattr(compiler.Build, "files", lambda _build: [])
    for function, replacement in (
        ("interface_index", interface_index),
        ("exists", lambda interface: interface in INTERFACES),
        ("bpf_link", lambda _interface: None),
        ("attached", kernel.xdp_attached),
        ("attach", kernel.xdp_attach),
        ("detach", kernel.xdp_detach),
        ("mtu", lambda _interface: 1500),
        ("links_up", lambda wanted: {index_of(name) for name in set(wanted) & kernel.links_up}),
    ):
        patch.setattr(link, function, replacement)
    patch.setattr(tc, "in_front", lambda _interface: [])
    patch.setattr(tc, "refusal", lambda _interface: "")
    patch.setattr(attachments, "describe_program", lambda number: f"program {number}")
    for name in ("attached", "attach", "detach"):
        patch.setattr(tc, name, getattr(kernel, f"tc_{name}"))
    links = [
        device.Link(index_of(name), name, "", None, "", "", True, True, "UP", 1500, None, 0, None, True)
        for name in INTERFACES
    ]
    for module in (device, host_check):
        patch.setattr(module, "links", lambda: links)
    patch.setattr(host_check, "xdp_features", lambda _index: None)
    patch.setattr(neighbours, "local_addresses", frozenset)
    patch.setattr(change, "examine", lambda _interface, _multi_buffer: [])
    patch.setattr(neighbours, "ways", lambda _addresses: neighbours.Ways())
    patch.setattr(neighbours, "resolve", lambda _ways, _timeout: {})
    patch.setattr(places.Places, "check_host", lambda _places: None)
    patch.setattr("time.sleep", lambda _seconds: None)
    _install_files(kernel, patch)
    assert programs.bpf is bpf and hooks.link is link
    yield kernel


def _install_files(kernel: Kernel, patch: Any) -> None:
    patch.setattr(os, "fsync", kernel.fsync)
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        patch.setattr(os, name, _stepping(kernel, name, getattr(os, name)))


def _stepping(kernel: Kernel, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(path: Any, *arguments: Any, dir_fd: int | None = None, **more: Any) -> Any:
        named = kernel.ours(path, dir_fd)
        if named is not None:
            # What fails changes nothing.
            if name != "mkdir" and not os.path.lexists(kernel.root / named):
                pass
            elif name == "mkdir" and os.path.lexists(kernel.root / named):
                pass
            else:
                kernel.steps.take(f"{name} {named}")
        if (
            name == "rename"
            and named is not None
            and os.path.exists(arguments[0])
            and os.path.samefile(path, arguments[0])
        ):
            # Two pins of one object are two files in a BPF file system, where renaming removes one of them.
            os.remove(path)
            return None
        if dir_fd is not None:
            more["dir_fd"] = dir_fd
        return real(path, *arguments, **more)

    return stepping
