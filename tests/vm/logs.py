# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests' console and journal, kept in build/vm-logs/<guest>/ when the guests are removed."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

from tests.vm import access
from tests.vm.common import CHECKOUT, RUN, VmError, run

KEPT = CHECKOUT / "build" / "vm-logs"
LINES = 15
JOURNAL_LINES = 5000
JOURNAL_SECONDS = 60
# Colours and cursor movements of systemd's messages.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x00]")


def console(name: str) -> Path:
    return RUN / name / "console.log"


def last_lines(name: str) -> str:
    """Returns a paragraph for an error message: what the guest printed last on its console."""
    path = console(name)
    try:
        text = ESCAPES.sub("", path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return f"{path}: {error.strerror}"
    lines = [line for line in text.splitlines() if line.strip()][-LINES:]
    return "\n    ".join([f"the last lines of its console, which stays in {KEPT / name}:", *lines])


def keep_console(name: str) -> None:
    if console(name).exists():
        (KEPT / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(console(name), KEPT / name / "console.log")


def keep_journal(name: str, occasion: str) -> None:
    """Save the guest's journal, if the guest answers."""
    with contextlib.suppress(VmError, subprocess.TimeoutExpired):
        journal = run(
            "ssh",
            "-F",
            access.CONFIG,
            name,
            f"journalctl --no-pager -o short-monotonic -n {JOURNAL_LINES}; systemctl list-jobs --no-pager",
            stdin=subprocess.DEVNULL,
            timeout=JOURNAL_SECONDS,
        )
        (KEPT / name).mkdir(parents=True, exist_ok=True)
        file = KEPT / name / f"journal-{re.sub(r'[^A-Za-z0-9_.-]', '_', occasion)}.log"
        file.write_text(journal.stdout, encoding="utf-8")


def clear(name: str) -> None:
    """Forget what an earlier guest of this name left."""
    shutil.rmtree(KEPT / name, ignore_errors=True)
