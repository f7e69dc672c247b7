#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Run the units of the collection, with their settings
version_added: 0.2.0
description:
  - Writes the settings that units read, enables and starts the units, and restarts those whose process is older than
    the engine, the unit file or the settings - whichever run changed them, one that failed half-way included.
  - Removes versions of the engine that nothing runs from any more, see the module M(lbops.xdp.engine).
author:
  - The lbops.xdp authors (@lbops)
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns the steps. Settings may hold secrets and are shown nowhere.
    support: full
options:
  state:
    description:
      - V(absent) stops and disables all units named and removes their settings and their user.
    type: str
    choices: [present, absent]
    default: present
  started:
    description: Units that run, now and after a boot.
    type: list
    elements: str
    default: []
  enabled:
    description: Units that are started at boot and left alone now.
    type: list
    elements: str
    default: []
  restarted:
    description: Units that are restarted if they are enabled, and left alone otherwise.
    type: list
    elements: str
    default: []
  replaced:
    description:
      - Interfaces that have a balancer. Earlier releases named a balancer's units after its interface; those are
        stopped and disabled, unless a balancer has that name.
    type: list
    elements: str
    default: []
  settings:
    description: Files that the units read.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file is.
        type: path
        required: true
      content:
        description: What is in it. It is never shown.
        type: str
        default: ''
      group:
        description: The group that owns it, besides root.
        type: str
        default: root
      mode:
        description: Its permissions.
        type: str
        default: '0600'
      validate:
        description:
          - A command that refuses settings that cannot be used, before anything is changed. V(%s) stands for the path
            of a file with the new content. It runs in the engine's directory.
        type: list
        elements: str
        default: []
  user:
    description: The system user that the units run as. It is added if it does not exist.
    type: str
    default: ''
  before_removal:
    description:
      - A command that runs in the engine's directory with O(state=absent), after the units are stopped and before their
        settings are removed, if there are any.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Keep the next hops right, and restore the program at boot
  lbops.xdp.units:
    started: [lbops-watch@main.service]
    enabled: [lbops-restore@main.service]
"""

RETURN = r"""
steps:
  description: What was done, or would be.
  returned: success
  type: list
  elements: str
  sample: ["lbops-watch@main.service: started, since it runs another version of the engine"]
"""

from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.host.adapter import run
from ansible_collections.lbops.xdp.plugins.module_utils.host.unit_set import Settings, UnitSet

NAMES = {"type": "list", "elements": "str", "default": []}
SETTINGS = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "default": "", "no_log": True},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0600"},
    "validate": {"type": "list", "elements": "str", "default": []},
}


def mode_of(text, path):
    try:
        return int(text, 8)
    except ValueError:
        raise EngineError(f"{path}: mode {text!r} is not an octal number such as '0600'") from None


def apply(params, check):
    settings = [
        Settings(
            path=Path(entry["path"]),
            content=entry["content"],
            group=entry["group"],
            mode=mode_of(entry["mode"], entry["path"]),
            validate=entry["validate"],
        )
        for entry in params["settings"]
    ]
    units = UnitSet(
        started=params["started"],
        enabled=params["enabled"],
        restarted=params["restarted"],
        replaced=params["replaced"],
        settings=settings,
        user=params["user"],
        before_removal=params["before_removal"],
    )
    return units.present(check) if params["state"] == "present" else units.absent(check)


def main():
    run(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            **dict.fromkeys(("started", "enabled", "restarted", "replaced"), NAMES),
            "settings": {"type": "list", "elements": "dict", "default": [], "options": SETTINGS},
            "user": {"type": "str", "default": ""},
            "before_removal": {"type": "list", "elements": "str", "default": []},
        },
        apply,
    )


if __name__ == "__main__":
    main()
