# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scrape costs: build/bench/exporter.json.

The exporter runs as a process of its own on the live program and maps of an interface in namespaces of this process,
and is asked over HTTP.
"""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Settings

from tests.bench import report
from tests.support import host_packages as host
from tests.support import namespace

METHOD = """\
{services} services with {backends} backends in all (100x1000), and with {more} in all (100x100_each), sizes of maps \
as by default, no traffic; the exporter as a process of its own, all collectors on. {scrapes} scrapes of /metrics \
one after the other in each of {rounds} rounds, a new exporter each time, over HTTP on loopback, uncompressed, from \
the request to the last byte, the first scrape, which reads the state file, included in the percentiles; *_gzip \
compressed; *_p50 and *_p99: median, least and greatest of the rounds' percentiles. rss: resident memory of the \
exporter after the last scrape of a round.\
"""
SERVICES, BACKENDS, MORE = 100, 1000, 10_000
ROUNDS, SCRAPES = 5, 200
INTERFACE, PORT = "bench0", 19477
START_TIMEOUT = 20.0  # seconds
AIMS = {
    "scrape_100x1000_p99": report.Aim(0.1, 0.1),
    "rss": report.Aim(64, 64),
}
PROGRAM = """
import sys
from pathlib import Path
from lbops_exporter.exporter import Exporter
from lbops_exporter.server import Server
from lbops_exporter.web_config import WebConfig
from engine.balancer import state
paths = state.Paths(Path(sys.argv[1]), Path(sys.argv[2]))
Server("127.0.0.1", int(sys.argv[3]), Exporter(paths), WebConfig()).serve_forever()
"""


def configuration(backends: int) -> tuple[list[dict], list[dict]]:
    services = [
        {"name": f"service{number}", "address": f"192.0.2.{number + 1}", "protocol": "udp", "port": 53}
        for number in range(SERVICES)
    ]
    return services, [
        {
            "service": f"service{number % SERVICES}",
            "name": f"backend{number}",
            "address": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            "port": 1024 + number % SERVICES,
            "mac": "02:00:00:00:00:01",
        }
        for number in range(256, 256 + backends)
    ]


@contextmanager
def balancer(paths: state.Paths) -> Iterator[Balancer]:
    made = Balancer("main", paths)
    try:
        settings = Settings((INTERFACE,), mode="native", source=str(report.ROOT / "files" / "bpf"))
        made.apply_program(settings, check=False)
        yield made
    finally:
        made.remove(check=False)


def ask(packed: bool) -> tuple[float, bytes]:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"} if packed else {})
    content = connection.getresponse().read()
    connection.close()
    return time.perf_counter() - started, content


@contextmanager
def running(paths: state.Paths) -> Iterator[int]:
    """The exporter's process, once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, paths.pins, paths.state, str(PORT)],
        env={**os.environ, "PYTHONPATH": str(host.DIRECTORY), "MALLOC_ARENA_MAX": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                http.client.HTTPConnection("127.0.0.1", PORT, timeout=1).connect()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise report.Failure("the exporter does not listen") from None
                time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def resident(process: int) -> float:
    """MiB."""
    [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def check(page: bytes, backends: int) -> None:
    lines = page.decode().splitlines()
    if sum(line.startswith("lbops_backend_weight{") for line in lines) != backends:
        raise report.Failure(f"a page does not have all of {backends} backends")
    failing = [line for line in lines if line.startswith("lbops_collector_success{") and not line.endswith(" 1")]
    if failing:
        raise report.Failure(f"a collector fails: {failing[0]}")


def measure(case: str, paths: state.Paths, backends: int, packed: bool, samples: dict[str, list[float]]) -> list[float]:
    """What the exporter takes of memory in each round, in MiB."""
    sizes = []
    for _round in range(ROUNDS):
        with running(paths) as process:
            seconds, page = ask(False)
            check(page, backends)
            found = [seconds] + [ask(packed)[0] for _scrape in range(SCRAPES - 1)]
            sizes.append(resident(process))
        percentiles = statistics.quantiles(found, n=100, method="inclusive")
        samples.setdefault(f"{case}_p50", []).append(percentiles[49])
        samples.setdefault(f"{case}_p99", []).append(percentiles[98])
    return sizes


def main() -> int:
    samples: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as directory, namespace.own_host():
            for command in (
                f"ip link add {INTERFACE} type veth peer name peer0",
                f"ip link set {INTERFACE} up",
                "ip link set peer0 up",
                "ip link set lo up",
            ):
                subprocess.run(command.split(), check=True)
            paths = state.Paths(Path("/sys/fs/bpf/lbops-bench"), Path(directory))
            with balancer(paths) as made:
                for case, backends, packed in (
                    ("scrape_100x1000", BACKENDS, False),
                    ("scrape_100x1000_gzip", BACKENDS, True),
                    ("scrape_100x100_each", MORE, False),
                ):
                    services, declared = configuration(backends)
                    made.apply_services(services, True, False)
                    made.apply_backends(declared, True, False)
                    memory[case] = measure(case, paths, backends, packed, samples)
                    print(f"exporter: {case} done", flush=True)
    except (OSError, report.Failure) as error:
        print(f"exporter: {error}", file=sys.stderr)
        return report.EXCEEDED
    cases = {case: {"seconds": report.summary(values)} for case, values in samples.items()}
    cases["rss"] = {"mib": report.summary(memory["scrape_100x1000"])}
    cases["rss_100x100_each"] = {"mib": report.summary(memory["scrape_100x100_each"])}
    print(report.table(cases, AIMS))
    method = METHOD.format(services=SERVICES, backends=BACKENDS, more=MORE, scrapes=SCRAPES, rounds=ROUNDS)
    print(report.write("exporter", method, cases))
    print(report.plot("exporter", "What a scrape costs", "seconds", "seconds", cases, AIMS))
    return report.judge_cases(cases, AIMS)


if __name__ == "__main__":
    sys.exit(main())
