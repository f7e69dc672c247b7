# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The terminal of lbops-top, spoken to in the sequences that all of today's understand.

curses would want a description of the terminal, which a server often does not have of what people log in from.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import termios
import time
import tty
from typing import Any

from .table import Line

# Another screen, so that the shell's is as it was afterwards; no cursor.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[0m\x1b[?25h\x1b[?1049l"
STYLES = {"title": "7", "heading": "1", "service": "1", "bad": "31", "drained": "33"}
# Of keys that send more than a character, as terminals send them in their two modes.
KEYS = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "[5~": "page up",
    "[6~": "page down",
    "[H": "home",
    "[1~": "home",
    "[F": "end",
    "[4~": "end",
}
SEQUENCE = re.compile(r"\x1b([\[O][0-9;]*[~A-Za-z])|([^\x1b])")


def parse_keys(typed: str) -> list[str]:
    """Names of keys, or the characters themselves."""
    found = [
        KEYS.get(sequence.replace("O", "[", 1), "") if sequence else character
        for sequence, character in SEQUENCE.findall(typed)
    ]
    return [key for key in found if key]


def _end(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


class Terminal:
    """As a context; the terminal is as before afterwards, whatever ends it."""

    def __init__(self) -> None:
        self._styles = {} if os.environ.get("NO_COLOR") else STYLES
        self._suspending = False

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(sys.stdin)
        # Signals wake keys() up.
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGWINCH, lambda *_arguments: None)
        signal.signal(signal.SIGTSTP, self._ask_to_suspend)
        signal.signal(signal.SIGTERM, _end)
        try:
            self._take()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._give_back()

    def _take(self) -> None:
        tty.setcbreak(sys.stdin)
        self._write(ENTER)

    def _give_back(self) -> None:
        self._write(LEAVE)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _ask_to_suspend(self, *_arguments: Any) -> None:
        # Not here: the signal may come while something is being written, and a stream takes one writer at a time.
        self._suspending = True

    def _suspend(self) -> None:
        self._suspending = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return shutil.get_terminal_size()

    def draw(self, lines: list[Line]) -> None:
        # Each is erased before it is written: after the last column, some terminals would erase that.
        texts = [f"\x1b[{number};1H\x1b[2K{self._styled(line)}" for number, line in enumerate(lines, 1)]
        rest = f"\x1b[{len(lines) + 1};1H\x1b[J" if len(lines) < self.size()[1] else ""
        self._write("".join(texts) + rest)

    def _styled(self, line: Line) -> str:
        style = self._styles.get(line.style)
        return f"\x1b[{style}m{line.text}\x1b[0m" if style else line.text

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def keys(self, deadline: float) -> list[str]:
        """Those pressed, as soon as there are any; none at the deadline, or when the terminal changed."""
        wait = max(deadline - time.monotonic(), 0)
        readable, _writable, _exceptional = select.select([sys.stdin, self._wake], [], [], wait)
        if self._wake in readable:
            os.read(self._wake, 64)
        if self._suspending:
            self._suspend()
            return []
        if sys.stdin not in readable:
            return []
        typed = os.read(sys.stdin.fileno(), 256)
        # Whoever looked has hung up.
        return parse_keys(typed.decode(errors="replace")) if typed else ["q"]
