# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of lists in the inventory, read key by key: what is wrong with one is said in words that name it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Callable

from ..errors import EngineError, Problems
from .addresses import canonical

# int() takes more than an inventory should hold: "8_0", " +80", other alphabets' digits.
NUMBER_PATTERN = re.compile(r"-?[0-9]{1,20}")
RANGE_PATTERN = re.compile(r"([0-9]+)-([0-9]+)")


class Entry:
    """One declared entry; errors name it."""

    def __init__(self, kind: str, position: int, raw: Any, known: frozenset[str]) -> None:
        if not isinstance(raw, dict):
            raise EngineError(f"{kind}[{position}] is {raw!r}, not a mapping")
        self.kind, self.position, self.raw = kind, position, raw
        if not raw.keys() <= known:
            unknown = min(raw.keys() - known, key=str)
            raise self.error(f"unknown key {unknown!r}; known are {', '.join(sorted(known))}")

    @property
    def where(self) -> str:
        label = " ".join(
            str(self.raw[key])
            for key in ("service", "name", "address", "interface", "prefix")
            if self.raw.get(key) is not None
        )
        return f"{self.kind}[{self.position}]" + (f" ({label})" if label else "")

    def error(self, problem: str) -> EngineError:
        return EngineError(f"{self.where}: {problem}")

    def required(self, key: str) -> Any:
        value = self.raw.get(key)
        if value is None or value == "":
            raise self.error(f"{key} is missing")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise self.error(f"{key} {value!r} is not one of {', '.join(choices)}")
        return value

    def address(self, key: str) -> str:
        value = self.required(key)
        try:
            return canonical(str(value))
        except ValueError as error:
            raise self.error(f"{key} {value!r} {error}") from None

    def boolean(self, key: str) -> bool:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} {value!r} is neither true nor false")
        return bool(value)

    def port_range(self, key: str, value: Any) -> tuple[int, int]:
        ends = RANGE_PATTERN.fullmatch(str(value))
        first, last = ends.groups() if ends else (value, value)
        first_port = self.integer(key, 1, 65535, first)
        last_port = self.integer(key, 1, 65535, last)
        if first_port > last_port:
            raise self.error(f"{key} range {value!r} is reversed, write {last_port}-{first_port}")
        return first_port, last_port

    def integer(self, key: str, lowest: int, highest: int, value: Any) -> int:
        # True is an int, too, but no number that somebody meant.
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not NUMBER_PATTERN.fullmatch(str(value)):
            raise self.error(f"{key} {value!r} is not a whole number")
        number = int(value)
        if not lowest <= number <= highest:
            raise self.error(f"{key} {value!r} is not between {lowest} and {highest}")
        return number


def parse_entries(kind: str, raw: Any, known: frozenset[str], parse: Callable[[Entry], Any]) -> list[tuple[Entry, Any]]:
    """Every entry parsed, or one error that lists what is wrong with each."""
    if not isinstance(raw, list):
        raise EngineError(f"{kind} is {raw!r}, not a list")
    parsed, errors = [], []
    for position, item in enumerate(raw):
        try:
            entry = Entry(kind, position, item, known)
            parsed.append((entry, parse(entry)))
        except EngineError as error:
            errors.append(str(error))
    raise_all(errors)
    return parsed


def raise_all(errors: list[str]) -> None:
    if errors:
        raise Problems(errors)
