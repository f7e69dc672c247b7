# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter table: hash tables in which the data plane finds the longest prefix of a source address. Pure functions.

The table searches by halving the list of prefix lengths in use (Waldvogel, Varghese, Turner, Plattner: Scalable High
Speed IP Routing Lookups, SIGCOMM 1997). A slot at one length says that longer ones are worth a look, and what is known
so far; so a prefix leaves markers at the shorter lengths that the search for it visits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

from ..config.addresses import BITS, Prefix, parse_prefix
from ..config.filters import Filter, FilterKey, Filters
from ..config.vocabulary import FILTER_ACTIONS, FILTER_CLASSES
from ..errors import EngineError
from .layout import (
    ENDPOINT_MULTIPLIER,
    FILTER_HEADER,
    FILTER_LINE,
    FILTER_RULE,
    FILTER_SLOT4,
    FILTER_SLOT6,
    MASK64,
    Sizes,
)

HEADER_LINES = 3

# --- what holds for a prefix

# A rule for each class of protocols, None where there is none. Python 3.9 evaluates this line and knows no "|" here.
Verdict = tuple[Optional[Filter], ...]
Pack = Callable[[bytes, int], bytes]


def _verdicts(found: Filters) -> dict[Prefix, Verdict]:
    """By declared prefix: its own rules, a rule for one protocol before that for any."""
    own: dict[Prefix, list[Filter | None]] = {}
    parsed = {text: parse_prefix(text) for text in {key.prefix for key in found}}
    for key in sorted(found, key=lambda key: key.protocol != "any"):
        rules = own.setdefault(parsed[key.prefix], [None] * len(FILTER_CLASSES))
        for place, name in enumerate(FILTER_CLASSES):
            if key.protocol in ("any", name):
                rules[place] = found[key]
    return {prefix: tuple(rules) for prefix, rules in own.items()}


def _merged(inner: Verdict, outer: Verdict | None) -> Verdict:
    return inner if outer is None else tuple(rule or other for rule, other in zip(inner, outer))


def _stricter(before: Verdict | None, after: Verdict | None) -> Verdict | None:
    """By class, the rule that lets fewer packets through; of two that are as strict, `after`."""
    if before is None or after is None:
        return before or after
    return tuple(one if _strictness(one) > _strictness(other) else other for one, other in zip(before, after))


def _strictness(rule: Filter | None) -> tuple[int, int]:
    """Of two limits the one with the lower rate is stricter."""
    return (("pass", "limit", "drop").index(rule.action), -rule.rate) if rule else (0, 0)


class _Family:
    """The prefixes of one family, as (bits, length), with what a search needs to find them."""

    def __init__(self, family: int, own: dict[Prefix, Verdict]) -> None:
        self.bits = BITS[family]
        prefixes = {(prefix.number, prefix.length): rules for prefix, rules in own.items() if prefix.family == family}
        self.any = prefixes.pop((0, 0), None)
        self.lengths = sorted({length for _number, length in prefixes})
        self.best: dict[tuple[int, int], Verdict | None] = {}
        self._inherit(prefixes)
        self._mark(prefixes)

    def take_stricter(self, other: _Family) -> None:
        """Have the stricter of both rules for each prefix; `other` has the same prefixes."""
        self.any = _stricter(self.any, other.any)
        self.best = {place: _stricter(rules, other.best[place]) for place, rules in self.best.items()}

    def _cut(self, number: int, length: int) -> int:
        return number >> (self.bits - length) << (self.bits - length)

    def _inherit(self, prefixes: dict[tuple[int, int], Verdict]) -> None:
        """What a prefix says nothing about, the next shorter one that holds it says."""
        for number, length in sorted(prefixes, key=lambda item: item[1]):
            self.best[number, length] = _merged(prefixes[number, length], self._outer(number, length))

    def _outer(self, number: int, length: int) -> Verdict | None:
        for shorter in reversed(self.lengths):
            if shorter < length:
                found = self.best.get((self._cut(number, shorter), shorter))
                if found is not None:
                    return found
        return self.any

    def _mark(self, prefixes: dict[tuple[int, int], Verdict]) -> None:
        """Leave a marker wherever a search for a prefix has to turn to longer ones."""
        turns = {length: self._turns(length) for length in self.lengths}
        markers = {
            (self._cut(number, turn), turn) for number, length in prefixes for turn in turns[length]
        } - self.best.keys()
        known = {marker: self._outer(marker[0], marker[1] + 1) for marker in markers}
        self.best.update(known)

    def _turns(self, wanted: int) -> list[int]:
        """The lengths at which the search for one goes on to longer ones, in the program's order of halving."""
        low, high, turns = 0, len(self.lengths), []
        while low < high:
            middle = (low + high) // 2
            if self.lengths[middle] == wanted:
                break
            if self.lengths[middle] < wanted:
                turns.append(self.lengths[middle])
                low = middle + 1
            else:
                high = middle
        return turns


# --- the table


class _Lines:
    """A hash table of lines: a slot is in the first of its two lines, or in the second if the first is full.

    A slot that finds both full has another move on to its second line. So a line that was full once stays so, and the
    program need not look at the second line behind one that has room.
    """

    def __init__(self, homes: dict[bytes, int], count: int, slots_a_line: int) -> None:
        self._homes, self._room = homes, slots_a_line
        self._shift = 64 - (count.bit_length() - 1)
        self.lines: list[list[bytes]] = [[] for _line in range(count)]

    def _first(self, key: bytes) -> int:
        return self._homes[key] >> self._shift

    def _second(self, key: bytes) -> int:
        number = self._homes[key]
        return ((number ^ number >> 29) * ENDPOINT_MULTIPLIER & MASK64) >> self._shift

    def put(self, key: bytes) -> bool:
        """False if there is no room even by moving another slot."""
        first, second = self._first(key), self._second(key)
        for place in (first, second):
            if len(self.lines[place]) < self._room:
                self.lines[place].append(key)
                return True
        for place in (first, second):
            line = self.lines[place]
            for position, other in enumerate(line):
                elsewhere = self.lines[self._second(other)]
                if self._first(other) == place and len(elsewhere) < self._room and elsewhere is not line:
                    elsewhere.append(other)
                    line[position] = key
                    return True
        return False


def _place(
    slots: dict[bytes, int], homes: dict[bytes, int], form_size: int, count: int, pack: Pack
) -> bytearray | None:
    """So many lines; None if they are too few."""
    table = _Lines(homes, count, FILTER_LINE // form_size)
    if not all(map(table.put, slots)):
        return None
    return bytearray().join(
        b"".join(pack(key, slots[key]) for key in line).ljust(FILTER_LINE, b"\0") for line in table.lines
    )


def _home6(upper: int, lower: int, length: int) -> int:
    number = (upper ^ length) * ENDPOINT_MULTIPLIER & MASK64
    return (number ^ number >> 32 ^ lower) * ENDPOINT_MULTIPLIER & MASK64


def _pack4(key: bytes, verdict: int) -> bytes:
    return key + verdict.to_bytes(4, "little") + bytes(4)


def _pack6(key: bytes, verdict: int) -> bytes:
    return key + verdict.to_bytes(4, "little") + bytes(8)


def _slots4(family: _Family, verdicts: _VerdictLines) -> tuple[dict[bytes, int], dict[bytes, int]]:
    slots, homes = {}, {}
    for (number, length), rules in family.best.items():
        value = number | length << 32
        key = value.to_bytes(8, "little")
        slots[key], homes[key] = verdicts.place(rules), value * ENDPOINT_MULTIPLIER & MASK64
    return slots, homes


def _slots6(family: _Family, verdicts: _VerdictLines) -> tuple[dict[bytes, int], dict[bytes, int]]:
    slots, homes = {}, {}
    for (number, length), rules in family.best.items():
        upper, lower = number >> 64, number & MASK64
        key = upper.to_bytes(8, "little") + lower.to_bytes(8, "little") + length.to_bytes(4, "little")
        slots[key], homes[key] = verdicts.place(rules), _home6(upper, lower, length)
    return slots, homes


class _VerdictLines:
    """Verdicts, each once; place 0 is none."""

    def __init__(self, ids: dict[FilterKey, int]) -> None:
        self._ids = ids
        self._places: dict[Verdict, int] = {}
        self.lines = [bytes(FILTER_LINE)]

    def place(self, rules: Verdict | None) -> int:
        if rules is None:
            return 0
        place = self._places.get(rules)
        if place is None:
            place = self._places[rules] = len(self.lines)
            self.lines.append(b"".join(self._pack(rule) for rule in rules))
        return place

    def _pack(self, rule: Filter | None) -> bytes:
        if rule is None:
            return bytes(FILTER_RULE.size)
        interval = round(1e9 / rule.rate) if rule.rate else 0
        return FILTER_RULE.pack(self._ids[rule.key], FILTER_ACTIONS[rule.action], interval, rule.burst)


def _grow(
    slots: dict[bytes, int], homes: dict[bytes, int], form_size: int, pack: Pack, room: int
) -> tuple[bytearray, int]:
    """As few lines as hold all slots, a power of two; their bytes and number."""
    count = 2
    while count * (FILTER_LINE // form_size) < 2 * len(slots):
        count *= 2
    while count <= room:
        table = _place(slots, homes, form_size, count, pack)
        if table is not None:
            return table, count
        count *= 2
    raise EngineError(
        f"the prefixes need {len(slots)} places with their markers, which do not fit; raise max_filters of the balancer"
    )


def pack_filter_table(found: Filters, ids: dict[FilterKey, int], sizes: Sizes) -> bytes:
    """The lines of the table, as many as are in use. Raises EngineError if there are more filters than fit."""
    if len(found) > sizes.max_filters:
        raise EngineError(
            f"{len(found)} filters are more than max_filters {sizes.max_filters}; raise max_filters of the balancer"
        )
    return _pack(*_families(_verdicts(found)), ids, sizes)


def pack_strictest_table(sets: Sequence[Filters], ids: dict[FilterKey, int], sizes: Sizes) -> bytes:
    """The table that drops what any of these sets drops, and limits what any limits, at the lowest rate.

    `ids` has those of all. Raises EngineError if the prefixes do not fit together.
    """
    own = [_verdicts(found) for found in sets]
    nothing: Verdict = (None,) * len(FILTER_CLASSES)
    prefixes = list(dict.fromkeys(prefix for found in own for prefix in found))
    families, *others = (_families({prefix: found.get(prefix, nothing) for prefix in prefixes}) for found in own)
    for further in others:
        for family, other in zip(families, further):
            family.take_stricter(other)
    return _pack(*families, ids, sizes)


def _families(own: dict[Prefix, Verdict]) -> tuple[_Family, _Family]:
    return _Family(4, own), _Family(6, own)


def _pack(family4: _Family, family6: _Family, ids: dict[FilterKey, int], sizes: Sizes) -> bytes:
    verdicts = _VerdictLines(ids)
    any4, any6 = verdicts.place(family4.any), verdicts.place(family6.any)
    slots4, homes4 = _slots4(family4, verdicts)
    slots6, homes6 = _slots6(family6, verdicts)
    room = sizes.filter_lines - HEADER_LINES - len(verdicts.lines)
    table4, buckets4 = _grow(slots4, homes4, FILTER_SLOT4.size, _pack4, room)
    table6, buckets6 = _grow(slots6, homes6, FILTER_SLOT6.size, _pack6, room - len(table4) // FILTER_LINE)
    first6 = HEADER_LINES + len(table4) // FILTER_LINE
    header = FILTER_HEADER.pack(
        HEADER_LINES,
        first6,
        64 - (buckets4.bit_length() - 1),
        64 - (buckets6.bit_length() - 1),
        first6 + len(table6) // FILTER_LINE,
        any4,
        any6,
        len(family4.lengths),
        len(family6.lengths),
        bytes(family4.lengths),
        0,
        bytes(family6.lengths),
    )
    return header + bytes(table4) + bytes(table6) + b"".join(verdicts.lines)
