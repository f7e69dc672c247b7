# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image a guest boots from: python -m tests.vm.image bookworm builds it or finds it, and prints where it is.

A directory with the kernel, an initrd of our own that loads the few modules the disk needs, and the disk: an ext4 file
system of Debian packages. It holds nothing secret; what tells guests apart is laid over it as it boots.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.common import HERE, VmError, run
from tests.vm.trees import cached, digest, mmdebstrap

SUITES = ("bookworm", "trixie")
# A second kernel, which the guest has the means to start, and no headers of it.
OTHER_KERNELS = {"bookworm": "linux-image-6.12-amd64"}
GUEST = HERE / "guest"
DISK_SIZE = "4G"
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")


def packages(suite: str) -> list[str]:
    lines = (GUEST / "packages.txt").read_text(encoding="ascii").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    return found + ([OTHER_KERNELS[suite]] if suite in OTHER_KERNELS else [])


def _kernel_releases(tree: Path) -> tuple[str, list[str]]:
    """The one that the headers are for, and the others."""
    (headers,) = (tree / "usr" / "src").glob("linux-headers-*-amd64")
    release = headers.name.removeprefix("linux-headers-")
    found = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    return release, [name for name in found if name != release]


def _module_files(tree: Path, release: str) -> list[Path]:
    """The modules the initrd needs, in the order in which they are to be loaded."""
    found: list[Path] = []
    for module in INITRD_MODULES:
        listed = run("modprobe", "--dirname", tree, "--set-version", release, "--show-depends", module).stdout
        for line in listed.splitlines():
            kind, _space, name = line.partition(" ")
            if kind == "insmod" and Path(name.strip()) not in found:
                found.append(Path(name.strip()))
    return found


def pack(tree: Path, archive: Path) -> None:
    """Write a tree as an archive that the kernel unpacks; several may follow one another in one file."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as file:
        command = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
        subprocess.run(command, cwd=tree, input=names.encode(), stdout=file, check=True)


def _write_initrd(tree: Path, release: str, scratch: Path, initrd: Path) -> None:
    for directory in ("bin", "dev", "modules", "proc", "root", "sys"):
        (scratch / directory).mkdir(parents=True)
    shutil.copy(tree / "bin" / "busybox", scratch / "bin")
    (scratch / "bin" / "sh").symlink_to("busybox")
    shutil.copy(GUEST / "init", scratch)
    names = []
    for path in _module_files(tree, release):
        content = path.read_bytes()
        names.append(path.name.removesuffix(".xz"))
        # busybox does not unpack modules.
        (scratch / "modules" / names[-1]).write_bytes(lzma.decompress(content) if path.suffix == ".xz" else content)
    (scratch / "modules" / "order").write_text("\n".join(names) + "\n", encoding="ascii")
    pack(scratch, initrd)
    shutil.rmtree(scratch)


def _build(suite: str, directory: Path) -> None:
    tree = directory / "tree"
    mmdebstrap(
        suite,
        tree,
        "--variant=minbase",
        "--hook-dir=/usr/share/mmdebstrap/hooks/eatmydata",
        f"--include={','.join(packages(suite))}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--customize-hook={GUEST / "netdevsim"} "$1"',
        f'--customize-hook={GUEST / "setup"} "$1"',
        f'--customize-hook=cp -rT --no-preserve=ownership {GUEST / "root"} "$1"',
        # The role finds packages installed without asking a mirror.
        "--skip=cleanup/apt/lists",
    )
    release, others = _kernel_releases(tree)
    shutil.copy(tree / "boot" / f"vmlinuz-{release}", directory / "vmlinuz")
    _write_initrd(tree, release, directory / "initrd.tree", directory / "initrd")
    for other in others:
        _write_initrd(tree, other, directory / "initrd.tree", tree / "boot" / f"initrd.img-{other}")
    # A file system for reading by many guests at once: no journal to replay.
    options = ("-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "root_owner=0:0", "-m", "0")
    run("mke2fs", *options, "-d", tree, directory / "disk", DISK_SIZE)
    shutil.rmtree(tree)


def ensure(suite: str) -> Path:
    """The directory with vmlinuz, initrd and disk, from the cache or built."""
    if suite not in SUITES:
        raise VmError(f"no image of {suite!r}; there are {', '.join(SUITES)}")
    inputs = [path for path in GUEST.rglob("*") if path.is_file()]
    key = digest([*inputs, Path(__file__)], suite)
    return cached(f"image-{suite}", key, lambda directory: _build(suite, directory))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    try:
        print(ensure(parser.parse_args().suite))
    except VmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
