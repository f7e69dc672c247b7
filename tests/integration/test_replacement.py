# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the program on the hook, after a run was killed and after a pin was lost."""

from __future__ import annotations

import json
import subprocess

from tests.integration.conftest import DIRECTORY, SPARE
from tests.support.batch import Task, run, shell

ON_SPARE = {"balancer": SPARE}
PROGRAM = {**ON_SPARE, "interfaces": ["t0"], "max_services": 16, "max_backends": 64, "max_endpoints": 256}
DSR = {"name": "d", "address": "192.0.2.10", "protocol": "udp", "port": 7, "forwarding": "dsr"}
DNAT = {"name": "n", "address": "192.0.2.11", "protocol": "udp", "port": 7}
WIDE = Task("xdp_balancer", {**PROGRAM, "services": [DSR, DNAT]})
SERVICES = Task("xdp_services", {**ON_SPARE, "services": [DSR, DNAT]})
ATTACHED = Task("xdp_program", PROGRAM)
INFO = Task("xdp_info", ON_SPARE)
LOST_PIN = shell(f"rm /sys/fs/bpf/lbops/{SPARE}/programs/t0")

# Removes the service of dsr, and dies when the program without dsr is on the hook and the state file does not name it.
KILLED = """
import os, sys
sys.path.insert(0, "/usr/lib/lbops/current")
from engine.balancer import state
from engine.balancer.balancer import Balancer

save = state.save

def killing(path, new):
    if new.program.digest and new.program.features == ["dnat"]:
        os.kill(os.getpid(), 9)
    save(path, new)

state.save = killing
service = {"name": "n", "address": "192.0.2.11", "protocol": "udp", "port": 7}
Balancer("spare").apply_services([service], purge=True, check=False)
"""


def on(result: dict) -> dict:
    """Where the program is."""
    return result["program"]["interfaces"][0]


def check(task: Task) -> Task:
    return Task(task.module, task.arguments, check=True)


def test_after_a_killed_replacement_the_old_program_is_not_taken_for_granted(lab, spare_interface):
    _made, before = run(lab, [WIDE, INFO])
    assert before["program"]["features"] == ["dnat", "dsr"]
    killed = subprocess.run(
        ["ssh", "-F", DIRECTORY / "ssh_config", "lb1", "python3 - 2>&1; echo $?"],
        input=KILLED,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert killed.stdout.strip().endswith("137"), killed.stdout
    narrow, foreseen, real, again, after = run(lab, [INFO, check(SERVICES), SERVICES, SERVICES, INFO])
    assert narrow["program"]["attached"] and on(narrow)["tag"] != on(before)["tag"]
    # What packets would not get is not promised.
    assert narrow["program"]["features"] == ["dnat"]
    assert [foreseen["changed"], real["changed"], again["changed"]] == [True, True, False]
    assert after["program"]["features"] == ["dnat", "dsr"] and on(after)["tag"] == on(before)["tag"]
    assert lab.program_id(spare_interface) == on(after)["program_id"]
    assert [service["name"] for service in after["services"]] == ["d", "n"]


def test_a_program_whose_pin_is_lost_is_still_ours(lab, spare_interface):
    for task in (ATTACHED, SERVICES, WIDE):
        made, _lost, info, foreseen, real, again, after = run(
            lab, [WIDE, LOST_PIN, INFO, check(task), task, task, INFO]
        )
        assert not info["program"]["attached"]
        assert [foreseen["changed"], real["changed"], again["changed"]] == [True, True, False], task.module
        assert real.get("new_maps", False) is False
        assert after["program"]["attached"] and on(after)["program_id"] != on(made)["program_id"]
        assert lab.program_id(spare_interface) == on(after)["program_id"]
        assert [service["name"] for service in after["services"]] == ["d", "n"]

    _lost, removed, link = run(
        lab,
        [LOST_PIN, Task("xdp_program", {**ON_SPARE, "state": "absent"}), shell("ip -j -d link show dev t0")],
    )
    assert removed["changed"] and "xdp" not in json.loads(link["stdout"])[0]
