# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of one run that want a device to be different things."""

from __future__ import annotations

from ansible_collections.lbops.xdp.plugins.plugin_utils.nic_action import contradictions

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
