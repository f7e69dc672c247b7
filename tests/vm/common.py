# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all parts of the virtual machines share: where things are, errors, commands, files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = CHECKOUT / "build" / "cache" / "vm"
# Everything of the guests that run, private keys among it.
RUN = CHECKOUT / "build" / "vm"


class VmError(Exception):
    """Something the person who runs the tests can act on."""


def run(*command: object, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    try:
        # Images have the same modes whatever the caller's umask is.
        result = subprocess.run(words, capture_output=True, text=True, check=False, umask=0o022, **options)
    except FileNotFoundError:
        raise VmError(f"{words[0]} is missing; install the packages of tests/vm/debian-packages.txt") from None
    if check and result.returncode:
        raise VmError(f"{' '.join(words)}: {result.stderr.strip()[-3000:] or result.stdout.strip()[-3000:]}")
    return result


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that nobody can read in between with another mode than this."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
