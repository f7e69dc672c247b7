# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters of what was removed."""

from __future__ import annotations

import json

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import retained
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.retained import Retained
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey

ONE, TWO = BackendKey("web", "192.0.2.1", 80), BackendKey("web", "192.0.2.2", None)
ROW = (5, 4, 3, 2, 1)


def test_what_goes_is_kept_until_it_is_back():
    gone = Retained().after({"web": ROW}, {ONE: ROW, TWO: ROW}, [], [])
    assert gone == Retained({"web": ROW}, {ONE: ROW, TWO: ROW})
    assert gone.after({}, {}, ["web"], [TWO]) == Retained({}, {ONE: ROW})


def test_what_never_counted_anything_is_not_kept():
    assert Retained().after({}, {ONE: (0,) * 5}, [], []) == Retained()


def test_the_last_to_go_are_kept(monkeypatch):
    monkeypatch.setattr(retained, "LIMIT", 1)
    assert Retained(backends={ONE: ROW}).after({}, {TWO: ROW}, [], []) == Retained(backends={TWO: ROW})
    assert Retained(backends={ONE: ROW, TWO: ROW}).after({}, {ONE: ROW}, [], []) == Retained(backends={ONE: ROW})


def test_what_is_dumped_is_loaded():
    full = Retained({"web": ROW}, {ONE: ROW, TWO: ROW})
    assert Retained.load(json.loads(json.dumps(full.dump()))) == full
    assert Retained.load({}) == Retained()
