# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long operators wait: build/bench/control.json.

Modules run as whole processes, as on a target, on a veth in namespaces of this process; an unchanged site.yml runs
against a host of the lab.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import report
from tests.support import namespace

METHOD = """\
{services} services with {backends} backends in all; each module run timed from start to end, a process of its own on \
an interface without traffic. apply_10k_*: xdp_backends, first with no backend there, then unchanged, then with \
another weight of one backend. map_write_10k: the part of the first apply that writes maps. site_unchanged_one_host: \
ansible-playbook site.yml against one host of the lab, nothing to change.\
"""
SERVICES, BACKENDS = 100, 10_000
ROUNDS = 5
INTERFACE = "bench0"
AIMS = {
    "apply_10k_unchanged": report.Aim(1.0),
    "apply_10k_one_changed": report.Aim(1.0),
    "map_write_10k": report.Aim(0.1),
    "site_unchanged_one_host": report.Aim(15.0),
}
MODULE = "ansible_collections.lbops.xdp.plugins.modules."


def module(name: str, **arguments: Any) -> tuple[float, dict[str, Any]]:
    """Seconds and result of a module's run."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"ANSIBLE_MODULE_ARGS": {"interface": INTERFACE, **arguments}}, file)
        file.flush()
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", MODULE + name, file.name], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
    result = json.loads(process.stdout)
    if process.returncode:
        raise RuntimeError(f"{name}: {result.get('msg')}")
    return seconds, result


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


def configuration() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    services = [
        {"name": f"service{number}", "address": f"192.0.2.{number + 1}", "protocol": "udp", "port": 53}
        for number in range(SERVICES)
    ]
    # The next hop is given, so that this measures the module and not an ARP storm.
    backends = [
        {
            "service": f"service{number % SERVICES}",
            "name": f"backend{number}",
            "address": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            "port": 1024 + number % SERVICES,
            "mac": "02:00:00:00:00:01",
        }
        for number in range(256, 256 + BACKENDS)
    ]
    return services, backends


def modules(samples: dict[str, list[float]]) -> None:
    services, backends = configuration()
    source = str(report.ROOT / "files" / "bpf")
    changed = [{**backends[0], "weight": 2}, *backends[1:]]
    for number in range(ROUNDS):
        module("xdp_program", source=source)
        try:
            module("xdp_services", services=services)
            for case, declared, expected in (
                ("apply_10k_first", backends, True),
                ("apply_10k_unchanged", backends, False),
                ("apply_10k_one_changed", changed, True),
            ):
                seconds, result = module("xdp_backends", backends=declared)
                if result["changed"] is not expected or len(result["after"]) != BACKENDS:
                    raise RuntimeError(f"{case}: changed is {result['changed']}, {len(result['after'])} backends")
                samples.setdefault(case, []).append(seconds)
                if case == "apply_10k_first":
                    samples.setdefault("map_write_10k", []).append(result["write_seconds"])
        finally:
            module("xdp_program", state="absent")
        print(f"control: round {number + 1} of {ROUNDS} done", flush=True)


def site(samples: dict[str, list[float]]) -> None:
    def playbook(name: str, *arguments: str) -> tuple[float, str]:
        started = time.perf_counter()
        result = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "-i",
                "inventory/lab",
                f"playbooks/{name}",
                *arguments,
            ],
            cwd=report.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(result.stdout[-3000:] + result.stderr)
        return time.perf_counter() - started, result.stdout

    playbook("lab_up.yml")
    try:
        playbook("site.yml", "--limit", "lb1")
        for number in range(ROUNDS):
            seconds, output = playbook("site.yml", "--limit", "lb1")
            if "changed=0" not in output:
                raise RuntimeError("site.yml changed something in a run that should not")
            samples.setdefault("site_unchanged_one_host", []).append(seconds)
            print(f"control: site.yml {number + 1} of {ROUNDS} done", flush=True)
    finally:
        playbook("lab_down.yml")


def main() -> int:
    samples: dict[str, list[float]] = {}
    try:
        site(samples)
        with own_host():
            modules(samples)
    except (OSError, RuntimeError) as error:
        print(f"control: {error}", file=sys.stderr)
        return 1
    cases = {case: {"seconds": report.summary(values)} for case, values in samples.items()}
    print(report.table(cases, AIMS))
    print(report.write("control", METHOD.format(services=SERVICES, backends=BACKENDS), cases))
    print(report.plot("control", "How long operators wait", "seconds", "seconds", cases, AIMS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
