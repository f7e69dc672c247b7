# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU lists, vectors of queues, and which CPU gets which."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import cpus, irqbalance, irqs
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.cpus import Topology
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.device import Device
from ansible_collections.lbops.xdp.plugins.module_utils.nic import irq_affinity
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuner import Knob, Rules
from hypothesis import given
from hypothesis import strategies as st

# Two nodes, CPU 5 offline, CPU 1 isolated, and CPUs 8 to 15 that may be plugged in.
TWO_NODES = Topology(
    possible=tuple(range(16)),
    online=(0, 1, 2, 3, 4, 6, 7),
    isolated=(1,),
    nodes={0: (0, 1, 2, 3), 1: (4, 5, 6, 7)},
    distances={0: (10, 21), 1: (21, 10)},
)


@given(st.sets(st.integers(0, 300)))
def test_lists_and_masks_come_back_as_they_went(numbers):
    if numbers:
        assert cpus.parse_list(cpus.format_list(numbers)) == tuple(sorted(numbers))
    assert cpus.parse_mask(cpus.format_mask(numbers)) == tuple(sorted(numbers))


def test_forms_of_the_kernel():
    assert cpus.format_list([8, 0, 1, 2, 10]) == "0-2,8,10"
    assert cpus.format_mask([0, 33]) == "00000002,00000001"
    assert cpus.parse_mask("ff,00000000\n") == tuple(range(32, 40))
    assert cpus.format_mask([]) == "00000000"
    assert cpus.parse_list(" 0-1, 3 ") == (0, 1, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0-1,b", "'b' is neither a CPU nor a range"),
        ("", "neither a CPU nor a range"),
        ("3-1", "runs backwards"),
        ("0,,1", "neither a CPU nor a range"),
        ("-1", "neither a CPU nor a range"),
        ("2 3", "'2 3' is neither a CPU nor a range"),
        ("99999999", "no host has a CPU"),
    ],
)
def test_what_is_no_list(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        cpus.parse_list(text)


def test_lists_may_have_holes_but_not_reach_beyond_the_host():
    TWO_NODES.check("vectors", (0, 2, 7))
    with pytest.raises(EngineError, match="vectors: CPU 5 is offline"):
        TWO_NODES.check("vectors", (4, 5))
    with pytest.raises(EngineError, match="vectors: this host has no CPU 99; it has 0-15"):
        TWO_NODES.check("vectors", (0, 99))


def test_a_vectors_mask_may_have_cpus_that_are_offline(monkeypatch):
    """The kernel's default has all possible CPUs, and a rollback brings it back."""
    monkeypatch.setattr(cpus, "topology", lambda _sys: TWO_NODES)
    irq_affinity.IrqAffinity({"vectors": {"rx-0": "0-15", "rx-1": "5-6"}})
    for options, words in (
        ({"vectors": {"rx-0": "8-15"}}, "vectors.rx-0: CPU 8 is offline"),
        ({"vectors": {"rx-0": "0,16"}}, "vectors.rx-0: this host has no CPU 16"),
        ({"vectors": "0-15"}, "vectors: CPU 5 is offline"),
        ({"xps": {"tx-0": "0-15"}}, "xps.tx-0: CPU 5 is offline"),
    ):
        with pytest.raises(EngineError, match=words):
            irq_affinity.IrqAffinity(options)


def test_near_cpus_come_first_and_isolated_or_offline_ones_never():
    assert TWO_NODES.preferred(1) == (4, 6, 7, 0, 2, 3)
    assert TWO_NODES.preferred(0) == (0, 2, 3, 4, 6, 7)
    assert TWO_NODES.preferred(None) == (0, 2, 3, 4, 6, 7)


def test_isolated_cpus_serve_if_there_are_no_others():
    assert Topology(possible=(0, 1), online=(0, 1), isolated=(0, 1)).preferred(None) == (0, 1)


def test_the_topology_of_this_host():
    here = cpus.topology()
    assert here.preferred(None)
    here.check("here", here.online)


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("virtio0-input.3", "rx-3"),
        ("virtio0-output.0", "tx-0"),
        ("virtio0-config", None),
        ("eth0-rx-1", "rx-1"),
        ("eth0-tx-1", "tx-1"),
        ("eth0-TxRx-12", "combined-12"),
        ("i40e-eth0-TxRx-5", "combined-5"),
        ("eth0-Tx-Rx-7", "combined-7"),
        ("eth0-rxtx-0", "combined-0"),
        ("eth0-event-4", None),
        ("eth0", None),
        ("mlx5_comp3@pci:0000:01:00.0", "combined-3"),
        ("mlx5_async0@pci:0000:01:00.0", None),
        ("eth0-fp-2", "combined-2"),
        ("eth0-q1", "combined-1"),
        ("eth0-4", "combined-4"),
        ("ena-mgmnt@pci:0000:00:05.0", None),
        ("i40e-0000:18:00.0:fdir-TxRx-0", None),
        ("ice-0000:18:00.0:ctrl-TxRx-0", None),
    ],
)
def test_queues_of_vectors(name: str, queue: str | None):
    assert irqs.queue_of(name, "eth0") == queue


def test_a_device_with_one_interrupt_has_it_for_everything():
    assert irqs.assign_queues({40: "eth0"}, "eth0") == [irqs.Vector(40, "combined-0")]
    assert irqs.assign_queues({40: "eth0", 41: "eth0-rx-0"}, "eth0") == [irqs.Vector(41, "rx-0")]


def test_a_vector_that_names_the_interface_is_the_queues():
    names = {40: "i40e-0000:18:00.0:misc", 41: "i40e-eth0-TxRx-0", 42: "i40e-eth1-TxRx-0", 43: "x-0000:18:00.0-rx-1"}
    assert irqs.assign_queues(names, "eth0") == [irqs.Vector(41, "combined-0"), irqs.Vector(43, "rx-1")]


def test_vectors_that_are_numbered_as_the_driver_likes():
    gve = {50 + number: f"gve-ntfy-blk{number}@pci:0000:00:04.0" for number in range(4)}
    gve[54] = "gve-mgmnt@pci:0000:00:04.0"
    assert [vector.queue for vector in irqs.assign_queues(gve, "eth0")] == ["tx-0", "tx-1", "rx-0", "rx-1"]
    mlx4 = {60: "mlx4-async@pci:0000:03:00.0", 61: "mlx4-10@0000:03:00.0", 62: "mlx4-2@0000:03:00.0"}
    assert irqs.assign_queues(mlx4, "eth0") == [irqs.Vector(61, "combined-1"), irqs.Vector(62, "combined-0")]


def test_two_vectors_of_a_queue_are_told_of(monkeypatch):
    found = [irqs.Vector(40, "rx-0"), irqs.Vector(41, "rx-1"), irqs.Vector(44, "rx-0")]
    assert irq_affinity.by_queue(found)["rx-0"].irq == 40
    monkeypatch.setattr(irqs, "vectors", lambda _device: found)
    tuner = irq_affinity.IrqAffinity({"vectors": "0"})
    tuner._vectors[7] = irq_affinity.by_queue(found)
    [warning] = tuner.warnings(Device(7, "eth0"), {})
    assert warning == "eth0: interrupt 44 has a name like that of rx-0, which is interrupt 40; it is left alone"


def test_queues_of_a_number_share_a_cpu_and_too_many_start_over():
    assert irq_affinity.assign(["rx-0", "tx-0", "rx-1", "rx-2"], (4, 6)) == {
        "rx-0": "4",
        "tx-0": "4",
        "rx-1": "6",
        "rx-2": "4",
    }


def test_xps_follows_the_vectors():
    vectors = {"combined-0": "4", "tx-1": "6"}
    assert irq_affinity.match_xps(["tx-0", "tx-1", "tx-2"], vectors, (0, 1)) == {
        "tx-0": "4",
        "tx-1": "6",
        "tx-2": "0",
    }


@pytest.mark.parametrize(("flows", "queues", "each"), [(0, 4, 0), (4096, 4, 1024), (5000, 4, 2048), (1, 8, 1)])
def test_flows_of_a_queue_are_a_power_of_two(flows: int, queues: int, each: int):
    assert irq_affinity.flows_per_queue(flows, queues) == each


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vectors": "0,4096"}, "vectors: this host has no CPU 4096"),
        ({"vectors": {"rx-0": "none"}}, "vectors.rx-0: an interrupt needs at least one CPU"),
        ({"rps": "x"}, "rps: 'x' is not a CPU list"),
        ({"rps": {"rx-0": "3-1"}}, "rps.rx-0: '3-1' is not a CPU list"),
        ({"rfs": "many"}, "rfs='many' is neither"),
        ({"rfs": -1}, "rfs=-1"),
        ({"rfs": {"rx-0": None}}, "rfs=None is neither"),
    ],
)
def test_what_no_device_takes(options: dict, words: str):
    with pytest.raises(EngineError, match=words):
        irq_affinity.IrqAffinity(options)


@pytest.mark.parametrize("value", [0, "0", [0]])
def test_cpus_may_be_a_number_or_a_list(value):
    tuner = irq_affinity.IrqAffinity({"vectors": value})
    knobs = {"vectors.rx-0": Knob("0-1"), "vectors.rx-1": Knob("0-1")}
    wanted = tuner.wanted(Device(1, "lo"), knobs, Rules())
    assert wanted == {"vectors.rx-0": "0", "vectors.rx-1": "0"}


@pytest.mark.parametrize("change", [{"xps.tx-0": "0"}, {"rps.rx-0": "0"}, {"rfs.rx-0": 1024}])
def test_a_device_that_went_away_before_it_was_written_to(monkeypatch, change):
    monkeypatch.setattr(Device, "sysfs", lambda _device: None)
    with pytest.raises(OSError) as raised:
        irq_affinity.IrqAffinity({"rps": "none"}).write(Device(1, "gone0"), change, {})
    assert raised.value.errno == errno.ENODEV


def test_rollback_keeps_what_was_not_asked_for():
    tuner = irq_affinity.IrqAffinity({"rps": "none"})
    assert tuner.arguments({"rps.rx-0": "", "rps.rx-1": "0-1"}) == {
        "vectors": "keep",
        "xps": "keep",
        "rps": {"rx-0": "none", "rx-1": "0-1"},
    }


def test_irqbalance():
    answer = "SLEEP 10 IRQ 33 LOAD 0 DIFF 0 CLASS 4 IRQ 40 LOAD 12 DIFF 0 CLASS 4 BANNED 00000000"
    assert irqbalance.parse_setup(answer) == {33, 40}
    assert irqbalance.ban_request({40, 33}) == "settings ban irqs 33 40"
    assert irqbalance.ban_request(()) == "settings ban irqs NONE"
    assert irqbalance.fits(range(1000, 1048)) and not irqbalance.fits(range(1000, 1049))


def test_more_than_irqbalance_takes_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """A bond's members together; each of them would fit."""
    monkeypatch.setattr(irqbalance, "running", lambda: tmp_path)
    monkeypatch.setattr(irqbalance, "banned", lambda _daemon: {999})
    monkeypatch.setattr(irqs, "movable", lambda _vector: True)
    monkeypatch.setattr(Device, "sysfs", lambda _device: tmp_path)
    monkeypatch.setattr(
        irqs, "vectors", lambda device: [irqs.Vector(1000 * device.index + n, f"rx-{n}") for n in range(30)]
    )
    monkeypatch.setattr(irq_affinity.IrqAffinity, "read", lambda *_arguments: {"irqbalance_ban": Knob(False)})
    tuner = irq_affinity.IrqAffinity({"irqbalance_ban": True})
    assert tuner.plan(Device(1, "eth1"), Rules()).changes == {"irqbalance_ban": True}
    with pytest.raises(EngineError, match="eth2: irqbalance takes no list .* --policyscript .* irqbalance_ban=false"):
        tuner.plan(Device(2, "eth2"), Rules())
    planned = tuner.plan(Device(2, "eth2"), Rules(skip=True))
    assert not planned.changes and list(planned.refused) == ["irqbalance_ban"]


def test_only_an_irqbalance_that_runs_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(irqbalance, "SOCKETS", tmp_path)
    monkeypatch.setattr(irqbalance, "PROC", tmp_path)
    (tmp_path / "irqbalance11.sock").touch()
    (tmp_path / "irqbalance12.sock").touch()
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "comm").write_text("something else\n", encoding="ascii")
    assert irqbalance.running() is None
    (tmp_path / "12" / "comm").write_text("irqbalance\n", encoding="ascii")
    assert irqbalance.running() == tmp_path / "irqbalance12.sock"


def test_a_vector_that_the_kernel_does_not_move(tmp_path, monkeypatch):
    monkeypatch.setattr(irqs, "PROC_IRQ", tmp_path)
    for irq in (33, 34):
        (tmp_path / str(irq)).mkdir()
    file = tmp_path / "33" / "smp_affinity_list"
    file.write_text("0-3\n", encoding="ascii")
    assert irqs.movable(irqs.Vector(33, "rx-0"))
    assert irq_affinity.move(irqs.Vector(33, "rx-0"), "2") is None
    assert irqs.affinity(irqs.Vector(33, "rx-0")) == "2"
    file.chmod(0o444)
    assert not irqs.movable(irqs.Vector(33, "rx-0"))
    # As if the CPU had no vector left.
    (tmp_path / "34" / "smp_affinity_list").symlink_to("/dev/full")
    assert irq_affinity.move(irqs.Vector(34, "rx-1"), "2") == (
        "the kernel refuses to move interrupt 34 to CPU 2: No space left on device"
    )
