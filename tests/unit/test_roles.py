# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents is what it does by default."""

from __future__ import annotations

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
