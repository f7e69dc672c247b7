# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When units are started, restarted and removed: real processes, and a systemctl that says they belong to units."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.host import units
from ansible_collections.lbops.xdp.plugins.module_utils.host.installation import Installation
from ansible_collections.lbops.xdp.plugins.module_utils.host.unit_set import Settings, UnitSet

UNIT = "lbops-watch@main.service"


class Host:
    """The root of a host with two versions of the engine, and units that this stand-in for systemd knows."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "usr/lib/lbops"
        for version in ("old", "new"):
            (self.base / version).mkdir(parents=True)
        (self.base / "current").symlink_to("new")
        self.unit_file = root / "unit"
        self.unit_file.touch()
        self.properties: dict[str, dict[str, str]] = {}
        self.called: list[str] = []
        self.processes: list[subprocess.Popen] = []

    def process(self, version: str, unit: str = UNIT) -> None:
        """One that runs from this version's directory, or in the layout without versions."""
        flat = version == "flat"
        started = subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            cwd="/" if flat else self.base / version,
            env={"PYTHONPATH": str(self.base)} if flat else {},
        )
        self.processes.append(started)
        now = subprocess.run(["date", "-u", "+%a %F %T.%6N UTC"], capture_output=True, text=True, check=True).stdout
        self.properties[unit] = {
            "LoadState": "loaded",
            "ActiveState": "active",
            "UnitFileState": "enabled",
            "MainPID": str(started.pid),
            "ExecMainStartTimestamp": now.strip(),
            "FragmentPath": str(self.unit_file),
        }

    def systemctl(self, *arguments: str) -> str:
        if arguments[0] == "show":
            names = arguments[arguments.index("--") + 1 :]
            blocks = [{"LoadState": "not-found", **self.properties.get(name, {}), "Id": name} for name in names]
            return "\n".join("".join(f"{key}={text}\n" for key, text in block.items()) for block in blocks)
        if arguments[0] == "list-units":
            running = [name for name, found in self.properties.items() if found["ActiveState"] != "inactive"]
            return "".join(f"{name} loaded active running\n" for name in running)
        self.called.append(" ".join(word for word in arguments if word != "--"))
        return ""

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path: Path, monkeypatch) -> Iterator[Host]:
    made = Host(tmp_path)
    monkeypatch.setattr(units, "systemctl", made.systemctl)
    yield made
    made.end()


def unit_set(host: Host, **arguments) -> UnitSet:
    return UnitSet(**{"started": [UNIT], **arguments}, installation=Installation(host.root))


def settings(path: Path, content: str = "content\n", **more) -> Settings:
    return Settings(path, content, **more)


def test_a_unit_that_runs_from_the_current_version_is_left_alone(host: Host):
    host.process("new")
    (host.base / "old").rmdir()
    assert unit_set(host).present(check=False).changed is False
    assert host.called == []


@pytest.mark.parametrize("version", ["old", "flat"])
def test_a_process_of_another_version_is_replaced(host: Host, version: str):
    """Also if the run that installed the current one failed before it came to the unit."""
    host.process(version)
    would = unit_set(host).present(check=True)
    assert host.called == []
    outcome = unit_set(host).present(check=False)
    assert would.changed and outcome.changed and host.called == [f"restart {UNIT}"]
    assert outcome.details["steps"][0] == f"{UNIT}: started, since it runs another version of the engine"


def test_a_version_stays_for_as_long_as_another_unit_runs_from_it(host: Host):
    host.process("new")
    host.process("old", "lbops-health@main.service")
    unit_set(host).present(check=False)
    assert (host.base / "old").exists()
    host.properties.pop("lbops-health@main.service")
    outcome = unit_set(host).present(check=False)
    assert outcome.changed and not (host.base / "old").exists() and (host.base / "new").exists()


def test_a_process_that_began_before_its_unit_file_changed_is_replaced(host: Host):
    host.process("new")
    time.sleep(0.02)
    host.unit_file.chmod(0o600)
    host.properties[UNIT]["NeedDaemonReload"] = "yes"
    unit_set(host).present(check=False)
    assert host.called == ["daemon-reload", f"restart {UNIT}"]


def test_new_settings_are_written_and_the_process_replaced(host: Host, tmp_path: Path):
    host.process("new")
    path = tmp_path / "etc/settings.json"
    wanted = unit_set(host, settings=[settings(path)])
    wanted.present(check=True)
    assert not path.exists() and host.called == []
    outcome = wanted.present(check=False)
    assert path.read_text() == "content\n" and path.stat().st_mode & 0o777 == 0o600
    assert host.called == [f"restart {UNIT}"]
    assert not any("content" in step for step in outcome.details["steps"])


def test_settings_that_an_earlier_run_wrote_have_the_process_replaced(host: Host, tmp_path: Path):
    path = tmp_path / "settings.json"
    host.process("new")
    time.sleep(0.02)
    wanted = settings(path)
    wanted.write()
    assert not wanted.differs()
    assert unit_set(host, settings=[wanted]).present(check=False).changed
    assert host.called == [f"restart {UNIT}"]


def test_settings_that_cannot_be_used_are_refused_with_nothing_changed(host: Host, tmp_path: Path):
    host.process("old")
    path = tmp_path / "settings.json"
    command = [sys.executable, "-c", "import sys; sys.exit('bad: ' + open(sys.argv[1]).read())", "%s"]
    wanted = unit_set(host, settings=[settings(path, validate=command)])
    for check in (True, False):
        with pytest.raises(EngineError, match=f"{path}: bad: content"):
            wanted.present(check)
    assert host.called == [] and not path.exists()


@pytest.mark.parametrize("state", ["inactive", "activating", "failed"])
def test_a_unit_that_does_not_run_is_started(host: Host, state: str):
    host.process("new")
    host.properties[UNIT]["ActiveState"] = state
    unit_set(host).present(check=False)
    assert host.called == [f"restart {UNIT}"]


def test_a_unit_that_systemd_does_not_know_yet_is_loaded_enabled_and_started(host: Host):
    unit_set(host, enabled=["lbops-restore@main.service"]).present(check=False)
    assert host.called == ["daemon-reload", f"enable lbops-restore@main.service {UNIT}", f"restart {UNIT}"]


def test_only_what_is_enabled_is_restarted_on_request(host: Host):
    host.process("new")
    host.process("new", "lbops-nic@eth0.service")
    unit_set(host, restarted=["lbops-nic@eth0.service", "lbops-nic@eth1.service"]).present(check=False)
    assert host.called == ["restart lbops-nic@eth0.service"]


def test_units_that_had_the_name_of_the_interface_go(host: Host):
    host.process("new")
    host.process("flat", "lbops-watch@eth0.service")
    unit_set(host, replaced=["eth0"]).present(check=False)
    assert host.called == ["disable --now lbops-watch@eth0.service"]


def test_a_balancer_that_has_the_name_of_the_interface_keeps_its_units(host: Host):
    state = host.root / "var/lib/lbops/eth0/state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    for unit in (UNIT, "lbops-watch@eth0.service"):
        host.process("new", unit)
    unit_set(host, replaced=["eth0"]).present(check=False)
    assert host.called == []


def test_removal_stops_first_and_takes_the_settings_last(host: Host, tmp_path: Path):
    host.process("new")
    path, told = tmp_path / "settings.json", tmp_path / "told"
    settings(path).write()
    script = f"import os; open({str(told)!r}, 'w').write(str((os.getcwd(), os.path.exists({str(path)!r}))))"
    wanted = unit_set(host, settings=[settings(path)], before_removal=[sys.executable, "-c", script])
    assert wanted.absent(check=True).changed and path.exists() and host.called == []
    assert wanted.absent(check=False).changed
    assert host.called == [f"disable --now {UNIT}"] and not path.exists()
    assert told.read_text() == str((str(host.base / "new"), True))
    host.properties.clear()
    told.unlink()
    assert wanted.absent(check=False).changed is False and not told.exists()


def test_a_failure_says_where_to_look(host: Host, monkeypatch):
    real = host.systemctl

    def failing(*arguments: str) -> str:
        if arguments[0] == "restart":
            raise EngineError("systemctl restart failed")
        return real(*arguments)

    monkeypatch.setattr(units, "systemctl", failing)
    with pytest.raises(EngineError, match=f"see journalctl --unit {UNIT}"):
        unit_set(host).present(check=False)


def test_the_time_that_systemd_prints():
    assert units._seconds("Thu 1970-01-01 00:01:40.250000 UTC") == 100.25
    assert units._seconds("Thu 1970-01-01 00:01:40 UTC") == 100
    assert units._seconds("") == units._seconds("n/a") == 0


def test_the_directory_of_a_process_is_that_of_its_version(tmp_path: Path):
    (tmp_path / "version").mkdir()
    (tmp_path / "link").symlink_to("version")
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path / "link") as process:
        assert units.directory_of(process.pid) == os.path.realpath(tmp_path / "version")
        process.kill()
    assert units.directory_of(process.pid) == ""
