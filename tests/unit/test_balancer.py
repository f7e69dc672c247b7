# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer as far as it needs neither kernel nor root: names, places, what it reads of its state."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.config import filters, model
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, files
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

SERVICES = [
    {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53},
    {"name": "six", "address": "2001:db8::10", "protocol": "tcp", "port": 80},
    {"name": "out", "address": "192.0.2.12", "protocol": "udp", "port": 9, "forwarding": "redirect"},
]
BACKENDS = [
    {"service": "dns", "address": "198.51.100.2", "state": "drained"},
    {"service": "dns", "address": "198.51.100.1", "port": 5353},
    {"service": "dns", "address": "198.51.100.1", "port": 5354},
    {"service": "dns", "address": "198.51.100.3", "mac": "52:54:00:00:00:01"},
    {"service": "six", "address": "fd00::1", "weight": 0},
    {"service": "out", "interface": "eth1"},
]


@pytest.fixture
def paths(tmp_path) -> state.Paths:
    return state.Paths(tmp_path / "pins", tmp_path / "state")


def known_state() -> state.State:
    config = model.Config(model.parse_services(SERVICES), model.parse_backends(BACKENDS))
    program = state.ProgramState(True, "auto", "native", "why", [], [], "/source", "digest", Sizes())
    allocation = plan.make(model.Config({}, {}), plan.Allocation(), config, Sizes()).allocation
    return state.State(program, config, allocation)


# --- names and places


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "eth0\n", "x" * 16])
def test_what_is_no_name_of_an_interface(name):
    with pytest.raises(EngineError) as caught:
        Balancer(name)
    assert str(caught.value) == f"interface {name!r} is not a name of an interface"


@pytest.mark.parametrize("name, pins", [("eth0", "eth0"), ("eth0.7", "eth0%7"), ("x" * 15, "x" * 15), ("a:b", "a:b")])
def test_places_of_an_interface(name, pins, paths):
    """The BPF file system takes no dots."""
    balancer = Balancer(name, paths)
    assert balancer.program_pin == paths.pins / pins / "program"
    assert balancer.maps_directory == paths.pins / pins / "maps"
    assert balancer.state_file == paths.state / f"{name}.json"


def test_places_on_a_host():
    balancer = Balancer("eth0")
    assert str(balancer.program_pin) == "/sys/fs/bpf/lbops/eth0/program"
    assert str(balancer.state_file) == "/var/lib/lbops/eth0.json"


# --- what runs on the host without a controller


def test_next_hops_are_looked_after_where_the_kernels_tables_decide(paths):
    """Not of backends with a MAC address, nor of interfaces; drained ones still send replies."""
    paths.state.mkdir()
    balancer = Balancer("eth0", paths)
    state.save(balancer.state_file, known_state())
    assert balancer.next_hop_addresses() == ["198.51.100.1", "198.51.100.2", "fd00::1"]


def test_without_a_state_there_is_nothing_to_look_after(paths):
    balancer = Balancer("eth0", paths)
    assert balancer.next_hop_addresses() == []
    balancer.forget_next_hops()


def test_an_interface_that_went_away_is_nothing_to_look_after(paths):
    paths.state.mkdir()
    balancer = Balancer("no-such-if", paths)
    state.save(balancer.state_file, known_state())
    balancer.forget_next_hops()


def test_nothing_can_be_restored_without_a_state(paths):
    with pytest.raises(EngineError, match="eth0.json does not exist, so there is nothing to restore on eth0"):
        Balancer("eth0", paths).restore()


@pytest.mark.parametrize(
    "apply",
    [
        lambda balancer: balancer.apply_services([{**SERVICES[0], "port": 0}], purge=True, check=False),
        lambda balancer: balancer.apply_backends([{"service": "dns", "address": "no"}], purge=True, check=False),
        lambda balancer: balancer.apply_backends(["dns"], purge=True, check=False, service="dns"),
        lambda balancer: balancer.apply_backends(None, purge=True, check=False),
        lambda balancer: balancer.apply_filters([{"prefix": "no"}], purge=True, check=False),
    ],
    ids=["services", "backends", "entry of a slice", "no list", "filters"],
)
def test_bad_input_is_refused_before_anything_is_touched(apply, paths):
    with pytest.raises(EngineError, match=r"services\[0\]|backends\[0\]|filters\[0\]|not a list"):
        apply(Balancer("eth0", paths))
    assert not paths.pins.exists() and not paths.state.exists()


# --- the state's directory


def test_interfaces_are_those_with_a_state(paths):
    assert state.interfaces(paths) == []
    paths.state.mkdir()
    for name in ("eth1.json", "eth0.7.json", ".eth2.json.new", "eth3.json.bak", "notes"):
        (paths.state / name).touch()
    assert state.interfaces(paths) == ["eth0.7", "eth1"]


def test_a_state_that_cannot_be_written_leaves_the_old_one(paths):
    paths.state.mkdir()
    path = paths.state_file("eth0")
    before = known_state()
    state.save(path, before)
    with pytest.raises(KeyError):
        # Services without places.
        state.save(path, replace(before, allocation=plan.Allocation()))
    assert state.load(path) == before
    assert os.listdir(paths.state) == ["eth0.json"]


def test_what_a_killed_run_left_is_overwritten_and_removed(paths):
    paths.state.mkdir()
    path = paths.state_file("eth0")
    left = paths.state / ".eth0.json.new"
    left.write_text("half a st")
    state.save(path, known_state())
    assert not left.exists() and state.load(path) == known_state()
    left.write_text("half a st")
    files.remove(path)
    files.remove(path)
    assert os.listdir(paths.state) == []


def is_locked(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def test_one_at_a_time(paths):
    with state.locked(paths, create=True):
        assert is_locked(paths.state)
        assert paths.state.stat().st_mode & 0o777 == 0o700
    assert not is_locked(paths.state)
    with pytest.raises(EngineError), state.locked(paths, create=False):
        assert is_locked(paths.state)
        raise EngineError("something is wrong")
    assert not is_locked(paths.state)


def test_check_mode_makes_no_directory(paths):
    with state.locked(paths, create=False):
        assert not paths.state.exists()
    assert not paths.state.exists()


def test_filters_keep_their_places_over_a_state_file(paths):
    """Places need not be in the order of the list."""
    paths.state.mkdir()
    declared = filters.parse_filters([{"prefix": f"10.0.0.{host}", "action": "drop"} for host in (1, 2, 3)])
    ids = dict(zip(declared, (7, 0, 3)))
    path = paths.state_file("eth0")
    state.save(path, replace(known_state(), filters=declared, filter_ids=ids))
    loaded = state.load(path)
    assert loaded is not None and loaded.filter_ids == ids


# --- programs before they are loaded


def instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return (
        code.to_bytes(1, "little")
        + bytes((registers,))
        + offset.to_bytes(2, "little")
        + immediate.to_bytes(4, "little")
    )


def test_descriptors_take_the_place_of_numbers_of_maps():
    # r6 = map 2; r7 = value of map 0; r1 = 1, of 64 bits; r4 = 1; exit
    load_map = instruction(0x18, 0x16, 0, 2) + instruction(0)
    load_value = instruction(0x18, 0x27, 0, 0) + instruction(0, immediate=8)
    rest = instruction(0x18, 0x01, 0, 1) + instruction(0) + instruction(0xB7, 0x14, 0, 1) + instruction(0x95)
    assert bpf.relocate(load_map + load_value + rest, [100, 200, 300]) == (
        instruction(0x18, 0x16, 0, 300)
        + instruction(0)
        + instruction(0x18, 0x27, 0, 100)
        + instruction(0, immediate=8)
        + rest
    )
