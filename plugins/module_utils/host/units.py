# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of systemd that the collection installs, and whether their processes are older than what they run."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..errors import EngineError
from .installation import FLAT, Installation

PATTERN = "lbops-*"
UNIT_FILES = Path("/etc/systemd/system")
_PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,MainPID,ExecMainStartTimestamp,NeedDaemonReload,FragmentPath"


@dataclass(frozen=True)
class Unit:
    """What systemd says about a unit."""

    name: str
    installed: bool
    active: bool
    enabled: bool
    # 0 without a process.
    process: int
    # Seconds since the epoch.
    started: float
    # Whether its file changed since systemd read it.
    stale: bool
    file: str

    def outdated(self, current: Path, settings: list[Path]) -> str:
        """Why the process has to be replaced; empty if it has not to be."""
        if not self.active:
            return "does not run"
        if not self.process:
            return ""
        if directory_of(self.process) != os.path.realpath(current):
            return "runs another version of the engine"
        for path in (Path(self.file), *settings):
            if path.exists() and path.stat().st_ctime > self.started:
                return f"started before {path} changed"
        return ""


def directory_of(process: int) -> str:
    """Where it runs: the units make that the directory of the version, from which all its imports come."""
    try:
        return os.readlink(f"/proc/{process}/cwd")
    except OSError:
        return ""


def systemctl(*arguments: str) -> str:
    try:
        result = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise EngineError("systemctl is missing; the units of the collection need systemd") from None
    if result.returncode:
        raise EngineError(f"systemctl {' '.join(arguments)} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def reload() -> None:
    systemctl("daemon-reload")


def look(names: list[str]) -> dict[str, Unit]:
    """All at once; a unit that does not exist is not installed."""
    if not names:
        return {}
    output = systemctl("show", "--timestamp=us+utc", f"--property={_PROPERTIES}", "--", *names)
    found = [_parse(dict(line.split("=", 1) for line in block.splitlines())) for block in output.strip().split("\n\n")]
    return dict(zip(names, found))


def _parse(values: dict[str, str]) -> Unit:
    return Unit(
        name=values.get("Id", ""),
        installed=values.get("LoadState") == "loaded",
        active=values.get("ActiveState") == "active",
        enabled=values.get("UnitFileState") == "enabled",
        process=int(values.get("MainPID") or 0),
        started=_seconds(values.get("ExecMainStartTimestamp", "")),
        stale=values.get("NeedDaemonReload") == "yes",
        file=values.get("FragmentPath", ""),
    )


def _seconds(text: str) -> float:
    """Of what systemctl prints with --timestamp=us+utc."""
    match = re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?", text)
    if not match:
        return 0.0
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in match[0] else "%Y-%m-%d %H:%M:%S"
    return datetime.strptime(match[0], form).replace(tzinfo=timezone.utc).timestamp()


def enabled() -> list[str]:
    """Those that are started at boot."""
    return sorted({path.name for path in UNIT_FILES.glob(f"*.wants/{PATTERN}")})


def running() -> list[str]:
    """Services and timers; a target has no process."""
    states = "--state=active,activating,reloading,deactivating"
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", states, PATTERN).splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    return sorted(name for name in names if name.endswith((".service", ".timer")))


def versions_in_use(installation: Installation) -> set[str]:
    """The digests of the versions that processes run from, and FLAT's first name for the layout without versions."""
    used = set()
    names = [name for name in running() if name.endswith(".service")]
    for unit in look(names).values():
        if not unit.process:
            continue
        directory = Path(directory_of(unit.process))
        if directory.parent == installation.base:
            used.add(directory.name)
        elif str(installation.base) in _python_path(unit.process):
            used.add(FLAT[0])
    return used


def _python_path(process: int) -> list[str]:
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return []
    variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
    return variables.get(b"PYTHONPATH", b"").decode().split(":")
