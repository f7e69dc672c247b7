# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the slices of dataplane.py: loads, rounds, and the checks that what is timed does its work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf

from tests.bench import network, report, scenes, yardstick
from tests.bench.comparison import BEFORE, refuse_other_layout
from tests.bench.rounds import Load, Run, Slices
from tests.bench.scenes import Case, Scene
from tests.bench.wrapper import Wrapper, compile_wrapper, growing_program, return_program, timed_run
from tests.packet import reference
from tests.support import program

YARDSTICK = yardstick.CASE.name
PACKETS = 10_000
WARM_UP = 2_000
# A slice of many flows is a walk over so many, and so is what goes ahead of it.
MOST_PACKETS = 1 << 17
# A walk takes ten times as long, so it has a slice in two of so many rounds: one there, one back.
LONG_SLICE_EVERY = 10
# What is appended to a case's name for its program without the wrapper.
DIRECT = " direct"
SOURCE_PORT = slice(34, 36)  # in a frame of IPv4
EMPTY = {False: Case("floor", scenes.frame4(scenes.udp())), True: Case("floor6", scenes.frame6(scenes.udp()))}


class Loaded:
    """A scene's maps and program, and the program of another directory over the same maps."""

    def __init__(self, scene: Scene, cases: list[Case], before: Path | None) -> None:
        self.cases, self.before = cases, before
        self.scene = scene
        self.program = program.Program(
            scene.services, scene.backends, None, scene.sizes, scene.filters, more_features=scene.more_features
        )
        self.other = self._load_other() if before else None
        self._output = b""

    def close(self) -> None:
        self._close_other()
        self.program.close()

    def _close_other(self) -> None:
        if self.other is not None:
            os.close(self.other)
            self.other = None

    def _load_other(self) -> int:
        build = replace(self.program.build, source=self.before)
        try:
            return program.load(build, list(self.program.maps.descriptors.values()))
        except (EngineError, OSError, IndexError) as error:
            reason = getattr(error, "log", "")[-500:] or error
            raise report.Failure(
                f"the program of {self.before} cannot be loaded over the maps of this checkout: {reason}"
            ) from None

    def renew(self) -> None:
        """Load everything anew, elsewhere in memory."""
        self._close_other()
        self.program.renew()
        self.other = self._load_other() if self.before else None

    def check(self, interface: int) -> None:
        """Raises report.Failure unless the first frame of each case leaves as the model says."""
        scene = self.scene
        for descriptor in (self.program.fd, self.other):
            if descriptor is None:
                continue
            # With 100,000 filters the model would take a second a frame; none of them holds the client.
            model = reference.Balancer(
                scene.services,
                scene.backends,
                network.resolve,
                interface,
                used_features(self.program.config),
                cpu=max(os.sched_getaffinity(0)),
                cpus=bpf.possible_cpus(),
                pick_port=lambda _address, ports, _in_use: self._picked_port(ports),
                interface_to=lambda _address: interface,
            )
            for case in self.cases:
                verdict, self._output, _nanoseconds = bpf.test_run(descriptor, case.wire, 1, interface)
                wanted = model.process(case.wire)
                if (verdict, self._output) != wanted:
                    whose = f" with the program of {self.before}" if descriptor is self.other else ""
                    raise report.Failure(
                        f"{case.name}{whose}: {verdict} {self._output.hex(' ')}\nnot {wanted[0]} {wanted[1].hex(' ')}"
                    )

    def _picked_port(self, ports: range) -> int | None:
        """Returns the source port that the program has just picked at random, if it may use it."""
        port = int.from_bytes(self._output[SOURCE_PORT], "big")
        return port if port in ports else None

    def targets(self) -> Iterator[Target]:
        for case in self.cases:
            yield Target(case.name, self.program.fd, case)
            if self.other is not None:
                yield Target(case.name + BEFORE, self.other, case)

    def check_counters(self, packets: dict[str, int]) -> None:
        """Raises report.Failure unless all packets were forwarded, restored, or passed for a reason."""
        maps = self.program.maps
        counted = sum(row[0] + row[2] for row in maps.read_counters("service_counters")) + sum(maps.read_reasons())
        sent = sum(packets[case.name] for case in self.cases)
        if counted < sent:
            raise report.Failure(f"{self.scene.name}: {counted} of {sent} packets were counted")


@dataclass(frozen=True)
class Target:
    """A program that has a slice in each round."""

    name: str
    program: int
    case: Case


class Measurement:
    """The slices of one load."""

    def __init__(self, wrapper: Wrapper, interface: int) -> None:
        self._wrapper, self._interface = wrapper, interface
        self.slices: Slices = {}
        self.packets: dict[str, int] = {}  # by case

    def learn(self, target: Target) -> None:
        """Send a packet of every flow, if the flow table has room for them."""
        if 1 < target.case.flows <= scenes.MILLION:
            self._run(target, target.case.flows)

    def slice(self, target: Target) -> None:
        many = min(target.case.flows, MOST_PACKETS)
        self._run(target, max(WARM_UP, many))
        self.slices.setdefault(target.name, []).append(self._run(target, max(PACKETS, many)))

    def _run(self, target: Target, packets: int) -> float:
        self.packets[target.case.name] = self.packets.get(target.case.name, 0) + packets
        return self._wrapper.run(target.program, target.case, packets)

    def directly(self, target: Target, rounds: int) -> None:
        """The same without the wrapper."""
        with self._wrapper.replaced_by(target.program):
            for _round in range(rounds):
                timed_run(target.program, target.case, WARM_UP, self._interface)
                elapsed = timed_run(target.program, target.case, PACKETS, self._interface)
                self.slices.setdefault(target.name + DIRECT, []).append(elapsed)

    def net(self, targets: list[Target]) -> Load:
        """Returns nanoseconds of each target without wrapper and call."""
        shortest = {name: min(samples) for name, samples in self.slices.items()}
        found = {"floor": shortest["floor"]}
        for target in targets:
            floor = shortest[EMPTY[target.case.is_ipv6].name]
            growing = shortest[_growing(target.case)] - floor if target.case.grows else 0.0
            found[target.name] = shortest[target.name] - floor - growing / 2
            if target.name + DIRECT in shortest:
                found[target.name + DIRECT] = shortest[target.name + DIRECT] - shortest["floor" + DIRECT]
        return found


def _growing(case: Case) -> str:
    return f"growing by {case.grows}"


@contextmanager
def _opened(programs: dict[str, int]) -> Iterator[dict[str, int]]:
    try:
        yield programs
    finally:
        for descriptor in programs.values():
            os.close(descriptor)


def _one_load(loaded: list[Loaded], measuring: Measurement, ruler: Target, rounds: int) -> Load:
    targets = [ruler, *(target for scene in loaded for target in scene.targets())]
    cases = [replace(target.case, name=_growing(target.case)) for target in targets if target.case.grows]
    growing = {case.name: case for case in cases}
    empty = return_program(reference.TX)
    more = {name: growing_program(case.verdict, case.grows) for name, case in growing.items()}
    with _opened({"empty": empty, **more}):
        floors = [Target(case.name, empty, case) for case in EMPTY.values()]
        turns = [*targets, *floors, *(Target(name, more[name], case) for name, case in growing.items())]
        for target in targets:
            measuring.learn(target)
        for number in range(rounds):
            # There and back, so that none of two programs that are compared always follows the same other one.
            for target in turns if number % 2 else reversed(turns):
                if target.case.flows == 1 or number % LONG_SLICE_EVERY < 2:
                    measuring.slice(target)
        for target in [floors[0], *(target for target in targets if target.case.repeatable)]:
            measuring.directly(target, rounds)
    for scene in loaded:
        scene.check_counters(measuring.packets)
    return measuring.net(targets)


def measure(loads: int, rounds: int, only: set[str], before: Path | None) -> tuple[Run, Run]:
    """Two runs of every case, or only those named. Raises report.Failure if a program does not do a case's work."""
    if before:
        refuse_other_layout(before, program.SOURCE)
    wrapper_code, yardstick_code = compile_wrapper(), yardstick.compile_yardstick()
    runs: tuple[Run, Run] = ([], [])
    with network.pinned_to_one_cpu(), network.private_network() as interface, ExitStack() as stack:
        loaded = []
        for scene in scenes.scenes():
            cases = [case for case in scene.cases if not only or case.name in only]
            if cases:
                loaded.append(stack.enter_context(closing(Loaded(scene, cases, before))))
                loaded[-1].check(interface)
        for number in range(2 * loads):
            for one in loaded:
                one.renew()
            with (
                closing(Wrapper(wrapper_code, interface)) as wrapper,
                closing(yardstick.Yardstick(yardstick_code)) as ruler,
            ):
                yardstick.check(ruler.fd, interface)
                target = Target(YARDSTICK, ruler.fd, yardstick.CASE)
                found = _one_load(loaded, Measurement(wrapper, interface), target, rounds)
                runs[number // loads].append(found)
            print(f"load {number + 1} of {2 * loads}", flush=True)
    return runs
