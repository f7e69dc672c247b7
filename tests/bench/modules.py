# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long xdp_balancer takes, by the number of backends: a part of tests/bench/control.py."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import report
from tests.support import namespace

INTERFACE = "bench0"
COMMAND = "ansible_collections.lbops.xdp.plugins.modules.xdp_balancer"
COLLECTIONS = report.ROOT / "build" / "collections"
BACKENDS_OF_A_SERVICE = 100
# With what 100,000 backends need instead of the defaults.
LARGE = {"max_services": 2048, "max_backends": 262144, "max_endpoints": 262144}
SIZES: dict[str, tuple[int, dict[str, int]]] = {"1k": (1000, {}), "10k": (10_000, {}), "100k": (100_000, LARGE)}
KINDS = ("first", "unchanged", "one_changed")

Samples = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Run:
    """A module's process, from start to end."""

    seconds: float
    cpu_seconds: float  # user and system
    peak_mib: float  # resident
    result: dict[str, Any]


def run(arguments: Path) -> Run:
    """Of xdp_balancer with the arguments in this file. Raises RuntimeError if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as problems:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", COMMAND, str(arguments)], cwd=COLLECTIONS, stdout=output, stderr=problems
        )
        _process, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        problems.seek(0)
        content = output.read()
        if process.returncode:
            raise RuntimeError(f"xdp_balancer: {content.decode()[-2000:]} {problems.read().decode()[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(content))


@contextmanager
def own_host() -> Iterator[None]:
    with namespace.own_host():
        for command in (
            f"ip link add {INTERFACE} type veth peer name peer0",
            f"ip link set {INTERFACE} up",
            "ip link set peer0 up",
        ):
            subprocess.run(command.split(), check=True)
        yield


def service(number: int) -> dict[str, Any]:
    return {
        "name": f"service{number}",
        "address": f"198.18.{number >> 8}.{number & 255}",
        "protocol": "udp",
        "port": 53,
    }


def backend(number: int, services: int, weight: int) -> dict[str, Any]:
    place = number + 256
    return {
        "service": f"service{number % services}",
        "name": f"backend{number}",
        "address": f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}",
        "port": 1024 + number % services,
        "weight": weight,
        # The next hop is given, so that this measures the module and not an ARP storm.
        "mac": "02:00:00:00:00:01",
    }


def write_arguments(path: Path, services: int, backends: int, sizes: dict[str, int], weight: int = 1) -> Path:
    """The arguments of a whole document, of which the first backend has this weight.

    Entry by entry: the peak of this process counts as that of the processes that it starts.
    """
    common = {"interfaces": [INTERFACE], "source": str(report.ROOT / "files" / "bpf"), **sizes}
    with path.open("w", encoding="utf-8") as file:
        file.write('{"ANSIBLE_MODULE_ARGS":' + json.dumps(common)[:-1] + ',"services":[')
        file.write(",".join(json.dumps(service(number)) for number in range(services)) + '],"backends":[')
        for number in range(backends):
            entry = backend(number, services, 1 if number else weight)
            file.write(("," if number else "") + json.dumps(entry))
        file.write("]}}")
    return path


def measure(samples: Samples, rounds: int, chosen: tuple[str, ...] = tuple(SIZES)) -> None:
    """All sizes in each round, so that what else the machine does meets all of them."""
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            for label in chosen:
                _apply(samples, label, Path(directory))
            print(f"control: round {number + 1} of {rounds} of the module done", flush=True)
    for kind in KINDS:
        if len(chosen) > 1:
            samples[f"growth_{kind}"] = {"exponent": [exponent(samples, kind, chosen)]}


def _apply(samples: Samples, label: str, directory: Path) -> None:
    backends, sizes = SIZES[label]
    services = backends // BACKENDS_OF_A_SERVICE
    absent = directory / "absent"
    absent.write_text('{"ANSIBLE_MODULE_ARGS":{"state":"absent"}}', encoding="utf-8")
    before = write_arguments(directory / f"{label}-before", services, 0, sizes)
    first = write_arguments(directory / f"{label}-first", services, backends, sizes)
    other = write_arguments(directory / f"{label}-other", services, backends, sizes, weight=2)
    try:
        run(before)
        for kind, arguments in zip(KINDS, (first, first, other)):
            found = run(arguments)
            _check(f"apply_{label}_{kind}", found, kind, backends)
            case = samples.setdefault(f"apply_{label}_{kind}", {})
            for quantity in ("seconds", "cpu_seconds", "peak_mib"):
                case.setdefault(quantity, []).append(getattr(found, quantity))
            if kind == "first":
                written = samples.setdefault(f"map_write_{label}", {})
                written.setdefault("seconds", []).append(found.result["write_seconds"])
    finally:
        run(absent)


def _check(case: str, found: Run, kind: str, backends: int) -> None:
    result = found.result
    changes = {what: len(keys) for what, keys in result["changes"]["backends"].items()}
    expected = {"created": backends * (kind == "first"), "modified": int(kind == "one_changed"), "removed": 0}
    if changes != expected or result["changed"] is (kind == "unchanged"):
        raise RuntimeError(f"{case}: changed is {result['changed']}, backends that changed are {changes}")
    if result["compiled"] or result["new_maps"]:
        raise RuntimeError(f"{case}: the program was compiled or the maps were made anew")


def exponent(samples: Samples, kind: str, labels: tuple[str, ...]) -> float:
    """Of the power of the number of backends that seconds grow with: least squares on logarithms of medians."""
    return slope(
        [math.log(SIZES[label][0]) for label in labels],
        [math.log(statistics.median(samples[f"apply_{label}_{kind}"]["seconds"])) for label in labels],
    )


def slope(across: list[float], up: list[float]) -> float:
    """Of the line that fits these points best."""
    middle, height = statistics.fmean(across), statistics.fmean(up)
    return sum((x - middle) * (y - height) for x, y in zip(across, up)) / sum((x - middle) ** 2 for x in across)
