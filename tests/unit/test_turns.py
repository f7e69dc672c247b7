# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose ring is computed next."""

from __future__ import annotations

from ansible_collections.lbops.xdp.plugins.module_utils.balancer.turns import Turns


def take_all(turns: Turns) -> list[str]:
    return [turns.take() for _service in range(len(turns))]


def test_the_first_and_the_last_by_turns():
    turns = Turns()
    turns.set("abcde")
    assert take_all(turns) == list("aebdc") and not turns


def test_news_are_next_but_one_at_the_latest():
    for taken in range(5):
        turns = Turns()
        turns.set("abcdefgh")
        waiting = set("abcdefgh") - {turns.take() for _turn in range(taken)}
        turns.set(["z", *sorted(waiting)])
        assert "z" in (turns.take(), turns.take())


def test_who_waits_keeps_the_place_and_who_need_not_goes():
    turns = Turns()
    turns.set("abcd")
    assert turns.take() == "a"
    turns.set("xdb")
    assert take_all(turns) == list("xbd")
    turns.set("aab")
    assert len(turns) == 2


def test_nobody_waits_for_ever():
    """With news at every turn."""
    turns = Turns()
    turns.set(["first"])
    waiting = {"first"}
    for number in range(10):
        waiting.add(str(number))
        turns.set(sorted(waiting))
        waiting.remove(turns.take())
        if "first" not in waiting:
            return
    raise AssertionError
