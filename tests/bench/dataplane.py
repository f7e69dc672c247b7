# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the balancer costs per packet, without NIC and driver: build/bench/dataplane.json.

Needs root. It measures in a network namespace of its own; nothing of the host changes.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils import bpf, layout
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.bench import report
from tests.support.program import ALL_FEATURES, Program

METHOD = """\
BPF_PROG_TEST_RUN of a wrapper (wrapper.c) that restores length and headers, then tail-calls the balancer, minus the \
same wrapper with an empty program in its place, both in the same round; CPU time of the pinned thread divided by the \
repeats. Every round loads programs and maps anew, so that the placement of code and data varies too. Each run's \
verdict, frame and counters are checked. {services} services with {backends} backends each, features {features}. Next \
hop from the kernel's FIB and neighbour tables, remembered by the program; from the inventory in the cases *_mac. \
*_1m: {flows} flows instead of one. direct_net_ns: without the wrapper, for programs that leave the next repeat the \
same work. floor: an empty program alone; wrapped_floor: what was subtracted, for the first case.\
"""

CLONE_NEWNET = 0x40000000
MAP_TYPE_PROG_ARRAY = 3
XDP_PASS, XDP_TX = 2, 3
MOV_IMMEDIATE, EXIT = 0xB7, 0x95

SCENE = struct.Struct("<56sIII4x")  # struct scene of wrapper.c
HEADERS = 54
FLOWS = 1 << 20

BACKENDS = 100
# From so many packets of different flows on, no backend may have less than half of its share.
ENOUGH_TO_SPREAD = 1000 * BACKENDS
INTERFACE = "lb"
VIP, CLIENT, ROUTER, BALANCER = "192.0.2.10", "203.0.113.9", "10.0.255.254", "10.0.255.1"
SOURCE_PORT, SERVICE_PORT, BACKEND_PORT, OTHER_PORT = 40000, 53, 5300, 8080
PAYLOAD = Raw(bytes(range(18)))

AIMS = {
    "dnat_udp4": report.Aim(30, 40),
    "dnat_tcp4": report.Aim(32),
    "dsr_udp4": report.Aim(25),
    "pass_tcp4": report.Aim(6, 8),
    "pass_ipv6": report.Aim(6, 8),
    "pass_arp": report.Aim(6, 8),
}


def mac_of(address: str) -> str:
    """Every host's Ethernet address follows from its IPv4 address."""
    return "02:00:" + ":".join(f"{octet:02x}" for octet in socket.inet_aton(address))


@dataclass(frozen=True)
class Kind:
    """One service of the configuration."""

    name: str
    number: int
    protocol: str
    forwarding: str
    mac: bool = False

    @property
    def vip(self) -> str:
        return VIP if self.forwarding == "dnat" else "192.0.2.20"

    @property
    def port(self) -> int:
        return SERVICE_PORT + self.number

    @property
    def backend_port(self) -> int:
        return BACKEND_PORT if self.forwarding == "dnat" else self.port

    @property
    def backends(self) -> list[str]:
        return [f"10.0.{self.number}.{host}" for host in range(1, BACKENDS + 1)]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("dnat_udp", 0, "udp", "dnat"),
        Kind("dnat_tcp", 1, "tcp", "dnat"),
        Kind("dsr_udp", 2, "udp", "dsr"),
        Kind("dnat_udp_mac", 3, "udp", "dnat", mac=True),
        Kind("dsr_udp_mac", 4, "udp", "dsr", mac=True),
    )
}


def load(features: frozenset[str]) -> Program:
    services = [
        {
            "name": kind.name,
            "address": kind.vip,
            "protocol": kind.protocol,
            "port": kind.port,
            "forwarding": kind.forwarding,
        }
        for kind in KINDS.values()
    ]
    backends = [
        {
            "service": kind.name,
            "address": address,
            "port": kind.backend_port,
            "mac": mac_of(address) if kind.mac else None,
        }
        for kind in KINDS.values()
        for address in kind.backends
    ]
    return Program(services, backends, features)


# --- cases


@dataclass(frozen=True)
class Case:
    name: str
    frame: Packet
    verdict: int
    # The frame afterwards, given the address of the backend that was counted.
    expected: Callable[[Packet, str | None], Packet]
    kind: Kind | None = None
    reply: bool = False
    reason: str | None = None
    flows: int = 1
    # Whether another run on the output gives that output again, so that the wrapper is not needed.
    repeatable: bool = False


def _from_client(kind: Kind, l4: Packet) -> Packet:
    return Ether(src=mac_of(ROUTER), dst=mac_of(BALANCER)) / IP(src=CLIENT, dst=kind.vip) / l4


def _udp(kind: Kind) -> Packet:
    return _from_client(kind, UDP(sport=SOURCE_PORT, dport=kind.port) / PAYLOAD)


def _rebuilt(frame: Packet) -> Packet:
    """Checksums computed anew."""
    for part in (IP, UDP, TCP):
        if part in frame:
            del frame[part].chksum
    return frame


def _unchanged(frame: Packet, _backend: str | None) -> Packet:
    return frame


def _to_backend(frame: Packet, backend: str) -> Packet:
    frame[Ether].src, frame[Ether].dst = mac_of(BALANCER), mac_of(backend)
    return frame


def _dnat(frame: Packet, backend: str) -> Packet:
    frame[IP].dst, frame[IP].ttl, frame[IP].payload.dport = backend, frame[IP].ttl - 1, BACKEND_PORT
    return _rebuilt(_to_backend(frame, backend))


def _restored(frame: Packet, _backend: str) -> Packet:
    frame[Ether].src, frame[Ether].dst = mac_of(BALANCER), mac_of(ROUTER)
    frame[IP].src, frame[IP].ttl, frame[UDP].sport = VIP, frame[IP].ttl - 1, KINDS["dnat_udp"].port
    return _rebuilt(frame)


def cases() -> list[Case]:
    dnat, tcp, dsr = KINDS["dnat_udp"], KINDS["dnat_tcp"], KINDS["dsr_udp"]
    dnat_mac, dsr_mac = KINDS["dnat_udp_mac"], KINDS["dsr_udp_mac"]
    backend = dnat.backends[41]
    from_backend = (
        Ether(src=mac_of(backend), dst=mac_of(BALANCER))
        / IP(src=backend, dst=CLIENT)
        / UDP(sport=BACKEND_PORT, dport=SOURCE_PORT)
        / PAYLOAD
    )
    plain_tcp = TCP(sport=SOURCE_PORT, dport=OTHER_PORT, flags="A")
    ipv6 = Ether(src=mac_of(ROUTER), dst=mac_of(BALANCER)) / IPv6(src="2001:db8::9", dst="2001:db8::10")
    arp = Ether(src=mac_of(ROUTER), dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac_of(ROUTER), psrc=ROUTER, pdst=BALANCER)
    to_tcp = _from_client(tcp, TCP(sport=SOURCE_PORT, dport=tcp.port, flags="A") / Raw(bytes(10)))
    return [
        Case("dnat_udp4", _udp(dnat), XDP_TX, _dnat, dnat),
        Case("dnat_tcp4", to_tcp, XDP_TX, _dnat, tcp),
        Case("dsr_udp4", _udp(dsr), XDP_TX, _to_backend, dsr, repeatable=True),
        Case("reply_udp4", from_backend, XDP_TX, _restored, dnat, reply=True),
        Case("pass_tcp4", _from_client(tcp, plain_tcp), XDP_PASS, _unchanged, reason="not_ours", repeatable=True),
        Case("pass_ipv6", ipv6 / plain_tcp, XDP_PASS, _unchanged, reason="not_ipv4", repeatable=True),
        Case("pass_arp", arp, XDP_PASS, _unchanged, reason="not_ipv4", repeatable=True),
        Case("dnat_udp4_mac", _udp(dnat_mac), XDP_TX, _dnat, dnat_mac),
        Case("dsr_udp4_mac", _udp(dsr_mac), XDP_TX, _to_backend, dsr_mac),
        Case("dnat_udp4_1m", _udp(dnat), XDP_TX, _dnat, dnat, flows=FLOWS),
    ]


def wire(frame: Packet) -> bytes:
    """As it arrives: Ethernet pads to 60 bytes."""
    return bytes(frame).ljust(60, b"\0")


# --- running


def empty_program(verdict: int) -> int:
    code = bpf.INSTRUCTION.pack(MOV_IMMEDIATE, 0, 0, verdict) + bpf.INSTRUCTION.pack(EXIT, 0, 0, 0)
    return bpf.program_load("empty", code)


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
        frame = wire(case.frame)
        programs = bpf.map_create("target", MAP_TYPE_PROG_ARRAY, 4, 1)
        scenes = bpf.map_create("scene", bpf.MAP_TYPE_ARRAY, SCENE.size, 1)
        bpf.map_update(scenes, layout.index(0), SCENE.pack(frame[:HEADERS], len(frame), case.flows - 1, 0))
        # The kernel empties a program array when user space holds it no longer, so it stays open.
        self._maps = (programs, scenes)
        self.fd = bpf.program_load("wrapper", bpf.relocate(code, [programs, scenes]))
        bpf.map_update(programs, layout.index(0), layout.index(target))

    def close(self) -> None:
        for descriptor in (self.fd, *self._maps):
            os.close(descriptor)


@dataclass
class Totals:
    """What the balancer counted."""

    reasons: list[int]
    services: list[tuple[int, ...]]
    backends: list[tuple[int, ...]]

    @classmethod
    def read(cls, program: Program) -> Totals:
        maps = program.maps
        return cls(maps.read_reasons(), maps.read_counters("service_counters"), maps.read_counters("backend_counters"))


class Failure(Exception):
    """The program did not do what the case says."""


class Bench:
    """One load of the balancer and its maps."""

    def __init__(self, wrapper: bytes, features: frozenset[str], interface: int, repeat: int) -> None:
        self.wrapper = wrapper
        self.interface = interface
        self.repeat = repeat
        self.program = load(features)
        self.empty = {verdict: empty_program(verdict) for verdict in (XDP_PASS, XDP_TX)}

    def close(self) -> None:
        self.program.close()
        for descriptor in self.empty.values():
            os.close(descriptor)

    def measure(self, case: Case) -> tuple[float, float]:
        """Nanoseconds behind the wrapper: the balancer, then the empty program."""
        balancer = Wrapped(self.wrapper, self.program.fd, case)
        floor = Wrapped(self.wrapper, self.empty[case.verdict], case)
        try:
            # The first packet asks the kernel for the next hop; with many flows, of each backend.
            self._checked(balancer.fd, case, 1)
            self._checked(balancer.fd, case, 10_000)
            return self._checked(balancer.fd, case, self.repeat), self._unchecked(floor.fd, case, self.repeat)
        finally:
            balancer.close()
            floor.close()

    def measure_directly(self, case: Case) -> tuple[float, float]:
        """The same without the wrapper."""
        self._checked(self.program.fd, case, 10_000)
        empty = self.empty[case.verdict]
        return self._checked(self.program.fd, case, self.repeat), self._unchecked(empty, case, self.repeat)

    def floor(self, case: Case) -> float:
        return self._unchecked(self.empty[case.verdict], case, self.repeat)

    def _unchecked(self, fd: int, case: Case, repeat: int) -> float:
        verdict, _frame, nanoseconds = self._run(fd, case, repeat)
        if verdict != case.verdict:
            raise Failure(f"{case.name}: the empty program's verdict is {verdict}, not {case.verdict}")
        return nanoseconds

    def _run(self, fd: int, case: Case, repeat: int) -> tuple[int, bytes, float]:
        # The kernel gives whole nanoseconds per repeat; the thread's CPU time is as honest, and finer.
        frame = wire(case.frame)
        started = time.thread_time_ns()
        verdict, output, _duration = bpf.test_run(fd, frame, repeat, self.interface)
        return verdict, output, (time.thread_time_ns() - started) / repeat

    def _checked(self, fd: int, case: Case, repeat: int) -> float:
        before = Totals.read(self.program)
        verdict, output, nanoseconds = self._run(fd, case, repeat)
        after = Totals.read(self.program)
        if verdict != case.verdict:
            raise Failure(f"{case.name}: the verdict is {verdict}, not {case.verdict}")
        served = self._check_counters(case, before, after, repeat)
        if case.flows == 1 or repeat == 1:
            expected = wire(case.expected(case.frame.copy(), next(iter(served), None)))
            if output != expected:
                raise Failure(f"{case.name}: the frame is\n{output.hex(' ')}, not\n{expected.hex(' ')}")
        elif repeat >= ENOUGH_TO_SPREAD:
            fewest = min(served[address] for address in case.kind.backends)
            if fewest * 2 < repeat / BACKENDS:
                raise Failure(f"{case.name}: {fewest} packets of {repeat} for one of {BACKENDS} backends")
        return nanoseconds

    def _check_counters(self, case: Case, before: Totals, after: Totals, repeat: int) -> Counter[str]:
        """Packets by the address of the backend; every counter advanced by what the repeats account for, or not."""
        reasons: Counter[str] = Counter()
        for (label, _verdict), old, new in zip(layout.REASONS, before.reasons, after.reasons):
            if new != old:
                reasons[label] += new - old
        if reasons != ({case.reason: repeat} if case.reason else {}):
            raise Failure(f"{case.name}: {repeat} packets were counted as {dict(reasons)}")
        addresses = {number: key.address for key, number in self.program.backend_ids.items()}
        served = Counter(
            {addresses[number]: row[0] for number, row in _advanced(case, before.backends, after.backends)}
        )
        services = _advanced(case, before.services, after.services)
        row = (repeat, repeat * len(wire(case.frame)))
        number = self.program.rings[case.kind.name] if case.kind else 0
        if services != ([(number, row)] if case.kind else []):
            raise Failure(f"{case.name}: {row} for service {number} were counted as {services}")
        expected_backends = set(case.kind.backends) if case.kind else set()
        if served.total() != (repeat if case.kind else 0) or served.keys() - expected_backends:
            raise Failure(f"{case.name}: {repeat} packets were counted for backends as {dict(served)}")
        return served


def _advanced(
    case: Case, before: list[tuple[int, ...]], after: list[tuple[int, ...]]
) -> list[tuple[int, tuple[int, int]]]:
    """Position, packets and bytes of the rows that grew."""
    found = []
    for position, (old, new) in enumerate(zip(before, after)):
        if old != new:
            change = tuple(map(int.__sub__, new, old))
            mine, other = (change[2:], change[:2]) if case.reply else (change[:2], change[2:])
            if any(other):
                raise Failure(f"{case.name}: counters of the other direction advanced by {other}")
            found.append((position, mine))
    return found


# --- surroundings


def _ip(commands: list[str]) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write("\n".join(commands) + "\n")
        file.flush()
        subprocess.run(["ip", "-batch", file.name], check=True)


@contextmanager
def private_network() -> Iterator[int]:
    """A network namespace in which FIB and neighbour tables know all hosts; the interface packets arrive on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", encoding="ascii") as before:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        try:
            _fill_network()
            yield socket.if_nametoindex(INTERFACE)
        finally:
            if libc.setns(before.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns(CLONE_NEWNET)")


def _fill_network() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
    hosts = [ROUTER, *(address for kind in KINDS.values() for address in kind.backends)]
    _ip(
        [
            f"link add {INTERFACE} address {mac_of(BALANCER)} type veth peer name peer",
            f"address add {BALANCER}/16 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            "link set peer up",
            f"route add default via {ROUTER}",
            *(f"neigh add {host} lladdr {mac_of(host)} nud permanent dev {INTERFACE}" for host in hosts),
        ]
    )
    # A veth registers its receive queues only while it carries an XDP program.
    from bcc import lib

    program = empty_program(XDP_PASS)
    try:
        if lib.bpf_attach_xdp(INTERFACE.encode(), program, 0) < 0:
            raise OSError(ctypes.get_errno(), f"cannot attach an XDP program to {INTERFACE}")
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


def run(rounds: int, repeat: int, features: frozenset[str], only: set[str]) -> report.Cases:
    """Every case, or only those named."""
    wrapper = compile_wrapper()
    chosen = [case for case in cases() if not only or case.name in only]
    samples = {case.name: Samples() for case in chosen}
    floors: list[float] = []
    with pinned_to_one_cpu(), private_network() as interface:
        for _round in range(rounds):
            with closing(Bench(wrapper, features, interface, repeat)) as bench:
                floors.append(bench.floor(chosen[0]))
                for case in chosen:
                    _sample(bench, case, samples[case.name])
    found: report.Cases = {}
    for name, sample in samples.items():
        found[name] = {"net_ns": report.summary(sample.net)}
        if sample.direct:
            found[name]["direct_net_ns"] = report.summary(sample.direct)
    found["floor"] = {"ns": report.summary(floors)}
    found["wrapped_floor"] = {"ns": report.summary(samples[chosen[0].name].wrapped_floor)}
    return found


def _sample(bench: Bench, case: Case, sample: Samples) -> None:
    balancer, floor = bench.measure(case)
    sample.net.append(balancer - floor)
    sample.wrapped_floor.append(floor)
    if case.repeatable:
        balancer, floor = bench.measure_directly(case)
        sample.direct.append(balancer - floor)


def disagreement(found: report.Cases) -> float:
    """The largest difference between the median behind the wrapper and the one without it, in nanoseconds."""
    pairs = [case for case in found.values() if "direct_net_ns" in case]
    return max((abs(case["net_ns"]["median"] - case["direct_net_ns"]["median"]) for case in pairs), default=0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeat", type=int, default=1_000_000, help="packets per case and round")
    parser.add_argument("--features", default=",".join(sorted(ALL_FEATURES)), help="what the program is built with")
    parser.add_argument("--case", action="append", dest="cases", help="only this one; nothing is written")
    options = parser.parse_args(arguments)
    features = frozenset(options.features.split(","))
    found = run(options.rounds, options.repeat, features, set(options.cases or ()))
    print(report.table(found, AIMS))
    print(f"with and without the wrapper, medians differ by up to {disagreement(found):.1f} ns")
    if options.cases:
        return 0
    method = METHOD.format(services=len(KINDS), backends=BACKENDS, features=", ".join(sorted(features)), flows=FLOWS)
    print(report.write("dataplane", method, found))
    title = "Cost of the balancer per packet, net of an empty program"
    print(report.plot("dataplane", title, "nanoseconds", "net_ns", found, AIMS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
