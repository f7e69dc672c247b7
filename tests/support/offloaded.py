# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program for network cards, loaded into the kernel, with maps filled from a configuration."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import offload_maps
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import Interface
from ansible_collections.lbops.xdp.plugins.module_utils.config import model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import MAX_REASONS
from ansible_collections.lbops.xdp.plugins.module_utils.tables.offload import Places, Shape, pack_half

from tests.support.compile_once import SOURCE, compile_program


class OffloadedProgram:
    """Service n counts in record MAX_REASONS + n, backend n behind all services."""

    def __init__(
        self, services: list[dict[str, Any]], backends: list[dict[str, Any]], whole: bool, address: str, mtu: int = 1500
    ) -> None:
        self.config = model.Config(parse_services(services), parse_backends(backends))
        shape = Shape.of(self.config, whole)
        first = MAX_REASONS + len(self.config.services)
        self.places = Places(
            {name: number for number, name in enumerate(self.config.services, MAX_REASONS)},
            {key: number for number, key in enumerate(self.config.backends, first)},
        )
        self.maps = offload_maps.create(shape, device=0)
        self.maps.write_control(0, Interface(1, mtu, address))
        self.maps.write_half(0, pack_half(self.config, self.places, shape))
        build = offload_maps.build(SOURCE, shape, "")
        code = bpf.relocate(compile_program(build), list(self.maps.descriptors.values()))
        self.fd = bpf.program_load("offloaded", code, program_type=build.program_type)

    def run(self, frame: bytes) -> tuple[int, bytes]:
        """Verdict and frame afterwards."""
        return bpf.test_run(self.fd, frame)[:2]

    def close(self) -> None:
        os.close(self.fd)
        self.maps.close()
