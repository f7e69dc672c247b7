# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pinned XDP program of the operator gets what the balancer passes, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import programs
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.hooks import Hooks
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.assembler import Assembler

from tests.packet.frames import CLIENT, tcp
from tests.packet.network import FRONT, UNRESOLVED, ip
from tests.packet.test_boot import boot
from tests.packet.watching import until, watching
from tests.support import balancer as support
from tests.support.balancer import declared, settings

VIP = "203.0.113.10"
SERVICES = [{"name": "web", "address": VIP, "protocol": "tcp", "port": 80}]
BACKENDS = [{"service": "web", "address": "10.0.0.7"}]
FORWARDED, PASSED = tcp(CLIENT, 20000, VIP, 80), tcp(CLIENT, 20000, "10.0.1.9", 80)
FIREWALL, OTHER = Path("/sys/fs/bpf/firewall"), Path("/sys/fs/bpf/other")
# include/uapi/linux/bpf.h: enum xdp_action, BPF_F_XDP_HAS_FRAGS, BPF_XDP as an expected attach type
ABORTED, DROP, PASS, TX = range(4)
HAS_FRAGS, BPF_XDP = 1 << 5, 37


@pytest.fixture
def balancer(net) -> Iterator[Balancer]:
    with support.balancer() as made:
        yield made
    for path in (FIREWALL, OTHER):
        path.unlink(missing_ok=True)


def pin(path: Path, verdict: int, kind: int = bpf.PROG_TYPE_XDP, flags: int = 0, attach_type: int = BPF_XDP) -> int:
    """Have a program that gives this verdict there, as libbpf loads it; its id."""
    code = bpf.INSTRUCTION.pack(0xB7, 0, 0, verdict) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)
    descriptor = bpf.program_load("firewall", code, program_type=kind, flags=flags, attach_type=attach_type)
    path.unlink(missing_ok=True)
    bpf.object_pin(descriptor, str(path))
    number = bpf.program_info(descriptor).id
    os.close(descriptor)
    return number


def apply(balancer: Balancer, path: Path | str = FIREWALL, check: bool = False, **options: object):
    chosen = settings(FRONT, next_program=str(path), **options)
    return balancer.apply(declared(chosen, SERVICES, BACKENDS), check)


def verdicts(net) -> tuple[int, int]:
    """Of a packet that is forwarded and of one that is passed."""
    descriptor = bpf.program_fd(Hooks(FRONT).attached().program_id)
    try:
        return tuple(bpf.test_run(descriptor, frame, interface=net.front)[0] for frame in (FORWARDED, PASSED))
    finally:
        os.close(descriptor)


def facts(balancer: Balancer) -> dict:
    return balancer.info()["program"]


def test_it_gets_what_is_passed_and_not_what_is_forwarded(balancer, net):
    number = pin(FIREWALL, DROP)
    outcome = apply(balancer, check=True)
    assert outcome.changed and Hooks(FRONT).attached() is None
    apply(balancer)
    assert verdicts(net) == (TX, DROP)
    assert facts(balancer)["next_program"] == {"path": str(FIREWALL), "program_id": number}
    assert facts(balancer)["problems"] == []
    assert not apply(balancer).changed
    # Another hook takes the same.
    apply(balancer, mode="generic")
    assert verdicts(net) == (TX, DROP)
    # The balancer has the program, not the pin.
    FIREWALL.unlink()
    assert verdicts(net) == (TX, DROP)
    apply(balancer, "")
    assert verdicts(net) == (TX, PASS)
    assert "next_program" not in facts(balancer)


def pin_dropper_of(path: Path, address: str) -> None:
    """A program that drops IPv4 packets to this address and passes everything else."""
    found = Assembler()
    found.load("r2", "r1", 0)  # struct xdp_md: data, data_end
    found.load("r3", "r1", 4)
    found.set("r0", "=", PASS)
    found.set("r4", "=", "r2")
    found.set("r4", "+", 34)
    found.jump_if("r4", ">", "r3", "end")
    found.load("r5", "r2", 30)
    found.set32("r6", "=", int.from_bytes(socket.inet_aton(address), "little", signed=True))
    found.jump_if("r5", "!=", "r6", "end")
    found.set("r0", "=", DROP)
    found.label("end")
    found.exit()
    descriptor = bpf.program_load("dropper", found.code(), attach_type=BPF_XDP)
    path.unlink(missing_ok=True)
    bpf.object_pin(descriptor, str(path))
    os.close(descriptor)


@pytest.mark.parametrize("address, verdict", [(VIP, PASS), (UNRESOLVED, DROP)])
def test_a_packet_that_the_kernel_is_to_resolve_a_neighbour_for_is_seen_as_rewritten(balancer, net, address, verdict):
    pin_dropper_of(FIREWALL, address)
    chosen = settings(FRONT, next_program=str(FIREWALL))
    balancer.apply(declared(chosen, SERVICES, [{"service": "web", "address": UNRESOLVED}]), False)
    assert verdicts(net)[0] == verdict


def test_what_it_gets_is_counted_as_passed(balancer, net):
    pin(FIREWALL, DROP)
    apply(balancer)
    verdicts(net)
    reasons = {(entry["reason"], entry["verdict"]): entry["packets"] for entry in balancer.info()["reasons"]}
    assert reasons["not_ours", "pass"] == 1


def test_a_program_that_takes_its_place_at_the_pin_is_put_in_by_the_next_run(balancer, net):
    pin(FIREWALL, DROP)
    apply(balancer)
    pin(FIREWALL, ABORTED)
    assert verdicts(net) == (TX, DROP)
    outcome = apply(balancer, check=True)
    assert outcome.changed and outcome.details["repaired"] and verdicts(net) == (TX, DROP)
    assert apply(balancer).details["repaired"]
    assert verdicts(net) == (TX, ABORTED)
    assert not apply(balancer).changed
    # A path to another program is a change of the document.
    pin(OTHER, DROP)
    assert not apply(balancer, OTHER).details["repaired"]
    assert verdicts(net) == (TX, DROP)


def test_frames_of_several_buffers_need_a_program_for_them(balancer, net):
    pin(FIREWALL, DROP)
    apply(balancer)
    with pytest.raises(
        EngineError, match=r"firewall does not take frames of several buffers; load it from a section xdp\.f"
    ):
        apply(balancer, multi_buffer=True)
    pin(OTHER, DROP, flags=HAS_FRAGS)
    apply(balancer, OTHER, multi_buffer=True)
    assert verdicts(net) == (TX, DROP)
    with pytest.raises(EngineError, match="other takes frames of several buffers; load it from a section xdp, or set"):
        apply(balancer, OTHER)
    apply(balancer)
    assert verdicts(net) == (TX, DROP)


def pin_map(path: Path) -> None:
    descriptor = bpf.map_create("array", bpf.MAP_TYPE_ARRAY, 4, 1)
    bpf.object_pin(descriptor, str(path))
    os.close(descriptor)


UNUSABLE = {
    "nothing": (lambda path: None, "does not exist; pin the program there, or leave next_program out"),
    "map": (pin_map, "is not a program but another BPF object; pin an XDP program there"),
    "tc": (lambda path: pin(path, 0, bpf.PROG_TYPE_SCHED_CLS, attach_type=0), r"is of type 3, not XDP \(6\)"),
    "devmap": (lambda path: pin(path, DROP, attach_type=33), "was loaded for one device, or for a devmap or cpumap"),
}


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_follow_is_refused_by_name_before_anything_is_touched(balancer, kind, check):
    make, words = UNUSABLE[kind]
    make(FIREWALL)
    with pytest.raises(EngineError, match=f"^next_program {FIREWALL} .*{words}"):
        apply(balancer, check=check)
    assert Hooks(FRONT).attached() is None and not balancer.places.pins.exists()


def test_a_program_without_attach_type_is_refused_where_the_kernel_compares_it(balancer, net):
    number = pin(FIREWALL, DROP, attach_type=0)
    try:
        apply(balancer)
    except EngineError as error:
        assert "was loaded without the expected attach type BPF_XDP; load it with that, as libbpf does" in str(error)
        assert Hooks(FRONT).attached() is None
    else:
        # Before Linux 6.18.
        assert facts(balancer)["next_program"]["program_id"] == number and verdicts(net) == (TX, DROP)


def test_the_balancers_own_program_is_refused(balancer):
    pin(FIREWALL, PASS)
    apply(balancer)
    with pytest.raises(EngineError, match="is a balancer's own"):
        apply(balancer, balancer.places.program(FRONT))


def test_mode_auto_prefers_generic_xdp_to_the_hook_of_tc(balancer, net):
    pin(FIREWALL, DROP)
    # More than veth's driver takes for a program of frames in one buffer.
    ip(*(f"link set {name} mtu 9000" for name in (FRONT, "front-peer")))
    try:
        apply(balancer, "", mode="auto")
        assert facts(balancer)["interfaces"][0]["hook"] == "tc"
        apply(balancer, mode="auto")
        (entry,) = facts(balancer)["interfaces"]
        assert entry["hook"] == "generic"
        assert f"tc ingress on {FRONT}: next_program is possible with XDP only" in entry["why"]
        assert verdicts(net) == (TX, DROP)
    finally:
        ip(*(f"link set {name} mtu 1500" for name in (FRONT, "front-peer")))


def test_a_failed_change_leaves_the_former_program(balancer, net, monkeypatch):
    pin(FIREWALL, DROP)
    pin(OTHER, ABORTED)
    apply(balancer)

    def fail(*_arguments: object) -> None:
        raise EngineError("the hook is gone")

    with monkeypatch.context() as context:
        context.setattr(programs, "put_all", fail)
        with pytest.raises(EngineError, match="the hook is gone"):
            apply(balancer, OTHER, mode="generic")
    assert verdicts(net) == (TX, DROP)
    assert not apply(balancer).changed


def test_a_boot_before_the_program_is_pinned_serves_without_it_and_says_so(balancer, net, tmp_path):
    pin(FIREWALL, DROP)
    apply(balancer)
    FIREWALL.unlink()
    done = boot(balancer)
    assert done.returncode == 0
    assert f"warning: next_program {FIREWALL} does not exist" in done.stderr
    assert verdicts(net) == (TX, PASS)
    assert facts(balancer)["next_program"]["program_id"] == 0
    (problem,) = facts(balancer)["problems"]
    assert problem.startswith(f"next_program {FIREWALL} is not called") and "lbops-watch@main" in problem
    with pytest.raises(EngineError, match="does not exist"):
        apply(balancer)
    number = pin(FIREWALL, DROP)
    with watching(balancer, tmp_path / "log") as service:
        until(lambda: service.events("next_program_called"))
        assert verdicts(net) == (TX, DROP)
        # So is one that takes its place, within some seconds.
        assert pin(FIREWALL, ABORTED) != number
        until(lambda: verdicts(net) == (TX, ABORTED))
    assert not apply(balancer).changed
