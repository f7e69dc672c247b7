# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack what a role installs into a tar archive to unpack at the root: pack.py <collection> <archive> <role>.

The same files give the same bytes, so that unpacking an unchanged archive changes nothing.
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


def content(role: str) -> list:
    if role == "exporter":
        # It runs beside one of the others.
        return [EXPORTER, PAGE]
    units = (f"roles/{role}/files", "etc/systemd/system", "lbops-*.service", set())
    if role == "balancer":
        return [ENGINE, SOURCE, units, COMMANDS]
    program = (f"roles/{role}/files", f"usr/lib/lbops/{role}", "*.py", set())
    return [ENGINE, program, units]


def pack(collection: Path, archive: Path, role: str) -> None:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for source, target, pattern, left_out in content(role):
            for path in sorted((collection / source).glob(pattern)):
                if path.name not in left_out:
                    tar.add(path, f"{target}/{path.name}", filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.mtime = 0o755 if entry.name.startswith("usr/sbin/") else 0o644, 0
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
