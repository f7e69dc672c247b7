# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages import in one direction only, so that each can be read without those above it; files are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "plugins/module_utils"
# Package: the packages that it may import. errors.py and outcome.py belong to all.
ALLOWED = {
    "kernel": set(),
    "config": set(),
    "tables": {"config"},
    "nic": {"kernel"},
    "host": {"kernel"},
    "balancer": {"kernel", "config", "tables", "nic"},
}
# What the controller's filters load must neither call the kernel nor read files; socket is there for inet_pton().
FORBIDDEN_IN_PURE = {"ctypes", "fcntl", "os", "pathlib", "platform", "shutil", "subprocess", "tempfile"}
# The only files that know Ansible.
KNOW_ANSIBLE = {"adapter.py", "host/adapter.py", "nic/adapter.py"}
LONGEST = 400  # lines
SHIPPED = sorted(path for pattern in ("plugins/**/*.py", "roles/*/files/**/*.py") for path in ROOT.glob(pattern))


def imports(path: Path) -> list[tuple[int, str]]:
    """The level of each import (0: absolute) and the first part of what it names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [(node.level, (node.module or alias.name).split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(0, alias.name.split(".")[0]) for alias in node.names]
    return found


def files(package: str) -> list[Path]:
    return sorted((ENGINE / package).rglob("*.py"))


def test_every_file_is_in_a_package_or_belongs_to_all():
    assert {path.name for path in ENGINE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ALLOWED)
    assert {path.name for path in ENGINE.glob("*.py")} == {"__init__.py", "adapter.py", "errors.py", "outcome.py"} - (
        set() if (ENGINE / "__init__.py").exists() else {"__init__.py"}
    )


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_those_below_it(package):
    for path in files(package):
        upward = {name for level, name in imports(path) if level == 2} - {"errors", "outcome", "adapter"}
        assert upward <= ALLOWED[package], f"{path.relative_to(ENGINE)} imports {sorted(upward - ALLOWED[package])}"
        assert not any(level > 2 for level, _name in imports(path)), path


@pytest.mark.parametrize("package", ["config", "tables"])
def test_pure_packages_do_no_io(package):
    for path in files(package):
        assert not {name for level, name in imports(path) if level == 0} & FORBIDDEN_IN_PURE, path


def test_only_adapters_import_ansible():
    found = {
        path.relative_to(ENGINE).as_posix()
        for path in ENGINE.rglob("*.py")
        if any(level == 0 and name.startswith("ansible") for level, name in imports(path))
    }
    assert found <= KNOW_ANSIBLE


def test_files_are_short():
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SHIPPED}
    assert "plugins/module_utils/balancer/plan.py" in lines and "roles/health/files/web.py" in lines
    longer = sorted(name for name, count in lines.items() if count > LONGEST)
    assert not longer, f"{longer} have more than {LONGEST} lines; split them"


def test_every_package_says_what_is_in_it():
    found = [path for path in SHIPPED if path.name == "__init__.py"]
    assert {ENGINE / package / "__init__.py" for package in ALLOWED} <= set(found)
    for path in found:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
