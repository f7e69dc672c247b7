# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of one run that want a device to be different things."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.lbops.xdp.plugins.action.nic_profile import ActionModule
from ansible_collections.lbops.xdp.plugins.plugin_utils.nic_action import contradictions, remember

SHORT = {
    "task": "Short rings",
    "asked": {"interface": "eth0", "rx": 512},
    "rollback": [{"interface": "eth0", "rx": 256}],
}


def test_another_value_for_the_same_option_of_the_same_device():
    (warning,) = contradictions({"interface": "eth0", "rx": 1024}, [SHORT])
    assert warning.startswith("eth0: rx=1024 contradicts rx=512 of the earlier task 'Short rings'")


def test_what_does_not_contradict():
    assert not contradictions({"interface": "eth0", "rx": "512"}, [SHORT])
    assert not contradictions({"interface": "eth0", "tx": 1024}, [SHORT])
    assert not contradictions({"interface": "eth1", "rx": 1024}, [SHORT])
    assert not contradictions({"interface": "eth0", "rx": 512, "on_exceed": "clamp"}, [SHORT])
    assert not contradictions({"interface": "eth0", "rx": None}, [SHORT])


def test_a_rollback_does_not_contradict():
    assert not contradictions({"interface": "eth0", "rx": 256}, [SHORT])
    # And neither does asking again, after it.
    back = {"task": "Back", "asked": {"interface": "eth0", "rx": 256}, "rollback": [{"interface": "eth0", "rx": 512}]}
    assert not contradictions({"interface": "eth0", "rx": 512}, [SHORT, back])


@pytest.mark.parametrize(
    ("one", "other"),
    [(False, "no"), (True, "on"), (512, " 512 "), ([1, 2], ["1", "2"]), ({"rx-0": 3}, {"rx-0": "3"})],
)
def test_the_same_value_in_other_words(one, other):
    for first, second in ((one, other), (other, one)):
        record = {"task": "Earlier", "asked": {"interface": "eth0", "lro": first}, "rollback": []}
        assert not contradictions({"interface": "eth0", "lro": second}, [record])


def test_tasks_that_end_at_the_same_time_are_all_remembered(tmp_path):
    path = tmp_path / "record.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: remember(path, {"task": number}), range(40)))
    assert sorted(entry["task"] for entry in json.loads(path.read_text())) == list(range(40))


def test_a_profile_asks_for_what_other_modules_set():
    plan = [
        {"option": "rings.rx", "before": 256, "after": 512},
        {"option": "rings.tx", "before": 256, "after": 256},
        {"option": "features.lro", "before": True, "after": False},
    ]
    assert list(ActionModule.asked(None, {"interface": "bond0"}, {"plan": {"eth0": plan}})) == [
        ("lbops.xdp.nic_rings", {"interface": "eth0", "rx": 512, "tx": 256}),
        ("lbops.xdp.nic_features", {"interface": "eth0", "lro": False}),
    ]
    assert not list(ActionModule.asked(None, {"state": "confirmed"}, {}))
