# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many modules in one run of ansible-playbook, which takes most of its time to start."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integration.conftest import Lab


@dataclass(frozen=True)
class Task:
    """One module on the balancer; `keywords` are those of an Ansible task."""

    module: str
    arguments: dict[str, Any]
    check: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


def shell(command: str) -> Task:
    return Task("ansible.builtin.shell", {"cmd": command})


def run(lab: Lab, tasks: list[Task], host: str = "lb1") -> list[dict[str, Any]]:
    """Their results; a module that fails does not stop those after it."""
    directory = lab.inventory.with_name("batch")
    directory.mkdir(exist_ok=True)
    results = directory / "results.json"
    results.unlink(missing_ok=True)
    steps: list[dict[str, Any]] = [
        {
            "name": f"{number} {task.module}",
            task.module if "." in task.module else f"lbops.xdp.{task.module}": task.arguments,
            "check_mode": task.check,
            "diff": True,
            "register": f"result_{number}",
            "ignore_errors": True,
            **task.keywords,
        }
        for number, task in enumerate(tasks)
    ]
    names = ", ".join(f"result_{number}" for number in range(len(tasks)))
    steps.append(
        {
            "name": "Bring the results home",
            "ansible.builtin.copy": {"content": f"{{{{ [{names}] | to_json }}}}", "dest": str(results)},
            "delegate_to": "localhost",
        }
    )
    playbook = directory / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": host, "gather_facts": False, "tasks": steps}]))
    finished = lab.ansible("ansible-playbook", str(playbook))
    assert finished.returncode == 0 and results.exists(), finished.stdout + finished.stderr
    return json.loads(results.read_text())
