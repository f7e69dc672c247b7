# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents is what it does by default."""

from __future__ import annotations

import itertools
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from ansible_collections.lbops.xdp.plugins.modules import units

ROLES = Path(__file__).resolve().parents[2] / "roles"


def read(path: Path) -> dict:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def tasks(role: str, file: str) -> list[dict]:
    return yaml.safe_load((ROLES / role / "tasks" / f"{file}.yml").read_text())


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_argument_specs_equal_defaults(role):
    options = read(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    documented = {name: option["default"] for name, option in options.items()}
    assert documented == read(ROLES / role / "defaults" / "main.yml")


def test_sizes_are_those_of_the_engine():
    defaults = read(ROLES / "balancer" / "defaults" / "main.yml")
    for name, value in vars(Sizes()).items():
        assert defaults[f"balancer_{name}"] == value


@pytest.mark.parametrize("role", ["balancer", "exporter", "health", "nic_tuning"])
def test_roles_that_need_the_engine_depend_on_it_in_the_same_way(role):
    """So that it is installed once in a play: with other parameters it would be another dependency."""
    assert read(ROLES / role / "meta/main.yml")["dependencies"] == [{"role": "lbops.xdp.engine"}]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, "absent"),
        ({"balancer_state": "present"}, "present"),
        ({"balancer_state": "absent", "health_state": "absent", "exporter_state": "present"}, "present"),
        ({"balancer_state": "absent", "health_state": "absent", "exporter_state": "absent"}, "absent"),
        ({"nic_tuning_state": "present"}, "present"),
        ({"nic_tuning_state": "absent"}, "absent"),
    ],
)
def test_the_engine_is_installed_where_a_role_is_to_be_present(states, expected):
    state = jinja2.Environment().from_string(read(ROLES / "engine/defaults/main.yml")["engine_state"])
    assert state.render(states).strip() == expected


def test_a_device_is_tuned_again_when_its_queues_may_have_been_made_anew():
    [task] = [task for task in tasks("balancer", "present") if "lbops.xdp.units" in task]
    environment = jinja2.Environment()
    environment.filters["product"] = itertools.product
    attached = environment.compile_expression(task["vars"]["balancer_attached"].strip()[2:-2])
    applied = {"changes": {"interfaces": {"created": ["eth0"], "modified": ["eth1"], "removed": ["eth2"]}}}
    names = attached(balancer_applied=applied)
    assert names == ["eth0", "eth1"] and attached(balancer_applied={"skipped": True}) == []
    restarted = environment.compile_expression(task["lbops.xdp.units"]["restarted"][2:-2])
    assert restarted(balancer_attached=names) == ["lbops-nic@eth0.service", "lbops-nic@eth1.service"]


@pytest.mark.parametrize(("role", "file"), [("health", "main"), ("exporter", "present")])
def test_settings_with_secrets_are_given_to_the_module_that_shows_none(role, file):
    """Its argument `content` is no_log; tests/unit/test_units.py has that no step tells of it."""
    [task] = [task for task in tasks(role, file) if "lbops.xdp.units" in task]
    assert all({"path", "content"} <= entry.keys() for entry in task["lbops.xdp.units"]["settings"])
    assert not any("set_fact" in str(other) for other in tasks(role, file))
    assert units.SETTINGS["content"]["no_log"] is True


@pytest.mark.parametrize("path", sorted(ROLES.glob("*/*/*.service*")), ids=lambda path: path.name)
def test_a_unit_that_hangs_holds_up_neither_boot_nor_shutdown(path: Path):
    """systemd gives a oneshot service forever to start, and a service 90 seconds to stop."""
    text = path.read_text()
    limit = "TimeoutStartSec" if "\nType=oneshot\n" in text else "TimeoutStopSec"
    assert f"\n{limit}=" in text
