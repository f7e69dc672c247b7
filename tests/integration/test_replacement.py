# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the program on the hook, after a run was killed and after a pin was lost."""

from __future__ import annotations

import json
import subprocess

from tests.integration.conftest import DIRECTORY
from tests.support.batch import Task, run, shell

T0 = {"interface": "t0", "max_services": 16, "max_backends": 64, "max_endpoints": 256}
BOTH = Task("xdp_program", {**T0, "features": ["dnat", "dsr"]})
DSR = {"name": "d", "address": "192.0.2.10", "protocol": "udp", "port": 7, "forwarding": "dsr"}
SERVICES = Task("xdp_services", {"interface": "t0", "services": [DSR]})
INFO = Task("xdp_info", {"interface": "t0"})
LOST_PIN = shell("rm /sys/fs/bpf/lbops/t0/program")

# Replaces the program by one without dsr, and dies when that one is on the hook and the state file not yet written.
KILLED = """
import os, sys
sys.path.insert(0, "/usr/lib/lbops/current")
from pathlib import Path
from engine.balancer import state
from engine.balancer import Balancer
from engine.balancer.program_request import ProgramRequest
from engine.tables.layout import Sizes

save = state.save
digest = Balancer("t0").info()["program"]["digest"]
state.save = lambda path, new: os.kill(os.getpid(), 9) if new.program.digest not in ("", digest) else save(path, new)
request = ProgramRequest("auto", frozenset(["dnat"]), Sizes(16, 64, 256), Path("/usr/lib/lbops/current/bpf"))
Balancer("t0").apply_program(request, check=False)
"""


def test_after_a_killed_replacement_the_old_program_is_not_taken_for_granted(lab, spare_interface):
    _made, before = run(lab, [BOTH, INFO])
    killed = subprocess.run(
        ["ssh", "-F", DIRECTORY / "ssh_config", "lb1", "python3 - 2>&1; echo $?"],
        input=KILLED,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert killed.stdout.strip().endswith("137"), killed.stdout
    narrow, refused, real, again, after, accepted = run(lab, [INFO, SERVICES, BOTH, BOTH, INFO, SERVICES])
    assert narrow["program"]["attached"] and narrow["program"]["tag"] != before["program"]["tag"]
    # What packets would not get is not promised.
    assert refused["msg"] == "the program on t0 was compiled without dsr; add it to the features of xdp_program"
    assert (real["changed"], again["changed"]) == (True, False)
    assert after["program"]["tag"] == before["program"]["tag"] and accepted["changed"]


def test_a_program_whose_pin_is_lost_is_still_ours(lab, spare_interface):
    made, _services, _lost, refused, real, again, after = run(
        lab, [BOTH, SERVICES, LOST_PIN, SERVICES, BOTH, BOTH, INFO]
    )
    assert refused["msg"] == "no program of ours is on t0; run xdp_program with interface=t0 first"
    assert (real["changed"], real["new_maps"], again["changed"]) == (True, False, False)
    assert after["program"]["attached"] and after["program"]["program_id"] != made["after"]["program_id"]
    assert [service["name"] for service in after["services"]] == ["d"]

    _lost, removed, link = run(
        lab,
        [LOST_PIN, Task("xdp_program", {"interface": "t0", "state": "absent"}), shell("ip -j -d link show dev t0")],
    )
    assert removed["changed"] and "xdp" not in json.loads(link["stdout"])[0]
