# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What filters are for: TCP requests a second while unwanted UDP arrives: build/bench/flood.json.

Needs root. It measures in network namespaces of its own; nothing of the host changes.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link

from tests.bench import dataplane, forwarding, report, scenes
from tests.bench.scenes import BALANCER
from tests.support import namespace
from tests.support.program import Program

METHOD = """\
A TCP server of the host, a client in another network namespace behind a veth pair, which asks for one line over a \
new connection after the other, and UDP frames of 4 million flows to a port of the host that nobody serves, put into \
the same wire. Server, flood and the softirqs that receive both share one CPU; the client has another. \
requests_per_second: without the flood (quiet), and with floods of 200,000 to 1,600,000 packets a second in 20 bursts, \
as far as the sender gets, sent_kpps; each without the balancer's program, and with it and the filter "0.0.0.0/0, udp, \
drop" (*_filter). Two seconds for each case and round, interleaved.\
"""

PORT = 8080
RATES = (200_000, 800_000, 1_600_000)
BURSTS = 20  # a second
FILTER = [{"prefix": "0.0.0.0/0", "protocol": "udp", "action": "drop"}]
CLIENT_ADDRESS = "10.0.255.200"


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


def serve(stopped: threading.Event, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    with socket.create_server((BALANCER, PORT), backlog=512) as server:
        server.settimeout(0.2)
        while not stopped.is_set():
            try:
                connection, _peer = server.accept()
            except OSError:
                continue
            with connection:
                try:
                    connection.settimeout(1)
                    connection.sendall(connection.recv(64))
                except OSError:
                    continue


# Runs in the client's namespace: how many requests were answered in so many seconds.
CLIENT_SCRIPT = """
import socket, sys, time
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
answered, deadline = 0, time.monotonic() + seconds
while time.monotonic() < deadline:
    try:
        with socket.create_connection((address, port), timeout=0.5) as client:
            client.sendall(b"hello")
            answered += client.recv(64) == b"hello"
    except OSError:
        pass
print(answered)
"""


def in_namespace(pid: int, *command: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *command]


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


class Flood:
    """Frames at a steady rate from a thread in the client's namespace."""

    def __init__(self, code: dict[str, bytes], pid: int, cpu: int, rate: int) -> None:
        self.code, self.pid, self.cpu, self.rate = code, pid, cpu, rate
        self.sent, self.seconds = 0, 0.0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flood:
        self.thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self.cpu})
        namespace.enter(self.pid, "net")
        with closing(forwarding.Wire(self.code, "let_in")) as sender:
            sender.start(forwarding.MANY, BALANCER)
            started = time.monotonic()
            while not self.stopped.is_set() and self.rate:
                sender.send(self.rate // BURSTS)
                self.sent += self.rate // BURSTS
                time.sleep(max(0.0, started + self.sent / self.rate - time.monotonic()))
            self.seconds = time.monotonic() - started


def measure(case: Case, code: dict[str, bytes], seconds: float, cpu: int) -> tuple[float, float]:
    """Requests a second, and thousand packets of the flood a second."""
    stopped = threading.Event()
    with dataplane.private_network(attach=False), wire() as pid:
        balancer = Program([], [], None, declared_filters=FILTER) if case.filtered else None
        program = balancer.fd if balancer else bpf.program_load("pass", bpf.PASS_PROGRAM)
        link.attach(forwarding.NEAR, program, "native", None)
        server = threading.Thread(target=serve, args=(stopped, cpu))
        flood = Flood(code, pid, cpu, case.rate)
        server.start()
        try:
            with flood:
                time.sleep(0.3)
                command = in_namespace(
                    pid, "taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, "-c", CLIENT_SCRIPT
                )
                result = subprocess.run(
                    [*command, BALANCER, str(PORT), str(seconds)], check=True, capture_output=True, text=True
                )
        finally:
            stopped.set()
            server.join()
            if balancer:
                dropped = balancer.maps.read_counters("filter_counters")[0][1]
                if dropped < flood.sent * 0.9:
                    raise report.Failure(f"{case.name}: {dropped} of {flood.sent} packets were dropped")
                balancer.close()
            else:
                os.close(program)
    return int(result.stdout) / seconds, flood.sent / flood.seconds / 1000 if flood.seconds else 0.0


def run(rounds: int, seconds: float) -> report.Cases:
    code = forwarding.compiled()
    cpu = max(os.sched_getaffinity(0))
    samples: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases()}
    for number in range(rounds):
        for case in cases():
            samples[case.name].append(measure(case, code, seconds, cpu))
        print(f"round {number + 1} of {rounds}", flush=True)
    return {
        name: {
            "requests_per_second": report.summary([requests for requests, _sent in found]),
            "sent_kpps": report.summary([sent for _requests, sent in found]),
        }
        for name, found in samples.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and round")
    options = parser.parse_args(arguments)
    found = run(options.rounds, options.seconds)
    print(report.table(found, {}))
    print(report.write("flood", METHOD, found))
    title = "TCP requests while UDP arrives that nobody wants"
    print(report.plot("flood", title, "requests a second", "requests_per_second", found, {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
