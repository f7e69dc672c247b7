# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a balancer back after a reboot: python3 -m engine.balancer.restore <balancer>."""

from __future__ import annotations

import sys
import time

from ..errors import EngineError
from ..kernel import link
from . import state
from .balancer import Balancer

# Some drivers take their time at boot.
INTERFACE_TIMEOUT = 30.0  # seconds


def _wait_for(interfaces: tuple[str, ...]) -> None:
    deadline = time.monotonic() + INTERFACE_TIMEOUT
    while not all(map(link.exists, interfaces)) and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> int:
    name = sys.argv[1]
    try:
        balancer = Balancer(name)
        current = state.load(balancer.state_file)
        _wait_for(current.document.interfaces if current else ())
        outcome = balancer.restore()
    except (EngineError, OSError) as error:
        sys.stderr.write(f"restore balancer={name} result=failed: {error}\n")
        return 1
    result = "restored" if outcome.changed else "unchanged"
    entries = outcome.details.get("prepared", [])
    prepared = ",".join(f"{key}={value}" for entry in entries for key, value in entry["after"].items())
    for warning in outcome.warnings:
        sys.stderr.write(f"restore balancer={name} warning: {warning}\n")
    for entry in outcome.details["program"]["interfaces"]:
        sys.stdout.write(
            f"restore balancer={name} result={result} interface={entry['interface']} hook={entry.get('hook')} "
            f"program={entry.get('program_id')} prepared={prepared or 'nothing'}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
