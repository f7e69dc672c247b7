# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer as far as it needs neither kernel nor root: names, places, what it reads of its state."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import document, lock, plan, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, Settings
from ansible_collections.lbops.xdp.plugins.module_utils.config import filters, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
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
    config = model.Config(parse_services(SERVICES), parse_backends(BACKENDS))
    program = state.ProgramState("digest", ["dnat"], Sizes(), {"eth0": state.Hook("native", "why")})
    allocation = plan.make(model.Config({}, {}), plan.Allocation(), config, Sizes()).allocation
    return state.State(Document(Settings(("eth0",)), config), program, allocation)


def save(paths: state.Paths, found: state.State) -> Path:
    path = paths.state_file("main")
    path.parent.mkdir(parents=True, exist_ok=True)
    state.save(path, found)
    return path


# --- names and places


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "eth0\n", "x" * 33, "a.b", "-a", "%", None, 7])
def test_what_is_no_name_of_a_balancer(name):
    with pytest.raises(EngineError) as caught:
        Balancer(name)
    assert str(caught.value).startswith(f"balancer {name!r}: a name has letters, digits, _ and -")


@pytest.mark.parametrize("raw", [[""], ["."], [".."], ["a/b"], ["a b"], ["eth0\n"], ["x" * 16], [7], [None]])
def test_what_is_no_name_of_an_interface(raw):
    with pytest.raises(EngineError) as caught:
        document.parse_interfaces(raw)
    assert str(caught.value) == f"interfaces[0]: {raw[0]!r} is not a name of an interface"


def test_interfaces_are_a_list_without_repetition():
    assert document.parse_interfaces(["eth0", "eth0.7"]) == ("eth0", "eth0.7")
    for raw, words in (
        ("eth0", "interfaces is 'eth0', not a list"),
        ([], "interfaces is empty"),
        (["eth0", "eth1", "eth0"], r"interfaces\[2\]: eth0 is listed twice"),
        ([f"eth{number}" for number in range(17)], "interfaces has 17 entries; a balancer has at most 16"),
    ):
        with pytest.raises(EngineError, match=words):
            document.parse_interfaces(raw)


@pytest.mark.parametrize(
    "chosen, features", [("strict", set()), ("interface", {"reply_interface"}), ("off", {"reply_unchecked"})]
)
def test_what_replies_are_held_to_is_compiled_in(chosen, features):
    settings = document.parse_settings({"interfaces": ["eth0"], "reply_check": chosen})
    assert Document(settings).features == features
    assert document.parse_settings(settings.as_dict()) == settings


def test_replies_are_held_to_everything_unless_the_document_says_otherwise():
    assert document.parse_settings({"interfaces": ["eth0"]}).reply_check == "strict"
    with pytest.raises(EngineError, match="reply_check 'no' is not one of strict, interface, off"):
        document.parse_settings({"interfaces": ["eth0"], "reply_check": "no"})


def test_virtual_macs_are_unicast_addresses_in_order():
    raw = {"interfaces": ["eth0"], "virtual_macs": ["00:00:5E:00:02:33", "00:00:5e:00:01:33"]}
    settings = document.parse_settings(raw)
    assert settings.virtual_macs == ("00:00:5e:00:01:33", "00:00:5e:00:02:33")
    assert document.parse_settings(settings.as_dict()) == settings
    first = "00:00:5e:00:01:33"
    for wrong, words in (
        (first, f"virtual_macs is '{first}', not a list"),
        ([first, first.upper()], f"virtual_macs[1]: {first} is listed twice"),
        (["eth0"], "virtual_macs[0]: 'eth0' is not an Ethernet address such as 52:54:00:12:34:56"),
        (["01:00:5e:00:00:01"], "virtual_macs[0]: '01:00:5e:00:00:01' is not the address of one host"),
        (["00:00:00:00:00:00"], "virtual_macs[0]: '00:00:00:00:00:00' is not the address of one host"),
        ([f"00:00:5e:00:01:{n:02x}" for n in range(17)], "virtual_macs has 17 entries; a balancer has at most 16"),
    ):
        with pytest.raises(EngineError) as caught:
            document.parse_settings({"interfaces": ["eth0"], "virtual_macs": wrong})
        assert str(caught.value) == words


def test_a_next_program_is_a_path_in_the_bpf_file_system():
    settings = document.parse_settings({"interfaces": ["eth0"], "next_program": "/sys/fs/bpf/xdp/firewall..v2"})
    assert settings.next_program == "/sys/fs/bpf/xdp/firewall..v2"
    assert document.parse_settings(settings.as_dict()) == settings
    assert "next_program" in document.Document(settings).features
    assert "next_program" not in document.Document(document.Settings(("eth0",))).features
    wrong = (
        "firewall",
        "/sys/fs/bpf",
        "/sys/fs/bpf/",
        "/sys/fs/bpf/a//b",
        "/sys/fs/bpf/../x",
        "/sys/fs/bpf/a/.",
        "/tmp/a",
    )
    for path in wrong:
        with pytest.raises(EngineError) as caught:
            document.parse_settings({"interfaces": ["eth0"], "next_program": path})
        words = f"next_program {path!r} is not a path of a pinned program, such as /sys/fs/bpf/firewall"
        assert str(caught.value) == words
    with pytest.raises(
        EngineError, match="^next_program is for XDP, not for mode tc, where packets that pass go on to"
    ):
        document.parse_settings({"interfaces": ["eth0"], "mode": "tc", "next_program": "/sys/fs/bpf/firewall"})


def test_the_bpf_file_system_takes_no_dots(paths):
    places = Balancer("main", paths).places
    assert places.program("eth0.7") == paths.pins / "main/programs/eth0%7"
    places.programs.mkdir(parents=True)
    places.program("eth0.7").touch()
    assert places.pinned_interfaces() == ["eth0.7"]


def test_places_on_a_host():
    balancer = Balancer("main")
    assert str(balancer.places.program("eth0")) == "/sys/fs/bpf/lbops/main/programs/eth0"
    assert str(balancer.places.maps) == "/sys/fs/bpf/lbops/main/maps"
    assert str(balancer.state_file) == "/var/lib/lbops/main/state.json"
    assert str(balancer.health_file) == "/var/lib/lbops/main/health.json"


# --- what runs on the host without a controller


def test_next_hops_are_looked_after_where_the_kernels_tables_decide(paths):
    """Not of backends with a MAC address, nor of interfaces; drained ones still send replies."""
    balancer = Balancer("main", paths)
    save(paths, known_state())
    assert balancer.next_hop_addresses() == ["198.51.100.1", "198.51.100.2", "fd00::1"]


def test_without_a_state_there_is_nothing_to_look_after(paths):
    balancer = Balancer("main", paths)
    assert balancer.next_hop_addresses() == []
    balancer.forget_next_hops()


def test_a_balancer_that_is_not_loaded_is_nothing_to_look_after(paths):
    save(paths, known_state())
    Balancer("main", paths).forget_next_hops()


def test_nothing_can_be_restored_without_a_state(paths):
    with pytest.raises(EngineError, match="state.json does not exist, so there is nothing to restore of main"):
        Balancer("main", paths).restore()


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
        apply(Balancer("main", paths))
    assert not paths.pins.exists() and not paths.state.exists()


# --- the state's directory


def test_balancers_are_those_with_a_state(paths):
    assert state.balancers(paths) == []
    for name in ("main", "edge-2", "empty"):
        paths.directory(name).mkdir(parents=True)
    (paths.state / "nic-eth0.json").touch()
    for name in ("main", "edge-2"):
        paths.state_file(name).touch()
    assert state.balancers(paths) == ["edge-2", "main"]


def test_a_state_that_cannot_be_written_leaves_the_old_one(paths):
    before = known_state()
    path = save(paths, before)
    with pytest.raises(KeyError):
        # Services without places.
        state.save(path, replace(before, allocation=plan.Allocation()))
    assert state.load(path) == before
    assert os.listdir(path.parent) == ["state.json"]


def test_what_a_killed_run_left_is_overwritten_and_removed(paths):
    path = paths.state_file("main")
    path.parent.mkdir(parents=True)
    left = path.parent / ".state.json.new"
    left.write_text("half a st")
    state.save(path, known_state())
    assert not left.exists() and state.load(path) == known_state()
    left.write_text("half a st")
    files.remove(path)
    files.remove(path)
    assert os.listdir(path.parent) == []


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
    with lock.locked(paths.state, create=True):
        assert is_locked(paths.state)
        assert paths.state.stat().st_mode & 0o777 == 0o700
    assert not is_locked(paths.state)
    with pytest.raises(EngineError), lock.locked(paths.state, create=False):
        assert is_locked(paths.state)
        raise EngineError("something is wrong")
    assert not is_locked(paths.state)


def test_the_holder_of_the_lock_is_named_in_time(paths):
    code = (
        "import fcntl, os, sys\n"
        "held = os.open(sys.argv[1], os.O_RDONLY)\nfcntl.flock(held, fcntl.LOCK_EX)\nprint('held', flush=True)\ninput()"
    )
    paths.state.mkdir()
    command = [sys.executable, "-c", code, str(paths.state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        with pytest.raises(EngineError, match=rf"is locked by process {holder.pid} \(.*python.*for more than 0.2 s"):
            with lock.locked(paths.state, create=False, timeout=0.2):
                pass
        assert 0.2 <= time.monotonic() - started < 5
        # A lock ends with its process, however that ends.
        holder.kill()
        holder.wait()
        with lock.locked(paths.state, create=False, timeout=5):
            pass


def test_check_mode_makes_no_directory(paths):
    with lock.locked(paths.state, create=False):
        assert not paths.state.exists()
    assert not paths.state.exists()


def test_filters_keep_their_places_over_a_state_file(paths):
    """Places need not be in the order of the list."""
    declared = filters.parse_filters([{"prefix": f"10.0.0.{host}", "action": "drop"} for host in (1, 2, 3)])
    ids = dict(zip(declared, (7, 0, 3)))
    known = known_state()
    with_filters = replace(known, document=replace(known.document, filters=declared), filter_ids=ids)
    loaded = state.load(save(paths, with_filters))
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
