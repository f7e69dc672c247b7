# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the engine, and what a role has besides, into tar archives to unpack at the root.

pack.py <collection> <directory> <role> makes engine.tar and <role>.tar. The same files give the same bytes, so that
unpacking an unchanged archive changes nothing; of one that differs every file is written anew, which is why roles share
none but the engine's.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

# Directory in the collection, directory on the host, which files, what belongs to Ansible only.
ENGINE = ("plugins/module_utils", "usr/lib/lbops/engine", "*.py", {"adapter.py", "nic_adapter.py"})
SOURCE = ("files/bpf", "usr/lib/lbops/bpf", "*.[ch]", set())
COMMANDS = ("roles/balancer/files", "usr/sbin", "lbops-top", set())
EXPORTER = ("roles/exporter/files/lbops_exporter", "usr/lib/lbops/lbops_exporter", "*.py", set())
PAGE = ("roles/exporter/files/lbops_exporter/page", "usr/lib/lbops/lbops_exporter/page", "*.*", set())


def content(part: str) -> list:
    units = (f"roles/{part}/files", "etc/systemd/system", "lbops-*.service", set())
    program = (f"roles/{part}/files", f"usr/lib/lbops/{part}", "*.py", set())
    return {
        "engine": [ENGINE],
        "balancer": [SOURCE, units, COMMANDS],
        "exporter": [EXPORTER, PAGE],
    }.get(part, [program, units])


def pack(collection: Path, archive: Path, part: str) -> None:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for source, target, pattern, left_out in content(part):
            for path in sorted((collection / source).glob(pattern)):
                if path.name not in left_out:
                    tar.add(path, f"{target}/{path.name}", filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.mtime = 0o755 if entry.name.startswith("usr/sbin/") else 0o644, 0
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


if __name__ == "__main__":
    for name in ("engine", sys.argv[3]):
        pack(Path(sys.argv[1]), Path(sys.argv[2]) / f"{name}.tar", name)
