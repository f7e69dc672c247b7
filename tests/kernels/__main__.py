# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load every kind of program on other kernels, in virtual machines: make test-kernels.

The kernels are Debian's, unpacked and not installed. BCC compiles here: the program uses nothing of the kernel but its
uapi, so its bytecode is the same everywhere, but for the number of CPUs.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, map_specs, offload_maps
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, btf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from ansible_collections.lbops.xdp.plugins.module_utils.tables.offload import Shape

from tests.packet import fuzz
from tests.support.compile_once import SOURCE, compile_program
from tests.support.program import ALL_FEATURES
from tests.vm import image
from tests.vm.qemu import EMULATION, KVM

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "cache" / "kernels"
PACKAGES = re.compile(r"linux-image-(\d+\.\d+)[-.].*cloud-amd64")
# The oldest one that the collection supports is 5.15.
LEAST = (5, 15)
TIMEOUT = 600  # seconds, under emulation
KVM_TIMEOUT = 60
FRAMES = 60
INIT = "/init"
# Not the packet tests' small ones: a kernel may refuse a value of some megabytes.
SIZES = layout.Sizes()
MANY_CPUS = 512
SEED = "9f86d081884c7d65"


def kernels() -> dict[str, str]:
    """The newest package of each release, by release."""
    # The lists of packages may be missing, or older than the mirror.
    subprocess.run(["apt-get", "update", "-q"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    listed = subprocess.run(
        ["apt-cache", "pkgnames", "linux-image-"], check=True, capture_output=True, text=True
    ).stdout.split()
    found: dict[str, str] = {}
    for name in sorted(listed, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]):
        match = PACKAGES.fullmatch(name)
        if match and tuple(map(int, match[1].split("."))) >= LEAST:
            found[match[1]] = name
    return found


def kernel_image(package: str) -> Path:
    """The kernel's image, downloaded once."""
    directory = CACHE / package
    if not directory.exists():
        with tempfile.TemporaryDirectory() as scratch:
            # By default apt downloads as a user who may not write here.
            download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
            subprocess.run(download, cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, Path(scratch) / "tree"], check=True)
            (found,) = (Path(scratch) / "tree" / "boot").glob("vmlinuz-*")
            directory.mkdir(parents=True)
            shutil.copy(found, directory / "vmlinuz")
    return directory / "vmlinuz"


def builds() -> dict[str, compiler.Build]:
    """All features with all checks, each alone, and what tc takes of them; the largest for many CPUs, too."""
    every = ALL_FEATURES

    def build(features: frozenset[str], **options: Any) -> compiler.Build:
        return compiler.Build(SOURCE, features, SIZES, **options)

    on_tc = every - compiler.NOT_ON_TC
    found = {"all": build(every), "all-tc": build(on_tc, tc=True), "none": build(frozenset())}
    found |= {"all-seed": build(every, hash_seed=SEED), "all-tc-seed": build(on_tc, tc=True, hash_seed=SEED)}
    found |= {f"all-{MANY_CPUS}-cpus": build(every, cpus=MANY_CPUS)}
    found |= {f"all-tc-{MANY_CPUS}-cpus": build(on_tc, tc=True, cpus=MANY_CPUS)}
    for name, whole in (("offload", False), ("offload-whole", True)):
        found[name] = offload_maps.build(SOURCE, Shape(256, 16, 128, 256, whole), SEED)
    return found | {name: build(frozenset((name,))) for name in sorted(compiler.FEATURES)}


def write_tree(tree: Path) -> None:
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-o", tree / "init", HERE / "init.c"], check=True)
    lines = []
    for spec in map_specs.map_specs(SIZES):
        inner = (spec.inner_entries, spec.inner_flags) if spec.holds_maps else (0, 0)
        numbers = (spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, *inner)
        lines.append(" ".join(map(str, numbers)))
    programs = []
    for name, build in builds().items():
        code = compile_program(build)
        if build.shape:
            # Its maps are behind the others.
            arrays = offload_maps.arrays(build.shape).values()
            code = bpf.relocate(code, list(range(len(lines), len(lines) + len(arrays))))
            lines += [f"{bpf.MAP_TYPE_ARRAY} 4 {size} {entries} 0 0 0" for size, entries in arrays]
        (tree / f"{name}.bpf").write_bytes(code)
        subprograms = btf.subprograms(code)
        if subprograms:
            types, functions = btf.describe(subprograms)
            (tree / f"{name}.bpf.btf").write_bytes(types)
            (tree / f"{name}.bpf.functions").write_bytes(functions)
        programs.append(f"{name} /{name}.bpf {build.program_type} {build.load_flags}")
    (tree / "maps").write_text("\n".join(lines) + "\n", encoding="ascii")
    (tree / "programs").write_text("\n".join(programs) + "\n", encoding="ascii")
    source = fuzz.Frames(1)
    frames = [source.good()[:1500].ljust(60, b"\0") for _frame in range(FRAMES)]
    (tree / "frames").write_bytes(b"".join(struct.pack("<H", len(frame)) + frame for frame in frames))
    (tree / "proc").mkdir()


def boot(kernel: Path, archive: Path) -> str:
    """What the machine prints until it switches itself off."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-m", "2G", "-smp", str(bpf.possible_cpus()), "-kernel", str(kernel), "-initrd", str(archive)]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    # KVM does not run everywhere where it is there.
    for accelerator, timeout in ((KVM, KVM_TIMEOUT), (EMULATION, TIMEOUT)):
        try:
            result = subprocess.run(
                [*command, *accelerator], check=False, capture_output=True, text=True, timeout=timeout, errors="replace"
            )
        except subprocess.TimeoutExpired:
            continue
        if "DONE" in result.stdout:
            break
    else:
        return "the machine did not come to its end"
    return result.stdout


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        tree, archive = Path(scratch) / "tree", Path(scratch) / "initramfs"
        tree.mkdir()
        write_tree(tree)
        image.pack(tree, archive)
        verdicts: dict[str, str] = {}
        found = kernels()
        if not found:
            print(f"apt knows no package {PACKAGES.pattern} of release {'.'.join(map(str, LEAST))} or later")
            failed = True
        for release, package in found.items():
            output = boot(kernel_image(package), archive)
            rows = re.findall(r"^PROGRAM (\S+) loaded (\d+) (\d+) (\S*)\r?$", output, re.MULTILINE)
            print(f"=== {release} ({package})")
            for name, instructions, milliseconds, frames in rows:
                print(f"{name:<16} loaded, {int(instructions):>8} instructions verified in {int(milliseconds):>6} ms")
                # Kernels agree on what a program does.
                if verdicts.setdefault(name, frames) != frames:
                    print(f"{name:<16} frames {frames}, elsewhere {verdicts[name]}")
                    failed = True
            missing = builds().keys() - {row[0] for row in rows}
            if missing or "DONE" not in output:
                print(f"not loaded: {', '.join(sorted(missing))}\n{output[-6000:]}")
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
