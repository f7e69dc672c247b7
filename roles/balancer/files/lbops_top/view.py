# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live view of lbops-top: what a person sees of the last report, and what keys do. No terminal in here."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from .sort import SORTS
from .table import Line, cut, table

BITS = (
    "Bits are those of frames as they arrive, Ethernet header included; not counted are preamble, checksum and gap, "
    "24 bytes a frame on the wire, and what a tunnel adds."
)
HELP = """\
q            quit
s, right     sort by something else; the first line says by what
left         sort by what was before
r            the other way round
up, down     scroll, also with page up, page down, home, end
space        hold the table still, and let it go on
?            this help; any key leaves it

SHARE: of the packets of the service's backends.
-: not known; the counter has just begun anew, or is of replies that do not
   come back through the balancer: those of dsr, ipip, gue and redirect.
"""


@dataclass
class View:
    sort: str
    reverse: bool = False
    paused: bool = False
    helping: bool = False
    done: bool = False
    first: int = 0  # of the rows that are scrolled
    page: int = 1  # as many as there was room for

    def press(self, key: str) -> None:
        if key == "q":
            self.done = True
        elif self.helping:
            self.helping = False
        elif key == "?":
            self.helping = True
        elif key in ("s", "right", "left"):
            step = -1 if key == "left" else 1
            self.sort = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)]
        elif key == "r":
            self.reverse = not self.reverse
        elif key == " ":
            self.paused = not self.paused
        elif key in ("home", "end"):
            # frame() knows where the end is.
            self.first = 0 if key == "home" else 1 << 30
        else:
            self.first += {"up": -1, "down": 1, "page up": -self.page, "page down": self.page}.get(key, 0)

    def frame(self, report: dict[str, Any], width: int, height: int) -> list[Line]:
        """As many lines as the terminal has, or fewer."""
        title = Line(cut(self._title(report), width), "title")
        if self.helping:
            texts = [*HELP.splitlines(), *textwrap.wrap(BITS, width)]
            return [title, *(Line(cut(text, width)) for text in texts)][:height]
        head, rows = _lines(report, width, self.sort, self.reverse)
        self.page = height - 1 - len(head)
        if self.page < 3:
            # Where nothing may stay in place, all of it scrolls.
            head, rows, self.page = [], head + rows, height - 1
        self.first = max(0, min(self.first, len(rows) - self.page))
        return [title, *head, *rows[self.first : self.first + self.page]][:height]

    def _title(self, report: dict[str, Any]) -> str:
        order = f"by {self.sort}, reversed" if self.reverse else f"by {self.sort}"
        return "  ".join([*_where(report), *(["held"] if self.paused else []), f"sorted {order}", "q quit", "? help"])


def _where(report: dict[str, Any]) -> list[str]:
    """And when, without the zone, which people know."""
    return [report["host"], report["time"][:19].replace("T", " ")]


def _lines(report: dict[str, Any], width: int, sort: str, reverse: bool) -> tuple[list[Line], list[Line]]:
    tables = [table(balancer, width, sort, reverse) for balancer in report["balancers"]]
    if len(tables) == 1:
        return tables[0]
    return [], [line for head, rows in tables for line in (*head, *rows, Line(""))]


def plain(report: dict[str, Any], width: int, sort: str) -> str:
    """All of it, for a file or a mail."""
    head, rows = _lines(report, width, sort, False)
    title = "  ".join([*_where(report), f"sorted by {sort}"])
    return "".join(f"{line.rstrip()}\n" for line in (cut(title, width), *(line.text for line in head + rows)))
