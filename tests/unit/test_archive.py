# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archives with what roles install: reproducible, complete, and of use on a host without Ansible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.lookup import archive

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("plugins/module_utils", "files/bpf", "roles/balancer/files")


def pack(collection: Path, directory: Path, role: str = "balancer") -> list[Path]:
    directory.mkdir(exist_ok=True)
    archives = [archive.pack(part, directory, collection) for part in ("engine", role)]
    assert sorted(archives) == sorted(directory.iterdir())
    return archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> list[Path]:
    return pack(ROOT, tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def host(archives, tmp_path_factory) -> Path:
    """The root of a host on which they were unpacked."""
    root = tmp_path_factory.mktemp("host")
    for path in archives:
        subprocess.run(["tar", "--extract", "--no-same-owner", f"--file={path}", f"--directory={root}"], check=True)
    return root


def modules(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*.py")}


def names(directory: Path, *patterns: str) -> set[str]:
    return {path.name for pattern in patterns for path in directory.glob(pattern)}


def test_everything_has_its_place(host):
    places = {path.relative_to(host).parent.as_posix() for path in host.rglob("*") if path.is_file()}
    packages = {f"usr/lib/lbops/engine/{name}" for name in ("kernel", "config", "tables", "nic", "balancer")}
    others = {"usr/lib/lbops/engine", "usr/lib/lbops/lbops_top", "usr/lib/lbops/bpf", "etc/systemd/system", "usr/sbin"}
    assert places == packages | others
    assert names(host / "usr/sbin", "*") == {"lbops-top"}
    assert names(host / "usr/lib/lbops/bpf", "*") == names(ROOT / "files/bpf", "*.c", "*.h")
    assert names(host / "etc/systemd/system", "*") == names(ROOT / "roles/balancer/files", "lbops-*.service")
    assert names(host / "usr/lib/lbops/lbops_top", "*") == names(ROOT / "roles/balancer/files/lbops_top", "*.py")
    engine, installed = ROOT / "plugins/module_utils", host / "usr/lib/lbops/engine"
    # What only modules use needs Ansible.
    assert modules(installed) == modules(engine) - {"adapter.py", "nic/adapter.py"}


def test_a_host_without_a_balancer_gets_the_engine_and_its_own_unit(tmp_path):
    engine, own = pack(ROOT, tmp_path, "nic_tuning")
    [unit] = names_in(own)
    assert unit == "etc/systemd/system/lbops-nic@.service"
    [module] = re.findall(r"^ExecStart=/usr/bin/python3 -m engine\.([\w.]+) apply %i$", read(own, unit), re.MULTILINE)
    assert 'if __name__ == "__main__":' in read(engine, f"usr/lib/lbops/engine/{module.replace('.', '/')}.py")


def test_no_two_roles_write_the_same_file(tmp_path):
    """A file written anew has services restarted."""
    roles = ("balancer", "exporter", "health", "nic_tuning")
    written = Counter(name for role in roles for name in names_in(pack(ROOT, tmp_path / role, role)[1]))
    assert set(written.values()) == {1}
    assert not any(name.startswith("usr/lib/lbops/engine/") for name in written)


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def read(path: Path, name: str) -> str:
    with tarfile.open(path) as tar:
        return tar.extractfile(name).read().decode()


def test_files_are_roots_and_nobody_elses_to_change(archives):
    entries = []
    for path in archives:
        with tarfile.open(path) as tar:
            entries += tar.getmembers()
    assert entries and all(entry.isfile() for entry in entries)
    found = {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in entries}
    assert found == {(0, 0, "root", "root", 0)}
    modes = {entry.name: entry.mode for entry in entries}
    assert modes.pop("usr/sbin/lbops-top") == 0o755
    assert set(modes.values()) == {0o644}


def test_the_same_files_give_the_same_bytes(archives, tmp_path):
    for directory in PACKED:
        shutil.copytree(ROOT / directory, tmp_path / "copy" / directory)
    for number, path in enumerate(sorted((tmp_path / "copy").rglob("*"), reverse=True)):
        os.utime(path, (number, number))
        if path.is_file():
            path.chmod(0o640)
    for again, path in zip(pack(tmp_path / "copy", tmp_path / "again"), archives):
        assert again.read_bytes() == path.read_bytes()


def test_another_file_gives_other_bytes(archives, tmp_path):
    for directory in PACKED:
        shutil.copytree(ROOT / directory, tmp_path / "copy" / directory)
    (tmp_path / "copy/files/bpf/new.h").touch()
    engine, own = pack(tmp_path / "copy", tmp_path / "again")
    assert own.read_bytes() != archives[1].read_bytes() and engine.read_bytes() == archives[0].read_bytes()


def test_the_engine_needs_neither_ansible_nor_anything_else_to_be_imported(host):
    """What only some operations need, pyroute2 and BCC, is imported when they do, and missed in words."""
    found = sorted(name[:-3].replace("/", ".") for name in modules(host / "usr/lib/lbops/engine"))
    program = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('ansible', 'ansible_collections', 'pyroute2', 'bcc', 'yaml', 'jinja2')))\n"
        f"for name in {found!r}: importlib.import_module('engine.' + name)\n"
        "from engine.kernel import link\n"
        "try: link.import_pyroute2()\n"
        "except link.EngineError as error: print(error)\n"
    )
    environment = {"PYTHONPATH": str(host / "usr/lib/lbops"), "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, cwd=host, capture_output=True, text=True
    ).stdout
    assert output.startswith("pyroute2 is missing") and "install the distribution's package python3-pyroute2" in output


def test_units_start_what_is_there(host):
    units = sorted((host / "etc/systemd/system").iterdir())
    assert [unit.name for unit in units] == ["lbops-restore@.service", "lbops-watch@.service"]
    for unit in units:
        text = unit.read_text()
        [module] = re.findall(r"^ExecStart=/usr/bin/python3 -m (\S+) %i$", text, re.MULTILINE)
        [directory] = re.findall(r"^Environment=PYTHONPATH=/(\S+) ", text, re.MULTILINE)
        program = host / directory / f"{module.replace('.', '/')}.py"
        assert 'if __name__ == "__main__":' in program.read_text()


def test_sources_include_what_is_there(host):
    directory = host / "usr/lib/lbops/bpf"
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
