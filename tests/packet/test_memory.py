# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's own accounts of the memory of maps, against what is computed before they are made."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set, map_specs
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes


def kernel_bytes(descriptor: int) -> int:
    """What the kernel says a map takes (map_mem_usage(), kernel 6.4)."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def test_maps_take_what_was_computed():
    """Rounded up to what the kernel's allocators give; the kernel does not count that."""
    with map_set.create(Sizes(max_services=4096, max_backends=65536, max_sessions=32768, max_filters=8192)) as made:
        for spec in map_specs.map_specs(made.sizes):
            (computed,) = map_specs.memory_of([spec], bpf.possible_cpus()).values()
            found = kernel_bytes(made[spec.name])
            if spec.type != bpf.MAP_TYPE_DEVMAP_HASH:
                assert computed >= found - 512, spec.name
            assert computed <= 2 * found + 4096, spec.name
