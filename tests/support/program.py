# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real program, compiled and loaded on this machine, with maps filled from a configuration; nothing is attached."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, map_set, plan, source_ranges
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import Interface
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, filters, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, device
from ansible_collections.lbops.xdp.plugins.module_utils.tables import filter_table, layout, previous_table, tables
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from ansible_collections.lbops.xdp.plugins.module_utils.tables.source_ranges import pack_source_ranges

from tests.support.compile_once import SOURCE, compile_program

# All features but those that turn a check off.
ALL_FEATURES = frozenset(compiler.FEATURES) - {"unserved_pass", "reply_interface", "reply_unchecked"}
SIZES = Sizes(
    max_services=64, max_backends=1024, max_endpoints=4096, max_flows=65536, max_sessions=65536, max_filters=4096
)


def load(build: compiler.Build, descriptors: list[int]) -> int:
    """Load a program over these maps."""
    return bpf.program_load(
        "balancer",
        bpf.relocate(compile_program(build), descriptors),
        program_type=build.program_type,
        flags=build.load_flags,
        attach_type=build.attach_type,
    )


class Program:
    """One loaded program; ring n serves the n-th service, backend n + 1 is the n-th backend."""

    def __init__(
        self,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        features: frozenset[str] | None = ALL_FEATURES,
        sizes: Sizes = SIZES,
        declared_filters: Iterable[dict[str, Any]] = (),
        mtu: int = 1500,
        tc: bool = False,
        more_features: frozenset[str] = frozenset(),
        hash_seed: str = "",
        virtual_macs: Iterable[str] = (),
    ) -> None:
        """Features None: what the configuration needs, and more_features."""
        self.config = model.Config(parse_services(services), parse_backends(backends))
        cross_check.check(self.config)
        self.filters = filters.parse_filters(list(declared_filters))
        if features is None:
            features = used_features(self.config, self.filters) | more_features
        if tc:
            features -= compiler.NOT_ON_TC
        self.build = compiler.Build(SOURCE, features, sizes, tc, hash_seed=hash_seed)
        self.type = self.build.program_type
        self.plan = plan.make(model.Config({}, {}), plan.Allocation(), self.config, sizes)
        self.rings, self.backend_ids = self.plan.allocation.rings, self.plan.allocation.backends
        self.filter_ids = {key: number for number, key in enumerate(self.filters)}
        self._mtu, self._virtual_macs = mtu, list(virtual_macs)
        self._pack()
        self._load()

    def _pack(self) -> None:
        config, allocation, sizes = self.config, self.plan.allocation, self.build.sizes
        self._entries = {}
        for key, backend in config.backends.items():
            interface = socket.if_nametoindex(backend.interface) if backend.interface else 0
            place = self.plan.backend_place(key, interface)
            self._entries[self.backend_ids[key]] = tables.pack_backend(config.services[key.service], backend, place)
        self._pools = {place.id: tables.pack_pool(pool, place) for pool, place in allocation.pools.items()}
        self._packed_rings = {
            self.rings[name]: tables.pack_ring(config.services[name], members, self.backend_ids)
            for name, members in config.backends_of().items()
        }
        found = tables.endpoints(config, self.rings, self.backend_ids, allocation.pools)
        endpoints, endpoints6 = tables.pack_endpoint_tables(found, sizes)
        self._tables = {"endpoints": endpoints, "endpoints6": endpoints6}
        if self.filters:
            self._tables["filters"] = filter_table.pack_filter_table(self.filters, self.filter_ids, sizes)

    def _load(self) -> None:
        self.maps = map_set.create(self.build.sizes)
        # Without lo, on which test runs arrive that name no interface: every unicast frame is for an unknown one.
        links = [found for found in device.links() if found.name != "lo"][: layout.MAX_INTERFACES]
        self.maps.update_control(Interface(found.index, self._mtu, found.address, found.master or 0) for found in links)
        self.maps.set_virtual_macs(self._virtual_macs)
        self.maps.write_backends(self._entries)
        interfaces = {backend.interface for backend in self.config.backends.values() if backend.interface}
        self.maps.set_links({socket.if_nametoindex(name) for name in interfaces})
        self.maps.write_pools(self._pools)
        source_ranges.write(self.maps, pack_source_ranges(self.config, self.rings))
        self.maps.write_rings(self._packed_rings, {})
        for name, table in self._tables.items():
            self.maps.swap_table(name, table)
        if self.build.features & {"flow_table", "full_nat"}:
            self.maps.create_flow_tables()
        self.fd = load(self.build, list(self.maps.descriptors.values()))

    def renew(self) -> None:
        """Replace the program and its maps by new ones with the same content, elsewhere in memory."""
        self.close()
        self._load()

    def replace_ring(self, service: str, members: list[model.Backend]) -> None:
        """Let these backends of a service, possibly none, have its new packets."""
        ring = tables.pack_ring(self.config.services[service], members, self.backend_ids)
        self.maps.write_rings({self.rings[service]: ring}, {})

    def hand_over(self, service: str, members: list[model.Backend], until: int) -> None:
        """Let connections go to those of these backends that the service has, until a tick."""
        declared, seed = self.config.services[service], int(self.build.hash_seed or "0", 16)
        table = previous_table.pack_previous_table(declared, members, self.backend_ids, seed, until)
        self.maps.swap_table("previous", table, self.rings[service])

    def run(self, frame: bytes, repeat: int = 1, interface: int = 0) -> tuple[int, bytes, int]:
        """Verdict, frame afterwards, nanoseconds per run."""
        return bpf.test_run(self.fd, frame, repeat, interface, self.type)

    def close(self) -> None:
        os.close(self.fd)
        self.maps.close()
