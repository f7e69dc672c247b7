# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the host the checksums of what is to be installed, and send the archive only if it asks for it."""

from __future__ import annotations

import base64
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.lbops.xdp.plugins.plugin_utils import archive

# Checksums of every file are of no use to anybody who reads the result.
INTERNAL = ("archive_needed", "invocation")


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        engine, system = archive.manifests()
        mount_unit = (archive.COLLECTION / "roles/engine/files/sys-fs-bpf.mount").read_text(encoding="utf-8")
        arguments = {**self._task.args, "engine": engine, "system": system, "mount_unit": mount_unit}
        found = self._execute_module(module_args=arguments, task_vars=task_vars)
        if found.get("archive_needed"):
            arguments["archive"] = base64.b64encode(archive.pack()).decode()
            found = self._execute_module(module_args=arguments, task_vars=task_vars)
        result.update({key: value for key, value in found.items() if key not in INTERNAL})
        return result
