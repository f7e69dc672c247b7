# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What filters are for: TCP requests a second while unwanted UDP arrives: build/bench/flood.json.

Needs root. It measures in network namespaces of its own; nothing of the host changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link

from tests.bench import forwarding, network, report, scenes
from tests.bench.scenes import BALANCER
from tests.support import namespace
from tests.support.program import Program

METHOD = """\
A TCP server of the host, a client in another network namespace behind a veth pair, which sends a small request over \
its connection as soon as it has the answer to the one before (netperf's TCP_RR), and UDP frames of 4 million flows \
to a port of the host that nobody serves, put into the same wire. The host has a CPU of its own, as it would have \
behind a NIC: threaded NAPI of its end of the pair, which runs before any process, and the server; what the server \
answers is received there, too, by the softirq of the client's end. The CPU never halts. Client and sender of the \
flood have another CPU, of which the sender gets what the client leaves. requests_per_second: without the flood \
(quiet), and with floods of 200,000 to 1,600,000 packets a second in bursts of 32, as far as the sender gets, \
sent_kpps; each without the balancer's program, and with it and the filter "0.0.0.0/0, udp, drop" (*_filter). cpu_*: \
share of a CPU that the host's NAPI thread and the server took. {seconds:g} seconds for each case and round, \
interleaved.\
"""

PORT = 8080
RATES = (200_000, 400_000, 800_000, 1_600_000)
REPEAT = 100_000  # runs of the sender in one call, most of which find that no packet is due
FOREVER = 1 << 40  # nanoseconds between two packets
FILTER = [{"prefix": "0.0.0.0/0", "protocol": "udp", "action": "drop"}]
CLIENT_ADDRESS = "10.0.255.200"
# The claim: at some rate the filter keeps so much of the quiet rate of requests, where less is left without it.
KEPT, LOST = 0.8, 0.5
SPARE = "spare"  # an interface that carries the sender's program
THREADS_START = 5.0  # seconds


@dataclass(frozen=True)
class Case:
    name: str
    rate: int
    filtered: bool


def cases() -> list[Case]:
    found = [Case("quiet", 0, False), Case("quiet_filter", 0, True)]
    for rate in RATES:
        found += [Case(f"flood_{rate // 1000}k", rate, False), Case(f"flood_{rate // 1000}k_filter", rate, True)]
    return found


@dataclass
class Sample:
    """Of one case and round."""

    requests_per_second: float
    sent_kpps: float
    cpu: dict[str, float] = field(default_factory=dict)  # by who took it, as a share of one CPU


# Runs in the balancer's namespace, until it is killed.
SERVER_SCRIPT = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listening", flush=True)
    connection, _peer = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while request := connection.recv(64):
                connection.sendall(request)
        except OSError:
            pass
"""
# Runs in the client's namespace, and asks as soon as it has an answer: how many were there in so many seconds?
CLIENT_SCRIPT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as client:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.settimeout(0.1)
    print("connected", flush=True)
    sys.stdin.readline()
    answered, deadline = 0, time.monotonic() + float(sys.argv[3])
    client.sendall(b"hello")
    while time.monotonic() < deadline:
        try:
            if client.recv(64) == b"hello":
                answered += 1
                client.sendall(b"hello")
        except TimeoutError:
            pass
print(answered)
"""


def in_namespace(pid: int, *command: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *command]


def on_cpu(cpu: int, *command: str) -> list[str]:
    return ["taskset", "--cpu-list", str(cpu), *command]


@contextmanager
def wire() -> Iterator[int]:
    """The far end in a namespace of its own; the process that holds it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
            time.sleep(0.01)
        far = forwarding.FAR
        subprocess.run(["ip", "link", "set", far, "netns", str(holder.pid)], check=True)
        mac = scenes.mac_of(scenes.ROUTER)
        for command in (
            f"ip link set {far} address {mac} up",
            f"ip addr add {CLIENT_ADDRESS}/16 dev {far}",
            f"ip neigh add {BALANCER} lladdr {scenes.mac_of(BALANCER)} dev {far} nud permanent",
            f"ethtool -K {far} tx off",
            f"ip link add {SPARE} up type veth peer name {SPARE}-peer",
        ):
            subprocess.run(in_namespace(holder.pid, *command.split()), check=True, stdout=subprocess.DEVNULL)
        near = forwarding.NEAR
        neighbour = ["ip", "neigh", "replace", CLIENT_ADDRESS, "lladdr", mac, "dev", near, "nud", "permanent"]
        subprocess.run(neighbour, check=True)
        subprocess.run(["ethtool", "-K", near, "tx", "off"], check=True, stdout=subprocess.DEVNULL)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def napi_threads(interface: str) -> set[int]:
    """Returns the kernel's threads that poll interfaces of this name, in whatever namespace."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text(encoding="ascii").startswith(f"napi/{interface}-"):
                found.add(int(directory.name))
        except (OSError, UnicodeError):
            continue
    return found


def poll_in_thread(interface: str, cpu: int) -> int:
    """Receive in a kernel thread on this CPU; returns its process id."""
    before = napi_threads(interface)
    # /sys shows the devices of the network namespace that it was mounted in.
    script = f"mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/{interface}/threaded"
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True)
    deadline = time.monotonic() + THREADS_START
    while not (found := napi_threads(interface) - before):
        if time.monotonic() > deadline:
            raise report.Failure(f"the kernel starts no NAPI thread for {interface}")
        time.sleep(0.01)
    for thread in found:
        os.sched_setaffinity(thread, {cpu})
        # Before any process, as a softirq is.
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    return min(found)


def cpu_time(process: int) -> float:
    """Returns seconds that a process of one thread has run."""
    return int(Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


@contextmanager
def awake(cpu: int) -> Iterator[None]:
    """Keep the CPU from halting: a virtual one takes longer to wake up than the flood to fill the ring of a veth."""
    command = on_cpu(cpu, "chrt", "--idle", "0", sys.executable, "-c", "while True: pass")
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def server(cpu: int) -> Iterator[int]:
    """The server's process, once it listens."""
    command = on_cpu(cpu, sys.executable, "-c", SERVER_SCRIPT, BALANCER, str(PORT))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise report.Failure("the server does not listen")
            yield process.pid
        finally:
            process.kill()


class Flood:
    """Frames at a steady rate from a thread in the client's namespace.

    It takes all of its CPU that nobody else wants, so that client and NAPI never wait for it.
    """

    def __init__(self, code: dict[str, bytes], pid: int, cpu: int, rate: int) -> None:
        self.code, self.pid, self.cpu, self.rate = code, pid, cpu, rate
        self.sent, self.seconds = 0, 0.0
        self.stopped, self.ready = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flood:
        self.thread.start()
        self.ready.wait()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self.cpu})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        namespace.enter(self.pid, "net")
        with closing(forwarding.Wire(self.code, "let_in")) as sender:
            # Otherwise each call waits for RCU, as wrapper.py says.
            link.attach(SPARE, sender.programs["sender"], "native", None)
            sender.start(forwarding.MANY, BALANCER, 1_000_000_000 // self.rate if self.rate else FOREVER)
            self.ready.set()
            started = time.monotonic()
            while not self.stopped.is_set():
                sender.send(REPEAT)
            self.seconds = time.monotonic() - started
            self.sent = sender.sent()


@contextmanager
def client(pid: int, cpu: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The client's process in the namespace of another one, connected. It begins at a line of input."""
    command = on_cpu(cpu, sys.executable, "-c", CLIENT_SCRIPT, BALANCER, str(PORT), str(seconds))
    with subprocess.Popen(
        in_namespace(pid, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise report.Failure("the client cannot connect")
            yield process
        finally:
            process.kill()


def measure(case: Case, code: dict[str, bytes], seconds: float, host_cpu: int, client_cpu: int) -> Sample:
    with network.private_network(attach=False), wire() as pid, ExitStack() as stack:
        balancer = Program([], [], None, declared_filters=FILTER) if case.filtered else None
        if balancer:
            stack.callback(balancer.close)
        program = balancer.fd if balancer else bpf.program_load("pass", bpf.PASS_PROGRAM)
        if not balancer:
            stack.callback(os.close, program)
        link.attach(forwarding.NEAR, program, "native", None)
        napi = poll_in_thread(forwarding.NEAR, host_cpu)
        stack.enter_context(awake(host_cpu))
        serving = stack.enter_context(server(host_cpu))
        asking = stack.enter_context(client(pid, client_cpu, seconds))
        with Flood(code, pid, client_cpu, case.rate) as flood:
            time.sleep(0.2)
            before, started = {"host_napi": cpu_time(napi), "server": cpu_time(serving)}, time.monotonic()
            output, _errors = asking.communicate("\n")
            elapsed, after = time.monotonic() - started, {"host_napi": cpu_time(napi), "server": cpu_time(serving)}
        if balancer:
            dropped = balancer.maps.read_counters("filter_counters")[0][1]
            # Some never arrive, since the ring between the ends is short.
            if dropped < flood.sent * 0.5:
                raise report.Failure(f"{case.name}: {dropped} of {flood.sent} packets were dropped")
    cpu = {who: (after[who] - before[who]) / elapsed for who in before}
    return Sample(int(output) / seconds, flood.sent / flood.seconds / 1000, cpu)


def run(rounds: int, seconds: float) -> report.Cases:
    code = forwarding.compiled()
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        raise report.Failure("host and client need a CPU each; this process may use only one")
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases()}
    for number in range(rounds):
        for case in cases():
            samples[case.name].append(measure(case, code, seconds, max(cpus), min(cpus)))
        print(f"round {number + 1} of {rounds}", flush=True)
    return {
        name: {
            "requests_per_second": report.summary([sample.requests_per_second for sample in found]),
            "sent_kpps": report.summary([sample.sent_kpps for sample in found]),
            **{f"cpu_{who}": report.summary([sample.cpu[who] for sample in found]) for who in found[0].cpu},
        }
        for name, found in samples.items()
    }


def claim(found: report.Cases) -> tuple[bool, list[str]]:
    """Returns whether the filter keeps what is lost without it at some rate of the flood, and a sentence for each."""
    quiet = found["quiet"]["requests_per_second"]["median"]
    holds, sentences = False, []
    for rate in RATES:
        name = f"flood_{rate // 1000}k"
        lost, kept = (found[case]["requests_per_second"]["median"] / quiet for case in (name, f"{name}_filter"))
        shown = lost < LOST and kept >= KEPT
        holds = holds or shown
        sentences.append(
            f"{name}: {lost:.0%} of the quiet rate without the filter, {kept:.0%} with it{': shown' if shown else ''}"
        )
    return holds, sentences


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and round")
    options = parser.parse_args(arguments)
    try:
        found = run(options.rounds, options.seconds)
    except report.Failure as error:
        print(f"flood: {error}", file=sys.stderr)
        return report.EXCEEDED
    print(report.table(found, {}))
    print(report.write("flood", METHOD.format(seconds=options.seconds), found))
    title = "TCP requests while UDP arrives that nobody wants"
    print(report.plot("flood", title, "requests a second", "requests_per_second", found, {}))
    holds, sentences = claim(found)
    print("\n".join(sentences))
    if not holds:
        print(f"error: at no rate the filter keeps {KEPT:.0%} where less than {LOST:.0%} is left without it")
        return report.EXCEEDED
    return report.HELD


if __name__ == "__main__":
    sys.exit(main())
