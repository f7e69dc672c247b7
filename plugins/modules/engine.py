#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: engine
short_description: Install the engine of the collection on a host
version_added: 0.2.0
description:
  - Installs the programs and the source of the BPF program that belong to this version of the collection into
    C(/usr/lib/lbops/<digest>), makes the symbolic link C(/usr/lib/lbops/current) point there, and installs the unit
    files.
  - The new version is complete and synced to the disk before the link changes in one step, so a power cut leaves the
    old version or the new one.
  - An earlier version stays until no process runs from it, see the module M(lbops.xdp.units).
  - The archive with the files is sent only if something differs.
author:
  - The lbops.xdp authors (@lbops)
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns which files differ.
    support: full
options:
  state:
    description:
      - V(absent) removes the engine, the unit files and C(lbops-top), unless a unit of the collection is still enabled
        or runs.
    type: str
    choices: [present, absent]
    default: present
  interfaces:
    description: Network interfaces that have to exist before anything is installed.
    type: list
    elements: str
    default: []
  bpf_filesystem:
    description: Mount the BPF file system at C(/sys/fs/bpf), now and at boot, if it is not mounted.
    type: bool
    default: false
  engine:
    description: Checksums of the files below the version's directory. The controller fills this in.
    type: dict
    default: {}
  system:
    description: Checksums of unit files and commands. The controller fills this in.
    type: dict
    default: {}
  mount_unit:
    description: The unit that mounts the BPF file system. The controller fills this in.
    type: str
    default: ''
  archive:
    description: The files. The controller fills this in if the host needs them.
    type: str
"""

EXAMPLES = r"""
- name: Install the engine
  lbops.xdp.engine:
    interfaces: [eth0]
    bpf_filesystem: true

- name: Remove it if nothing uses it any more
  lbops.xdp.engine:
    state: absent
"""

RETURN = r"""
digest:
  description: The name of the version's directory.
  returned: with O(state=present)
  type: str
  sample: 5f2c0f6d7be0a2c1
first:
  description: Whether there was no version before.
  returned: with O(state=present)
  type: bool
missing:
  description: Python modules from the distribution that programs of the collection import and the host does not have.
  returned: with O(state=present)
  type: list
  elements: str
  sample: [prometheus_client]
used_by:
  description: The units because of which nothing was removed.
  returned: with O(state=absent)
  type: list
  elements: str
"""

import base64

from ansible_collections.lbops.xdp.plugins.module_utils.host.adapter import run
from ansible_collections.lbops.xdp.plugins.module_utils.host.installation import Version
from ansible_collections.lbops.xdp.plugins.module_utils.host.setup import Setup


def apply(params, check):
    setup = Setup(Version(params["engine"], params["system"]), params["interfaces"], params["bpf_filesystem"])
    if params["state"] == "absent":
        return setup.absent(check)
    archive = params["archive"]
    return setup.present(check, base64.b64decode(archive) if archive else None, params["mount_unit"])


def main():
    run(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "bpf_filesystem": {"type": "bool", "default": False},
            "engine": {"type": "dict", "default": {}},
            "system": {"type": "dict", "default": {}},
            "mount_unit": {"type": "str", "default": ""},
            "archive": {"type": "str"},
        },
        apply,
    )


if __name__ == "__main__":
    main()
