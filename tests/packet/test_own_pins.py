# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests bring their own BPF file system, so the machine needs none and keeps none."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

from tests.support import namespace

PIN = Path(namespace.BPF) / "lbops-own-pins"


def test_pins_are_seen_by_this_process_and_its_children_only():
    PIN.mkdir()
    try:
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(PIN.exists()))
        thread.start()
        thread.join()
        assert seen == [True]
        assert subprocess.run(["test", "-d", PIN], check=False).returncode == 0
        assert not Path(f"/proc/{os.getppid()}/root", *PIN.parts[1:]).exists()
    finally:
        PIN.rmdir()


def test_pins_are_gone_after_leaving_and_the_directory_is_the_same():
    directory = Path.cwd()
    with namespace.own_pins():
        PIN.mkdir()
        assert Path.cwd() == directory
    assert not PIN.exists()
    assert Path.cwd() == directory
