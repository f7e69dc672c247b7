# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed on a host: reproducible, complete, and of use there without Ansible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.host.installation import Installation, Version
from ansible_collections.lbops.xdp.plugins.plugin_utils import archive

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("plugins/module_utils", "files/bpf", "roles")
UNITS = {
    "lbops-balancers.target",
    "lbops-exporter.service",
    "lbops-health@.service",
    "lbops-nic@.service",
    "lbops-restore@.service",
    "lbops-watch@.service",
}
NEED_ANSIBLE = {"adapter.py", "host/adapter.py", "nic/adapter.py"}


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Path:
    """The root of a host."""
    root = tmp_path_factory.mktemp("host")
    Installation(root).install(Version(*archive.manifests()), archive.pack())
    return root


@pytest.fixture(scope="module")
def current(host: Path) -> Path:
    return (host / "usr/lib/lbops/current").resolve()


def modules(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*.py")}


def names(directory: Path, *patterns: str) -> set[str]:
    return {path.name for pattern in patterns for path in directory.glob(pattern)}


def test_everything_has_its_place(host, current):
    packages = {f"engine/{name}" for name in ("balancer", "config", "host", "kernel", "nic", "tables")}
    others = {"engine", "bpf", "health", "lbops_top", "lbops_exporter", "lbops_exporter/page"}
    places = {path.relative_to(current).parent.as_posix() for path in current.rglob("*") if path.is_file()}
    assert places == packages | others
    assert names(host / "usr/sbin", "*") == {"lbops-top"}
    assert names(host / "etc/systemd/system", "*") == UNITS
    assert names(current / "bpf", "*") == names(ROOT / "files/bpf", "*.c", "*.h")
    engine = ROOT / "plugins/module_utils"
    assert modules(current / "engine") == modules(engine) - NEED_ANSIBLE
    for program, source in (
        ("lbops_top", "roles/balancer/files/lbops_top"),
        ("lbops_exporter", "roles/exporter/files/lbops_exporter"),
        ("health", "roles/health/files"),
    ):
        assert modules(current / program) == modules(ROOT / source)
    page = "lbops_exporter/page"
    assert names(current / page, "*") == names(ROOT / "roles/exporter/files" / page, "*.*")


def test_only_the_command_is_executable(host):
    files = [path for path in host.rglob("*") if path.is_file() and not path.is_symlink()]
    modes = {str(path.relative_to(host)): path.stat().st_mode & 0o777 for path in files}
    assert modes.pop("usr/sbin/lbops-top") == 0o755
    assert set(modes.values()) == {0o644}


def test_the_same_files_give_the_same_bytes(tmp_path):
    for directory in PACKED:
        shutil.copytree(ROOT / directory, tmp_path / directory)
    for number, path in enumerate(sorted(tmp_path.rglob("*"), reverse=True)):
        os.utime(path, (number, number))
        if path.is_file():
            path.chmod(0o640)
    assert archive.pack(tmp_path) == archive.pack()
    assert archive.manifests(tmp_path) == archive.manifests()


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("plugins/module_utils/errors.py", 0),
        ("files/bpf/new.h", 0),
        ("roles/exporter/files/lbops_exporter/page/page.js", 0),
        ("roles/health/files/lbops-health@.service", 1),
        ("roles/balancer/files/lbops-top", 1),
    ],
)
def test_another_file_is_another_version(tmp_path, path, part):
    for directory in PACKED:
        shutil.copytree(ROOT / directory, tmp_path / directory)
    with (tmp_path / path).open("a") as file:
        file.write("more")
    before, after = archive.manifests(), archive.manifests(tmp_path)
    assert after[part] != before[part] and after[1 - part] == before[1 - part]
    assert (Version(*after).digest != Version(*before).digest) is (part == 0)


def test_the_engine_needs_neither_ansible_nor_anything_else_to_be_imported(current):
    """What only some operations need, pyroute2 and BCC, is imported when they do, and missed in words."""
    found = sorted(name[:-3].replace("/", ".") for name in modules(current / "engine"))
    program = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('ansible', 'ansible_collections', 'pyroute2', 'bcc', 'yaml', 'jinja2')))\n"
        f"for name in {found!r}: importlib.import_module('engine.' + name)\n"
        "from engine.kernel import link\n"
        "try: link.import_pyroute2()\n"
        "except link.EngineError as error: print(error)\n"
    )
    environment = {"PYTHONPATH": str(current), "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, cwd=current, capture_output=True, text=True
    ).stdout
    assert output.startswith("pyroute2 is missing") and "install the distribution's package python3-pyroute2" in output


@pytest.mark.parametrize("name", sorted(UNITS - {"lbops-balancers.target"}))
def test_units_start_what_is_there(host, name):
    """From the version's own directory, so that whatever they import later is of the same version."""
    text = (host / "etc/systemd/system" / name).read_text()
    assert re.findall(r"^WorkingDirectory=(.*)$", text, re.MULTILINE) == ["/usr/lib/lbops/current"]
    assert re.findall(r"^Environment=(\S+)", text, re.MULTILINE)[0] == "PYTHONDONTWRITEBYTECODE=1"
    assert "PYTHONPATH" not in text
    [module] = re.findall(r"^ExecStart=/usr/bin/python3 -m (\S+) ", text, re.MULTILINE)
    path = host / "usr/lib/lbops/current" / module.replace(".", "/")
    program = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
    assert 'if __name__ == "__main__":' in program.read_text()


def test_imports_come_from_the_version_that_the_link_named_at_the_start(host, tmp_path):
    """As the units start their programs; systemd resolves the link."""
    link = tmp_path / "current"
    link.symlink_to((host / "usr/lib/lbops/current").resolve())
    program = "import os, engine.errors; print(engine.errors.__file__, os.getcwd())"
    (link.resolve() / "shows.py").write_text(program)
    output = subprocess.run(
        [sys.executable, "-B", "-m", "shows"], check=True, env={}, cwd=link, capture_output=True, text=True
    ).stdout
    (link.resolve() / "shows.py").unlink()
    assert output.split() == [f"{link.resolve()}/engine/errors.py", str(link.resolve())]


def test_sources_include_what_is_there(current):
    directory = current / "bpf"
    for path in directory.iterdir():
        included = set(re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE))
        assert included <= names(directory, "*"), path.name


def test_the_command_starts_the_engine_from_anywhere(host, tmp_path):
    """Not from there: root may be in somebody's directory."""
    command = (host / "usr/sbin/lbops-top").read_text().replace("/usr/lib/lbops", str(host / "usr/lib/lbops"))
    (tmp_path / "engine").mkdir()
    (tmp_path / "argparse.py").write_text("raise SystemExit('not this one')")
    environment = {"PYTHONPATH": str(tmp_path)}
    output = subprocess.run(
        ["sh", "-c", command, "lbops-top", "--help"],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    assert output.startswith("usage: lbops-top ")
    assert not list((host / "usr/lib/lbops").rglob("*.pyc"))
