# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents is what it does by default."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.lbops.xdp.plugins.module_utils.layout import Sizes

ROLES = Path(__file__).resolve().parents[2] / "roles"


def read(path: Path) -> dict:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_argument_specs_equal_defaults(role):
    options = read(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    documented = {name: option["default"] for name, option in options.items()}
    assert documented == read(ROLES / role / "defaults" / "main.yml")


def test_sizes_are_those_of_the_engine():
    defaults = read(ROLES / "balancer" / "defaults" / "main.yml")
    for name, value in vars(Sizes()).items():
        assert defaults[f"balancer_{name}"] == value


@pytest.mark.parametrize(
    ("before", "after", "retuned"),
    [
        ({"attached": False}, {"attached": True, "hook": "native"}, True),
        ({"attached": False}, {"attached": True}, True),
        ({"attached": True, "hook": "tc"}, {"attached": True, "hook": "native"}, True),
        ({"attached": True, "hook": "native"}, {"attached": True, "hook": "native"}, False),
        ({"attached": True, "hook": "native"}, {"attached": True, "hook": "tc"}, False),
    ],
)
def test_a_device_is_tuned_again_when_its_queues_may_have_been_made_anew(before: dict, after: dict, retuned: bool):
    tasks = yaml.safe_load((ROLES / "balancer" / "tasks" / "program.yml").read_text())
    [look] = [task for task in tasks if task.get("register") == "balancer_tuned"]
    environment = jinja2.Environment()
    environment.tests["changed"] = lambda result: result["changed"]
    condition = environment.compile_expression(look["when"])
    assert condition(balancer_program={"changed": True, "before": before, "after": after}) is retuned
    assert not condition(balancer_program={"changed": False, "before": before, "after": after})


@pytest.mark.parametrize("path", sorted(ROLES.glob("*/*/*.service*")), ids=lambda path: path.name)
def test_a_unit_that_hangs_holds_up_neither_boot_nor_shutdown(path: Path):
    """systemd gives a oneshot service forever to start, and a service 90 seconds to stop."""
    text = path.read_text()
    limit = "TimeoutStartSec" if "\nType=oneshot\n" in text else "TimeoutStopSec"
    assert f"\n{limit}=" in text


UNITS = {"balancer": "lbops-watch@eth0", "health": "lbops-health@eth0", "exporter": "lbops-exporter"}


@pytest.mark.parametrize("role", UNITS)
@pytest.mark.parametrize("newer", ["", "usr/lib/lbops/engine/state.py", "of the role", "unit"])
@pytest.mark.parametrize("state", ["true", "false"], ids=["runs", "does not run"])
def test_a_service_is_restarted_for_what_is_newer_than_its_process(role, newer, state, tmp_path):
    """Whichever run has changed it: what an archive says of times is no help, they are all the same."""
    environment = jinja2.Environment()
    environment.filters["quote"] = shlex.quote
    tasks = yaml.safe_load((ROLES / role / "tasks" / "present.yml").read_text())
    [looking] = [task["vars"] for task in tasks if "newer.yml" in str(task)]
    names = {"balancer_interface": "eth0", "health_interface": "eth0"}
    unit, *paths = (
        environment.from_string(text).render(names)
        for text in (looking["balancer_looked_at"], *looking["balancer_made_of"])
    )
    assert unit == f"{UNITS[role]}.service"
    template = f"etc/systemd/system/{unit.replace('eth0', '')}"
    files = {
        "balancer": [],
        "health": ["usr/lib/lbops/health/log.py", "etc/lbops/health-eth0.json"],
        "exporter": ["usr/lib/lbops/lbops_exporter/page/page.js", "etc/lbops/exporter-web.yml"],
    }[role]
    for name in ("usr/lib/lbops/engine/state.py", template, *files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    started = subprocess.run(["date", "-u", "+%a %F %T.%6N UTC"], capture_output=True, text=True, check=True).stdout
    script = f"case $* in is-active*' {unit}') {state};; show*' {unit}') echo '{started}';; esac"
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "systemctl").chmod(0o755)
    time.sleep(0.02)
    for name in {"of the role": files, "unit": [template]}.get(newer, [newer] if newer else []):
        (tmp_path / name).chmod(0o600)
    [look] = yaml.safe_load((ROLES / "balancer/tasks/newer.yml").read_text())
    command = environment.from_string(look["ansible.builtin.shell"]["cmd"]).render(
        balancer_looked_at=unit, balancer_made_of=[f"{tmp_path}{path}" for path in paths]
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env={"PATH": path})
    due = state == "false" or (newer if newer != "of the role" else files)
    assert bool(found.stdout) == bool(due), found.stdout


def test_settings_of_checks_are_shown_nowhere():
    [main] = [task for task in yaml.safe_load((ROLES / "health/tasks/main.yml").read_text()) if "set_fact" in str(task)]
    [fact] = main["ansible.builtin.set_fact"].values()
    assert "length > 0" in fact
    tasks = yaml.safe_load((ROLES / "health/tasks/present.yml").read_text())
    [write] = [task for task in tasks if task.get("register") == "health_settings"]
    assert write["no_log"] is True and write["diff"] is False
