# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd runs for a tuned interface: python3 -m engine.nic.service {apply|revert} <interface>.

apply is for the boot; revert is for the timer that takes back what nobody confirmed.
"""

from __future__ import annotations

import sys
import time

from ..errors import EngineError
from ..kernel.device import Device, find
from . import tuned, way_back

# Drivers take their time at boot, and most make their vectors only when the link is brought up.
TIMEOUT = 60.0  # seconds


def _wait_for(interface: str) -> Device:
    """Raises EngineError if the device does not come. One that stays down is set up as far as that goes."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            device = find(interface)
            if device.link().enabled or time.monotonic() > deadline:
                return device
        except EngineError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def apply(interface: str) -> list[str]:
    """What did not work, in sentences."""
    failures = []
    with tuned.locked(interface):
        current = tuned.load(interface)
        if current and tuned.end_of_other_boots(current):
            tuned.keep(current)
        for name, entry in (current.devices if current else {}).items():
            # What was never confirmed is not applied.
            if entry.saved is None:
                continue
            try:
                failures += [str(error) for _group, error in tuned.apply(_wait_for(name), entry.saved)]
            except EngineError as error:
                failures.append(str(error))
    return failures


def main() -> int:
    operation, interface = sys.argv[1:]
    failures: list[str] = []
    result = "done"
    try:
        if operation == "apply":
            failures = apply(interface)
        else:
            pending, failures = way_back.revert(interface)
            result = "done" if pending else "nothing to do"
    except (EngineError, OSError) as error:
        failures = [str(error)]
    for failure in failures:
        sys.stderr.write(f"nic interface={interface} operation={operation} result=failed: {failure}\n")
    if not failures:
        sys.stdout.write(f"nic interface={interface} operation={operation} result={result}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
