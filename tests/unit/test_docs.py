# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation: links lead somewhere, and files that were rewritten keep to the words of docs/glossary.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = {".ansible", ".git", ".venv", "build"}
PAGES = sorted(
    path
    for folder in (ROOT, *(entry for entry in ROOT.iterdir() if entry.is_dir() and entry.name not in MADE))
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[`~]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
# [text](target), ![text](target) and [text]: target
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
NAMED = re.compile(r"<a\s[^>]*(?:id|name)=[\"']([^\"']+)")
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:")

# What the project does not call a thing, and sentences that nobody would say; docs/glossary.md has the words for it.
FORBIDDEN = re.compile(
    r"\b(anew|by and by|so many|is no more|whoever|those that|those who|is to be had|are to be had|hindrances?"
    r"|the way that packets take|what is desired|what is live|balancers at once)\b|\bring\b(?<!descriptor ring)",
    re.IGNORECASE,
)
# Grows with every file that is rewritten.
PLAIN = {"docs/glossary.md"}


def prose(text: str) -> str:
    """Without code, in which neither links nor words count."""
    return CODE.sub("", FENCE.sub("", text))


def links(text: str) -> list[str]:
    return [first or second for first, second in LINK.findall(prose(text))]


def slug(heading: str) -> str:
    """As GitHub makes an anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    text = FENCE.sub("", path.read_text())
    found: dict[str, int] = {}
    names = set(NAMED.findall(text))
    for heading in HEADING.findall(text):
        name = slug(heading)
        repeated = found.get(name, 0)
        found[name] = repeated + 1
        names.add(f"{name}-{repeated}" if repeated else name)
    return frozenset(names)


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None if nothing is, or if it leads to another site."""
    if ELSEWHERE.match(link):
        return None
    name, _hash, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link}: there is no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"{link}: {target.name} has no such heading"
    return None


def test_there_are_pages():
    assert {ROOT / "README.md", ROOT / "docs/design.md", ROOT / "docs/glossary.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    found = links(page.read_text())
    assert not [why for link in found if (why := problem(page, link))]


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_words(name):
    assert not [found.group() for found in FORBIDDEN.finditer(prose((ROOT / name).read_text()))]


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_the_glossary_is_linked(name):
    page = ROOT / name
    targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text())}
    assert ROOT / "docs/glossary.md" in targets


# --- what the checks themselves find


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [the design](design.md#programs)", ["design.md#programs"]),
        ("![a picture](images/page.png)", ["images/page.png"]),
        ("[one]: design.md\n", ["design.md"]),
        ("`[no](link.md)` and\n```\n[none](here.md)\n```\n[but](this.md)", ["this.md"]),
    ],
)
def test_links(text, expected):
    assert links(text) == expected


def test_a_broken_link_is_found(tmp_path):
    page = ROOT / "docs/design.md"
    assert problem(page, "nowhere.md") == "nowhere.md: there is no such file"
    assert problem(page, "../../outside.md") is not None
    assert problem(page, "#no-such-heading") == "#no-such-heading: design.md has no such heading"
    assert problem(page, "#programs") is None
    assert problem(page, "../README.md#an-inventory") is None
    assert problem(page, "https://example.com/#nothing") is None


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Two commands", "two-commands"),
        ("What a packet meets: `parse`", "what-a-packet-meets-parse"),
        ("[A link](x.md), and more", "a-link-and-more"),
        ("snake_case and IPv4/IPv6", "snake_case-and-ipv4ipv6"),
    ],
)
def test_anchors_are_those_of_github(heading, expected):
    assert slug(heading) == expected


@pytest.mark.parametrize("text", ["Counters begin anew.", "Whoever asks", "the ring of a service"])
def test_a_forbidden_word_is_found(text):
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("text", ["Counters restart at zero.", "the descriptor ring", "during a string"])
def test_other_words_are_none_of_its_business(text):
    assert not FORBIDDEN.search(text)
