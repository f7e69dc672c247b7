# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, version 0.0.4. Families with thousands of samples write their lines themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# Each is there once; comparing its fields for every sample takes longer than the sample.
@dataclass(frozen=True, eq=False)
class Family:
    """One metric: its name as it is exposed, and its labels, in alphabetical order."""

    name: str
    kind: str  # counter, gauge, histogram or untyped
    help: str
    labels: tuple[str, ...] = ()


def escape(value: object) -> str:
    return str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def pairs(labels: Mapping[str, object]) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in sorted(labels.items()))


class Page:
    """Samples by family, as they are sent: many lines take a fifth of the memory when they are one piece."""

    def __init__(self) -> None:
        self._pieces: dict[Family, list[bytes]] = {}

    def add(self, family: Family, value: float, /, **labels: object) -> None:
        text = f"{{{pairs(labels)}}}" if labels else ""
        self.add_lines(family, [f"{family.name}{text} {value}"])

    def add_lines(self, family: Family, lines: Iterable[str]) -> None:
        piece = "\n".join(lines).encode()
        if piece:
            self._pieces.setdefault(family, []).append(piece)

    def merge(self, other: Page) -> None:
        for family, pieces in other._pieces.items():
            self._pieces.setdefault(family, []).extend(pieces)

    def content(self) -> bytes:
        found = []
        for family, pieces in self._pieces.items():
            found.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}".encode())
            found += pieces
        return b"\n".join([*found, b""])
