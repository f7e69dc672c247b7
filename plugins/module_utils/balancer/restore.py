# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the balancer of an interface back after a reboot: python3 -m engine.restore <interface>."""

from __future__ import annotations

import sys
import time

from ..errors import EngineError
from ..kernel import link
from .balancer import Balancer

# Some drivers take their time at boot.
INTERFACE_TIMEOUT = 30.0  # seconds


def _wait_for(interface: str) -> None:
    deadline = time.monotonic() + INTERFACE_TIMEOUT
    while not link.exists(interface) and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> int:
    interface = sys.argv[1]
    _wait_for(interface)
    try:
        outcome = Balancer(interface).restore()
    except (EngineError, OSError) as error:
        sys.stderr.write(f"restore interface={interface} result=failed: {error}\n")
        return 1
    result = "restored" if outcome.changed else "unchanged"
    entries = outcome.details.get("prepared", [])
    prepared = ",".join(f"{name}={value}" for entry in entries for name, value in entry["after"].items())
    sys.stdout.write(
        f"restore interface={interface} result={result} hook={outcome.after.get('hook')} "
        f"program={outcome.after.get('program_id')} prepared={prepared or 'nothing'}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
