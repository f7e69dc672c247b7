# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml on a host whose balancer was set up when balancers had the name of their interface, under traffic.

data/interface-balancer.tar.xz has what the role of those days left on a host below /usr and /etc: the engine without
versions, the program's source, the units and the kernel settings.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import CHECKOUT, DIRECTORY, INTERFACE, Lab
from tests.integration.test_uninstall import ABSENT
from tests.support.client import Client

ARCHIVE = Path(__file__).parent / "data/interface-balancer.tar.xz"
VIP, PORT = "10.77.0.10", 7
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}
FLOWS, HELD = 500, 20
UDP_RATE, TCP_RATE = 400, 100
OLD_UNITS = f"lbops-watch@{INTERFACE}.service lbops-restore@{INTERFACE}.service"
# Whatever only the old layout has.
OLD_TRACES = (
    f"ls -d /var/lib/lbops/{INTERFACE}.json /var/lib/lbops/*.program /sys/fs/bpf/lbops/{INTERFACE} "
    f"/etc/sysctl.d/90-lbops.conf /usr/lib/lbops/engine /usr/lib/lbops/bpf "
    f"/etc/systemd/system/*.wants/lbops-*@{INTERFACE}.service 2>/dev/null; "
    f"systemctl list-units --plain --no-legend 'lbops-*@{INTERFACE}.service'; true"
)
# What the modules of those days did, with the arguments of the role.
APPLY = """
import sys
sys.path.insert(0, "/usr/lib/lbops")
import json
from pathlib import Path
from engine.balancer import Balancer
from engine.layout import Sizes
from engine.program_request import ProgramRequest

services, backends = json.loads({entries!r})
balancer = Balancer({interface!r})
request = ProgramRequest("auto", frozenset(("dnat", "dsr")), Sizes(), Path("/usr/lib/lbops/bpf"))
balancer.apply_program(request, check=False)
balancer.apply_services(services, purge=True, check=False)
balancer.apply_backends(backends, purge=True, check=False)
"""


def entries() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inventory's services and backends, as the modules take them."""
    text = (CHECKOUT / "inventory/lab/group_vars/balancers/balancer.yml").read_text()
    services = yaml.safe_load(text)["balancer_services"]
    backends = [
        {"service": service["name"], "name": name, "address": address, "port": service.get("backend_port")}
        for service in services
        for name, address in BACKENDS.items()
    ]
    kept = ("name", "address", "protocol", "port", "forwarding")
    return [{key: service[key] for key in kept if key in service} for service in services], backends


@pytest.fixture
def old_host(lab: Lab, site: dict) -> Iterator[None]:
    lab.playbook("site.yml", *ABSENT)
    unpack = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|xz').extractall('/')"
    command = ["ssh", "-F", DIRECTORY / "ssh_config", "lb1", f'python3 -c "{unpack}"']
    subprocess.run(command, input=ARCHIVE.read_bytes(), check=True, timeout=60)
    lab.ssh("lb1", "sysctl -q --load /etc/sysctl.d/90-lbops.conf")
    code = APPLY.format(entries=json.dumps(entries()), interface=INTERFACE)
    lab.ssh("lb1", f"PYTHONDONTWRITEBYTECODE=1 python3 - <<'END'\n{code}\nEND")
    lab.ssh("lb1", f"systemctl daemon-reload; systemctl enable --quiet --now {OLD_UNITS}")
    yield
    lab.playbook("site.yml")


def test_site_yml_takes_a_balancer_over_that_had_the_name_of_its_interface(lab: Lab, old_host: None):
    old_program = lab.program_id()
    old_traces = lab.ssh("lb1", OLD_TRACES).splitlines()
    assert old_program and len(old_traces) == 10, old_traces
    untouched = lab.fingerprint()
    assert lab.playbook("site.yml", "--check", "--diff")[0] > 0
    assert (lab.fingerprint(), lab.ssh("lb1", OLD_TRACES).splitlines()) == (untouched, old_traces)

    client = Client(DIRECTORY / "ssh_config")
    try:
        client("open_flows", FLOWS, VIP, PORT)
        client("hold", HELD, VIP, PORT)
        before = client("ask_flows"), client("ask_held")
        assert set(before[0]) == set(before[1]) == set(BACKENDS)
        client("start_load", VIP, PORT, UDP_RATE, TCP_RATE)
        try:
            assert lab.playbook("site.yml")[0] > 0
        finally:
            load = client("stop_load")
        after = client("ask_flows"), client("ask_held")
    finally:
        client.close()
    print(f"\n{load}")
    assert load["udp_replies"] == load["udp_sent"] > 2 * UDP_RATE, load
    assert load["tcp_replies"] == load["tcp_requests"] > 2 * TCP_RATE, load
    assert load["tcp_reconnects"] == load["tcp_segments_lost"] == 0, load
    assert after == before

    assert lab.ssh("lb1", OLD_TRACES) == ""
    info = lab.module("xdp_info")
    [found] = info["program"]["interfaces"]
    assert info["program"]["attached"] and not info["program"]["problems"]
    assert (found["interface"], found["hook"]) == (INTERFACE, "native")
    assert found["program_id"] == lab.program_id() != old_program
    assert [service["name"] for service in info["services"]] == [service["name"] for service in entries()[0]]
    assert lab.ssh("lb1", "ls /sys/fs/bpf/lbops") == "main"
    assert lab.ssh("lb1", "systemctl is-enabled lbops-watch@main lbops-restore@main").split() == ["enabled"] * 2
    assert lab.playbook("site.yml")[0] == 0
