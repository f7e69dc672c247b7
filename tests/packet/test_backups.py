# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where packets go when health checks leave a service with its backups, in maps of the kernel."""

from __future__ import annotations

import pytest

from tests.packet import test_engine as engine
from tests.packet.test_engine import WEB, declare, web
from tests.packet.test_health import STICKY, backend_of, backends_of, seen, unchanged

balancer = engine.balancer
BACKENDS = [*web(1, 2), *web(3, 4, state="backup")]
FLOWS = 60


def test_backups_take_over_and_hand_back(balancer, net):
    declare(balancer, [STICKY], BACKENDS)
    assert set(backends_of(balancer, net, flows=FLOWS)) == {"10.0.0.1", "10.0.0.2"}
    balancer.observe(seen(1, 2))
    on_backups = backends_of(balancer, net, flows=FLOWS)
    assert set(on_backups) == {"10.0.0.3", "10.0.0.4"}
    unchanged(balancer, [STICKY], BACKENDS)
    balancer.observe(seen(1, up=(2,)))
    # Flows that are remembered stay, as those of drained backends do.
    assert backends_of(balancer, net, "A", flows=FLOWS) == on_backups
    assert {backend_of(balancer, net, port) for port in range(7, 27)} == {"10.0.0.2"}


@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
def test_backups_that_are_down_as_well(balancer, net, drop):
    declare(balancer, [WEB], BACKENDS)
    before = backends_of(balancer, net, flows=FLOWS)
    balancer.observe(seen(1, 2, 3, 4, drop=drop))
    assert backends_of(balancer, net, flows=FLOWS) == ([""] * FLOWS if drop else before)
    balancer.observe(seen(1, 2, 3, up=(4,), drop=drop))
    assert set(backends_of(balancer, net, flows=FLOWS)) == {"10.0.0.4"}
    # No health check took these out.
    balancer.observe(seen(up=(1, 2, 3, 4), drop=drop))
    assert balancer.apply_backends([*web(1, 2, state="drained"), *web(3, state="backup")], True, False).changed
    assert set(backends_of(balancer, net, flows=FLOWS)) == {"10.0.0.3"}
