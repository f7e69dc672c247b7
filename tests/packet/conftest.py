# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every frame goes through the program in the kernel and through the model of it in reference.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.layout import REASONS

from tests.packet import reference
from tests.packet.frames import Case
from tests.packet.network import Network, network
from tests.support.program import ALL_FEATURES, Program


class Rig:
    """The program and its model, side by side."""

    def __init__(
        self,
        net: Network,
        services: list[dict[str, Any]],
        backends: list[dict[str, Any]],
        features: frozenset[str] = ALL_FEATURES,
    ) -> None:
        self.interface = net.front
        self.model = reference.Balancer(services, backends, net.resolve, net.front, features)
        self.program = Program(services, backends, features)

    def send(self, frame: bytes) -> tuple[int, bytes]:
        """The program's verdict and frame, once they are the model's, too."""
        wanted = self.model.process(frame)
        verdict, output, _duration = self.program.run(frame, interface=self.interface)
        assert (verdict, output.hex()) == (wanted[0], wanted[1].hex()), f"program != model for {frame.hex()}"
        return verdict, output

    def check(self, case: Case) -> None:
        """The case as its table says, and all counters as the model says."""
        verdict, output = self.send(case.frame)
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


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/packet loads BPF programs into the kernel: run it as root", returncode=1)


@pytest.fixture(scope="module", autouse=True)
def one_cpu(root: None) -> Iterator[None]:
    """Round robin and remembered next hops are per CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def net(one_cpu: None) -> Iterator[Network]:
    with network() as built:
        yield built


@pytest.fixture(scope="module")
def make_rig(net: Network) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(
        services: list[dict[str, Any]], backends: list[dict[str, Any]], features: frozenset[str] = ALL_FEATURES
    ) -> Rig:
        rigs.append(Rig(net, services, backends, features))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.program.close()
