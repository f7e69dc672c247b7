# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the exporter and lbops-top say of a live balancer on two interfaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.packet import test_watch
from tests.packet.network import write_setting
from tests.packet.reference import TX
from tests.packet.test_watch import ARMS, BACKEND, WEB, until, verdict
from tests.support import host_packages
from tests.support.balancer import declared, settings

from engine.balancer import state  # isort: skip
from lbops_exporter.exporter import Exporter  # isort: skip

balancer = test_watch.balancer
assert host_packages.DIRECTORY


@pytest.fixture
def exporter(balancer) -> Iterator[Exporter]:
    # The exporter's modules are those of a host, apart from the collection's.
    yield Exporter(state.Paths(balancer.paths.pins, balancer.paths.state))


def metrics(exporter: Exporter) -> dict[str, float]:
    lines = exporter.metrics(False).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def digest(exporter: Exporter) -> str:
    [found] = [name for name in metrics(exporter) if name.startswith("lbops_tables_info{")]
    return found


def document(exporter: Exporter) -> dict:
    content, complete = exporter.document("config", False)
    assert complete
    return json.loads(content)["balancers"]["main"]


def test_a_balancer_on_two_interfaces(balancer, exporter):
    assert [verdict(arm) for arm in ARMS] == [TX, TX]
    found = metrics(exporter)
    assert found['lbops_up{balancer="main"}'] == found['lbops_program_desired{balancer="main"}'] == 1
    assert found['lbops_problems{balancer="main"}'] == 0
    for arm in ARMS:
        assert found[f'lbops_interface_attached{{balancer="main",interface="{arm}"}}'] == 1
        assert found[f'lbops_interface_present{{balancer="main",interface="{arm}"}}'] == 1
        [info] = [name for name in found if name.startswith("lbops_program_info{") and f'interface="{arm}"' in name]
        assert 'hook="native"' in info and 'mode="native"' in info
    # One packet on each of the interfaces, which share their counters.
    labels = 'balancer="main",direction="to_backend",service="web"'
    assert found[f"lbops_service_packets_total{{{labels}}}"] == 2
    assert found['lbops_map_entries{balancer="main",map="services"}'] == 1
    assert found['lbops_generation{balancer="main"}'] == 1
    assert found['lbops_applied_timestamp_seconds{balancer="main"}'] == pytest.approx(
        state.load(balancer.state_file).applied_at
    )


def test_one_interface_that_is_gone_makes_the_balancer_red(balancer, exporter):
    subprocess.run("ip link delete arm1".split(), check=True)
    found = metrics(exporter)
    assert found['lbops_up{balancer="main"}'] == 0 and found['lbops_problems{balancer="main"}'] == 1
    assert found['lbops_interface_attached{balancer="main",interface="arm0"}'] == 1
    assert found['lbops_interface_attached{balancer="main",interface="arm1"}'] == 0
    assert found['lbops_interface_present{balancer="main",interface="arm1"}'] == 0
    program = document(exporter)["program"]
    assert not program["attached"] and program["problems"][0].startswith("interface arm1 does not exist")
    assert [entry["interface"] for entry in program["interfaces"]] == list(ARMS)


def test_one_interface_that_is_down_or_does_not_forward_makes_the_balancer_red(balancer, exporter):
    write_setting("ipv4/conf/arm1/forwarding", 0)
    assert metrics(exporter)['lbops_up{balancer="main"}'] == 0
    write_setting("ipv4/conf/arm1/forwarding", 1)
    assert metrics(exporter)['lbops_up{balancer="main"}'] == 1
    subprocess.run("ip link set arm0 down".split(), check=True)
    until(lambda: metrics(exporter)['lbops_up{balancer="main"}'] == 0)


def test_a_balancer_that_was_detached_on_purpose_is_not_to_be_attached(balancer, exporter):
    balancer.apply(declared(settings(*ARMS, attached=False), [WEB], [BACKEND]), check=False)
    found = metrics(exporter)
    assert found['lbops_up{balancer="main"}'] == found['lbops_program_desired{balancer="main"}'] == 0
    assert found['lbops_problems{balancer="main"}'] == 0


def test_the_digest_follows_documents_and_health_checks(balancer, exporter):
    from ansible_collections.lbops.xdp.plugins.module_utils.balancer.observed import Observed
    from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey

    first = digest(exporter)
    assert digest(exporter) == first
    two = [BACKEND, {**BACKEND, "address": "10.0.0.2"}]
    balancer.apply(declared(settings(*ARMS), [WEB], two), check=False)
    both = digest(exporter)
    balancer.observe(Observed({BackendKey("web", "10.0.0.2", None): False}))
    assert digest(exporter) == first != both
    balancer.observe(Observed())
    assert digest(exporter) == both
    # Neither the interfaces nor the sizes of maps spread packets.
    balancer.apply(declared(replace(settings(*ARMS[:1]), latency=True), [WEB], two[::-1]), check=False)
    assert digest(exporter) == both
