# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What benchmarks compute from what they measured."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import parse_document

from tests.bench import control, modules


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
