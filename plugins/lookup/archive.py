# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles install, as tar archives."""

from __future__ import annotations

DOCUMENTATION = """
name: archive
author: The lbops.xdp authors (@lbops)
version_added: 0.2.0
short_description: Tar archives of what the roles of this collection install on a host
description:
  - The paths of tar archives to unpack at the root of a host, on the controller, for as long as the run lasts.
  - The same files give the same bytes, so that unpacking an unchanged archive changes nothing.
  - Of one that differs every file is written anew, so no two archives have a file in common.
options:
  _terms:
    description: V(engine), or a role whose own program and units are wanted.
    type: list
    elements: str
    choices: [engine, balancer, exporter, health, nic_tuning]
    required: true
"""

EXAMPLES = """
- name: Install the engine
  ansible.builtin.unarchive:
    src: "{{ lookup('lbops.xdp.archive', 'engine') }}"
    dest: /
"""

RETURN = """
_raw:
  description: The paths, in the order of the terms.
  type: list
  elements: path
"""

import os
import tarfile
from pathlib import Path

from ansible import constants
from ansible.plugins.lookup import LookupBase

COLLECTION = Path(__file__).resolve().parents[2]
# Directory in the collection, directory on the host, which files, what belongs to Ansible only.
ENGINE = ("plugins/module_utils", "usr/lib/lbops/engine", "**/*.py", {"adapter.py"})
SOURCE = ("files/bpf", "usr/lib/lbops/bpf", "*.[ch]", set())
COMMANDS = ("roles/balancer/files", "usr/sbin", "lbops-top", set())
TOP = ("roles/balancer/files/lbops_top", "usr/lib/lbops/lbops_top", "*.py", set())
EXPORTER = ("roles/exporter/files/lbops_exporter", "usr/lib/lbops/lbops_exporter", "*.py", set())
PAGE = ("roles/exporter/files/lbops_exporter/page", "usr/lib/lbops/lbops_exporter/page", "*.*", set())
HEALTH = ("roles/health/files", "usr/lib/lbops/health", "*.py", set())


def _units(role: str) -> tuple[str, str, str, set[str]]:
    return f"roles/{role}/files", "etc/systemd/system", "lbops-*.service", set()


CONTENT = {
    "engine": [ENGINE],
    "balancer": [SOURCE, TOP, _units("balancer"), COMMANDS],
    "exporter": [EXPORTER, PAGE],
    "health": [HEALTH, _units("health")],
    "nic_tuning": [_units("nic_tuning")],
}


def pack(part: str, directory: Path, collection: Path = COLLECTION) -> Path:
    """Forks may pack the same archive into the same directory at once: each sees a whole one."""
    archive = directory / f"lbops-{part}.tar"
    making = archive.with_suffix(f".{os.getpid()}")
    with tarfile.open(making, "w", format=tarfile.USTAR_FORMAT) as tar:
        for source, target, pattern, left_out in CONTENT[part]:
            for path in sorted((collection / source).glob(pattern)):
                if path.name not in left_out:
                    tar.add(path, f"{target}/{path.relative_to(collection / source)}", filter=_plain)
    return making.replace(archive)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.mtime = 0o755 if entry.name.startswith("usr/sbin/") else 0o644, 0
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        return [str(pack(term, Path(constants.DEFAULT_LOCAL_TMP))) for term in terms]
