# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules on network cards, real or emulated: LBOPS_NIC_DEVICES="eth1 eth2" pytest tests/nic/test_devices.py.

They are changed and put back, and lose their links meanwhile, so they must not be the ones that you are connected by.
What a device does not have is not tested on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nic.conftest import Module, channels, run

DEVICES = os.environ.get("LBOPS_NIC_DEVICES", "").split()
pytestmark = pytest.mark.skipif(not DEVICES, reason="LBOPS_NIC_DEVICES names no devices")
FIELDS = ["ip_src", "ip_dst", "port_src", "port_dst"]


@pytest.fixture(params=DEVICES)
def nic(request: pytest.FixtureRequest) -> str:
    run("ip", "link", "set", request.param, "up")
    return request.param


@pytest.fixture
def info(nic: str, module: Module) -> dict[str, Any]:
    return module("nic_info", interface=nic)


@pytest.fixture
def four_runs_and_back(four_runs: Module, module: Module) -> Iterator[Module]:
    """Puts everything back in the end, and checks that it is back."""
    done = []

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        result = four_runs(name, **arguments)
        done.append((name, result))
        return result

    yield call
    for name, result in reversed(done):
        for arguments in result["rollback"]:
            back = module(name, **arguments)
            assert back["after"] == result["before"], back


def table(nic: str) -> list[int]:
    """What ethtool shows."""
    lines = re.findall(r"^ +\d+: (.*)$", run("ethtool", "-x", nic), re.MULTILINE)
    return [int(queue) for line in lines for queue in line.split()]


def test_rings(nic: str, info: dict, four_runs_and_back: Module, module: Module):
    if not info["rings"]:
        pytest.skip("no rings")
    wanted = 512 if info["rings"]["rx"] != 512 else 256
    assert four_runs_and_back("nic_rings", interface=nic, rx=wanted)["link_bounced"]
    current = run("ethtool", "-g", nic).split("Current hardware settings:")[1]
    assert re.search(rf"^RX:\s+{wanted}$", current, re.MULTILINE)
    maximum = info["rings_maximum"]["rx"]
    assert f"maximum of {maximum}" in module("nic_rings", interface=nic, rx=maximum + 1)["msg"]


def test_fewer_channels_than_a_table_names(nic: str, info: dict, four_runs_and_back: Module, module: Module):
    if info["driver"] == "vmxnet3" or info["channels"].get("combined", 0) < 4:
        pytest.skip("no channels to change")
    if info["rss"]:
        four_runs_and_back("nic_rss", interface=nic, weights=[1, 2, 3, 4])
    result = four_runs_and_back("nic_channels", interface=nic, combined=2)
    assert result["rss_table_reset"] is bool(info["rss"])
    assert channels(nic)["combined"] == 2
    if info["rss"]:
        assert set(table(nic)) == {0, 1}
        assert module("nic_rss", interface=nic, queues=3)["msg"].startswith(f"{nic}: queues=3 is more than")
        # Only the table that is there now can come back.
        module("nic_channels", interface=nic, combined=4)


def test_weights_as_ethtool_deals_them_out(nic: str, info: dict, four_runs_and_back: Module):
    if len(info["rss"].get("table", [])) < 8 or max(info["rss"]["table"]) < 2:
        pytest.skip("no table, or not enough queues")
    four_runs_and_back("nic_rss", interface=nic, weights=[1, 2, 4])
    ours = table(nic)
    run("ethtool", "-X", nic, "weight", "1", "2", "4")
    assert table(nic) == ours


def test_a_symmetric_key(nic: str, info: dict, four_runs_and_back: Module, module: Module):
    if "key" not in info["rss"]:
        pytest.skip("no key")
    four_runs_and_back("nic_rss", interface=nic, key="symmetric")
    assert "6d:5a:6d:5a:" in run("ethtool", "-x", nic)
    assert "takes" in module("nic_rss", interface=nic, key="6d:5a")["msg"]


def test_hash_fields(nic: str, info: dict, four_runs_and_back: Module):
    if "key" not in info["rss"] or not info["rss"]["hash_fields"].get("udp4"):
        pytest.skip("no hash fields to change")
    wanted = FIELDS if info["rss"]["hash_fields"]["udp4"] != FIELDS else FIELDS[:2]
    four_runs_and_back("nic_rss", interface=nic, hash_fields={"udp4": wanted})
    shown = run("ethtool", "-n", nic, "rx-flow-hash", "udp4")
    assert ("L4 bytes 0 & 1" in shown) is ("port_src" in wanted)


def test_coalescing(nic: str, info: dict, four_runs_and_back: Module):
    if info["driver"] not in ("e1000e", "igb"):
        pytest.skip("no delays to change")
    four_runs_and_back("nic_coalesce", interface=nic, rx_usecs=20)
    assert re.search(r"^rx-usecs:\s+20$", run("ethtool", "-c", nic), re.MULTILINE)


def test_features(nic: str, info: dict, four_runs_and_back: Module):
    if "rx-vlan-offload: on\n" not in run("ethtool", "-k", nic):
        pytest.skip("no VLAN offload to switch off")
    # Some drivers have both or none.
    four_runs_and_back("nic_features", interface=nic, rx_vlan_offload=False, tx_vlan_offload=False)
    assert "rx-vlan-offload: off\n" in run("ethtool", "-k", nic)


def test_what_goes_off_with_another_feature_comes_back(nic: str, info: dict, module: Module):
    if info["driver"] != "vmxnet3":
        pytest.skip("nothing goes off")
    result = module("nic_features", interface=nic, rx_checksum=False)
    assert (result["before"]["lro"], result["after"]["lro"]) == (True, False)
    (arguments,) = result["rollback"]
    assert module("nic_features", **arguments)["after"] == result["before"]


def test_vectors(nic: str, info: dict, four_runs_and_back: Module, module: Module):
    if not info["irqs"]:
        pytest.skip("no vectors")
    assert set(info["irqs"]) == set(info["queues"]["vectors"])
    cpu = info["cpus"]["preferred"][-1]
    four_runs_and_back("nic_irq_affinity", interface=nic, vectors=str(cpu))
    for irq in info["irqs"].values():
        assert Path(f"/proc/irq/{irq}/smp_affinity_list").read_text(encoding="ascii").strip() == str(cpu)
    spread = module("nic_irq_affinity", interface=nic)["after"]["vectors"]
    assert len(set(spread.values())) == min(len(info["cpus"]["preferred"]), len({q.split("-")[1] for q in spread}))
    module("nic_irq_affinity", interface=nic, vectors=str(cpu))
