# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that tunes a network device, and notice when tasks of one run contradict each other.

What was asked for is remembered in the run's own temporary directory on the controller, which goes when the run ends.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

# They say how to go about it, not what the device is to be.
RULES = frozenset(("interface", "on_exceed", "on_unsupported"))


def contradictions(asked: dict[str, Any], earlier: list[dict[str, Any]]) -> list[str]:
    """A warning for each option that an earlier task wanted to be something else, unless this one takes that back."""
    found = []
    for option, value in asked.items():
        if option in RULES or value is None:
            continue
        for record in reversed(earlier):
            before = record["asked"].get(option)
            if before is None or record["asked"].get("interface") != asked.get("interface"):
                continue
            rollback = [arguments.get(option) for arguments in record["rollback"]]
            if str(before) != str(value) and str(value) not in map(str, rollback):
                found.append(
                    f"{asked.get('interface')}: {option}={value} contradicts {option}={before} of the earlier task "
                    f"{record['task']!r}; the later one wins, and both change the device in every run"
                )
            break
    return found


class ActionModule(ActionBase):
    _supports_async = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        # Running the module adds arguments of Ansible's own.
        asked = dict(self._task.args)
        result = super().run(tmp, task_vars)
        result.update(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
        name = hashlib.sha256(f"{host} {self._task.resolved_action}".encode()).hexdigest()
        path = Path(constants.DEFAULT_LOCAL_TMP) / f"lbops-{name}.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        warnings = contradictions(asked, earlier)
        if warnings:
            result["warnings"] = [*result.get("warnings", []), *warnings]
        earlier.append({"task": self._task.get_name(), "asked": asked, "rollback": result.get("rollback", [])})
        path.write_text(json.dumps(earlier, default=str), encoding="utf-8")
        return result
