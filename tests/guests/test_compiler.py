# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests' own compilers and kernels. An emulated processor takes some ten minutes: the scenario leaves this out."""

from __future__ import annotations

from tests.guests.conftest import Guests
from tests.support.batch import Task
from tests.vm.common import CHECKOUT


def test_they_take_the_program_with_all_features(guests: Guests):
    script = CHECKOUT / "tests/vm/inside/load_program.py"
    results = guests.run(
        Task("engine", {}), Task("ansible.builtin.script", {"cmd": str(script), "executable": "/usr/bin/python3"})
    )
    for guest, (installed, loaded) in results.items():
        assert not installed.get("failed"), installed
        assert "loaded in" in loaded["stdout"], (guest, loaded)
        print(f"{guest}: {loaded['stdout'].strip()}")
