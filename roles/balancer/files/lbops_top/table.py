# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of lbops-top, for a terminal of any width. Entries are those of rates.report()."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from .rates import Entry
from .sort import sort_services
from .text import address_of, name_of, percent, program_of, quantity, state_of

VERDICTS = ("drop", "pass", "tx", "forward")
GAP = "  "
LEAST_NAME = 16
# In this order columns go from a terminal in which they would leave names less room than that.
DISPENSABLE = ("ADDRESS", "TO CLIENTS", "SHARE", "WEIGHT", "STATE")
STYLES = {"unhealthy": "bad", "drained": "drained"}


class Line(NamedTuple):
    text: str
    style: str = ""


class Column(NamedTuple):
    heading: str
    width: int
    cell: Callable[[Entry], str]
    # Of a number, whose.
    direction: str = ""


class Table(NamedTuple):
    """What stays where it is when somebody scrolls, and what does not."""

    head: list[Line]
    rows: list[Line]


def table(balancer: dict[str, Any], width: int, sort: str, reverse: bool = False) -> Table:
    """Of one balancer, or of what came in between: {"balancer": ..., "error": ...}."""
    if "error" in balancer:
        return Table([Line(cut(f"{balancer['balancer']}: {balancer['error']}", width), "bad")], [])
    services = sort_services(balancer["services"], sort, reverse)
    left, right = _columns(services, width)
    room = width - len(_numbers(right, {}))
    titles = [_title(service, room) for service in services]
    span = max(_span(left), *map(len, titles), 0)
    left[0] = left[0]._replace(width=left[0].width + span - _span(left))
    head = [
        Line(program_of(balancer)),
        *(Line(f"  {problem}", "bad") for problem in balancer["program"]["problems"]),
        *_reasons(balancer["reasons"]),
        Line(""),
        Line(" " * span + _directions(right), "heading"),
        Line(_texts(left, [column.heading for column in left]) + _headings(right), "heading"),
        Line("total".ljust(span) + _numbers(right, balancer["total"]), "service"),
    ]
    rows = []
    for service, title in zip(services, titles):
        rows.append(Line(title.ljust(span) + _numbers(right, service), "service"))
        for backend in service["backends"]:
            text = _texts(left, [column.cell(backend) for column in left]) + _numbers(right, backend)
            rows.append(Line(text, STYLES.get(state_of(backend), "")))
    return Table(*([Line(cut(line.text, width), line.style) for line in lines] for lines in (head, rows)))


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _reasons(rows: list[Entry]) -> list[Line]:
    """Why packets were not forwarded, the most frequent reason first; what is rare only when it happens."""
    lines = []
    for verdict in VERDICTS:
        found = [row for row in rows if row["verdict"] == verdict and row["packets_per_second"]]
        if not found and verdict not in ("drop", "pass"):
            continue
        found.sort(key=lambda row: -row["packets_per_second"])
        total = sum(row["packets_per_second"] for row in found)
        parts = [f"{row['reason']} {quantity(row['packets_per_second'])}" for row in found]
        text = f"  {verdict:<7} {quantity(total):>5} packets/s  {GAP.join(parts)}".rstrip()
        lines.append(Line(text, "bad" if verdict == "drop" and total else ""))
    return lines


def _columns(services: list[Entry], width: int) -> tuple[list[Column], list[Column]]:
    """Texts and numbers, those that fit."""
    backends = [backend for service in services for backend in service["backends"]]

    def text(heading: str, cell: Callable[[Entry], str]) -> Column:
        return Column(heading, max(map(len, [heading, *map(cell, backends)])), cell)

    def rate(heading: str, name: str, direction: str) -> Column:
        return Column(heading, 6, lambda entry: quantity(entry.get(name)), direction)

    columns = [
        text("NAME", lambda backend: GAP + name_of(backend)),
        text("ADDRESS", lambda backend: address_of(backend) if backend.get("name") else ""),
        text("WEIGHT", lambda backend: str(backend["weight"])),
        text("STATE", state_of),
        rate("PKTS/S", "packets_per_second", "TO BACKENDS"),
        rate("BITS/S", "bits_per_second", "TO BACKENDS"),
        Column("SHARE", 5, lambda entry: percent(entry["share"]) if "share" in entry else "", "TO BACKENDS"),
        rate("PKTS/S", "reply_packets_per_second", "TO CLIENTS"),
        rate("BITS/S", "reply_bits_per_second", "TO CLIENTS"),
    ]
    name = columns.pop(0)
    for left_out in range(len(DISPENSABLE) + 1):
        gone = DISPENSABLE[:left_out]
        found = [column for column in columns if column.heading not in gone and column.direction not in gone]
        left = [column for column in found if not column.direction]
        right = [column for column in found if column.direction]
        room = width - len(_headings(right)) - sum(column.width + len(GAP) for column in left)
        # An address is worth less than a name in full.
        if room >= name.width or left_out and room >= LEAST_NAME:
            break
    return [name._replace(width=max(min(name.width, room), 0)), *left], right


def _title(service: Entry, room: int) -> str:
    """Of a service, as much as there is room for."""
    how = f"{service['forwarding']} {service['scheduler']}"
    short = f"{service['name']}{GAP}{how}"
    whole = f"{service['name']}{GAP}{address_of(service)}/{service['protocol']}{GAP}{how}"
    return next((title for title in (whole, short) if len(title) <= room), cut(service["name"], max(room, 1)))


def _span(columns: list[Column]) -> int:
    return len(_texts(columns, ["" for _column in columns]))


def _texts(columns: list[Column], cells: list[str]) -> str:
    return GAP.join(
        f"{cut(cell, column.width):{'>' if column.heading == 'WEIGHT' else '<'}{column.width}}"
        for column, cell in zip(columns, cells)
    )


def _numbers(columns: list[Column], entry: Entry) -> str:
    return _joined(columns, [column.cell(entry) for column in columns])


def _headings(columns: list[Column]) -> str:
    return _joined(columns, [column.heading for column in columns])


def _joined(columns: list[Column], cells: list[str]) -> str:
    """With a wider gap between the directions."""
    text, direction = "", ""
    for column, cell in zip(columns, cells):
        text += (" " if column.direction == direction else GAP) + cell.rjust(column.width)
        direction = column.direction
    return text


def _directions(columns: list[Column]) -> str:
    text = ""
    for direction in dict.fromkeys(column.direction for column in columns):
        text += GAP + direction.rjust(len(_headings([c for c in columns if c.direction == direction])) - len(GAP))
    return text
