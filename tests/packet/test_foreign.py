# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others attached is found however they did it, and is named with a remedy that works; until then it stays."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.hooks import Hooks, Known, Wanted
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.native import NativeHook
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import attachments, bpf, link, tc

from tests.packet import foreign
from tests.packet.faults import has_clsact, on_hooks
from tests.packet.foreign import described, id_of, load
from tests.packet.network import ip
from tests.support import namespace
from tests.support.balancer import Conditions, settings

FRONT = "front"
PASS, NEXT = 2, -1


@pytest.fixture(autouse=True)
def interface(one_cpu) -> Iterator[None]:
    with namespace.private("net"):
        ip(f"link add {FRONT} type veth peer name front-peer", f"link set {FRONT} up", "link set front-peer up")
        yield


@pytest.fixture
def xdp() -> Iterator[int]:
    descriptor = load(bpf.PROG_TYPE_XDP, PASS)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def classifier() -> Iterator[int]:
    descriptor = load(bpf.PROG_TYPE_SCHED_CLS, NEXT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def ours() -> Iterator[dict[bool, int]]:
    """A program of the balancer's for XDP and for tc."""
    made = {False: load(bpf.PROG_TYPE_XDP, PASS, "ours"), True: load(bpf.PROG_TYPE_SCHED_CLS, NEXT, "ours")}
    yield made
    for descriptor in made.values():
        os.close(descriptor)


def put(ours: dict[bool, int], mode: str, known: Known | None = None) -> tuple[str, str]:
    native = NativeHook(FRONT, [], False, Path("/nonexistent"))
    wanted = Wanted(mode, True, frozenset(), False)
    Hooks(FRONT).refuse_impossible(wanted, known, native)
    return Hooks(FRONT).put(ours.get, wanted, known, native)


class Attempts:
    """A balancer that was never there: whatever refuses it leaves nothing, and says the same in check mode."""

    def __init__(self, directory: Path) -> None:
        self.pins = Path("/sys/fs/bpf") / f"lbops-foreign-{os.getpid()}"
        self.state = directory
        self._balancer = Balancer("main", state.Paths(self.pins, directory))

    def refused(self, mode: str, force: bool = False, **chosen: bool) -> str:
        words = []
        for check in (True, False):
            before = on_hooks(FRONT), has_clsact(FRONT)
            with pytest.raises(EngineError) as caught:
                wanted = settings(FRONT, mode=mode, **chosen)
                self._balancer.apply_program(wanted, check, Conditions(force=force))
            words.append(str(caught.value))
            assert (on_hooks(FRONT), has_clsact(FRONT)) == before
            assert not self.pins.exists() and not list(self.state.iterdir())
        assert words[0] == words[1]
        return words[0]


@pytest.fixture
def attempts() -> Iterator[Attempts]:
    with tempfile.TemporaryDirectory() as directory:
        yield Attempts(Path(directory))


# --- XDP


@pytest.mark.parametrize("hook", ["native", "generic"])
@pytest.mark.parametrize("mode", ["native", "auto", "tc"])
def test_a_program_attached_by_a_bpf_link(attempts, xdp, hook, mode):
    with foreign.linked(FRONT, xdp, foreign.XDP, foreign.XDP_FLAGS[hook]) as link_id:
        holder = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        expected = (
            f"{FRONT} carries a program that is not ours: {described(xdp)} on the {hook} hook, attached by BPF link "
            f"{link_id} (held by {holder}); the balancer cannot replace that, not even with force: true: "
            f"stop that process or run bpftool link detach id {link_id}, then apply again"
        )
        assert attempts.refused(mode, force=False) == expected
        assert attempts.refused(mode, force=True) == expected
        assert on_hooks(FRONT) == {hook: id_of(xdp)}
        foreign.detach_link(link_id)
        assert not on_hooks(FRONT) and link.bpf_link(FRONT) is None


def test_a_bpf_link_that_comes_while_a_program_is_attached(xdp, ours):
    with foreign.linked(FRONT, xdp, foreign.XDP, foreign.XDP_FLAGS["native"]) as link_id:
        with pytest.raises(EngineError) as caught:
            link.attach(FRONT, ours[False], "native", None)
        assert not isinstance(caught.value, link.HookRefused)
        for words in (described(xdp), f"attached by BPF link {link_id}", f"run bpftool link detach id {link_id}"):
            assert words in str(caught.value)
        with pytest.raises(EngineError, match=f"BPF link {link_id} .*run bpftool link detach id {link_id}"):
            link.detach(FRONT, "native", xdp)


def test_a_link_of_the_same_index_elsewhere_is_another_one(xdp):
    """Interfaces of another network namespace have indexes of their own."""
    index = link.interface_index(FRONT)
    other = load(bpf.PROG_TYPE_XDP, 1)
    with foreign.linked(FRONT, xdp, foreign.XDP, foreign.XDP_FLAGS["native"]):
        assert attachments.find_link(attachments.LINK_TYPE_XDP, index, id_of(other)) is None
        assert attachments.find_link(attachments.LINK_TYPE_XDP, index + 1, id_of(xdp)) is None
        assert attachments.find_link(attachments.LINK_TYPE_TCX, index, id_of(xdp)) is None
    os.close(other)


@pytest.mark.parametrize("hook, word", [("native", "xdpdrv"), ("generic", "xdpgeneric")])
def test_the_remedy_for_a_program_attached_by_netlink_works(attempts, xdp, hook, word):
    link.attach(FRONT, xdp, hook, None)
    assert attempts.refused("auto") == (
        f"{FRONT} carries a program that is not ours: {described(xdp)} on the {hook} hook; "
        f"detach it with ip link set dev {FRONT} {word} off, or have it replaced with force: true"
    )
    subprocess.run(["ip", "link", "set", "dev", FRONT, word, "off"], check=True)
    assert not on_hooks(FRONT)


# --- tc


@pytest.mark.parametrize("by_link", [False, True], ids=["attached", "by a link"])
def test_a_tcx_program_is_in_front_of_tc(attempts, ours, classifier, by_link):
    entered = foreign.linked(FRONT, classifier, foreign.TCX_INGRESS) if by_link else foreign.tcx(FRONT, classifier)
    with entered as link_id:
        words = attempts.refused("tc")
        assert words.startswith(
            f"tc ingress on {FRONT}: packets would meet something else before the balancer: TCX {described(classifier)}"
        )
        assert words.endswith(
            f"run bpftool link detach id {link_id})" if by_link else f"(bpftool net detach tcx_ingress dev {FRONT})"
        )
        assert put(ours, "auto")[0] == "native"
        hook, why = put(ours, "generic")
        assert hook == "generic"
        if by_link:
            foreign.detach_link(link_id)
            assert not tc.in_front(FRONT)
    assert put(ours, "tc")[0] == "tc"


def test_who_may_not_ask_for_tcx_programs_is_told_the_rest(ours, classifier):
    """As the exporter, which reads without CAP_NET_ADMIN and CAP_SYS_ADMIN."""
    put(ours, "tc")
    foreign.put_filter(FRONT, classifier, priority=1, handle=2)
    with foreign.tcx(FRONT, classifier):
        assert len(tc.in_front(FRONT)) == 2
        child = os.fork()
        if not child:
            try:
                os.setuid(65534)
                (found,) = tc.in_front(FRONT)
                assert f"program {id_of(classifier)})" in found
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_auto_takes_generic_where_tc_is_behind_something(ours, classifier, monkeypatch):
    refusal = "the driver has none"
    monkeypatch.setattr(NativeHook, "refusal", refusal)
    assert put(ours, "auto")[0] == "tc"
    with foreign.tcx(FRONT, classifier):
        known = Known("auto", "tc", "", False)
        hook, why = put(ours, "auto", known)
        assert (hook, on_hooks(FRONT)) == ("generic", {"generic": id_of(ours[False])})
        assert why.startswith(refusal) and described(classifier) in why
    assert put(ours, "auto", Known("auto", "generic", "as before", False)) == ("generic", "as before")


def test_a_filter_that_comes_before_ours_later(ours, classifier):
    """Of one priority, the kernel runs the newest filter first, whatever its handle."""
    put(ours, "tc")
    foreign.put_filter(FRONT, classifier, priority=9, handle=1)
    attached = link.Attached("tc", id_of(ours[True]))
    assert Hooks(FRONT).shadowed_by(attached) == []
    foreign.put_filter(FRONT, classifier, priority=1, handle=2)
    found = Hooks(FRONT).shadowed_by(attached)
    command = f"tc filter del dev {FRONT} ingress pref 1 handle 0x2 bpf"
    assert found == [
        f"filter foreign (priority 1, handle 0x2, kind bpf, {described(classifier)}) "
        f"({command}, and add it with a higher pref)"
    ]
    with pytest.raises(EngineError, match=re.escape(found[0])):
        put(ours, "tc", Known("tc", "tc", "", False))
    subprocess.run(command.split(), check=True)
    assert Hooks(FRONT).shadowed_by(attached) == []


def test_the_newest_filter_of_a_priority_is_met_first(ours, classifier):
    """So ours is in front of one that was there before."""
    subprocess.run(["tc", "qdisc", "add", "dev", FRONT, "clsact"], check=True)
    foreign.put_filter(FRONT, classifier, priority=1, handle=2)
    assert put(ours, "tc")[0] == "tc"
    assert not tc.in_front(FRONT)


def test_a_filter_of_another_kind_in_the_place_of_ours(attempts):
    subprocess.run(["tc", "qdisc", "add", "dev", FRONT, "clsact"], check=True)
    rule = "protocol ip prio 1 u32 match u32 0 0"
    subprocess.run(["tc", "filter", "add", "dev", FRONT, "ingress", *rule.split()], check=True)
    words = attempts.refused("tc")
    assert re.match(rf"tc ingress on {FRONT}: filter u32 \(priority 1, .*give it another priority than 1$", words)


def test_a_qdisc_ingress(attempts):
    subprocess.run(["tc", "qdisc", "add", "dev", FRONT, "ingress"], check=True)
    words = attempts.refused("tc")
    command = f"tc qdisc del dev {FRONT} ingress"
    assert words == f"tc ingress on {FRONT}: it has a qdisc ingress, beside which there is no clsact; {command}"
    subprocess.run(command.split(), check=True)


def test_features_that_tc_does_not_have(attempts):
    words = attempts.refused("tc", multi_buffer=True)
    assert words == f"tc ingress on {FRONT}: multi_buffer is possible with XDP only"


def test_xdp_of_others_in_front_of_ours_on_tc(xdp, ours):
    put(ours, "tc")
    link.attach(FRONT, xdp, "native", None)
    attached = link.Attached("tc", id_of(ours[True]))
    assert Hooks(FRONT).programs() == [link.Attached("native", id_of(xdp)), attached]
    assert Hooks(FRONT).shadowed_by(attached) == [
        f"XDP {described(xdp)} on the native hook (ip link set dev {FRONT} xdpdrv off)"
    ]
    # As with force: true.
    put(ours, "native")
    assert on_hooks(FRONT) == {"native": id_of(ours[False])} and not has_clsact(FRONT)
