# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units, the settings that they read and the user that they run as, kept or removed as one."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EngineError
from ..kernel import files
from ..outcome import Outcome
from . import units
from .installation import Installation
from .units import Unit

OF_A_BALANCER = ("lbops-health", "lbops-watch", "lbops-restore")


@dataclass(frozen=True)
class Settings:
    """A file that a unit reads. `validate` is a command that gets the path of a candidate in place of %s."""

    path: Path
    content: str
    group: str = "root"
    mode: int = 0o600
    validate: list[str] = field(default_factory=list)

    def differs(self) -> bool:
        try:
            found = self.path.stat()
            return (
                self.path.read_text(encoding="utf-8") != self.content
                or stat.S_IMODE(found.st_mode) != self.mode
                or found.st_uid != 0
                or found.st_gid != grp.getgrnam(self.group).gr_gid
            )
        except (FileNotFoundError, KeyError, ValueError):
            return True

    def check(self, directory: Path) -> None:
        """Raises EngineError with what the command says. On a host that has no engine yet it is not run."""
        if not self.validate or not directory.exists():
            return
        command = ["/dev/stdin" if word == "%s" else word for word in self.validate]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            command, input=self.content, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
        if result.returncode:
            raise EngineError(f"{self.path}: {(result.stdout + result.stderr).strip()}")

    def write(self) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write(self.path, self.content, 0o600)
        os.chown(self.path, 0, grp.getgrnam(self.group).gr_gid)
        os.chmod(self.path, self.mode)


@dataclass(frozen=True)
class UnitSet:
    """Names of units, in the order in which they are started."""

    started: list[str] = field(default_factory=list)
    enabled: list[str] = field(default_factory=list)
    # Restarted where they are enabled, left alone otherwise.
    restarted: list[str] = field(default_factory=list)
    # Interfaces whose balancers earlier releases named after them; what is left of those units and settings goes.
    replaced: list[str] = field(default_factory=list)
    settings: list[Settings] = field(default_factory=list)
    user: str = ""
    # Run in the engine's directory after the units were stopped, before their settings go.
    before_removal: list[str] = field(default_factory=list)
    installation: Installation = field(default_factory=Installation)

    def present(self, check: bool) -> Outcome:
        current = self.installation.link
        for entry in self.settings:
            entry.check(current)
        replaced = self._replaced_units()
        found = units.look([*self.started, *self.enabled, *self.restarted, *replaced])
        old_settings = [path for name in self._replaced() if (path := _old_settings(name)).exists()]
        written = [entry for entry in self.settings if entry.differs()]
        steps = _removals(found, replaced) + [f"{path}: removed" for path in old_settings]
        if self.user and not _exists(self.user):
            steps.append(f"user {self.user}: added")
        steps += [f"{entry.path}: written" for entry in written]
        paths = [entry.path for entry in self.settings]
        due = {name: why for name in self.started if (why := self._due(found[name], paths, bool(written)))}
        boot = [name for name in dict.fromkeys([*self.enabled, *self.started]) if not found[name].enabled]
        again = [name for name in self.restarted if found[name].enabled]
        steps += [f"{name}: enabled" for name in boot]
        steps += [f"{name}: started, since it {why}" for name, why in due.items()]
        steps += [f"{name}: restarted" for name in again]
        if not check:
            _take_away(found, replaced)
            for path in old_settings:
                files.remove(path)
            if self.user and not _exists(self.user):
                _add_user(self.user)
            for entry in written:
                entry.write()
            self._start(found, boot, [*due, *again])
        steps += self._sweep(check)
        return _outcome(steps)

    def absent(self, check: bool) -> Outcome:
        names = [*self.started, *self.enabled, *self._replaced_units()]
        found = units.look(names)
        left = [entry.path for entry in self.settings if entry.path.exists()]
        steps = _removals(found, names)
        current = self.installation.link
        clean = bool(self.before_removal and left and current.exists())
        steps += [f"{path}: removed" for path in left]
        if self.user and _exists(self.user):
            steps.append(f"user {self.user}: removed")
        if not check:
            _take_away(found, names)
            if clean:
                _run(self.before_removal, current)
            # Last of all: an interrupted run finds them, and cleans up again.
            for path in left:
                files.remove(path)
            if self.user and _exists(self.user):
                _run(["userdel", self.user], Path("/"))
                if _group_exists(self.user):
                    _run(["groupdel", self.user], Path("/"))
        steps += self._sweep(check)
        return _outcome(steps)

    def _due(self, unit: Unit, settings: list[Path], written: bool) -> str:
        if not unit.installed:
            return "does not run"
        return unit.outdated(self.installation.link, settings) or ("has new settings" if written else "")

    def _replaced(self) -> list[str]:
        """A balancer of today may have the name of an interface, too."""
        state = self.installation.root / "var/lib/lbops"
        return [name for name in self.replaced if not (state / name / "state.json").exists()]

    def _replaced_units(self) -> list[str]:
        return [f"{unit}@{name}.service" for name in self._replaced() for unit in OF_A_BALANCER]

    def _start(self, found: dict[str, Unit], boot: list[str], due: list[str]) -> None:
        if any(found[name].stale or not found[name].installed for name in (*boot, *due)):
            units.reload()
        if boot:
            units.systemctl("enable", "--", *boot)
        for name in due:
            try:
                units.systemctl("restart", "--", name)
            except EngineError as error:
                raise EngineError(f"{error}; see journalctl --unit {name}") from None

    def _sweep(self, check: bool) -> list[str]:
        """Versions of the engine go once nothing runs from them."""
        used = units.versions_in_use(self.installation)
        left = self.installation.leftovers(used)
        if not check and left:
            self.installation.sweep(used)
        return [f"{path}: removed, since nothing runs from it any more" for path in left]


def _old_settings(interface: str) -> Path:
    return Path(f"/etc/lbops/health-{interface}.json")


def _removals(found: dict[str, Unit], names: list[str]) -> list[str]:
    return [f"{name}: stopped and disabled" for name in dict.fromkeys(names) if _is_there(found[name])]


def _take_away(found: dict[str, Unit], names: list[str]) -> None:
    there = [name for name in dict.fromkeys(names) if _is_there(found[name])]
    if there:
        units.systemctl("disable", "--now", "--", *there)


def _outcome(steps: list[str]) -> Outcome:
    return Outcome(bool(steps), [], steps, {"steps": steps}, [])


def _is_there(unit: Unit) -> bool:
    return unit.enabled or unit.active or bool(unit.process)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
        return True
    except KeyError:
        return False


def _group_exists(group: str) -> bool:
    try:
        grp.getgrnam(group)
        return True
    except KeyError:
        return False


def _add_user(name: str) -> None:
    shell = shutil.which("nologin", path="/usr/sbin:/sbin") or "/bin/false"
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir=/nonexistent", f"--shell={shell}"]
    if _group_exists(name):
        command[2:3] = [f"--gid={name}"]
    _run([*command, name], Path("/"))


def _run(command: list[str], directory: Path) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=directory, env=environment, check=False, capture_output=True, text=True)
    if result.returncode:
        raise EngineError(f"{' '.join(command)} failed: {(result.stdout + result.stderr).strip()}")
