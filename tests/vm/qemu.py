# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU from Debian packages, beside the machine's own, and whether it can use KVM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.vm.trees import cached, digest, mmdebstrap

# Debian 12's QEMU has no igb.
SUITE = "trixie"
PACKAGES = ("qemu-system-x86", "seabios")
PROBE_WORD = "lbops.probe"
PROBE_ANSWER = "lbops: the kernel runs"
PROBE_SECONDS = 15
# Moving strings is emulated byte by byte, and kernel and libraries do it for pages where a CPU says that it is fast; a
# fifth level of page tables is one more to walk.
EMULATION = ("-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off,la57=off")
KVM = ("-accel", "kvm", "-cpu", "host")


def _build(directory: Path) -> None:
    # Unpacked, not installed: neither the machine's own QEMU nor its libraries change.
    options = ("--variant=extract", f"--include={','.join(PACKAGES)}", "--dpkgopt=path-exclude=/usr/share/doc/*")
    mmdebstrap(SUITE, directory, *options)


def ensure() -> Path:
    """The tree with QEMU and its libraries, from the cache or built."""
    return cached("qemu", digest([], SUITE, *PACKAGES), _build)


def command() -> list[str]:
    """How to start QEMU, with the libraries it was built for."""
    tree = ensure() / "usr"
    libraries = tree / "lib" / "x86_64-linux-gnu"
    loader = [str(tree / "lib64" / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    firmware = ["-L", str(tree / "share" / "qemu"), "-L", str(tree / "share" / "seabios")]
    return [*loader, str(tree / "bin" / "qemu-system-x86_64"), *firmware]


def environment() -> dict[str, str]:
    """Beside the machine's own QEMU, whose modules do not fit."""
    return {"QEMU_MODULE_DIR": str(ensure() / "usr" / "lib" / "x86_64-linux-gnu" / "qemu")}


def accelerator(image: Path) -> tuple[str, ...]:
    """KVM if a kernel gets to its first process under it: it does not everywhere where there is /dev/kvm."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATION
    probe = [*command(), *KVM, "-machine", "q35", "-m", "512M", "-nodefaults", "-no-reboot", "-display", "none"]
    probe += ["-serial", "stdio", "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")]
    probe += ["-append", f"console=ttyS0 quiet panic=-1 {PROBE_WORD}"]
    try:
        result = subprocess.run(
            probe,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=PROBE_SECONDS,
            env={**os.environ, **environment()},
        )
    except subprocess.TimeoutExpired:
        return EMULATION
    return KVM if PROBE_ANSWER.encode() in result.stdout else EMULATION
