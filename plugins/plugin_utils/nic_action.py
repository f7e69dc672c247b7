# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that tunes a network device, and notice when tasks of one run contradict each other.

What was asked for is remembered in the run's own temporary directory on the controller, which goes when the run ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

# They say how to go about it, not what the device is to be.
RULES = frozenset(("interface", "on_exceed", "on_unsupported"))


WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def normal(value: Any) -> Any:
    """Whatever YAML, a template or a result makes of the same value."""
    if isinstance(value, str):
        word = value.strip().lower()
        return int(word) if word.isdigit() else WORDS.get(word, word)
    if isinstance(value, dict):
        return {key: normal(entry) for key, entry in value.items()}
    return [normal(entry) for entry in value] if isinstance(value, (list, tuple)) else value


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
            rollback = [normal(arguments.get(option)) for arguments in record["rollback"]]
            if normal(before) != normal(value) and normal(value) not in rollback:
                found.append(
                    f"{asked.get('interface')}: {option}={value} contradicts {option}={before} of the earlier task "
                    f"{record['task']!r}; the later one wins, and both change the device in every run"
                )
            break
    return found


def remember(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those before it. Hosts are worked on at the same time, and a killed run must not leave half a file."""
    with path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        new = path.with_suffix(".new")
        new.write_text(json.dumps([*earlier, record], default=str), encoding="utf-8")
        new.replace(path)
    return earlier


class ActionModule(ActionBase):
    _supports_async = True

    def asked(self, arguments: dict[str, Any], result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Modules, and what they are asked for."""
        yield self._task.resolved_action, arguments

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        # Running the module adds arguments of Ansible's own.
        arguments = dict(self._task.args)
        result = super().run(tmp, task_vars)
        result.update(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
        warnings = []
        for module, asked in self.asked(arguments, result):
            name = hashlib.sha256(f"{host} {module}".encode()).hexdigest()
            path = Path(constants.DEFAULT_LOCAL_TMP) / f"lbops-{name}.json"
            record = {"task": self._task.get_name(), "asked": asked, "rollback": result.get("rollback", [])}
            try:
                warnings += contradictions(asked, remember(path, record))
            except (OSError, ValueError) as error:
                # The device is changed by now; that is not to be lost for the sake of a warning.
                warnings.append(f"whether this contradicts an earlier task is not known: {error}")
        if warnings:
            result["warnings"] = [*result.get("warnings", []), *warnings]
        return result
