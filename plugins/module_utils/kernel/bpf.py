# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf(2): maps, programs and pins, with nothing but the standard library.

Keys and values are bytes as they lie in the map. Every function raises OSError with the kernel's errno.
Command and attribute numbers are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass

from . import btf

SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "riscv64": 280}

MAP_CREATE = 0
MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
MAP_GET_NEXT_KEY = 4
PROG_LOAD = 5
OBJ_PIN = 6
OBJ_GET = 7
PROG_TEST_RUN = 10
PROG_GET_FD_BY_ID = 13
MAP_GET_FD_BY_ID = 14
OBJ_GET_INFO_BY_FD = 15
PROG_QUERY = 16  # kernel 4.15; for TCX 6.6
BTF_LOAD = 18
MAP_FREEZE = 22
MAP_LOOKUP_BATCH = 24
MAP_UPDATE_BATCH = 26

MAP_TYPE_ARRAY = 2
MAP_TYPE_PROG_ARRAY = 3
MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_LPM_TRIE = 11
MAP_TYPE_ARRAY_OF_MAPS = 12
MAP_TYPE_DEVMAP_HASH = 25
MAP_FLAG_NO_PREALLOC = 1
MAP_FLAG_MMAPABLE = 1 << 10
# An array may take the place of one of another length in an array of maps (BPF_F_INNER_MAP, kernel 5.10).
MAP_FLAG_INNER_MAP = 1 << 12
# of a descriptor: BPF_F_RDONLY
READ_ONLY = 1 << 3

PROG_TYPE_SOCKET_FILTER = 1
PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_XDP = 6
PROG_FLAG_XDP_HAS_FRAGS = 1 << 5
# enum bpf_attach_type; libbpf loads a program of a section "xdp" with this one
ATTACH_TYPE_XDP = 37

INSTRUCTION = btf.INSTRUCTION
LOAD_IMMEDIATE_64 = 0x18
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2

# return XDP_PASS
PASS_PROGRAM = INSTRUCTION.pack(0xB7, 0, 0, 2) + INSTRUCTION.pack(0x95, 0, 0, 0)

LOG_SIZE = 16 << 20
LICENCE = b"Dual BSD/GPL"
NAME_LENGTH = 15

_libc = ctypes.CDLL(None, use_errno=True)
_ATTRIBUTES_SIZE = 128


def _bpf(command: int, attributes: bytes, buffer: ctypes.Array[ctypes.c_char] | None = None) -> int:
    """One call; `buffer`, when given, is the attribute union that the kernel also writes to."""
    if buffer is None:
        buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES_SIZE)
    try:
        number = SYSCALL_NUMBERS[platform.machine()]
    except KeyError:
        raise OSError(38, f"bpf(2) is not known for the machine {platform.machine()}") from None
    result: int = _libc.syscall(number, command, buffer, _ATTRIBUTES_SIZE)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Calls bpf(2) for other modules; returns its result and the attributes as the kernel leaves them."""
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES_SIZE)
    return _bpf(command, b"", buffer), buffer.raw


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _input(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def _name(name: str) -> bytes:
    return name.encode()[:NAME_LENGTH].ljust(16, b"\0")


def possible_cpus() -> int:
    """How many values a per-CPU map holds for one key (Documentation/bpf/map_array.rst)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return int(file.read().strip().replace("-", ",").split(",")[-1]) + 1


@dataclass(frozen=True)
class MapInfo:
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str


@dataclass(frozen=True)
class ProgramInfo:
    type: int
    id: int
    tag: str
    jited_size: int  # bytes
    translated_size: int  # bytes
    loaded_ns: int  # CLOCK_BOOTTIME
    name: str
    run_time_ns: int  # 0 unless kernel.bpf_stats_enabled
    run_count: int
    verified_instructions: int
    map_ids: tuple[int, ...] = ()


def map_create(
    name: str,
    map_type: int,
    value_size: int,
    max_entries: int,
    *,
    inner: int = 0,
    key_size: int = 4,
    flags: int = 0,
    device: int = 0,
) -> int:
    """A new map's descriptor; `inner` is the descriptor of a map like those an array of maps will hold.

    `device` is the index of the interface whose hardware is to hold it, 0 for the kernel.
    """
    numbers = map_type, key_size, value_size, max_entries, flags, inner, 0
    return _bpf(MAP_CREATE, struct.pack("=IIIIIII16sI", *numbers, _name(name), device))


def map_update(fd: int, key: bytes, value: bytes) -> None:
    key_buffer, value_buffer = _input(key), _input(value)
    _bpf(MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", fd, _address(key_buffer), _address(value_buffer), 0))


def map_lookup(fd: int, key: bytes, size: int) -> bytes:
    """`size` is what the kernel writes: per-CPU maps give one value, rounded up to 8 bytes, for each CPU."""
    key_buffer, value_buffer = _input(key), ctypes.create_string_buffer(size)
    _bpf(MAP_LOOKUP_ELEM, struct.pack("=I4xQQQ", fd, _address(key_buffer), _address(value_buffer), 0))
    return value_buffer.raw


def map_delete(fd: int, key: bytes) -> None:
    key_buffer = _input(key)
    _bpf(MAP_DELETE_ELEM, struct.pack("=I4xQQQ", fd, _address(key_buffer), 0, 0))


def map_keys(fd: int, size: int = 4) -> bytes:
    """All keys, one after the other."""
    found, last = b"", None
    following = ctypes.create_string_buffer(size)
    while True:
        previous = _input(last) if last is not None else None
        try:
            _bpf(
                MAP_GET_NEXT_KEY,
                struct.pack("=I4xQQ", fd, _address(previous) if previous is not None else 0, _address(following)),
            )
        except FileNotFoundError:
            return found
        last = following.raw
        found += last


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """`count` keys and values in one call (kernel 5.6; per-CPU arrays 5.13, arrays of maps 5.15)."""
    if not count:
        return
    key_buffer, value_buffer = _input(keys), _input(values)
    _bpf(
        MAP_UPDATE_BATCH,
        struct.pack("=QQQQIIQQ", 0, 0, _address(key_buffer), _address(value_buffer), count, fd, 0, 0),
    )


def map_lookup_batch(
    fd: int, count: int, value_size: int, key_size: int = 4, after: bytes | None = None
) -> tuple[bytes, bytes]:
    """Keys and values of up to `count` entries, each one after the other; empty places are left out.

    `after`: begin behind this key.
    """
    previous = _input(after) if after is not None else None
    keys = ctypes.create_string_buffer(count * key_size)
    values = ctypes.create_string_buffer(count * value_size)
    token = ctypes.create_string_buffer(max(key_size, 8))
    buffer = ctypes.create_string_buffer(
        struct.pack(
            "=QQQQIIQQ",
            _address(previous) if previous is not None else 0,
            *(_address(token), _address(keys), _address(values), count, fd, 0, 0),
        ),
        _ATTRIBUTES_SIZE,
    )
    try:
        _bpf(MAP_LOOKUP_BATCH, b"", buffer)
    except FileNotFoundError:
        # ENOENT says that this was the last batch.
        pass
    found = struct.unpack_from("=I", buffer, 32)[0]
    return keys.raw[: found * key_size], values.raw[: found * value_size]


def map_freeze(fd: int) -> None:
    """Make a map read-only for user space, for good (kernel 5.2)."""
    _bpf(MAP_FREEZE, struct.pack("=I", fd))


def object_pin(fd: int, path: str) -> None:
    path_buffer = ctypes.create_string_buffer(path.encode())
    _bpf(OBJ_PIN, struct.pack("=QI", _address(path_buffer), fd))


def object_get(path: str, read_only: bool = False) -> int:
    path_buffer = ctypes.create_string_buffer(path.encode())
    return _bpf(OBJ_GET, struct.pack("=QII", _address(path_buffer), 0, READ_ONLY if read_only else 0))


def _info(fd: int, size: int, content: bytes = b"") -> bytes:
    info = ctypes.create_string_buffer(content, size)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, _address(info)))
    return info.raw


def map_info(fd: int) -> MapInfo:
    kind, number, key_size, value_size, max_entries, _flags, name = struct.unpack_from("=IIIIII16s", _info(fd, 64))
    return MapInfo(kind, number, key_size, value_size, max_entries, name.rstrip(b"\0").decode())


def program_info(fd: int) -> ProgramInfo:
    # Offsets in struct bpf_prog_info; the map ids are written where the caller says.
    maps = (ctypes.c_uint32 * 64)()
    info = _info(fd, 232, struct.pack("=52xIQ", len(maps), ctypes.addressof(maps)))
    program_type, program_id, tag, jited, translated = struct.unpack_from("=II8sII", info)
    loaded, _uid, map_count = struct.unpack_from("=QII", info, 40)
    name = struct.unpack_from("=16s", info, 64)[0]
    run_time, run_count = struct.unpack_from("=QQ", info, 192)
    verified = struct.unpack_from("=I", info, 216)[0]
    return ProgramInfo(
        type=program_type,
        id=program_id,
        tag=tag.hex(),
        jited_size=jited,
        translated_size=translated,
        loaded_ns=loaded,
        name=name.rstrip(b"\0").decode(),
        run_time_ns=run_time,
        run_count=run_count,
        verified_instructions=verified,
        map_ids=tuple(maps[:map_count]),
    )


def program_fd(program_id: int) -> int:
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0))


def map_fd(map_id: int) -> int:
    return _bpf(MAP_GET_FD_BY_ID, struct.pack("=III", map_id, 0, 0))


class VerifierError(OSError):
    """The verifier's log is in `log`."""

    def __init__(self, error: int, log: str) -> None:
        super().__init__(error, os.strerror(error))
        self.log = log


def program_load(
    name: str,
    code: bytes,
    *,
    program_type: int = PROG_TYPE_XDP,
    flags: int = 0,
    device: int = 0,
    log_level: int = 0,
    attach_type: int = 0,
) -> int:
    """Load a program under the kernel's name for the licence of files/bpf; raise VerifierError with the log.

    `device` is the index of the interface whose hardware is to run it, 0 for the kernel. `attach_type` is the expected
    one; since Linux 6.18 a program array takes programs of one attach type only.
    """
    found = btf.subprograms(code)
    types, functions = btf.describe(found) if found else (b"", b"")
    instructions, function_info, licence = _input(code), _input(functions), ctypes.create_string_buffer(LICENCE)
    described = _btf_load(types) if found else 0

    def load(level: int) -> int:
        log = ctypes.create_string_buffer(LOG_SIZE if level else 1)
        attributes = struct.pack(
            "=IIQQIIQII16sIIIIQI",
            *(program_type, len(code) // INSTRUCTION.size, _address(instructions), _address(licence)),
            *(level, len(log) if level else 0, _address(log) if level else 0),
            *(0, flags, _name(name), device, attach_type),
            *(described, btf.FUNCTION.size, _address(function_info), len(functions) // btf.FUNCTION.size),
        )
        try:
            return _bpf(PROG_LOAD, attributes)
        except OSError as error:
            if not level:
                return load(1)
            raise VerifierError(error.errno or 0, log.value.decode(errors="replace")) from None

    try:
        return load(log_level)
    finally:
        if described:
            os.close(described)


def _btf_load(data: bytes) -> int:
    buffer = _input(data)
    return _bpf(BTF_LOAD, struct.pack("=QQIII", _address(buffer), 0, len(data), 0, 0))


def relocate(code: bytes, descriptors: list[int]) -> bytes:
    """Put descriptors in place of the map numbers of files/bpf/maps.h."""
    relocated = bytearray(code)
    size = INSTRUCTION.size
    for offset in range(0, len(code), size):
        operation, registers, _offset, number = INSTRUCTION.unpack_from(code, offset)
        if operation == LOAD_IMMEDIATE_64 and registers >> 4 in (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE):
            INSTRUCTION.pack_into(relocated, offset, operation, registers, 0, descriptors[number])
    return bytes(relocated)


def test_run(
    fd: int, frame: bytes, repeat: int = 1, interface: int = 0, program_type: int = PROG_TYPE_XDP
) -> tuple[int, bytes, int]:
    """Run a program on a frame without a wire: its verdict, the frame afterwards, nanoseconds per run.

    `interface` is the index of the one the frame arrives on, which for XDP must carry an XDP receive queue.
    """
    data, output = _input(frame), ctypes.create_string_buffer(len(frame) + 1024)
    context = None
    if interface and program_type == PROG_TYPE_XDP:
        context = _input(struct.pack("=IIIIII", 0, len(frame), 0, interface, 0, 0))
    elif interface:
        # ifindex in struct __sk_buff
        context = _input(struct.pack("=40xI148x", interface))
    buffer = ctypes.create_string_buffer(
        struct.pack(
            "=IIIIQQIIIIQQ",
            fd,
            0,
            len(frame),
            len(output),
            _address(data),
            _address(output),
            repeat,
            0,
            len(context) if context else 0,
            0,
            _address(context) if context else 0,
            0,
        ),
        _ATTRIBUTES_SIZE,
    )
    _bpf(PROG_TEST_RUN, b"", buffer)
    _fd, verdict, _in, size, _data, _out, _repeat, duration = struct.unpack_from("=IIIIQQII", buffer)
    return verdict, output.raw[:size], duration
