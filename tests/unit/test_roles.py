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


@pytest.mark.parametrize("role, installed", [("health", "health"), ("exporter", "lbops_exporter")])
@pytest.mark.parametrize("newer", ["engine/state.py", "{installed}/log.py", "", "settings"])
def test_a_service_is_restarted_for_what_is_newer_than_its_process(role, installed, newer, tmp_path):
    """Whichever run has changed it: what an archive says of times is no help, they are all the same."""
    tasks = yaml.safe_load((ROLES / role / "tasks" / "present.yml").read_text())
    [look] = [task for task in tasks if task.get("register") == f"{role}_newer"]
    settings = {"health": "etc/lbops/health-eth0.json", "exporter": "etc/lbops/exporter-web.yml"}[role]
    unit = {"health": "lbops-health@.service", "exporter": "lbops-exporter.service"}[role]
    files = [f"usr/lib/lbops/{name}" for name in ("engine/state.py", f"{installed}/log.py")]
    for name in (*files, settings, f"etc/systemd/system/{unit}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    started = subprocess.run(["date", "-u", "+%a %F %T.%6N UTC"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "systemctl").write_text(
        f"#!/bin/sh\ncase $* in *@eth0.service|*-exporter.service) echo '{started}';; esac\n"
    )
    (tmp_path / "systemctl").chmod(0o755)
    time.sleep(0.02)
    if newer:
        name = settings if newer == "settings" else "usr/lib/lbops/" + newer.format(installed=installed)
        (tmp_path / name).chmod(0o600)
    environment = jinja2.Environment()
    environment.filters["quote"] = shlex.quote
    command = environment.from_string(look["ansible.builtin.shell"]["cmd"]).render(health_interface="eth0")
    command = command.replace(" /usr", f" {tmp_path}/usr").replace(" /etc", f" {tmp_path}/etc")
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env={"PATH": path})
    assert bool(found.stdout) == bool(newer)


def test_settings_of_checks_are_shown_nowhere():
    [main] = [task for task in yaml.safe_load((ROLES / "health/tasks/main.yml").read_text()) if "set_fact" in str(task)]
    [fact] = main["ansible.builtin.set_fact"].values()
    assert "length > 0" in fact
    tasks = yaml.safe_load((ROLES / "health/tasks/present.yml").read_text())
    [write] = [task for task in tasks if task.get("register") == "health_settings"]
    assert write["no_log"] is True and write["diff"] is False
