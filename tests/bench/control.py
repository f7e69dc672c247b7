# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long operators wait: build/bench/control.json.

The module runs as whole processes, as on a target, on a veth in namespaces of this process; playbooks run against a
host of the lab.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import modules, report

METHOD = """\
apply_*: a run of xdp_balancer from the start of its process to its end, with a whole document of 10, 100 or 1,000 \
services of 100 backends each, on an interface without traffic. Program and maps are there before, made for the same \
services without backends, so no compiler runs; the process compiles the Python files of the module itself, as it does \
when Ansible sends them. first: all backends are new; unchanged: the same document again; one_changed: another weight \
of one backend. cpu_seconds: user and system time of the process; peak_mib: the most memory that it had. map_write_*: \
the part of the first apply that writes maps. growth_*: e of seconds ~ backends^e, by least squares on logarithms of \
the medians. All sizes take turns in every round. site_*: ansible-playbook site.yml against one host of the lab, \
nothing to change; tasks: how many ran. backends_*: the same of backends.yml, with nothing to change and with another \
weight of one of the servers.\
"""
ROUNDS = 5
AIMS = {
    "apply_10k_first": report.Aim(1.5),
    "apply_10k_unchanged": report.Aim(0.6),
    "apply_10k_one_changed": report.Aim(0.8),
    "apply_100k_first": report.Aim(15.0),
    "apply_100k_unchanged": report.Aim(5.0),
    "apply_100k_one_changed": report.Aim(6.0),
    "map_write_10k": report.Aim(0.1),
    **{f"growth_{kind}": report.Aim(1.05) for kind in modules.KINDS},
    "site_unchanged_one_host": report.Aim(6.0),
    "backends_unchanged_one_host": report.Aim(2.5),
    "backends_one_changed_one_host": report.Aim(2.5),
}
PEAK_AIM = report.Aim(1024.0)  # MiB


def playbook(name: str, *arguments: str) -> tuple[float, str]:
    """Seconds and output. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    result = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "inventory/lab", f"playbooks/{name}", *arguments],
        cwd=report.ROOT,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(modules.COLLECTIONS)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(result.stdout[-3000:] + result.stderr)
    return time.perf_counter() - started, result.stdout


def outcome(output: str) -> tuple[int, int]:
    """Of lb1, from the recap: how many tasks ran, and how many of them changed something."""
    found = re.search(r"^lb1\s*:\s*ok=(\d+)\s+changed=(\d+)", output, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the recap says nothing of lb1: {output[-1000:]}")
    return int(found[1]), int(found[2])


def lab(samples: modules.Samples, rounds: int) -> None:
    """Playbooks from start to end, with one host of the lab."""
    limit = ("--limit", "lb1")
    playbook("lab_up.yml")
    try:
        playbook("site.yml", *limit)
        for number in range(rounds):
            _measure(samples, "site_unchanged_one_host", "site.yml", limit, changes=False)
            _measure(samples, "backends_unchanged_one_host", "backends.yml", limit, changes=False)
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as inventory:
                inventory.write(json.dumps({"all": {"hosts": {"be1": {"backend_weight": 2}}}}))
                inventory.flush()
                other = (*limit, "-i", inventory.name)
                _measure(samples, "backends_one_changed_one_host", "backends.yml", other, changes=True)
            playbook("backends.yml", *limit)
            print(f"control: round {number + 1} of {rounds} of the lab done", flush=True)
    finally:
        playbook("lab_down.yml")


def _measure(samples: modules.Samples, case: str, name: str, arguments: tuple[str, ...], changes: bool) -> None:
    seconds, output = playbook(name, *arguments)
    tasks, changed = outcome(output)
    if bool(changed) is not changes:
        raise RuntimeError(f"{case}: {changed} tasks of {name} changed something")
    for quantity, value in (("seconds", seconds), ("tasks", float(tasks))):
        samples.setdefault(case, {}).setdefault(quantity, []).append(value)


def main() -> int:
    samples: modules.Samples = {}
    try:
        lab(samples, ROUNDS)
        with modules.own_host():
            modules.measure(samples, ROUNDS)
    except (OSError, RuntimeError) as error:
        print(f"control: {error}", file=sys.stderr)
        return report.EXCEEDED
    cases = {
        case: {quantity: report.summary(values) for quantity, values in quantities.items()}
        for case, quantities in samples.items()
    }
    print(report.table(cases, AIMS))
    peak = max(found["peak_mib"]["max"] for found in cases.values() if "peak_mib" in found)
    print(f"control: at most {peak:.0f} MiB, aim {PEAK_AIM.text()} MiB: {PEAK_AIM.verdict(peak)}")
    print(report.write("control", METHOD, cases))
    print(report.plot("control", "How long operators wait", "seconds", "seconds", cases, AIMS))
    return max(report.judge_cases(cases, AIMS), report.judge([("peak_mib", peak, PEAK_AIM)]))


if __name__ == "__main__":
    sys.exit(main())
