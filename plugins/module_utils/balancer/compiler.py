# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From C to bytecode: BCC, the distribution's, compiles the program on the host that runs it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import vocabulary
from ..errors import EngineError, Problems
from ..kernel import bpf
from ..tables.layout import Sizes
from ..tables.offload import Shape

SOURCE = "balancer.c"
OFFLOAD_SOURCE = "offload.c"
FUNCTION = b"balancer"
# END_OF_PROGRAM of files/bpf/verifier.h, as both halves of a 64-bit load have it.
END_OF_PROGRAM = 0x6C626F7073656E64
LONGEST_PROGRAM = 1 << 20  # bytes
# What can be left out of a program, and the name under which the C code knows it.
FEATURES = {name: f"FEATURE_{name.upper()}" for name in vocabulary.FEATURES}
# redirect needs a device map, frames of several buffers are XDP's, and so is the next program: what passes on tc meets
# the next filter.
NOT_ON_TC = frozenset(("redirect", "multi_buffer", "next_program"))


@dataclass(frozen=True)
class Build:
    """All that a program depends on."""

    source: Path  # directory of the C files
    features: frozenset[str]
    sizes: Sizes
    tc: bool = False  # for the hook of tc instead of XDP
    cpus: int = field(default_factory=bpf.possible_cpus)
    hash_seed: str = field(default="", repr=False)  # 16 hexadecimal digits; empty: none
    shape: Shape | None = None  # of the maps of a network card that is to run the program; None: the kernel runs it

    @property
    def path(self) -> Path:
        """The file to compile."""
        return self.source / (OFFLOAD_SOURCE if self.shape else SOURCE)

    @property
    def flags(self) -> list[str]:
        """For the compiler."""
        sizes = self.sizes
        numbers = {
            "MAX_SESSIONS": sizes.max_sessions,
            "MAX_NEW_FLOWS": sizes.max_new_flows,
            "ENDPOINT_SLOTS": sizes.endpoint_slots,
            "FLOW_SHIFT": 64 - (sizes.flow_buckets.bit_length() - 1),
            "CPUS": self.cpus,
        }
        return [
            f"-I{self.source}",
            "-Werror=implicit-function-declaration",
            *(f"-D{name}={number}" for name, number in numbers.items()),
            # While one document replaces another, the old one's may be among them; what is wanted on tc has none.
            *(f"-D{FEATURES[feature]}" for feature in sorted(self.features - (NOT_ON_TC if self.tc else frozenset()))),
            *(["-DHOOK_TC"] if self.tc else []),
            *([f"-DHASH_SEED=0x{self.hash_seed}ULL"] if self.hash_seed else []),
            *(["-DOFFLOAD"] if self.shape else []),
            *(f"-D{name}={number}" for name, number in (self.shape.definitions if self.shape else {}).items()),
        ]

    @property
    def program_type(self) -> int:
        return bpf.PROG_TYPE_SCHED_CLS if self.tc else bpf.PROG_TYPE_XDP

    @property
    def load_flags(self) -> int:
        """For the kernel."""
        return bpf.PROG_FLAG_XDP_HAS_FRAGS if "multi_buffer" in self.features and not self.tc else 0

    @property
    def attach_type(self) -> int:
        """The expected one. A next program has to have the same, and libbpf gives this one to programs for XDP."""
        return bpf.ATTACH_TYPE_XDP if "next_program" in self.features and not self.tc else 0

    def digest(self) -> str:
        """Changes with source, features, sizes, kind of hook, CPUs and hash seed, and only with them.

        The kernel's release is no part of it: the program uses the stable user space API alone, and the verifier
        judges what was compiled under another release.
        """
        digest = hashlib.sha256()
        for flag in self.flags[1:]:
            digest.update(b"\0" + flag.encode())
        for path in self.files():
            digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    def for_other_hook(self) -> Build:
        """Returns the same build for tc instead of XDP, or for XDP instead of tc."""
        return replace(self, tc=not self.tc)

    def files(self) -> list[Path]:
        files = sorted([*self.source.glob("*.c"), *self.source.glob("*.h")])
        if self.path not in files:
            raise EngineError(f"{self.path} does not exist; the role lbops.xdp.balancer installs the program's source")
        return files


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise EngineError(
            f"BCC is missing ({error}); install the distribution's package python3-bpfcc (Debian, Ubuntu) or "
            "python3-bcc (Rocky, RHEL), or apply the role lbops.xdp.bcc"
        ) from None
    if not hasattr(bcc, "BPF"):
        # A directory without __init__.py, such as a removed package leaves, has no file.
        found = bcc.__file__ or next(iter(bcc.__path__))
        raise EngineError(
            f"{found} is not iovisor's BCC; remove that package and install the distribution's "
            "python3-bpfcc (Debian, Ubuntu) or python3-bcc (Rocky, RHEL)"
        )
    return bcc


def version() -> str:
    """Returns the name and version of the compiler, which compile_program() has imported."""
    return f"BCC {getattr(sys.modules.get('bcc'), '__version__', 'of unknown version')}"


def check_headers() -> None:
    """BCC needs the running kernel's headers, or headers linked in their place."""
    release = platform.release()
    headers = Path("/lib/modules") / release / "build"
    if not headers.exists() and not Path("/sys/kernel/kheaders.tar.xz").exists():
        raise EngineError(
            f"kernel headers are missing: {headers} does not exist; run apt install linux-headers-{release} (Debian, "
            f"Ubuntu) or dnf install kernel-devel-{release} (Rocky, RHEL), or apply the role lbops.xdp.bcc, which also "
            "knows what to do for a kernel without a header package"
        )


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """The compiler writes its diagnostics to descriptor 2; they come back as the list's only item."""
    captured: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.append(file.read().decode(errors="replace").strip())


def _with_subprograms(start: int) -> bytes:
    """The instructions there up to the function that marks the end."""
    low, high = END_OF_PROGRAM & 0xFFFFFFFF, END_OF_PROGRAM >> 32
    first = bpf.INSTRUCTION.pack(bpf.LOAD_IMMEDIATE_64, 0, 0, low)
    for offset in range(0, LONGEST_PROGRAM, bpf.INSTRUCTION.size):
        if ctypes.string_at(start + offset, len(first)) == first:
            _code, _registers, _offset, found = bpf.INSTRUCTION.unpack(ctypes.string_at(start + offset + 8, 8))
            if found == high:
                return ctypes.string_at(start, offset)
    raise EngineError("its end was not found")


def compile_program(build: Build) -> bytes:
    """The program's instructions, in which maps are the numbers of maps.h. Raises EngineError."""
    problems = []
    for check in (_import_bcc, check_headers, build.files):
        try:
            check()
        except EngineError as error:
            problems.append(str(error))
    if problems:
        raise Problems(problems)
    bcc = _import_bcc()
    captured: list[str] = []
    try:
        with _captured_stderr() as captured:
            # Bytes, since BCC complains of words.
            program = bcc.BPF(text=build.path.read_bytes(), cflags=build.flags)
            code = _with_subprograms(bcc.lib.bpf_function_start(program.module, FUNCTION))
            program.cleanup()
    except Exception as error:
        raise EngineError(f"BCC could not compile {build.path}: {error}\n{''.join(captured)}") from None
    return code
