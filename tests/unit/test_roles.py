# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents is what it does by default."""

from __future__ import annotations

from pathlib import Path

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
