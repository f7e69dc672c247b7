# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many modules in one run of ansible-playbook, which takes most of its time to start."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Hosts(Protocol):
    """Where modules run; `scratch` is a directory for files of this."""

    scratch: Path

    def ansible(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class Task:
    """One module; its arguments may be a template, and `keywords` are those of an Ansible task."""

    module: str
    arguments: dict[str, Any] | str
    check: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


def shell(command: str) -> Task:
    return Task("ansible.builtin.shell", {"cmd": command})


def run_on(hosts: Hosts, names: list[str], tasks: list[Task]) -> dict[str, list[dict[str, Any]]]:
    """Their results on each of the hosts, which work at the same time; a module that fails does not stop those after
    it. A task finds the result of the one with number n as result_n."""
    directory = hosts.scratch / "batch"
    directory.mkdir(parents=True, exist_ok=True)
    results = {name: directory / f"{name}.json" for name in names}
    for path in results.values():
        path.unlink(missing_ok=True)
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
    found = ", ".join(f"result_{number}" for number in range(len(tasks)))
    steps.append(
        {
            "name": "Bring the results home",
            "ansible.builtin.copy": {
                "content": f"{{{{ [{found}] | to_json }}}}",
                "dest": f"{directory}/{{{{ inventory_hostname }}}}.json",
            },
            "delegate_to": "localhost",
        }
    )
    playbook = directory / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": ",".join(names), "gather_facts": False, "tasks": steps}]))
    finished = hosts.ansible("ansible-playbook", str(playbook))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return {name: json.loads(path.read_text()) for name, path in results.items()}


def run(hosts: Hosts, tasks: list[Task], host: str = "lb1") -> list[dict[str, Any]]:
    """The same on one host."""
    return run_on(hosts, [host], tasks)[host]
