# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters of what was removed."""

from __future__ import annotations

import json

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import departed
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.departed import Departed
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey

ONE, TWO = BackendKey("web", "192.0.2.1", 80), BackendKey("web", "192.0.2.2", None)
ROW = (5, 4, 3, 2, 1)


def test_what_goes_is_kept_until_it_is_back():
    gone = Departed().after({"web": ROW}, {ONE: ROW, TWO: ROW}, [], [])
    assert gone == Departed({"web": ROW}, {ONE: ROW, TWO: ROW})
    assert gone.after({}, {}, ["web"], [TWO]) == Departed({}, {ONE: ROW})


def test_what_never_counted_anything_is_not_kept():
    assert Departed().after({}, {ONE: (0,) * 5}, [], []) == Departed()


def test_the_last_to_go_are_kept(monkeypatch):
    monkeypatch.setattr(departed, "LIMIT", 1)
    assert Departed(backends={ONE: ROW}).after({}, {TWO: ROW}, [], []) == Departed(backends={TWO: ROW})
    assert Departed(backends={ONE: ROW, TWO: ROW}).after({}, {ONE: ROW}, [], []) == Departed(backends={ONE: ROW})


def test_what_is_dumped_is_loaded():
    full = Departed({"web": ROW}, {ONE: ROW, TWO: ROW})
    assert Departed.load(json.loads(json.dumps(full.dump()))) == full
    assert Departed.load({}) == Departed()
