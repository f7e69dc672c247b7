# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What benchmarks compute from what they measured."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import parse_document

from tests.bench import comparison, control, dataplane, modules, report, rounds


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_the_exponent_of_growth_is_that_of_the_power(power):
    samples = {
        f"apply_{label}_first": {"seconds": [9e9, 0.002 * backends**power, 0.0]}
        for label, (backends, _sizes) in modules.SIZES.items()
    }
    assert modules.exponent(samples, "first", tuple(modules.SIZES)) == pytest.approx(power)


def test_the_recap_says_how_many_tasks_ran():
    output = "PLAY RECAP ***\nlb1    : ok=7    changed=1    unreachable=0    failed=0\nlb2 : ok=0 changed=3\n"
    assert control.outcome(output) == (7, 1)
    with pytest.raises(RuntimeError, match="nothing of lb1"):
        control.outcome("lb2 : ok=0 changed=3")


@pytest.mark.parametrize("label", modules.SIZES)
def test_what_is_measured_is_a_document(tmp_path, label):
    backends, sizes = modules.SIZES[label]
    if label == "100k":
        backends //= 10
    path = modules.write_arguments(tmp_path / "arguments", backends // 100, backends, sizes, weight=2)
    arguments = json.loads(path.read_text())["ANSIBLE_MODULE_ARGS"]
    document = parse_document({**arguments, "sizes": sizes})
    assert len(document.config.backends) == backends
    assert [backend.weight for backend in document.config.backends.values()].count(2) == 1


def loads(**figures):
    """Loads of a run, from the figures that each case has in them."""
    return [dict(zip(figures, values)) for values in zip(*figures.values())]


def test_a_figure_is_the_lower_quartile_of_the_loads():
    assert rounds.lower_quartile([7.0]) == 7.0
    assert rounds.lower_quartile([50, 10, 40, 20, 30]) == 20
    # Half of the loads lie badly in memory.
    run_of_5 = loads(dnat=[25.0, 35.0, 25.4, 33.0, 25.2])
    assert rounds.figure(run_of_5, "dnat") == 25.2


def test_a_ratio_is_of_all_loads_and_of_each_run():
    runs = loads(dnat=[20.0] * 5, yardstick=[10.0] * 5), loads(dnat=[22.0] * 5, yardstick=[10.0] * 5)
    found = rounds.ratio(runs, "dnat", "yardstick")
    assert found.runs == pytest.approx((2.0, 2.2))
    assert 2.0 <= found.value <= 2.2
    assert found.noise == pytest.approx(0.1)


@pytest.mark.parametrize(
    "first, second, too_noisy",
    [
        (1.0, 1.04, False),
        (1.04, 1.0, False),
        (1.0, 1.06, True),
        (2.0, 2.12, True),
        # Less than the clock can tell apart.
        (0.1, 0.115, False),
        (0.1, 0.13, True),
        (-0.001, 0.01, False),
        (-0.1, 0.1, True),
    ],
)
def test_two_runs_agree_within_5_percent(first, second, too_noisy):
    assert rounds.Ratio(1.0, (first, second)).too_noisy is too_noisy


def steady(value):
    return rounds.Ratio(value, (value, value))


NOISY = rounds.Ratio(1.0, (0.9, 1.2))


@pytest.mark.parametrize(
    "dnat_udp4, dsr_udp4, status",
    [
        (steady(1.0), steady(0.8), 0),
        (steady(2.0), steady(2.0), 0),
        (steady(9.0), steady(0.8), 1),
        # dsr_udp4 has no limit, so its noise leaves none open.
        (steady(1.0), NOISY, 0),
        (NOISY, steady(0.8), 3),
        (NOISY, NOISY, 3),
    ],
)
def test_no_verdict_is_given_where_it_is_too_noisy(dnat_udp4, dsr_udp4, status, capsys):
    found = {"dnat_udp4": {"yardstick": dnat_udp4}, "dsr_udp4": {"yardstick": dsr_udp4}}
    assert dataplane.judge(found) == status
    printed = capsys.readouterr().out
    noisy = [name for name, ratio in (("dnat_udp4", dnat_udp4), ("dsr_udp4", dsr_udp4)) if ratio is NOISY]
    assert ("too noisy here" in printed) is bool(noisy)
    for name in noisy:
        assert f"{name} / " not in printed


def test_cases_are_compared_with_the_yardstick_and_with_what_their_aim_refers_to():
    run_of_2 = loads(yardstick=[10.0, 10.0], dnat_udp4=[11.0, 11.0], dnat_udp6=[22.0, 22.0])
    found = dataplane.ratios((run_of_2, run_of_2), ["yardstick", "dnat_udp4", "dnat_udp6"])
    assert {name: list(by_base) for name, by_base in found.items()} == {
        "yardstick": [],
        "dnat_udp4": ["yardstick"],
        "dnat_udp6": ["yardstick", "dnat_udp4"],
    }
    assert found["dnat_udp6"]["dnat_udp4"].value == 2


def test_the_file_has_median_min_max_and_rounds_of_everything():
    first = [{**load, "floor": 27.0} for load in loads(yardstick=[10.0, 10.0], dnat_udp4=[11.0, 13.0])]
    second = [{**load, "floor": 27.0} for load in loads(yardstick=[10.0, 10.0], dnat_udp4=[11.0, 15.0])]
    runs = (first, second)
    cases = dataplane.summaries(runs, dataplane.ratios(runs, ["yardstick", "dnat_udp4"]))
    assert cases["dnat_udp4"]["net_ns"] == {"median": 12, "min": 11, "max": 15, "rounds": 4, "lower_quartile": 11}
    for quantities in cases.values():
        for quantity in quantities.values():
            assert {"median", "min", "max", "rounds"} <= quantity.keys()
            assert quantity["min"] <= quantity["median"] <= quantity["max"]


@pytest.mark.parametrize("limit, after, status", [(1.1, 11.0, 0), (1.1, 11.5, 1), (None, 20.0, 0)])
def test_a_change_is_judged_by_the_limit_that_the_caller_gives(limit, after, status):
    run_of_2 = [{"dnat_udp4 before": 10.0, "dnat_udp4": after}] * 2
    assert comparison.compare((run_of_2, run_of_2), ["dnat_udp4"], limit) == status


@pytest.mark.parametrize("limit, status", [(1.1, 3), (None, 0)])
def test_a_change_is_not_judged_where_it_is_too_noisy(limit, status, capsys):
    first, second = ([{"dnat_udp4 before": 10.0, "dnat_udp4": after}] for after in (10.0, 11.0))
    assert comparison.compare((first, second), ["dnat_udp4"], limit) == status
    assert "no verdict on dnat_udp4" in capsys.readouterr().out


def test_a_program_of_another_layout_is_refused(tmp_path):
    before, source = tmp_path / "before", tmp_path / "source"
    for directory, version in ((before, 3), (source, 4)):
        directory.mkdir()
        (directory / "layout.h").write_text(f"/* LAYOUT */\n#define LAYOUT_VERSION {version}\n")
    comparison.refuse_other_layout(source, source)
    with pytest.raises(report.Failure, match=r"before has version 3 .* this checkout has version 4"):
        comparison.refuse_other_layout(before, source)
    with pytest.raises(report.Failure, match=r"nothing has no layout\.h \(No such file or directory\)"):
        comparison.refuse_other_layout(tmp_path / "nothing", source)
