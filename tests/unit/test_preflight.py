# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the way of a native program: devices by what they are, and what each driver does about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import native
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.native import NativeHook
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import link
from ansible_collections.lbops.xdp.plugins.module_utils.nic import device_info, preflight, tuned
from ansible_collections.lbops.xdp.plugins.module_utils.nic.preflight import Change, Problem, problems

NATIVE = ["basic", "redirect"]
# Of virtio_net in Linux 6.12, read in a virtual machine.
VIRTIO_BITS = "1110010111111111111101110000110010000000100000000000001111001000"


def facts(driver: str | None, mtu: int = 1500, features: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A device of four CPUs that takes native programs."""
    limit, measured = device_info.xdp_mtu_limit(driver or "", 4096)
    return {
        "interface": "eth0",
        "driver": driver,
        "mtu": mtu,
        "cpus": {"possible": "0-3"},
        "channels": more.pop("channels", {}),
        "channels_maximum": more.pop("maximum", {}),
        "features": more.pop("offloads", {}),
        "xdp": {"features": features, "mtu_limit": limit, "mtu_limit_measured": measured, **more},
    }


def veth(rx: int, maximum: int, features: list[str] | None = None, **peer: Any) -> dict[str, Any]:
    channels, maxima = {"rx": rx, "tx": 1}, {"rx": maximum, "tx": maximum}
    return facts("veth", features=features, channels=channels, maximum=maxima, peer=peer or None)


def change(group: str, before: dict[str, Any], after: dict[str, Any], interface: str = "eth0") -> Change:
    return Change(interface, group, before, after)


# The device, whether the program is for long frames, and of each problem: effect, whether it is certain, the change.
TABLE: dict[str, tuple[dict[str, Any], bool, list[tuple[str, bool, Change | None]]]] = {
    "nothing": (facts("virtio_net", 3506, NATIVE), False, []),
    "virtio_net, a page and a byte": (
        facts("virtio_net", 3507, NATIVE),
        False,
        [("refuse", True, change("mtu", {"mtu": 3507}, {"mtu": 3506}))],
    ),
    "vmxnet3 keeps twelve bytes more free": (
        facts("vmxnet3", 3495, NATIVE),
        False,
        [("refuse", True, change("mtu", {"mtu": 3495}, {"mtu": 3494}))],
    ),
    "long frames, and a driver that has them": (facts("virtio_net", 9000, [*NATIVE, "rx_sg"]), True, []),
    "long frames, and a driver that has not": (
        facts("vmxnet3", 9000, NATIVE),
        True,
        [("refuse", False, change("mtu", {"mtu": 9000}, {"mtu": 3494}))],
    ),
    "long frames on an old kernel": (
        facts("virtio_net", 9000),
        True,
        [("refuse", False, change("mtu", {"mtu": 9000}, {"mtu": 3506}))],
    ),
    "igb, from its source": (
        facts("igb", 3047, NATIVE),
        False,
        [("refuse", False, change("mtu", {"mtu": 3047}, {"mtu": 3046}))],
    ),
    "another driver's limit is that of a page at the most": (
        facts("nfp", 9000, NATIVE),
        False,
        [("refuse", False, change("mtu", {"mtu": 9000}, {"mtu": 3506}))],
    ),
    "the other end of a veth": (
        veth(4, 4, NATIVE, interface="v1", mtu=9000, tx=4),
        False,
        [("refuse", True, change("mtu", {"mtu": 9000}, {"mtu": 3506}, "v1"))],
    ),
    "an end that is in another namespace is not ours to change": (
        veth(4, 4, NATIVE, interface=None, mtu=9000, tx=None),
        False,
        [("refuse", True, None)],
    ),
    "an end of which nothing is known": (veth(1, 4, None), False, [("refuse", False, None)]),
    "veth's own MTU does not count": ({**veth(4, 4, NATIVE, interface="v1", mtu=1500, tx=4), "mtu": 9000}, False, []),
    "veth with too few receive queues": (
        veth(1, 4, [], interface="v1", mtu=1500, tx=3),
        False,
        [("refuse", True, change("channels", {"rx": 1}, {"rx": 3}))],
    ),
    "veth with too few receive queues, old kernel": (
        veth(1, 4, None, interface="v1", mtu=1500, tx=3),
        False,
        [("refuse", True, change("channels", {"rx": 1}, {"rx": 3}))],
    ),
    "veth without as many": (veth(1, 2, [], interface="v1", mtu=1500, tx=3), False, [("refuse", True, None)]),
    "veth with fewer than an end elsewhere": (
        veth(1, 4, [], interface=None, mtu=1500, tx=None),
        False,
        [("refuse", True, change("channels", {"rx": 1}, {"rx": 4}))],
    ),
    "veth has all that it can, and an end elsewhere more": (
        veth(4, 4, [], interface=None, mtu=1500, tx=None),
        False,
        [("refuse", True, None)],
    ),
    "LRO with a driver that refuses": (
        facts("hv_netvsc", features=NATIVE, offloads={"lro": True}),
        False,
        [("refuse", True, change("features", {"lro": True}, {"lro": False}))],
    ),
    "mlx5 has no features while packets are merged": (
        facts("mlx5_core", features=[], offloads={"lro": False, "gro_hw": True}),
        False,
        [("refuse", True, change("features", {"gro_hw": True}, {"gro_hw": False}))],
    ),
    "LRO with a driver that switches it off": (
        facts("vmxnet3", features=NATIVE, offloads={"lro": True}),
        False,
        [],
    ),
    "LRO with another driver": (
        facts("ixgbe", features=NATIVE, offloads={"lro": True}),
        False,
        [("drop", False, change("features", {"lro": True}, {"lro": False}))],
    ),
    "no LRO": (facts("hv_netvsc", features=NATIVE, offloads={"lro": False, "gro_hw": None}), False, []),
    "virtio_net switches GRO_HW off": (facts("virtio_net", features=NATIVE, offloads={"gro_hw": True}), False, []),
    "virtio_net must not": (
        facts("virtio_net", features=NATIVE, fixed_offloads=["guest_tso4"]),
        False,
        [("refuse", True, None)],
    ),
    "ena, half of its queues": (
        facts("ena", features=NATIVE, channels={"combined": 4}, maximum={"combined": 8}),
        False,
        [],
    ),
    "ena, more than half": (
        facts("ena", features=NATIVE, channels={"combined": 5}, maximum={"combined": 8}),
        False,
        [("refuse", True, change("channels", {"combined": 5}, {"combined": 4}))],
    ),
    "bnxt_en may have more than it says": (
        facts("bnxt_en", features=NATIVE, channels={"combined": 8, "rx": 0}, maximum={"combined": 8, "rx": 8}),
        False,
        [("refuse", False, change("channels", {"combined": 8}, {"combined": 4}))],
    ),
    "gve wants as many of both": (
        facts("gve", features=NATIVE, channels={"rx": 2, "tx": 3}, maximum={"rx": 16, "tx": 16}),
        False,
        [("refuse", True, change("channels", {"rx": 2, "tx": 3}, {"rx": 2, "tx": 2}))],
    ),
    "gve, more than half": (
        facts("gve", features=NATIVE, channels={"rx": 16, "tx": 16}, maximum={"rx": 16, "tx": 16}),
        False,
        [("refuse", True, change("channels", {"rx": 16, "tx": 16}, {"rx": 8, "tx": 8}))],
    ),
    "virtio_net, a queue for each CPU": (
        facts("virtio_net", features=NATIVE, channels={"combined": 4}, maximum={"combined": 8}),
        False,
        [],
    ),
    "virtio_net, CPUs share queues": (
        facts("virtio_net", features=NATIVE, channels={"combined": 5}, maximum={"combined": 8}),
        False,
        [("lock", True, None)],
    ),
    "no native XDP": (facts("dummy", 65536, []), False, [("refuse", True, None)]),
    "no native XDP, nor a driver": (facts(None, features=[]), False, [("refuse", True, None)]),
    "an old kernel does not say": (facts("e1000e", features=None), False, [("refuse", False, None)]),
    "an old kernel, and something that is known": (
        facts("virtio_net", 9000),
        False,
        [("refuse", True, change("mtu", {"mtu": 9000}, {"mtu": 3506}))],
    ),
    "a driver that had nothing then is not prepared": (facts("vmxnet3", 9000), False, [("refuse", False, None)]),
}


@pytest.mark.parametrize("name", TABLE)
def test_device(name: str):
    device, multi_buffer, expected = TABLE[name]
    found = problems(device, multi_buffer)
    assert [(problem.effect, problem.certain, problem.change) for problem in found] == expected


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (
            facts("virtio_net", 9000, [*NATIVE, "rx_sg"]),
            "native XDP on eth0 (driver virtio_net): its MTU is 9000, and the driver refuses more than 3506; lower it "
            "where the host's network is configured, or let the program be one for long frames (multi_buffer)",
        ),
        (
            facts("vmxnet3", 9000, NATIVE),
            "its MTU is 9000, and the driver refuses more than 3494; lower it where the host's network is configured",
        ),
        (facts("igb", 9000, NATIVE), "its MTU is 9000, and the driver most likely refuses more than 3046"),
        (veth(1, 4, NATIVE, interface="v1", mtu=9000, tx=1), "the MTU of the other end is 9000"),
        (
            veth(1, 4, [], interface="v1", mtu=1500, tx=3),
            "its receive queues (1) are fewer than the other end's transmit queues (3), so the driver refuses "
            "programs; have 3 (nic_channels rx=3)",
        ),
        (
            veth(2, 2, [], interface=None, mtu=1500, tx=None),
            "its receive queues (2) are fewer than the other end's transmit queues, so the driver refuses programs; "
            "have 2 at the other end (nic_channels tx=2 there)",
        ),
        (
            facts("gve", features=NATIVE, offloads={"lro": True}),
            "LRO is on, with which the driver refuses programs; switch it off (nic_features lro=false)",
        ),
        (
            facts("virtio_net", features=NATIVE, fixed_offloads=["guest_csum", "guest_tso4"]),
            "the hypervisor fixes guest_csum, guest_tso4, with which the driver refuses programs; switch that off at",
        ),
        (
            facts("ena", features=NATIVE, channels={"combined": 8}, maximum={"combined": 8}),
            "it has channels combined=8, and XDP needs as many transmit queues again, of 8 in all, so the driver "
            "refuses programs; have fewer (nic_channels combined=4)",
        ),
        (
            facts("virtio_net", features=NATIVE, channels={"combined": 6}, maximum={"combined": 8}),
            "6 channels and a transmit queue for each of 4 CPUs are more than its queue pairs (8), so CPUs wait for "
            "each other to send; have 4 channels (nic_channels combined=4, before attaching), or give it 10 queue",
        ),
        (facts("dummy", features=[]), "the driver does not support XDP in native mode; use mode auto, tc or generic"),
        (facts("vmxnet3"), "vmxnet3 has native XDP from Linux 6.6 on; use mode auto, tc or generic"),
        (facts("igb"), "whether the driver has native XDP is what this kernel does not say, as Linux does from 6.3 on"),
    ],
)
def test_words(device: dict[str, Any], words: str):
    [problem] = problems(device, False)
    assert words in str(problem)


@pytest.mark.parametrize(
    ("driver", "limit"),
    [
        *(("i40e", 3046), ("ice", 3046), ("igb", 3046), ("ixgbe", 3050), ("mlx5_core", 3498), ("ena", 3498)),
        *(("bnxt_en", 3502), ("gve", 2032), ("igc", 1500)),
    ],
)
def test_limits_from_drivers_sources(driver: str, limit: int):
    assert device_info.xdp_mtu_limit(driver, 4096) == (limit, False)


def test_a_virtual_machine_with_few_queue_pairs_is_not_told_to_have_none():
    [problem] = problems(facts("virtio_net", features=NATIVE, channels={"combined": 2}, maximum={"combined": 2}), False)
    assert problem.remedy == "give it 6 queue pairs at the hypervisor"


def test_offloads_that_a_hypervisor_fixes():
    assert device_info.fixed_offloads(VIRTIO_BITS) == []
    fixed = VIRTIO_BITS[:2] + "0" + VIRTIO_BITS[3:]
    assert device_info.fixed_offloads(fixed) == [
        *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "guest_uso4", "guest_uso6")
    ]


# --- what is done about it

LRO = Problem("eth0", "gve", "LRO is on", "off", change=change("features", {"lro": True}, {"lro": False}))
MTU = Problem("eth0", "igb", "too long", "lower", certain=False, change=change("mtu", {"mtu": 9000}, {"mtu": 3046}))
MERGED = Problem(
    "eth0", "x", "LRO", "off", "drop", certain=False, change=change("features", {"lro": True}, {"lro": False})
)
SLOW = Problem("eth0", "virtio_net", "slow", "more", "lock")
UNSUPPORTED = Problem("eth0", "dummy", "none", "tc")


@pytest.fixture(autouse=True)
def written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "RUN", tmp_path)
    monkeypatch.chdir(tmp_path)
    return WRITTEN_DOWN


WRITTEN_DOWN = Path("eth0.preparing")


def native_hook(found: list[Problem], prepare: bool) -> NativeHook:
    return NativeHook("eth0", found, prepare, WRITTEN_DOWN)


class Device:
    """Remembers what is written, and takes a program from the `patience`th time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, patience: int = 1, broken: str = "") -> None:
        self.written: list[dict[str, Any]] = []
        self.tries, self.patience, self.broken = 0, patience, broken
        monkeypatch.setattr(native, "_apply", self.apply)

    def apply(self, wanted: Change, values: dict[str, Any]) -> None:
        self.written.append(values)
        if wanted.group == self.broken and values == wanted.after:
            raise EngineError("fixed")

    def put_on(self) -> None:
        self.known = json.loads(WRITTEN_DOWN.read_text()) if WRITTEN_DOWN.exists() else []
        self.tries += 1
        if self.tries < self.patience:
            raise link.HookRefused("refused")


def test_nothing_is_changed_unless_asked_for(monkeypatch):
    device = Device(monkeypatch)
    hook = native_hook([LRO, UNSUPPORTED], False)
    assert hook.refusal == f"{LRO}; {UNSUPPORTED}"
    assert native_hook([LRO], False).refusal == f"{LRO}; or have the engine do that, with prepare: true"
    hook = native_hook([MTU, MERGED, SLOW], False)
    assert not hook.refusal
    hook.attach(device.put_on)
    assert (device.written, hook.prepared, hook.warnings) == ([], [], [str(MERGED), str(SLOW)])


def test_what_is_certain_is_changed_first_and_the_rest_only_after_a_refusal(monkeypatch):
    device = Device(monkeypatch)
    hook = native_hook([MTU, LRO, SLOW], True)
    hook.attach(device.put_on)
    assert (device.written, hook.changed, hook.warnings) == ([{"lro": False}], [LRO], [str(SLOW)])
    device = Device(monkeypatch, patience=2)
    hook = native_hook([MTU, MERGED], True)
    hook.attach(device.put_on)
    assert (device.written, hook.warnings) == ([{"lro": False}, {"mtu": 3046}], [])
    assert hook.prepared[1] == {
        "interface": "eth0",
        "group": "mtu",
        "before": {"mtu": 9000},
        "after": {"mtu": 3046},
        "why": "too long",
        "rollback": {"interface": "eth0", "mtu": 9000},
    }


def test_what_is_changed_is_written_down_as_long_as_a_run_may_be_killed(monkeypatch, written_down: Path):
    device = Device(monkeypatch, patience=2)
    native_hook([LRO, MTU], True).attach(device.put_on)
    assert [entry["group"] for entry in device.known] == ["features", "mtu"]
    assert not written_down.exists()
    native_hook([LRO], True).attach(device.put_on)
    written_down.write_text(json.dumps(device.known))
    monkeypatch.setattr(link, "exists", lambda _interface: True)
    device.written.clear()
    native.finish("eth0", written_down, attached=False)
    assert device.written == [{"lro": True}] and not written_down.exists()
    written_down.write_text(json.dumps(device.known))
    native.finish("eth0", written_down, attached=True)
    assert device.written == [{"lro": True}] and not written_down.exists()


def test_what_did_not_help_is_put_back(monkeypatch):
    device = Device(monkeypatch, patience=9)
    hook = native_hook([LRO, MTU, SLOW], True)
    with pytest.raises(link.HookRefused, match="^refused$"):
        hook.attach(device.put_on)
    assert device.written == [{"lro": False}, {"mtu": 3046}, {"mtu": 9000}, {"lro": True}]
    assert (hook.prepared, hook.warnings) == ([], [])


def test_the_kernels_refusal_is_explained(monkeypatch):
    with pytest.raises(link.HookRefused) as refused:
        native_hook([MTU, MERGED, SLOW], False).attach(Device(monkeypatch, patience=9).put_on)
    assert str(refused.value) == f"refused; {MTU}; {MERGED}"


def test_a_change_that_fails_is_a_refusal(monkeypatch):
    device = Device(monkeypatch, broken="features")
    with pytest.raises(link.HookRefused, match="^native XDP on eth0 could not be prepared: fixed$"):
        native_hook([LRO], True).attach(device.put_on)
    assert device.written == [{"lro": False}, {"lro": True}]
    assert device.tries == 0


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [EngineError("EBUSY"), OSError(12, "no memory"), ValueError("x"), Interrupted()])
def test_whatever_attaching_fails_with_what_was_prepared_is_put_back(monkeypatch, written_down: Path, error):
    device = Device(monkeypatch)

    def put_on() -> None:
        raise error

    hook = native_hook([LRO, MTU], True)
    with pytest.raises(type(error)) as caught:
        hook.attach(put_on)
    assert caught.value is error
    assert device.written == [{"lro": False}, {"lro": True}] and hook.changed == []
    assert not written_down.exists()


def test_what_cannot_be_put_back_is_in_the_error_and_tried_again(monkeypatch, written_down: Path):
    device = Device(monkeypatch)
    stuck = [True]

    def apply(change: Change, values: dict[str, Any]) -> None:
        if values == change.before and stuck:
            raise OSError(16, "busy")
        device.written.append(values)

    def put_on() -> None:
        raise EngineError("gone")

    monkeypatch.setattr(native, "_apply", apply)
    hook = native_hook([LRO], True)
    with pytest.raises(EngineError, match=r"^gone; eth0: lro=True could not be put back: .*busy; the next run"):
        hook.attach(put_on)
    assert hook.changed == [LRO] and written_down.exists()
    stuck.clear()
    assert hook.undo() == []
    assert device.written == [{"lro": False}, {"lro": True}] and not written_down.exists()


def test_what_was_prepared_goes_with_a_program_that_is_taken_off_again(monkeypatch):
    device = Device(monkeypatch)
    hook = native_hook([LRO, SLOW], True)
    hook.attach(device.put_on)
    assert hook.undo() == [] and hook.undo() == []
    assert device.written == [{"lro": False}, {"lro": True}]
    assert (hook.prepared, hook.warnings) == ([], [])


def test_nothing_is_prepared_in_vain():
    hook = native_hook([LRO, UNSUPPORTED], True)
    assert hook.refusal == f"{LRO}; {UNSUPPORTED}"
    hook.plan()
    assert hook.prepared == []


def test_check_mode_names_what_may_be_changed():
    hook = native_hook([LRO, MTU], True)
    hook.plan()
    assert [entry["group"] for entry in hook.prepared] == ["features", "mtu"]


def test_half_of_the_channels_is_one_place_for_all():
    assert preflight.channels_beside_xdp("ena", 9, 64) == 4
    assert preflight.channels_beside_xdp("ena", 1, 64) == 1
    assert preflight.channels_beside_xdp("virtio_net", 8, 4) == 4
    assert preflight.channels_beside_xdp("igb", 8, 4) == 8
