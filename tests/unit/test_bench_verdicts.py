# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What benchmarks say of what they measured, and the status that they exit with."""

from __future__ import annotations

import pytest

from tests.bench import flood, report, run


@pytest.mark.parametrize(
    "aim, value, verdict",
    [
        (report.Aim(1.1), 1.1, "met"),
        (report.Aim(1.1), 1.2, "missed"),
        (report.Aim(1.1, 1.5), 1.5, "missed"),
        (report.Aim(1.1, 1.5), 1.6, "EXCEEDED"),
        (report.Aim(6, at_least=True), 6.5, "met"),
        (report.Aim(6, at_least=True), 5.5, "missed"),
        (report.Aim(6, 5, at_least=True), 4.5, "EXCEEDED"),
    ],
)
def test_a_missed_aim_is_a_note_and_a_missed_limit_an_error(aim, value, verdict, capsys):
    assert aim.verdict(value) == verdict
    assert report.judge([("case", value, aim)]) == (1 if verdict == "EXCEEDED" else 0)
    printed = capsys.readouterr().out
    assert printed.startswith({"met": "", "missed": "note: case is", "EXCEEDED": "error: case is"}[verdict])


@pytest.mark.parametrize(
    "unfiltered, filtered, holds",
    [
        ((90, 60, 40, 1), (95, 90, 85, 60), True),
        ((90, 70, 60, 1), (95, 90, 85, 79), False),
        ((90, 50, 50, 50), (95, 90, 90, 90), False),
    ],
)
def test_the_filter_keeps_at_one_rate_what_is_lost_without_it(unfiltered, filtered, holds):
    found = {"quiet": {"requests_per_second": {"median": 100.0}}}
    for rate, lost, kept in zip(flood.RATES, unfiltered, filtered, strict=True):
        found[f"flood_{rate // 1000}k"] = {"requests_per_second": {"median": float(lost)}}
        found[f"flood_{rate // 1000}k_filter"] = {"requests_per_second": {"median": float(kept)}}
    shown, sentences = flood.claim(found)
    assert shown is holds
    assert len(sentences) == len(flood.RATES)


def test_the_worst_status_of_all_benchmarks_counts():
    assert run.worst([0, 0]) == 0
    assert run.worst([0, 3]) == 3
    assert run.worst([3, 1, 0]) == 1
    assert run.worst([0, -9]) == 1
