# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole packets through veth: how many a second of CPU time carries: build/bench/forwarding.json.

Needs root. It measures in network namespaces of its own; of the host it raises the limit of connections, and lowers it
again.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, tc
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.bench import network, report, scenes
from tests.bench.scenes import BALANCER, ROUTER, VIP, Scene, mac_of, service
from tests.packet.reference import word_sum
from tests.support.program import Program

METHOD = """\
64-byte UDP frames (60 without checksum) from BPF_PROG_TEST_RUN with live frames, of the flows in turn, into one end \
of a veth pair whose other end is the balancer's; it sends them back, and an XDP program at the first end counts and \
drops them. All on one CPU. kpps_per_cpu: thousand packets that arrived, by the CPU time of the sending thread, in \
which the softirqs of the pair run, and of that CPU's ksoftirqd: sender, both ends and whatever forwards. 100 \
backends. redirect: an XDP program that swaps the Ethernet addresses. nft_dnat: prerouting DNAT with jhash of client \
address and port over the same backends, conntrack's limit raised to {connections}, its table empty at the start of a \
round. ip_forward: the kernel's routing alone. About a second for each case and round, interleaved. lost: the share \
that did not arrive; some rounds fill the queue in front of the forwarder, when ksoftirqd runs the softirqs beside the \
sender. dropped: the share of what the balancer has seen that did not arrive.\
"""

LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
BATCH = 64
TRAFFIC = struct.Struct("<QIIIIQQII48s")  # struct traffic of sender.c
CLIENTS = "203.0.113.0"
NEAR, FAR = network.INTERFACE, network.PEER
CONNECTIONS = 8_000_000
CONNECTIONS_FILE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
FEW, MANY = 10_000, 4_000_000


@dataclass(frozen=True)
class Case:
    name: str
    flows: int = FEW
    # The balancer's configuration; None: something else forwards.
    scene: Scene | None = None
    rules: str = ""
    hook: str = "native"


@dataclass
class Samples:
    rates: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)


def _scene(name: str, keys: dict[str, Any], **member: Any) -> Scene:
    return Scene(name, [service(**keys)], scenes.members(**member), [])


def nft_rules() -> str:
    backends = ", ".join(f"{number} : {address}" for number, address in enumerate(scenes.backend_addresses(4)))
    return f"""table ip bench {{
        chain prerouting {{
            type nat hook prerouting priority dstnat
            ip daddr {VIP} udp dport {scenes.SERVICE_PORT} dnat to \\
                jhash ip saddr . udp sport mod {scenes.BACKENDS} map {{ {backends} }}
        }}
    }}
    """


def cases() -> list[Case]:
    dnat = _scene("dnat", {}, port=scenes.BACKEND_PORT)
    return [
        Case("redirect", 1),
        Case("dnat_10k", FEW, dnat),
        Case("dnat_4m", MANY, dnat),
        Case("nft_dnat_10k", FEW, rules=nft_rules()),
        Case("nft_dnat_4m", MANY, rules=nft_rules()),
        Case("ip_forward_10k"),
        Case("dsr_10k", FEW, _scene("dsr", {"forwarding": "dsr"})),
        Case("ipip_10k", FEW, _scene("ipip", {"forwarding": "ipip", "source": "10.99.0.0/16"})),
        Case(
            "full_nat_10k",
            FEW,
            _scene("full_nat", {"forwarding": "full_nat", "source": "10.0.255.9"}, port=scenes.BACKEND_PORT),
        ),
        Case("flow_table_10k", FEW, _scene("flows", {"flow_table": True}, port=scenes.BACKEND_PORT)),
        Case("dnat_10k_generic", FEW, dnat, hook="generic"),
        Case("dnat_10k_tc", FEW, dnat, hook="tc"),
    ]


def compiled() -> dict[str, bytes]:
    from bcc import BPF

    program = BPF(text=Path(__file__).with_name("sender.c").read_bytes())
    try:
        return {name: program.dump_func(name.encode()) for name in ("sender", "sink", "turn", "let_in")}
    finally:
        program.cleanup()


def frame(destination: str = VIP) -> bytes:
    source = socket.inet_aton(CLIENTS)
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 46, 0, 0x4000, 64, 17, 0, source, socket.inet_aton(destination))
    macs = bytes.fromhex((mac_of(BALANCER) + mac_of(ROUTER)).replace(":", ""))
    return (macs + b"\x08\x00" + header + struct.pack(">HHHH", 1, scenes.SERVICE_PORT, 26, 0)).ljust(60, b"\0")


def send_live(program: int, data: bytes, packets: int) -> None:
    """BPF_PROG_TEST_RUN that carries out what the program says with each frame (kernel 5.18)."""
    buffer = ctypes.create_string_buffer(data, len(data))
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII",
        *(program, 0, len(data), 0, ctypes.addressof(buffer), 0, packets, 0, 0, 0, 0, 0, LIVE_FRAMES, 0, BATCH),
    )
    union = ctypes.create_string_buffer(attributes, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    number = bpf.SYSCALL_NUMBERS[platform.machine()]
    while libc.syscall(number, bpf.PROG_TEST_RUN, union, len(union)) < 0:
        if ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN with live frames")


class Wire:
    """The veth pair with sender and sink at one end."""

    def __init__(self, code: dict[str, bytes], end: str = "sink") -> None:
        self.traffic = bpf.map_create("traffic", bpf.MAP_TYPE_ARRAY, TRAFFIC.size, 1)
        self.arrived = bpf.map_create("arrived", bpf.MAP_TYPE_PERCPU_ARRAY, 8, 1)
        maps = [self.traffic, self.arrived]
        self.programs = {name: bpf.program_load(name, bpf.relocate(text, maps)) for name, text in code.items()}
        link.attach(FAR, self.programs[end], "native", None)
        self.cpu = max(os.sched_getaffinity(0))
        self.softirqs = _ksoftirqd(self.cpu)

    def close(self) -> None:
        for descriptor in (*self.programs.values(), self.traffic, self.arrived):
            os.close(descriptor)

    def count(self) -> int:
        size = 8 * bpf.possible_cpus()
        return sum(struct.unpack(f"<{size // 8}Q", bpf.map_lookup(self.arrived, layout.index(0), size)))

    def start(self, flows: int, destination: str = VIP, interval: int = 0) -> None:
        """Begin with the first flow; on average one packet each `interval` nanoseconds at the most."""
        template = frame(destination)
        partial = word_sum(template[14:24] + template[30:34])
        partial = int.from_bytes(partial.to_bytes(2, "big"), "little")
        source = int.from_bytes(socket.inet_aton(CLIENTS), "big")
        packed = TRAFFIC.pack(0, flows, socket.if_nametoindex(FAR), source, partial, interval, 0, 0, 0, template[:42])
        bpf.map_update(self.traffic, layout.index(0), packed)

    def send(self, packets: int) -> None:
        send_live(self.programs["sender"], frame(), packets)

    def sent(self) -> int:
        return int(TRAFFIC.unpack(bpf.map_lookup(self.traffic, layout.index(0), TRAFFIC.size))[0])

    def cpu_time(self) -> int:
        """Nanoseconds of this thread and of the CPU's ksoftirqd."""
        return time.thread_time_ns() + int(self.softirqs.read_text(encoding="ascii").split()[0])


def _ksoftirqd(cpu: int) -> Path:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text(encoding="ascii").strip() == f"ksoftirqd/{cpu}":
                return directory / "schedstat"
        except OSError:
            continue
    raise report.Failure(f"there is no ksoftirqd/{cpu}")


def _offload(state: str) -> None:
    subprocess.run(["ethtool", "-K", NEAR, "gro", state], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def forwarder(case: Case, wire: Wire) -> Iterator[Program | None]:
    """Whatever forwards in this case, at the near end; the balancer if it is that."""
    with ExitStack() as stack:
        hook, program = case.hook, None
        if case.scene is not None:
            is_tc = hook == "tc"
            program = stack.enter_context(
                closing(Program(case.scene.services, case.scene.backends, None, case.scene.sizes, tc=is_tc))
            )
            descriptor = program.fd
        else:
            descriptor = (
                wire.programs["turn"] if case.name == "redirect" else bpf.program_load("pass", bpf.PASS_PROGRAM)
            )
        if hook != "native":
            # A veth without native XDP takes such frames only while it receives with NAPI, for GRO.
            _offload("on")
            stack.callback(_offload, "off")
        if hook == "tc":
            tc.attach(NEAR, descriptor)
            stack.callback(tc.detach, NEAR)
        else:
            link.attach(NEAR, descriptor, hook, None)
            stack.callback(link.detach, NEAR, hook, descriptor)
        if case.rules:
            subprocess.run(["nft", "-f", "-"], input=case.rules, text=True, check=True)
            stack.callback(subprocess.run, ["nft", "delete", "table", "ip", "bench"], check=True)
        yield program


def seen(program: Program | None) -> int:
    """Packets for its services, so far."""
    return program.maps.read_counters("service_counters")[0][0] if program else 0


def measure(case: Case, wire: Wire, seconds: float, sample: Samples) -> None:
    with forwarder(case, wire) as program:
        wire.start(case.flows)
        # Programs ask for next hops, tables grow; then, how many packets take so long?
        wire.send(20_000)
        started = time.monotonic()
        wire.send(50_000)
        packets = int(50_000 * seconds / (time.monotonic() - started)) // 64 * 64
        before, seen_before, cpu = wire.count(), seen(program), wire.cpu_time()
        wire.send(packets)
        time.sleep(0.02)
        cpu, arrived = wire.cpu_time() - cpu, wire.count() - before
        if program:
            sample.dropped.append(1 - arrived / (seen(program) - seen_before))
    sample.rates.append(arrived / (cpu / 1e9) / 1000)
    sample.lost.append(1 - arrived / packets)


@contextmanager
def connections() -> Iterator[None]:
    """Conntrack's limit is one for all namespaces."""
    before = CONNECTIONS_FILE.read_text(encoding="ascii") if CONNECTIONS_FILE.exists() else None
    if before:
        CONNECTIONS_FILE.write_text(str(CONNECTIONS), encoding="ascii")
    try:
        yield
    finally:
        if before:
            CONNECTIONS_FILE.write_text(before, encoding="ascii")


def run(rounds: int, seconds: float, only: set[str]) -> report.Cases:
    code = compiled()
    samples: dict[str, Samples] = {}
    with network.pinned_to_one_cpu(), connections():
        for number in range(rounds):
            for case in cases():
                if only and case.name not in only:
                    continue
                # A namespace each, so that nothing of the others is left, connections least of all.
                with network.private_network(attach=False), closing(Wire(code)) as wire:
                    _quiet()
                    measure(case, wire, seconds, samples.setdefault(case.name, Samples()))
            print(f"round {number + 1} of {rounds}", flush=True)
    found: report.Cases = {}
    for name, sample in samples.items():
        found[name] = {"kpps_per_cpu": report.summary(sample.rates), "lost": report.summary(sample.lost)}
        if sample.dropped:
            found[name]["dropped"] = report.summary(sample.dropped)
    return found


def _quiet() -> None:
    """One arm: the kernel would tell the sender to go straight to the backends."""
    for name in ("all", NEAR):
        Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("0", encoding="ascii")
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0", encoding="ascii")


# A case, what it is compared with, and how often it should have that rate.
RATIOS = [
    ("dnat_10k", "redirect", report.Aim(0.8, at_least=True)),
    ("dnat_10k", "nft_dnat_10k", report.Aim(6, at_least=True)),
    ("dnat_4m", "nft_dnat_4m", report.Aim(12, at_least=True)),
]


def ratios(found: report.Cases) -> list[tuple[str, float, report.Aim]]:
    return [
        (f"{name} / {other}", found[name]["kpps_per_cpu"]["median"] / found[other]["kpps_per_cpu"]["median"], aim)
        for name, other, aim in RATIOS
        if name in found and other in found
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.7, help="for each case and round")
    parser.add_argument("--case", action="append", dest="cases", help="only this one; nothing is written")
    options = parser.parse_args(arguments)
    try:
        found = run(options.rounds, options.seconds, set(options.cases or ()))
    except report.Failure as error:
        print(f"forwarding: {error}", file=sys.stderr)
        return report.EXCEEDED
    print(report.table(found, {}))
    for name, value, aim in ratios(found):
        print(f"{name}: {value:.2f}, aim {aim.text()}: {aim.verdict(value)}")
    if options.cases:
        return report.judge(ratios(found))
    print(report.write("forwarding", METHOD.format(connections=CONNECTIONS), found))
    title = "Whole path over veth, 64-byte UDP"
    print(report.plot("forwarding", title, "thousand packets per CPU-second", "kpps_per_cpu", found, {}))
    return report.judge(ratios(found))


if __name__ == "__main__":
    sys.exit(main())
