# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles for devices as nic_info describes them: which values, why, and whether a device has them already."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.nic import preflight, profiles, tuned
from ansible_collections.lbops.xdp.plugins.module_utils.nic.profiles import Choice
from ansible_collections.lbops.xdp.plugins.module_utils.nic.work import lines

PORTS = ["ip_src", "ip_dst", "port_src", "port_dst"]
FOUR_CPUS = {"cores": [0, 1, 2, 3], "preferred": [0, 1, 2, 3], "online": "0-3", "possible": "0-3", "isolated": ""}


def facts(driver: str, **knobs: Any) -> dict[str, Any]:
    return {
        "interface": "eth0",
        "driver": driver,
        "mtu": 1500,
        "link": {"speed": None},
        "numa_node": None,
        "cpus": FOUR_CPUS,
        "xdp": {"hook": None, "features": None, "mtu_limit": 3506, "mtu_limit_measured": True},
        **copy.deepcopy(knobs),
    }


def vectors(*kinds: str, queues: int, cpus: str = "0-3") -> dict[str, str]:
    return {f"{kind}-{number}": cpus for kind in kinds for number in range(queues)}


VIRTIO = facts(
    "virtio_net",
    rings={"rx": 1024, "tx": 256},
    rings_maximum={"rx": 1024, "tx": 256},
    channels={"combined": 1},
    channels_maximum={"combined": 8},
    rss={"table": [0] * 128, "key": "6d", "hash_fields": {"tcp4": PORTS, "udp4": PORTS[:2]}},
    coalesce={"rx_usecs": 0, "rx_frames": 1, "adaptive_rx": False},
    features={"lro": False, "gro_hw": True, "tx_checksum": True},
    queues={"vectors": vectors("rx", "tx", queues=1), "xps": {}},
)
IGB = facts(
    "igb",
    link={"speed": 1000},
    rings={"rx": 256, "tx": 256},
    rings_maximum={"rx": 4096, "tx": 4096},
    channels={"combined": 8},
    channels_maximum={"combined": 8},
    rss={"table": [entry // 16 for entry in range(128)], "hash_fields": {"udp4": PORTS[:2]}},
    coalesce={"rx_usecs": 3, "tx_usecs": 3},
    features={"rx_checksum": True},
    queues={"vectors": vectors("rx", "tx", queues=8), "xps": vectors("tx", queues=8, cpus="")},
)
VMXNET3 = facts(
    "vmxnet3",
    link={"speed": 10000},
    rings={"rx": 1024, "tx": 512},
    rings_maximum={"rx": 4096, "tx": 4096},
    channels={},
    rss={"table": [0, 1, 2, 3] * 8},
    coalesce={},
    features={"lro": True},
    queues={"vectors": vectors("combined", queues=4)},
)
E1000E = facts(
    "e1000e",
    link={"speed": 1000},
    rings={"rx": 256, "tx": 256},
    rings_maximum={"rx": 4096, "tx": 4096},
    channels={},
    rss={},
    coalesce={"rx_usecs": 3},
    features={},
    queues={"vectors": {"rx-0": "0-3", "tx-0": "0-3"}},
)
VETH = facts(
    "veth",
    rings={},
    channels={"rx": 4, "tx": 4},
    channels_maximum={"rx": 4, "tx": 4},
    rss={},
    coalesce={},
    features={"lro": False, "gro_hw": False},
    queues={"xps": vectors("tx", queues=4, cpus="")},
)


def values(of: dict[str, Any], profile: str = "throughput", **overrides: Any) -> dict[str, Any]:
    return {choice.name: choice.value for choice in profiles.choose(of, profile, overrides)}


def why(of: dict[str, Any], name: str, profile: str = "throughput") -> str:
    return next(choice.why for choice in profiles.choose(of, profile, {}) if choice.name == name)


def test_virtio_for_throughput():
    assert values(VIRTIO) == {
        "channels.combined": 4,
        "features.lro": False,
        "features.gro_hw": False,
        "rings.rx": 1024,
        "rings.tx": 256,
        "coalesce.adaptive_rx": True,
        "rss.queues": 4,
        "rss.hash_fields": {"udp4": PORTS},
        "irq_affinity.vectors": "0-3",
    }
    assert why(VIRTIO, "channels.combined") == "4 physical cores"
    assert why(VIRTIO, "rings.tx") == "the device's maximum, below 1024"


def test_igb_has_the_rings_that_its_speed_needs():
    found = values(IGB)
    assert (found["channels.combined"], found["rings.rx"], found["rss.queues"]) == (4, 512, 4)
    assert why(IGB, "rings.rx").startswith("186 small packets come to a queue, of 4, in 500 us at 1000 Mbit/s")
    assert not [name for name in found if name.startswith("coalesce.")]


def test_igb_for_latency():
    found = values(IGB, "latency")
    assert (found["rings.rx"], found["coalesce.rx_usecs"]) == (256, 10)
    # igb refuses it while its queues are pairs.
    assert "coalesce.tx_usecs" not in found


def test_what_a_device_does_not_have_is_left_out():
    assert set(values(VMXNET3)) == {"features.lro", "rings.rx", "rings.tx", "irq_affinity.vectors"}
    assert values(VMXNET3)["rings.rx"] == 2048
    assert set(values(E1000E)) == {"rings.rx", "rings.tx", "irq_affinity.vectors"}
    assert set(values(VETH)) == {"features.lro", "features.gro_hw"}


def test_irqbalance_is_left_alone_where_it_takes_no_list_of_so_many():
    for banned, fits, wanted in ((False, True, True), (False, False, False), (True, False, True)):
        device = {**VIRTIO, "queues": {**VIRTIO["queues"], "irqbalance_ban": banned}, "irqbalance_fits": fits}
        assert values(device)["irq_affinity.irqbalance_ban"] is wanted
        assert ("policyscript" in why(device, "irq_affinity.irqbalance_ban")) is not wanted


def test_faster_devices_get_longer_rings_up_to_the_knee():
    sizes = {
        speed: values({**IGB, "link": {"speed": speed}})["rings.rx"] for speed in (1000, 10000, 25000, 100000, 400000)
    }
    assert sizes == {1000: 512, 10000: 2048, 25000: 2048, 100000: 2048, 400000: 2048}
    assert values({**IGB, "link": {"speed": 10000}, "channels_maximum": {"combined": 2}})["rings.rx"] == 2048
    eight = {**FOUR_CPUS, "cores": list(range(8))}
    assert values({**IGB, "link": {"speed": 10000}, "cpus": eight})["rings.rx"] == 1024


def test_queues_are_physical_cores_of_the_devices_node():
    cpus = {"cores": [4, 5], "preferred": [4, 5, 6, 7, 0, 1, 2, 3], "online": "0-7", "possible": "0-7", "isolated": ""}
    near = {**IGB, "numa_node": 1, "cpus": cpus}
    assert values(near)["channels.combined"] == 2
    assert values(near)["irq_affinity.vectors"] == "4-5"
    assert why(near, "channels.combined") == "2 physical cores of NUMA node 1"


@pytest.mark.parametrize(
    ("driver", "maximum", "cores", "channels", "words"),
    [
        ("igb", 8, 4, 4, ""),
        ("igb", 8, 16, 8, "of which the device serves 8"),
        ("ena", 8, 8, 4, "ena takes half of 8"),
        ("ena", 32, 8, 8, ""),
        ("virtio_net", 8, 4, 4, ""),
        ("virtio_net", 8, 5, 3, "5 of 8 are for what XDP sends"),
        ("virtio_net", 8, 8, 8, "too few for a transmit queue for each of 8 CPUs"),
        ("virtio_net", 1, 4, 1, "XDP locks them"),
    ],
)
def test_channels_leave_the_driver_queues_for_xdp(driver: str, maximum: int, cores: int, channels: int, words: str):
    cpus = {"cores": list(range(cores)), "preferred": list(range(cores)), "possible": f"0-{cores - 1}"}
    device = {**VIRTIO, "driver": driver, "cpus": cpus, "channels_maximum": {"combined": maximum}}
    assert values(device)["channels.combined"] == channels
    assert words in why(device, "channels.combined")


def test_packets_are_spread_over_as_many_queues_as_the_hardware_does():
    many = {"cpus": {**FOUR_CPUS, "cores": list(range(24))}, "channels_maximum": {"combined": 63}}
    device = {**IGB, **many, "driver": "ixgbe"}
    assert (values(device)["channels.combined"], values(device)["rss.queues"]) == (24, 16)
    assert why(device, "rss.queues") == "the device's table names no more, of 24 channels"
    x550 = {**device, "rss": {"table": [0] * 512}}
    assert values(x550)["rss.queues"] == 24
    assert values({**device, "driver": "ice"})["rss.queues"] == 24


def test_virtio_with_a_program_keeps_its_channels():
    attached = {**VIRTIO, "channels": {"combined": 2}, "xdp": {**VIRTIO["xdp"], "hook": "native"}}
    assert values(attached)["channels.combined"] == 2
    assert values(attached)["rss.queues"] == 2


def test_overrides_take_the_place_of_what_is_computed_and_the_rest_follows():
    found = values(VIRTIO, channels={"combined": 2}, rings={"rx": 512})
    assert (found["channels.combined"], found["rss.queues"], found["rings.rx"]) == (2, 2, 512)
    assert "coalesce.adaptive_rx" not in values(VIRTIO, coalesce={"rx_usecs": 20})
    assert "rss.queues" not in values(VIRTIO, rss={"weights": [0, 1]})


def test_custom_is_overrides_only():
    assert values(VIRTIO, "custom") == {}
    assert values(VIRTIO, "custom", rings={"rx": 512}) == {"rings.rx": 512}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"ring": {"rx": 1}}, "there is no 'ring'; there are channels, "),
        ({"rings": {"rxx": 1}}, "overrides.rings: there is no 'rxx'; there are rx, tx"),
        ({"rings": {"rx": "512"}}, "overrides.rings.rx='512' is not of type int"),
        ({"rings": {"rx": True}}, "is not of type int"),
        ({"irq_affinity": {"vectors": "match"}}, "overrides.irq_affinity.vectors=match is neither CPUs nor auto"),
        ({"irq_affinity": {"rps": "auto"}}, "overrides.irq_affinity.rps=auto is neither CPUs nor keep"),
        ({"irq_affinity": {"xps": {"tx-0": "a"}}}, "overrides.irq_affinity.xps.tx-0: 'a' is not a CPU list"),
        ({"rings": 512}, "overrides.rings is 512, not a dictionary of rx, tx"),
    ],
)
def test_overrides_that_make_no_sense(overrides: dict[str, Any], words: str):
    with pytest.raises(EngineError, match=words):
        profiles.choose(VIRTIO, "throughput", overrides)


def test_cpus_can_be_said_in_many_ways():
    given = {"vectors": [0, 1], "rps": [0], "xps": {"tx-0": 1, "tx-1": "none"}}
    found = values(IGB, "custom", irq_affinity=given)
    assert found == {
        "irq_affinity.vectors": "0-1",
        "irq_affinity.rps": "0",
        "irq_affinity.xps": {"tx-0": "1", "tx-1": "none"},
    }
    now = {"vectors": {"rx-0": "0", "rx-1": "1"}, "xps": {"tx-0": "1", "tx-1": ""}}
    for choice in profiles.choose({**IGB, "queues": now}, "custom", {"irq_affinity": given}):
        if choice.option != "rps":
            assert settled({**IGB, "queues": now}, choice), choice
        assert tuned.usable({choice.option: choice.value}, (0, 1)) == {choice.option: choice.value}
    assert values(IGB, "custom", irq_affinity={"vectors": "keep", "xps": "match", "rps": "none"}) == {
        "irq_affinity.vectors": "keep",
        "irq_affinity.xps": "match",
        "irq_affinity.rps": "none",
    }


def test_hash_fields_have_no_order():
    assert settled(VIRTIO, Choice("rss", "hash_fields", {"udp4": ["ip_dst", "ip_src"]}, ""))
    assert not settled(VIRTIO, Choice("rss", "hash_fields", {"udp4": PORTS}, ""))
    assert not settled(VIRTIO, Choice("rss", "hash_fields", {"sctp4": PORTS}, ""))


def settled(device: dict[str, Any], choice: Choice) -> bool:
    return profiles.current(device, choice) == choice.value


def test_what_a_device_has_already_is_recognized():
    even = {**IGB, "rss": {"table": [0, 1, 2, 3] * 32}}
    assert settled(even, Choice("rss", "queues", 4, ""))
    assert not settled(even, Choice("rss", "queues", 2, ""))
    assert not settled(IGB, Choice("rss", "queues", 8, ""))
    assert settled(IGB, Choice("rings", "rx", 256, ""))
    assert not settled(IGB, Choice("rings", "rx", 512, ""))
    spread = {"vectors": {"rx-0": "0", "rx-1": "1", "tx-0": "0"}, "xps": {"tx-0": "0"}}
    assert settled({**IGB, "queues": spread}, Choice("irq_affinity", "vectors", "0-1", ""))
    assert settled({**IGB, "queues": spread}, Choice("irq_affinity", "xps", "match", ""))
    assert not settled(IGB, Choice("irq_affinity", "vectors", "0-3", ""))
    assert not settled(IGB, Choice("irq_affinity", "xps", "match", ""))
    assert settled(IGB, Choice("irq_affinity", "xps", "keep", ""))


def test_what_can_be_said_in_many_ways_is_recognized_by_its_result():
    choice = Choice("rss", "key", "symmetric", "")
    assert profiles.current(VIRTIO, choice) == '"6d"'
    assert choice.name in profiles.RECOGNIZED_BY_RESULT


def test_an_mtu_that_native_xdp_does_not_take():
    assert preflight.mtu_problem(VIRTIO) is None
    long = str(preflight.mtu_problem({**VIRTIO, "mtu": 9000}))
    assert long.startswith("native XDP on eth0 (driver virtio_net): its MTU is 9000, and the driver refuses more than")
    assert preflight.mtu_problem({**VETH, "mtu": 9000}) is None


def test_a_difference_has_each_value_with_its_reason():
    plan = [
        {"option": "rings.rx", "before": 256, "after": 512, "changes": True, "why": "a"},
        {"option": "features.lro", "before": False, "after": False, "changes": False, "why": "b"},
    ]
    before, after = lines(plan)
    assert before == {"rings.rx": "256", "features.lro": "False  # b"}
    assert after == {"rings.rx": "512  # a", "features.lro": "False  # b"}
