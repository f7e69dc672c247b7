# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer of a former engine is taken over with what packets left in its maps.

The engines of those days run in a process of their own: that of balancers with the name of their interface (layout 2),
from tests/integration/data, and the first one of declared balancers (layout 3).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link

from tests.packet.frames import tcp
from tests.packet.reference import TX
from tests.packet.test_watch import make
from tests.support import namespace
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

INTERFACE_BALANCER = Path(__file__).parents[1] / "integration/data/interface-balancer.tar.xz"
LAYOUT_3 = Path(__file__).parent / "data/layout3-engine.tar.xz"
VIP = "203.0.113.10"
SERVICES = [
    {
        "name": "remembered",
        "address": VIP,
        "protocol": "tcp",
        "port": 80,
        "forwarding": "dnat",
        "scheduler": "hash",
        "flow_table": True,
    },
    {"name": "nat", "address": VIP, "protocol": "tcp", "port": 81, "forwarding": "full_nat", "source": "10.0.0.250"},
]
# Another order than that of the addresses: today's lookup table sends unknown flows elsewhere.
BACKENDS = [
    {"service": service["name"], "address": f"10.0.0.{host}", "mac": f"02:00:00:00:00:{host:02x}"}
    for service in SERVICES
    for host in (3, 2, 1)
]
APPLY_PARTS = """
import json, sys
from pathlib import Path

directory, pins, states, request = sys.argv[1:]
sys.path.insert(0, directory + "/usr/lib/lbops")
from engine import state
from engine.balancer import Balancer
from engine.layout import Sizes
from engine.program_request import ProgramRequest

services, backends, sizes = json.loads(request)
balancer = Balancer("arm0", state.Paths(Path(pins), Path(states)))
features = frozenset(("dnat", "full_nat", "flow_table"))
source = Path(directory, "usr/lib/lbops/bpf")
balancer.apply_program(ProgramRequest("native", features, Sizes(**sizes), source), check=False)
balancer.apply_services(services, purge=True, check=False)
balancer.apply_backends(backends, purge=True, check=False)
"""
APPLY_DOCUMENT = """
import json, sys
from pathlib import Path

directory, pins, states, request = sys.argv[1:]
sys.path.insert(0, directory + "/usr/lib/lbops")
from engine.balancer import document, state
from engine.balancer.balancer import Balancer
from engine.tables.layout import Sizes

services, backends, sizes = json.loads(request)
source = directory + "/usr/lib/lbops/bpf"
settings = document.Settings(("arm0",), mode="native", sizes=Sizes(**sizes), source=source)
raw = {**settings.as_dict(), "services": services, "backends": backends, "filters": []}
Balancer("main", state.Paths(Path(pins), Path(states))).apply(document.parse_document(raw), check=False)
"""


@pytest.fixture
def paths(root, tmp_path) -> Iterator[state.Paths]:
    """On a CPU of its own, since every CPU remembers flows for itself."""
    cpus = os.sched_getaffinity(0)
    found = state.Paths(Path("/sys/fs/bpf") / f"lbops-test-{os.getpid()}", tmp_path / "state")
    found.state.mkdir()
    with namespace.private("net"):
        make("arm0")
        try:
            os.sched_setaffinity(0, {min(cpus)})
            yield found
        finally:
            os.sched_setaffinity(0, cpus)


def send(port: int, tcp_flags: str = "A", backwards: bool = False) -> list[bytes]:
    """What leaves for the backends, of forty clients."""
    attached, interface = link.attached("arm0"), link.interface_index("arm0")
    assert attached
    frames = [tcp(f"198.51.100.{client}", 20000, VIP, port, tcp_flags=tcp_flags) for client in range(1, 41)]
    order = -1 if backwards else 1
    descriptor = bpf.program_fd(attached.program_id)
    try:
        found = [bpf.test_run(descriptor, frame, 1, interface) for frame in frames[::order]][::order]
    finally:
        os.close(descriptor)
    assert {verdict for verdict, _frame, _time in found} == {TX}
    return [frame for _verdict, frame, _time in found]


def sent_by_old(archive: Path, script: str, paths: state.Paths, directory: Path) -> list[list[bytes]]:
    """What leaves for the backends of each service, once the old engine has learnt the flows."""
    with tarfile.open(archive) as opened:
        opened.extractall(directory)
    request = json.dumps([SERVICES, BACKENDS, dataclasses.asdict(SIZES)])
    command = [sys.executable, "-c", script, str(directory), str(paths.pins), str(paths.state), request]
    subprocess.run(command, check=True)
    for port in (80, 81):
        send(port, "S")
    return [send(port) for port in (80, 81)]


def test_flows_and_sessions_of_layout_3_go_on(paths, tmp_path):
    before = sent_by_old(LAYOUT_3, APPLY_DOCUMENT, paths, tmp_path / "old")
    balancer = Balancer("main", paths)
    try:
        # Others are chosen from now on; known flows stay with the backend that is being drained.
        drained = [{**entry, "state": "drained" if entry["address"] == "10.0.0.1" else "enabled"} for entry in BACKENDS]
        assert balancer.apply(declared(settings("arm0"), SERVICES, drained), check=False).changed
        assert [send(port, backwards=True) for port in (80, 81)] == before
        assert [entry["packets"] for entry in balancer.info()["services"]] == [120, 120]
        assert balancer.apply(declared(settings("arm0"), SERVICES, drained), check=False).changed is False
    finally:
        balancer.remove(check=False)


def test_flows_and_sessions_of_an_interfaces_balancer_go_on(paths, tmp_path):
    before = sent_by_old(INTERFACE_BALANCER, APPLY_PARTS, paths, tmp_path / "old")
    balancer = Balancer("main", paths)
    try:
        assert balancer.apply(declared(settings("arm0"), SERVICES, BACKENDS), check=False).changed
        # In another order sessions would be given other ports, were they begun now.
        assert [send(port, backwards=True) for port in (80, 81)] == before
        assert [entry["packets"] for entry in balancer.info()["services"]] == [120, 120]
        # Without the flow table they go by today's lookup table, which is another.
        forgetful = [{**SERVICES[0], "flow_table": False}]
        balancer.apply(declared(settings("arm0"), forgetful, BACKENDS[:3]), check=False)
        assert send(80) != before[0]
    finally:
        balancer.remove(check=False)
