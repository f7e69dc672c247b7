# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, version 0.0.4. Families with thousands of samples write their lines themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Family:
    """One metric: its name as it is exposed, and its labels, in alphabetical order."""

    name: str
    kind: str  # counter, gauge or untyped
    help: str
    labels: tuple[str, ...] = ()


def escape(value: object) -> str:
    return str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def pairs(labels: Mapping[str, object]) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in sorted(labels.items()))


class Page:
    """Samples by family."""

    def __init__(self) -> None:
        self._lines: dict[Family, list[str]] = {}

    def add(self, family: Family, value: float, **labels: object) -> None:
        text = f"{{{pairs(labels)}}}" if labels else ""
        self._lines.setdefault(family, []).append(f"{family.name}{text} {value}")

    def add_lines(self, family: Family, lines: Iterable[str]) -> None:
        self._lines.setdefault(family, []).extend(lines)

    def merge(self, other: Page) -> None:
        for family, lines in other._lines.items():
            self.add_lines(family, lines)

    def text(self) -> str:
        found = []
        for family, lines in self._lines.items():
            found.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}")
            found += lines
        return "\n".join(found) + "\n" if found else ""
