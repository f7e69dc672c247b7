# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A timer of systemd's that takes a change back unless somebody stops it.

It needs nothing of the process that armed it, nor of the network.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ..errors import EngineError

ENGINE = Path("/usr/lib/lbops/current")
SYSTEMD = Path("/run/systemd/system")


def units_of(interface: str) -> tuple[str, str]:
    """Two names, so that one timer can take the place of another without a gap.

    Characters that a unit's name cannot have are written as systemd-escape(1) does.
    """
    escaped = re.sub(r"[^A-Za-z0-9:_.]", lambda match: f"\\x{ord(match[0]):02x}", interface)
    return f"lbops-nic-revert-{escaped}", f"lbops-nic-revert-{escaped}-again"


def check() -> None:
    """Raises EngineError where there can be none."""
    if not SYSTEMD.exists():
        raise EngineError(
            "revert_after needs systemd, which does not run here; set it to 0 to change without a way back"
        )
    if not (ENGINE / "engine" / "nic" / "service.py").exists():
        raise EngineError(
            f"revert_after needs the engine in {ENGINE}; apply the role lbops.xdp.nic_tuning, which installs it, or "
            "set it to 0 to change without a way back"
        )


def arm(interface: str, seconds: int) -> str:
    """The new unit; one that was armed before is stopped once this one is."""
    first, second = units_of(interface)
    unit, earlier = (second, first) if armed(first) else (first, second)
    _run(
        "systemd-run",
        f"--unit={unit}",
        f"--description=Take back the unconfirmed change of {interface}",
        f"--on-active={seconds}s",
        # By default systemd may be a minute late.
        "--timer-property=AccuracySec=100ms",
        "--collect",
        f"--working-directory={ENGINE}",
        "--setenv=PYTHONDONTWRITEBYTECODE=1",
        "/usr/bin/python3",
        "-m",
        "engine.nic.service",
        "revert",
        interface,
    )
    _stop(earlier)
    return unit


def armed(unit: str) -> bool:
    if not SYSTEMD.exists():
        return False
    return not subprocess.run(["systemctl", "--quiet", "is-active", f"{unit}.timer"], check=False).returncode


def disarm(interface: str) -> None:
    """Nothing happens if it is not armed. A revert under way is not stopped."""
    for unit in units_of(interface):
        _stop(unit)


def _stop(unit: str) -> None:
    if armed(unit):
        _run("systemctl", "stop", f"{unit}.timer")


def _run(*command: str) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise EngineError(f"{' '.join(command[:2])} failed: {result.stderr.strip()}")
