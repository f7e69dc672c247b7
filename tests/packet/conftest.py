# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every frame goes through the program in the kernel and through the model of it in reference.py."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import REASONS

from tests.packet import reference
from tests.packet.frames import Case
from tests.packet.network import BACK_MAC, FRONT_MAC, Network, mac, network
from tests.support import namespace
from tests.support.program import ALL_FEATURES, Program

# include/uapi/linux/time.h; what bpf_ktime_get_coarse_ns() reads
CLOCK_MONOTONIC_COARSE = 6
# include/uapi/linux/pkt_cls.h: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
TC_VERDICTS = {reference.PASS: 0xFFFFFFFF, reference.DROP: 2, reference.TX: 7, reference.REDIRECT: 7}


def coarse_ns() -> int:
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)


def wait_for_a_tick_to_begin() -> None:
    """If one is about to: for program and model it is to be the same one."""
    margin = 12_000_000  # ns; the clock advances every 1 to 10 ms
    while coarse_ns() // reference.TICK != (coarse_ns() + margin) // reference.TICK:
        time.sleep(0.001)


class Rig:
    """The program and its model, side by side."""

    def __init__(
        self,
        net: Network,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        features: frozenset[str] = ALL_FEATURES,
        filters: list[dict[str, Any]] | None = None,
        tc: bool = False,
        hash_seed: str = "",
        virtual_macs: tuple[str, ...] = (),
    ) -> None:
        self.interface, self.tc, self.net = net.front, tc, net
        virtual = [mac(address) for address in virtual_macs]
        self.own_macs = {net.front: [mac(FRONT_MAC), *virtual], net.back: [mac(BACK_MAC), *virtual]}
        cpu = min(os.sched_getaffinity(0))
        self.model = reference.Balancer(
            services,
            backends,
            net.resolve,
            net.front,
            features,
            filters,
            cpu=cpu,
            cpus=bpf.possible_cpus(),
            clock=coarse_ns,
            pick_port=self.picked_port,
            hash_seed=int(hash_seed or "0", 16),
            interface_to=net.interface_to,
            masters={net.front: 0, net.back: 0},
            pick_identification=self.picked_identification,
        )
        self.exchanged = (b"", b"")
        self.program = Program(
            services,
            backends,
            features,
            declared_filters=filters or [],
            tc=tc,
            hash_seed=hash_seed,
            virtual_macs=virtual_macs,
        )

    def hand_over(self, service: str, backends: list[dict[str, Any]], seconds: float = 3600) -> None:
        """Let connections go to those of these backends that the service still has."""
        until = coarse_ns() // reference.TICK + layout.ticks(seconds)
        self.model.hand_over(service, backends, until)
        members = list(parse_backends(backends).values())
        self.program.hand_over(service, members, until + layout.TICKS_AT_BOOT)

    def can_take(self, frame: bytes) -> bool:
        """A test run makes a socket buffer only of a frame with a whole IP header."""
        return not self.tc or len(frame) >= {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 14)

    def send(self, frame: bytes, interface: int = 0) -> tuple[int, bytes]:
        """The program's verdict and frame, once they are the model's, too.

        Unless it arrives on another interface, a frame for the address of that at the back arrives there, all others in
        front.
        """
        wait_for_a_tick_to_begin()
        self.interface = interface or (self.net.back if frame[:6] == mac(BACK_MAC) else self.net.front)
        self.model.interface, self.model.own_macs = self.interface, self.own_macs[self.interface]
        verdict, output, _duration = self.program.run(frame, interface=self.interface)
        self.exchanged = frame, output
        wanted = self.model.process(frame)
        expected = TC_VERDICTS[wanted[0]] if self.tc else wanted[0]
        assert (verdict, output.hex()) == (expected, wanted[1].hex()), f"program != model for {frame.hex()}"
        return wanted[0], output

    def picked_port(self, address: bytes, ports: range, in_use: set[int]) -> int | None:
        """The source port that the program has just picked at random; None if it found none."""
        frame, output = self.exchanged
        port = None
        if output != frame:
            sent = reference.take_apart(output, self.model.features)
            port = int.from_bytes(sent.ports[0], "big") if sent.source == address else None
        if port is None:
            port = self._new_session(address, ports, in_use)
        if port is None:
            assert len(in_use) > len(ports) / 2, f"no port of {len(ports)}, with {len(in_use)} in use"
        else:
            assert port in ports, f"port {port} of {ports}"
            # One in use makes room only if it is half-open, and there was none that is free.
            if port in in_use:
                assert len(in_use) > len(ports) / 2
                assert self.model.sessions[address, port].state in ("new", "answered")
        return port

    def picked_identification(self) -> int:
        """That of the IPv4 header that the program has just put in front of a packet."""
        _frame, output = self.exchanged
        network = 14
        while output[network - 2 : network] in reference.TAGS:
            network += 4
        return int.from_bytes(output[network + 4 : network + 6], "big")

    def _new_session(self, address: bytes, ports: range, in_use: set[int]) -> int | None:
        """Of a packet that was not sent, from the kernel's memory."""
        pools = self.program.plan.allocation.pools
        (pool,) = (pool for pool in pools if reference.pack_address(pool.address) == address)
        first, maps = pools[pool].first_session - pool.first_port, self.program.maps
        now = coarse_ns() // reference.TICK + layout.TICKS_AT_BOOT
        for port in ports:
            if port not in in_use:
                words = bpf.map_lookup(maps["sessions"], layout.index(first + port), layout.SESSION.size)
                seen, timeout = struct.unpack_from("<II", words, 28)
                if seen and now - seen <= timeout:
                    return port
        return None

    def check(self, case: Case, interface: int = 0) -> None:
        """The case as its table says, and all counters as the model says."""
        verdict, output = self.send(case.frame, interface)
        wanted = case.frame if case.expected is None else case.expected
        assert (verdict, output.hex()) == (case.verdict, wanted.hex())
        assert (self.model.last_reason or (None,))[0] == case.reason
        self.check_counters()

    def check_counters(self) -> None:
        maps = self.program.maps
        reasons = {(label, verdict): count for (label, verdict), count in zip(REASONS, maps.read_reasons()) if count}
        assert reasons == dict(self.model.reasons)
        rows = maps.read_counters("service_counters")
        services = {name: list(rows[number]) for name, number in self.program.rings.items()}
        assert services == self.model.service_counters
        rows = maps.read_counters("backend_counters")
        backends = {tuple(key): list(rows[number]) for key, number in self.program.backend_ids.items()}
        assert backends == self.model.backend_counters
        rows = maps.read_counters("filter_counters")
        filters = {tuple(key): rows[number][0] for key, number in self.program.filter_ids.items() if rows[number][0]}
        assert filters == dict(self.model.filter_counters)


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/packet loads BPF programs into the kernel: run it as root", returncode=1)


@pytest.fixture(scope="module", autouse=True)
def own_pins(root: None) -> Iterator[None]:
    """Pins are of these tests only, and vanish with them."""
    with namespace.own_pins():
        yield


@pytest.fixture(scope="module", autouse=True)
def one_cpu(root: None) -> Iterator[None]:
    """Round robin and remembered next hops are per CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def net(own_pins: None, one_cpu: None) -> Iterator[Network]:
    with network() as built:
        yield built


@pytest.fixture(scope="module")
def make_rig(net: Network) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        features: frozenset[str] = ALL_FEATURES,
        filters: list[dict[str, Any]] | None = None,
        tc: bool = False,
        hash_seed: str = "",
        virtual_macs: tuple[str, ...] = (),
    ) -> Rig:
        rigs.append(Rig(net, services, backends, features, filters, tc, hash_seed, virtual_macs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.program.close()
