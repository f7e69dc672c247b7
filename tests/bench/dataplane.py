# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the balancer costs per packet, without NIC and driver: build/bench/dataplane.json.

Needs root. It measures in a network namespace of its own; nothing of the host changes.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout
from scapy.layers.inet6 import IPv6

from tests.bench import report, scenes
from tests.bench.scenes import Case, Scene, mac_of, mac_of6
from tests.packet import reference
from tests.support import namespace
from tests.support.program import Program

METHOD = """\
BPF_PROG_TEST_RUN of a wrapper (wrapper.c) that restores length and headers, then tail-calls the balancer, minus the \
same wrapper with an empty program in its place, both in the same round. Of frames that grow, the wrapper's \
bpf_xdp_adjust_head() that shortens them again is subtracted, too: half of what a program costs that only grows them. \
CPU time of the pinned thread divided by the repeats. Every round loads programs and maps anew, so that the placement \
of code and data varies. The first frame of each case is compared with the model of the packet tests; after all \
repeats the counters must have grown by them. Each configuration (scenes.py) is compiled with the features it needs. \
100 backends, or 4 in small_config and 2 in services_1000. Next hop from the kernel's FIB and neighbour tables, \
remembered by the program; from the inventory in the cases *_mac. *_1m: 2^20 flows instead of one, 2^17 in *_100k; \
flow_miss: 2^24 flows in turn, so each packet is of a flow unseen, with the limit of new flows that is the default. \
filters_100k: dnat with 100,000 prefixes that do not hold the client. dnat_udp4_latency: with the histogram of times. \
direct_net_ns: without the wrapper, for programs that leave the next repeat the same work. floor: an empty \
program alone; wrapped_floor: what was subtracted.\
"""

MAP_TYPE_PROG_ARRAY = 3
MOV_IMMEDIATE, CALL, EXIT = 0xB7, 0x85, 0x95
ADJUST_HEAD = 44  # BPF_FUNC_xdp_adjust_head
SCENE = struct.Struct("<80sIIII")  # struct scene of wrapper.c
INTERFACE = "lb"
# So many packets, and as many as there are flows, go ahead of each measurement.
WARM_UP = 10_000

AIMS = {
    "dnat_udp4": report.Aim(30, 40),
    "dnat_tcp4": report.Aim(32),
    "dsr_udp4": report.Aim(25),
    "pass_tcp4": report.Aim(6, 8),
    "pass_ipv6": report.Aim(6, 8),
    "pass_arp": report.Aim(6, 8),
    "small_config": report.Aim(20),
    "ipip_udp4": report.Aim(42),
    "ipip_udp4_1m": report.Aim(42),
    "flow_hit_1": report.Aim(60),
    "flow_hit_100k": report.Aim(150),
    "flow_hit_1m": report.Aim(190),
}
# Aims that depend on another case: factor, and nanoseconds more.
RELATIVE_AIMS = {
    "dnat_udp6": ("dnat_udp4", 1.4, 0),
    "dsr_udp6": ("dsr_udp4", 1.4, 0),
    "ipip_udp6": ("ipip_udp4", 1.4, 0),
    "flow_miss": ("flow_hit_1m", 1.5, 0),
    "services_1000": ("dnat_udp4", 1.1, 0),
    "filters_100k": ("dnat_udp4", 1, 25),
}


def wire(case: Case) -> bytes:
    """As it arrives: Ethernet pads to 60 bytes; wrapper.c restores whole words."""
    return bytes(case.frame).ljust(80 if IPv6 in case.frame else 60, b"\0")


def return_program(verdict: int) -> int:
    code = bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 0, 0, verdict) + bpf.INSTRUCTION.pack(EXIT, 0, 0, 0)
    return bpf.program_load("empty", code)


def growing_program(verdict: int, bytes_more: int) -> int:
    """One that does nothing but make room in front of the frame."""
    code = bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 2, 0, -bytes_more) + bpf.INSTRUCTION.pack(CALL, 0, 0, ADJUST_HEAD)
    code += bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 0, 0, verdict) + bpf.INSTRUCTION.pack(EXIT, 0, 0, 0)
    return bpf.program_load("growing", code)


def compile_wrapper() -> bytes:
    from bcc import BPF

    program = BPF(text=Path(__file__).with_name("wrapper.c").read_bytes())
    try:
        return program.dump_func(b"wrapper")
    finally:
        program.cleanup()


class Wrapped:
    """A program behind the wrapper, for one case."""

    def __init__(self, code: bytes, target: int, case: Case) -> None:
        frame = wire(case)
        programs = bpf.map_create("target", MAP_TYPE_PROG_ARRAY, 4, 1)
        scene = bpf.map_create("scene", bpf.MAP_TYPE_ARRAY, SCENE.size, 1)
        packed = SCENE.pack(frame[:80], len(frame), case.flows - 1, 0, int(IPv6 in case.frame))
        bpf.map_update(scene, layout.index(0), packed)
        # The kernel empties a program array when user space holds it no longer, so it stays open.
        self._maps = (programs, scene)
        self.fd = bpf.program_load("wrapper", bpf.relocate(code, [programs, scene]))
        bpf.map_update(programs, layout.index(0), layout.index(target))

    def close(self) -> None:
        for descriptor in (self.fd, *self._maps):
            os.close(descriptor)


def resolve(address: str) -> reference.Hop | str:
    """What the namespace's tables say."""
    if address in (scenes.CLIENT, scenes.CLIENT6):
        address = scenes.ROUTER
    mac = mac_of6(address) if ":" in address else mac_of(address)
    return reference.Hop(socket.if_nametoindex(INTERFACE), _packed(mac), _packed(mac_of(scenes.BALANCER)))


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Loaded:
    """A scene's balancer and its maps."""

    def __init__(self, wrapper: bytes, scene: Scene, interface: int, repeat: int) -> None:
        self.wrapper, self.scene, self.interface, self.repeat = wrapper, scene, interface, repeat
        self.program = Program(
            scene.services, scene.backends, None, scene.sizes, scene.filters, more_features=scene.more_features
        )
        self.empty = {case.verdict: return_program(case.verdict) for case in scene.cases}

    def close(self) -> None:
        self.program.close()
        for descriptor in self.empty.values():
            os.close(descriptor)

    def check(self, case: Case, model: reference.Balancer) -> None:
        """The frame as the model says."""
        wanted = model.process(wire(case))
        verdict, output, _nanoseconds = bpf.test_run(self.program.fd, wire(case), 1, self.interface)
        if (verdict, output) != wanted:
            raise report.Failure(f"{case.name}: {verdict} {output.hex(' ')}\nnot {wanted[0]} {wanted[1].hex(' ')}")

    def measure(self, case: Case) -> tuple[float, float]:
        """Nanoseconds behind the wrapper: the balancer, then the empty program."""
        balancer = Wrapped(self.wrapper, self.program.fd, case)
        floor = Wrapped(self.wrapper, self.empty[case.verdict], case)
        try:
            self._run(balancer.fd, case, max(WARM_UP, case.flows if case.flows <= scenes.MILLION else 0))
            before = self._counted()
            nanoseconds = self._run(balancer.fd, case, self.repeat)
            if self._counted() - before < self.repeat:
                raise report.Failure(f"{case.name}: {self._counted() - before} of {self.repeat} packets were counted")
            empty = self._run(floor.fd, case, self.repeat)
            return nanoseconds - self._shortening(case, empty), empty
        finally:
            balancer.close()
            floor.close()

    def _shortening(self, case: Case, empty: float) -> float:
        """What the wrapper pays to make a frame short again that the program has made longer."""
        if not case.grows:
            return 0
        program = growing_program(case.verdict, case.grows)
        growing = Wrapped(self.wrapper, program, case)
        try:
            return (self._run(growing.fd, case, self.repeat) - empty) / 2
        finally:
            growing.close()
            os.close(program)

    def measure_directly(self, case: Case) -> tuple[float, float]:
        """The same without the wrapper."""
        self._run(self.program.fd, case, WARM_UP)
        empty = self.empty[case.verdict]
        return self._run(self.program.fd, case, self.repeat), self._run(empty, case, self.repeat)

    def _counted(self) -> int:
        """Packets forwarded, restored, or passed for a reason."""
        maps = self.program.maps
        return sum(row[0] + row[2] for row in maps.read_counters("service_counters")) + sum(maps.read_reasons())

    def _run(self, fd: int, case: Case, repeat: int) -> float:
        # The kernel gives whole nanoseconds per repeat; the thread's CPU time is as honest, and finer.
        started = time.thread_time_ns()
        verdict, _output, _duration = bpf.test_run(fd, wire(case), repeat, self.interface)
        elapsed = (time.thread_time_ns() - started) / repeat
        if verdict != case.verdict:
            raise report.Failure(f"{case.name}: the verdict is {verdict}, not {case.verdict}")
        return elapsed


# --- surroundings


def _ip(commands: list[str], *options: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write("\n".join(commands) + "\n")
        file.flush()
        subprocess.run(["ip", *options, "-batch", file.name], check=True)


@contextmanager
def private_network(attach: bool = True) -> Iterator[int]:
    """A network namespace in which FIB and neighbour tables know all hosts; the interface packets arrive on.

    A veth registers its receive queues only while it carries an XDP program; with `attach` it gets one.
    """
    with namespace.private("net"):
        _fill_network()
        if attach:
            _attach_pass()
        yield socket.if_nametoindex(INTERFACE)


def _fill_network() -> None:
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("1", encoding="ascii")
    hosts = [scenes.ROUTER, *(address for number in range(8) for address in scenes.backend_addresses(4, number))]
    hosts6 = [scenes.ROUTER6, *scenes.backend_addresses(6)]
    _ip(
        [
            f"link add {INTERFACE} address {mac_of(scenes.BALANCER)} type veth peer name peer",
            f"link add {scenes.OUT} type veth peer name out-peer",
            f"address add {scenes.BALANCER}/16 dev {INTERFACE}",
            f"address add {scenes.BALANCER6}/64 dev {INTERFACE} nodad",
            *(f"link set {name} up" for name in (INTERFACE, "peer", scenes.OUT, "out-peer")),
            f"route add default via {scenes.ROUTER}",
            *(f"neigh add {host} lladdr {mac_of(host)} nud permanent dev {INTERFACE}" for host in hosts),
            *(f"neigh add {host} lladdr {mac_of6(host)} nud permanent dev {INTERFACE}" for host in hosts6),
        ]
    )
    _ip([f"route add default via {scenes.ROUTER6}"], "-6")


def _attach_pass() -> None:
    program = return_program(reference.PASS)
    try:
        link.attach(INTERFACE, program, "native", None)
    finally:
        os.close(program)


@contextmanager
def pinned_to_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- the benchmark


@dataclass
class Samples:
    net: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    wrapped_floor: list[float] = field(default_factory=list)


def run(rounds: int, repeat: int, only: set[str]) -> report.Cases:
    """Every case, or only those named."""
    wrapper = compile_wrapper()
    chosen = [scene for scene in scenes.scenes() if not only or any(case.name in only for case in scene.cases)]
    samples: dict[str, Samples] = {}
    floors: list[float] = []
    with pinned_to_one_cpu(), private_network() as interface:
        for number in range(rounds):
            for scene in chosen:
                with closing(Loaded(wrapper, scene, interface, repeat)) as loaded:
                    if not number:
                        _check(loaded, scene, interface)
                    for case in scene.cases:
                        if not only or case.name in only:
                            _sample(loaded, case, samples.setdefault(case.name, Samples()))
            empty = return_program(reference.TX)
            floors.append(_floor(empty, repeat))
            os.close(empty)
            print(f"round {number + 1} of {rounds}", flush=True)
    found: report.Cases = {}
    for name, sample in samples.items():
        found[name] = {"net_ns": report.summary(sample.net)}
        if sample.direct:
            found[name]["direct_net_ns"] = report.summary(sample.direct)
    found["floor"] = {"ns": report.summary(floors)}
    found["wrapped_floor"] = {"ns": report.summary(next(iter(samples.values())).wrapped_floor)}
    return found


def _check(loaded: Loaded, scene: Scene, interface: int) -> None:
    # With 100,000 filters the model would take a second a frame; none of them holds the client.
    features = used_features(loaded.program.config)
    model = reference.Balancer(
        scene.services,
        scene.backends,
        resolve,
        interface,
        features,
        cpu=max(os.sched_getaffinity(0)),
        cpus=bpf.possible_cpus(),
    )
    for case in scene.cases:
        loaded.check(case, model)


def _floor(empty: int, repeat: int) -> float:
    started = time.thread_time_ns()
    bpf.test_run(empty, bytes(60), repeat)
    return (time.thread_time_ns() - started) / repeat


def _sample(loaded: Loaded, case: Case, sample: Samples) -> None:
    balancer, floor = loaded.measure(case)
    sample.net.append(balancer - floor)
    sample.wrapped_floor.append(floor)
    if case.repeatable:
        balancer, floor = loaded.measure_directly(case)
        sample.direct.append(balancer - floor)


def aims(found: report.Cases) -> dict[str, report.Aim]:
    """With those that depend on other cases' medians."""
    relative = {
        name: report.Aim(round(found[other]["net_ns"]["median"] * factor + more, 1))
        for name, (other, factor, more) in RELATIVE_AIMS.items()
        if name in found and other in found
    }
    return {**AIMS, **relative}


def disagreement(found: report.Cases) -> float:
    """The largest difference between the median behind the wrapper and the one without it, in nanoseconds."""
    pairs = [case for case in found.values() if "direct_net_ns" in case]
    return max((abs(case["net_ns"]["median"] - case["direct_net_ns"]["median"]) for case in pairs), default=0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=1_000_000, help="packets per case and round")
    parser.add_argument("--case", action="append", dest="cases", help="only this one; nothing is written")
    options = parser.parse_args(arguments)
    found = run(options.rounds, options.repeat, set(options.cases or ()))
    print(report.table(found, aims(found)))
    print(f"with and without the wrapper, medians differ by up to {disagreement(found):.1f} ns")
    if options.cases:
        return 0
    print(report.write("dataplane", METHOD, found))
    title = "Cost of the balancer per packet, net of an empty program"
    print(report.plot("dataplane", title, "nanoseconds", "net_ns", found, aims(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
