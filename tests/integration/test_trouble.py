# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Crashes, reboots, other people's programs and hands in the maps."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.state import SCHEMA
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import LAYOUT_VERSION

from tests.integration.conftest import DIRECTORY, INTERFACE, SPARE, Lab
from tests.support.batch import Task, run, shell

VIP, PORT = "10.77.0.10", 7
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}
STATE_FILE = "/var/lib/lbops/main/state.json"

SERVICES = [{"name": protocol, "address": VIP, "protocol": protocol, "port": PORT} for protocol in ("udp", "tcp")]
PROGRAM = Task("xdp_program", {"interfaces": [INTERFACE]})
WRITE_SERVICES = Task("xdp_services", {"services": SERVICES})
WRITE_BACKENDS = Task(
    "xdp_backends",
    {
        "backends": [
            {"service": service["name"], "address": address, "port": 8080}
            for service in SERVICES
            for address in BACKENDS.values()
        ],
    },
)
APPLY = [PROGRAM, WRITE_SERVICES, WRITE_BACKENDS]


def in_check(task: Task) -> Task:
    return Task(task.module, task.arguments, check=True)


def python(code: str) -> Task:
    """On the balancer, with its engine and its open maps."""
    return shell(
        f"PYTHONPATH=/usr/lib/lbops/current python3 - <<'END'\n"
        "from engine.kernel import bpf, link\nfrom engine.tables import layout\n"
        "from engine.balancer import map_set, state\n"
        "current = state.load(state.HOST_PATHS.state_file('main'))\n"
        "live = map_set.open_pinned(state.HOST_PATHS.pins / 'main' / 'maps', current.program.sizes)\n"
        f"{code}\nEND"
    )


def changed(results: list[dict]) -> list[bool]:
    assert not any(result.get("failed") for result in results), results
    return [result["changed"] for result in results]


def eventually(condition: Callable[[], bool], seconds: float) -> float:
    """How long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.1)
    return time.monotonic() - started


def everybody_answers(lab: Lab) -> bool:
    return set(lab.ask(VIP, PORT)) == set(BACKENDS)


@pytest.fixture(scope="module", autouse=True)
def configured(lab: Lab, site: dict) -> None:
    """Two services on three backends."""
    changed(run(lab, APPLY))


def test_somebody_elses_program_stays_without_force(lab, spare_interface):
    lab.engine(
        "from engine.kernel import bpf, link\n"
        "pass_all = bytes.fromhex('b700000002000000 9500000000000000')\n"
        f"link.attach('{spare_interface}', bpf.program_load('foreign', pass_all), 'native', None)"
    )
    foreign = lab.program_id(spare_interface)
    ours = Task("xdp_program", {"balancer": SPARE, "interfaces": [spare_interface]})
    absent = Task("xdp_program", {"balancer": SPARE, "state": "absent"})
    forced = Task("xdp_program", {**ours.arguments, "force": True})
    before = lab.fingerprint()
    refused = run(lab, [in_check(ours), ours])
    for result in refused:
        assert re.fullmatch(
            f"{spare_interface} carries a program that is not ours: program {foreign} "
            r"\(foreign, tag [0-9a-f]{16}\) on the native hook; "
            f"detach it with ip link set dev {spare_interface} xdpdrv off, "
            "or have it replaced with force: true",
            result["msg"],
        )
    assert changed(run(lab, [absent, in_check(forced)])) == [False, True]
    assert lab.fingerprint() == before and lab.program_id(spare_interface) == foreign
    results = run(lab, [forced, ours, in_check(ours)])
    assert changed(results) == [True, False, False]
    assert lab.program_id(spare_interface) == results[0]["program"]["interfaces"][0]["program_id"] != foreign


def test_a_detached_program_is_attached_again_without_compiling(lab):
    before = lab.program_id()
    lab.ssh("lb1", f"ip link set {INTERFACE} xdp off")
    check, real, again = run(lab, [in_check(PROGRAM), PROGRAM, PROGRAM])
    assert changed([check, real, again]) == [True, True, False]
    assert real["compiled"] is False and lab.program_id() == before
    assert everybody_answers(lab)


def test_a_refused_hook_leaves_the_other_one_as_it_was(lab):
    lo = {"balancer": SPARE, "interfaces": ["lo"]}
    generic = Task("xdp_program", {**lo, "mode": "generic"})
    assert changed(run(lab, [generic])) == [True]
    before = lab.fingerprint()
    native = {**lo, "mode": "native"}
    refused = run(lab, [Task("xdp_program", native), Task("xdp_program", {**native, "latency": True})])
    assert all("native XDP on lo (driver virtual): " in result["msg"] for result in refused)
    assert lab.fingerprint() == before
    absent = Task("xdp_program", {"balancer": SPARE, "state": "absent"})
    # A program that never got on its hook leaves nothing either.
    results = run(lab, [generic, absent, Task("xdp_program", native)])
    assert [result["changed"] for result in results[:2]] == [False, True] and results[2]["failed"]
    assert SPARE not in lab.ssh("lb1", "ls /sys/fs/bpf/lbops /var/lib/lbops").split()


TAMPERING = {
    "a ring is deleted": "bpf.map_delete(live['lookup_65537'], layout.index(current.allocation.rings['udp']))",
    "a ring is another's": "live.write_rings({current.allocation.rings['udp']: bytes(layout.table_bytes(65537))}, {})",
    "a backend is overwritten": (
        "live.write_backends({min(current.allocation.backends.values()): bytes(layout.BACKEND.size)})"
    ),
    "the endpoints are gone": "live.swap_table('endpoints', bytes(current.program.sizes.endpoint_table_bytes))",
}


def test_hands_in_the_maps_are_noticed_and_repaired(lab):
    tasks = []
    for number, code in enumerate(TAMPERING.values()):
        task = (WRITE_SERVICES, WRITE_BACKENDS)[number % 2]
        tasks += [python(code), in_check(task), task, task]
    results = run(lab, tasks)
    for number, what in enumerate(TAMPERING):
        _tampering, check, real, again = results[4 * number : 4 * number + 4]
        assert changed([check, real, again]) == [True, True, False], what
        assert check["repaired"] and real["repaired"] and not again["repaired"], what
    assert everybody_answers(lab)


def test_a_lost_state_file_is_made_anew(lab):
    results = run(lab, [shell(f"rm {STATE_FILE}"), in_check(PROGRAM), *APPLY, *APPLY])
    assert changed(results)[1:] == [True] * 4 + [False] * 3
    assert everybody_answers(lab)


def test_a_state_file_that_cannot_be_read_is_refused_with_the_remedy(lab):
    remedy = "restore it from a backup, or remove everything with xdp_balancer state=absent force=true and apply again"
    tasks = [*APPLY, Task("xdp_info", {})]
    spoilt = {
        f'sed -i \'s/"schema":{SCHEMA}/"schema":{SCHEMA + 1}/\' {STATE_FILE}': re.escape(
            f"{STATE_FILE} has schema {SCHEMA + 1}, this engine reads {SCHEMA}; {remedy}"
        ),
        f"truncate --size=-100 {STATE_FILE}": re.escape(f"{STATE_FILE} is damaged (") + r".*\); " + re.escape(remedy),
    }
    for command, message in spoilt.items():
        results = run(
            lab,
            [
                shell(f"cp {STATE_FILE} /root/saved; {command}; cp {STATE_FILE} /root/spoilt"),
                shell("curl -s http://127.0.0.1:9477/metrics | grep 'collector_success.*collector=\"balancer\"'"),
                *tasks,
                shell(f"cmp {STATE_FILE} /root/spoilt && mv /root/saved {STATE_FILE}; rm /root/spoilt"),
            ],
        )
        assert results[1]["stdout"] == 'lbops_collector_success{balancer="main",collector="balancer",interface=""} 0'
        assert [bool(re.fullmatch(message, result["msg"])) for result in results[2:-1]] == [True] * len(tasks), results
        assert not results[-1]["failed"]
    assert changed(run(lab, APPLY)) == [False] * 3


@pytest.mark.parametrize("first", [PROGRAM, WRITE_SERVICES, WRITE_BACKENDS], ids=lambda task: task.module)
def test_maps_of_another_layout_are_migrated_by_whatever_comes_first(lab, first):
    code = (
        "control = bpf.map_lookup(live['control'], layout.index(0), layout.CONTROL.size)\n"
        "bpf.map_update(live['control'], layout.index(0), bytes(4) + control[4:])\n"
    )
    number = python("print(bpf.map_info(live['lookup_65537']).id)")
    info = Task("xdp_info", {})
    before, _code, refused, check, real, after, *again = run(
        lab, [number, python(code), info, in_check(first), first, number, *APPLY, info]
    )
    assert refused["msg"] == (
        "the maps pinned in /sys/fs/bpf/lbops/main/maps have another layout (their layout version is 0, this "
        f"engine's is {LAYOUT_VERSION}); apply the balancer with the "
        "current collection, which moves the configuration into new maps without losing a packet"
    )
    assert changed([check, real]) == [True, True]
    assert before["stdout"] != after["stdout"]
    assert changed(again) == [False] * 4
    assert everybody_answers(lab)


def test_killed_at_any_step_the_next_run_repairs(lab, spare_interface):
    script = Path(__file__).with_name("crash.py").read_text()
    result = subprocess.run(
        ["ssh", "-F", DIRECTORY / "ssh_config", "lb1", f"python3 - {spare_interface} t1"],
        input=script,
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    *problems, summary = result.stdout.splitlines()
    assert not problems, result.stdout
    assert int(summary.split()[0]) > 50


def verification(lab: Lab, reachable: int, delay: int) -> None:
    """For how many milliseconds a neighbour counts as reachable, and how many seconds it then takes to be asked."""
    settings = f"base_reachable_time_ms={reachable} net.ipv4.neigh.{INTERFACE}.delay_first_probe_time={delay}"
    lab.ssh("lb1", f"sysctl -qw net.ipv4.neigh.{INTERFACE}.{settings}; ip neigh flush dev {INTERFACE}")


@pytest.mark.parametrize("announced", [True, False])
def test_traffic_follows_a_backend_that_changes_its_ethernet_address(lab, announced):
    address = lab.ssh("be1", "cat /sys/class/net/data0/address")
    if not announced:
        # The kernel's verification finds out; with its own settings it takes up to a minute.
        verification(lab, 1000, 1)
        assert everybody_answers(lab)
    change = f"sysctl -qw net.ipv4.conf.data0.arp_notify={int(announced)}; ip link set data0 address %s"
    try:
        lab.ssh("be1", change % "02:00:00:00:99:01")
        eventually(lambda: everybody_answers(lab), 3 if announced else 20)
    finally:
        lab.ssh("be1", "sysctl -qw net.ipv4.conf.data0.arp_notify=1; " + change % address)
        verification(lab, 30000, 5)
    eventually(lambda: everybody_answers(lab), 5)


def test_a_killed_watch_comes_back(lab):
    unit = "lbops-watch@main.service"

    def process() -> str:
        return lab.ssh("lb1", f"systemctl show --property=MainPID --value {unit}")

    before = process()
    lab.ssh("lb1", f"kill -KILL {before}")
    eventually(lambda: process() not in (before, "0"), 5)
    assert lab.ssh("lb1", f"systemctl is-active {unit}") == "active"


def test_a_reboot_brings_everything_back_without_a_controller(lab):
    def declared(info: dict) -> list:
        counters = ("packets", "bytes", "reply_packets", "reply_bytes")
        entries = info["services"] + info["backends"]
        return [{key: value for key, value in entry.items() if key not in counters} for entry in entries]

    before = lab.module("xdp_info")
    assert lab.ansible("ansible", "lb1", "-m", "ansible.builtin.reboot").returncode == 0
    eventually(lambda: everybody_answers(lab), 10)
    assert lab.ssh("lb1", "systemctl is-system-running --wait") == "running"
    after = lab.module("xdp_info")
    assert after["program"]["attached"]
    assert [entry["hook"] for entry in after["program"]["interfaces"]] == ["native"]
    assert declared(after) == declared(before)
    assert changed(run(lab, APPLY)) == [False] * 3
    assert lab.metrics()['lbops_up{balancer="main"}'] == 1
