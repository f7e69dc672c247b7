# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balancers that had the name of their interface: what becomes of the second one of a host."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import legacy, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.places import Places


def test_only_that_of_the_first_interface_is_taken_over(tmp_path: Path):
    places = Places("main", state.Paths(tmp_path / "pins", tmp_path / "state"))
    places.state_directory.mkdir(parents=True)
    for interface in ("eth1", "eth2", "eth9"):
        legacy.state_file(places.paths, interface).touch()
    interfaces = ("eth0", "eth1", "eth2")
    assert legacy.given_up(places, interfaces) == ["eth2"]
    # The first one is taken over, and its file gone.
    places.state_file.touch()
    legacy.state_file(places.paths, "eth1").unlink()
    assert legacy.given_up(places, interfaces) == ["eth2"]
    legacy.discard(places, interfaces)
    assert legacy.given_up(places, interfaces) == []
