# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real program, compiled and loaded on this machine, with maps filled from a configuration; nothing is attached."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils import bpf, compiler, maps, model, tables
from ansible_collections.lbops.xdp.plugins.module_utils.layout import Sizes

SOURCE = Path(__file__).resolve().parents[2] / "files" / "bpf"
ALL_FEATURES = frozenset(compiler.FEATURES)
SIZES = Sizes(max_services=64, max_backends=1024, max_endpoints=4096)


@cache
def _code(features: frozenset[str], sizes: Sizes) -> bytes:
    return compiler.compile_program(compiler.Build(SOURCE, features, sizes))


class Program:
    """One loaded program; ring n serves the n-th service, backend n + 1 is the n-th backend."""

    def __init__(
        self,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        features: frozenset[str] = ALL_FEATURES,
        sizes: Sizes = SIZES,
    ) -> None:
        self.config = model.Config(model.parse_services(services), model.parse_backends(backends))
        model.check(self.config)
        self.maps = maps.create(sizes)
        self.rings = {name: number for number, name in enumerate(self.config.services)}
        self.backend_ids = {key: number for number, key in enumerate(self.config.backends, start=1)}
        self.maps.write_backends(
            {
                self.backend_ids[key]: tables.pack_backend(
                    self.config.services[key.service], backend, self.rings[key.service], self.backend_ids[key]
                )
                for key, backend in self.config.backends.items()
            }
        )
        packed = {
            self.rings[name]: tables.pack_ring(self.config.services[name], members, self.backend_ids)
            for name, members in self.config.backends_of().items()
        }
        self.maps.write_rings(packed, {})
        endpoints = tables.endpoints(self.config, self.rings, self.backend_ids)
        self.maps.swap_endpoints(tables.pack_endpoint_table(endpoints, sizes))
        code = bpf.relocate(_code(features, sizes), list(self.maps.descriptors.values()))
        self.fd = bpf.program_load("balancer", code)

    def replace_ring(self, service: str, members: list[model.Backend]) -> None:
        """Let these backends of a service, possibly none, have its new packets."""
        ring = tables.pack_ring(self.config.services[service], members, self.backend_ids)
        self.maps.write_rings({self.rings[service]: ring}, {})

    def run(self, frame: bytes, repeat: int = 1, interface: int = 0) -> tuple[int, bytes, int]:
        """Verdict, frame afterwards, nanoseconds per run."""
        return bpf.test_run(self.fd, frame, repeat, interface)

    def close(self) -> None:
        os.close(self.fd)
        self.maps.close()
