# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: images of a device, the state file, files for udev, and what happens to changes nobody confirms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import state
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import device as network_device
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import link
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.device import Device
from ansible_collections.lbops.xdp.plugins.module_utils.nic import (
    link_file,
    profile,
    revert_timer,
    service,
    tuned,
    way_back,
    work,
)
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuned import Tuned, Tuning

FACTS = {
    "driver": "igb",
    "mtu": 1500,
    "xdp": {"hook": None, "features": None, "mtu_limit": 3506, "mtu_limit_measured": True},
    "channels": {"combined": 4},
    "rings": {"rx": 256, "tx": 256},
    "coalesce": {"rx_usecs": 3, "tx_usecs": 3, "adaptive_rx": True},
    "features": {"lro": False, "tx_checksum": None},
    "rss": {"table": [0, 1], "key": "", "hash_fields": {"udp4": ["ip_src"], "ip6": []}},
    "queues": {"vectors": {"rx-0": "0-3"}, "xps": {"tx-0": ""}, "rfs": {"rx-0": 0}},
}


def test_an_image_has_arguments_that_the_modules_take():
    image = tuned.image(FACTS)
    assert image == {
        "channels": {"combined": 4},
        "features": {"lro": False},
        "rings": {"rx": 256, "tx": 256},
        "coalesce": {"tx_usecs": 3, "adaptive_rx": True},
        "rss": {"table": [0, 1], "hash_fields": {"udp4": ["ip_src"]}},
        "irq_affinity": {"vectors": {"rx-0": "0-3"}, "xps": {"tx-0": "none"}, "rfs": {"rx-0": 0}},
    }
    assert list(image) == list(tuned.TUNERS)
    assert tuned.image({"rss": {}, "queues": {}}) == {}
    for group, options in image.items():
        if group != "irq_affinity":
            tuned.TUNERS[group](options)


def test_cpus_that_are_offline_get_no_interrupts():
    options = {"vectors": {"rx-0": "0-7", "rx-1": "6"}, "xps": {"tx-0": "none"}, "rps": "4-9", "rfs": {"rx-0": 0}}
    assert tuned.usable(options, (0, 1, 4)) == {
        "vectors": {"rx-0": "0-1,4"},
        "xps": {"tx-0": "none"},
        "rps": "4",
        "rfs": {"rx-0": 0},
    }
    assert tuned.usable({"vectors": [0, 5], "rps": 4}, (0, 4)) == {"vectors": "0", "rps": "4"}
    assert tuned.usable({"vectors": "auto", "xps": "match"}, (0,)) == {"vectors": "auto", "xps": "match"}


# --- files for udev


def test_a_link_file_says_what_the_one_before_it_says():
    base = "[Match]\nOriginalName=*\n\n[Link]\n# Names\nNamePolicy=keep\nRxBufferSize=9\n[Other]\nX=1\n"
    added = link_file.settings(
        {"rings": {"rx": 512}, "features": {"lro": False}, "coalesce": {"rx_usecs": 10}, "rss": {"queues": 4}}
    )
    assert added == ["RxBufferSize=512", "LargeReceiveOffload=no", "RxCoalesceSec=10us"]
    text = link_file.render("52:54:00:12:34:56", "igb", "/usr/lib/base.link", link_file.section(base, "Link"), added)
    assert text.splitlines() == [
        "# Made by lbops.xdp.nic_profile",
        "# In place of /usr/lib/base.link",
        "[Match]",
        "PermanentMACAddress=52:54:00:12:34:56",
        "Driver=igb",
        "",
        "[Link]",
        "NamePolicy=keep",
        "RxBufferSize=512",
        "LargeReceiveOffload=no",
        "RxCoalesceSec=10us",
    ]


def test_a_link_file_of_our_own_is_not_its_own_base(tmp_path: Path, monkeypatch):
    address, etc, lib = "52:54:00:12:34:56", tmp_path / "etc", tmp_path / "lib"
    monkeypatch.setattr(link_file, "DIRECTORY", etc)
    monkeypatch.setattr(link_file, "DIRECTORIES", (etc, lib))
    etc.mkdir()
    lib.mkdir()
    link_file.path_of("eth0").write_text(link_file.render(address, "igb", "/usr/lib/50-base.link", [], ["A=1"]))
    assert link_file._source("eth0", address) == "/usr/lib/50-base.link"
    (lib / "50-base.link").write_text("[Match]\nOriginalName=*\n")
    assert link_file._source("eth0", address) == str(lib / "50-base.link")
    (etc / "40-other.link").write_text("[Match]\nMACAddress=52:54:00:00:00:00\n")
    (etc / "50-base.link").write_text("[Match]\nOriginalName=*\n")
    assert link_file._source("eth0", address) == str(etc / "50-base.link")
    (etc / "40-other.link").write_text("[Match]\nMACAddress=00:00:00:00:00:00 52-54-00-12-34-56\n")
    assert link_file._source("eth0", address) == str(etc / "40-other.link")


def test_a_link_file_of_our_own_that_is_gone_is_not_its_own_base(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(link_file, "DIRECTORY", tmp_path)
    monkeypatch.setattr(link_file, "DIRECTORIES", (tmp_path,))
    tells = SimpleNamespace(stdout=f"ID_NET_LINK_FILE={link_file.path_of('eth0')}\n")
    monkeypatch.setattr(link_file.subprocess, "run", lambda *command, **options: tells)
    (tmp_path / "99-default.link").write_text("[Match]\nOriginalName=*\n")
    assert link_file._source("eth0", "52:54:00:12:34:56") == str(tmp_path / "99-default.link")
    tells.stdout = ""
    assert link_file._source("eth0", "52:54:00:12:34:56") == ""


def test_a_link_file_says_what_drop_ins_say(tmp_path: Path, monkeypatch):
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    monkeypatch.setattr(link_file, "DIRECTORY", etc)
    monkeypatch.setattr(link_file, "DIRECTORIES", (etc, lib))
    monkeypatch.setattr(link_file, "UDEV", tmp_path)
    monkeypatch.setattr(link_file, "_source", lambda device, address: str(lib / "99-default.link"))
    monkeypatch.setattr(link_file.ethtool_ioctl, "driver_info", lambda index: SimpleNamespace(driver="igb"))
    monkeypatch.setattr(Device, "link", lambda device: SimpleNamespace(permanent_address="52:54:00:12:34:56"))
    monkeypatch.setattr(Device, "driver", lambda device: "igb")
    for directory, name, line in (
        (lib, "99-default.link", "NamePolicy=keep"),
        (lib, "99-default.link.d/20.conf", "Hidden=1"),
        (etc, "99-default.link.d/20.conf", "NamePolicy=path"),
        (lib, "99-default.link.d/10.conf", "WakeOnLan=off"),
        (etc, "99-default.link.d/30.conf", "RxBufferSize=9"),
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Link]\n{line}\n")
    text = link_file.desired(Device(7, "eth0"), {"rings": {"rx": 512}})
    assert text.partition("[Link]\n")[2].splitlines() == [
        "NamePolicy=keep",
        "WakeOnLan=off",
        "NamePolicy=path",
        "RxBufferSize=512",
    ]


# --- the timer


def test_the_timer_runs_the_engine_and_names_the_interface(monkeypatch):
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(revert_timer, "_run", lambda *command: commands.append(command))
    monkeypatch.setattr(revert_timer, "armed", lambda unit: False)
    assert revert_timer.arm("en-p1", 90) == "lbops-nic-revert-en\\x2dp1"
    [command] = commands
    assert command[0] == "systemd-run" and "--on-active=90s" in command
    assert "--unit=lbops-nic-revert-en\\x2dp1" in command
    assert command[-3:] == ("engine.nic.service", "revert", "en-p1")


def test_a_timer_is_stopped_once_the_next_one_runs(monkeypatch):
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(revert_timer, "_run", lambda *command: commands.append(command))
    monkeypatch.setattr(revert_timer, "armed", lambda unit: unit == "lbops-nic-revert-eth0")
    assert revert_timer.arm("eth0", 90) == "lbops-nic-revert-eth0-again"
    assert [command[:2] for command in commands] == [
        ("systemd-run", "--unit=lbops-nic-revert-eth0-again"),
        ("systemctl", "stop"),
    ]
    assert commands[1][2] == "lbops-nic-revert-eth0.timer"


def test_without_systemd_there_is_no_timer(monkeypatch):
    monkeypatch.setattr(revert_timer, "SYSTEMD", Path("/nonexistent"))
    with pytest.raises(EngineError, match="needs systemd.*set it to 0"):
        revert_timer.check()


# --- changes, confirmed or not


def device_link(index: int, name: str, address: str = "") -> SimpleNamespace:
    return SimpleNamespace(index=index, name=name, permanent_address=address, up=True)


class Host:
    """One device whose knobs are a dictionary, and a timer that only remembers whether it is armed."""

    def __init__(self) -> None:
        self.rings = {"rx": 256, "tx": 256}
        self.armed = 0
        self.failing = ""
        self.up = True
        self.boot = "first"
        self.devices = [device_link(7, "eth0")]

    def find(self, interface: str) -> Device:
        for found in self.devices:
            if found.name == interface:
                return Device(found.index, found.name)
        raise network_device.missing(interface)

    def link(self, device: Device) -> SimpleNamespace:
        [found] = [found for found in self.devices if found.index == device.index]
        found.up = self.up
        return found

    def members(self, device: Device) -> list[Device]:
        """Of device 1, a bond, all others."""
        if device.index != 1:
            return [device]
        return [Device(found.index, found.name) for found in self.devices if found.index != 1]

    def arm(self, interface: str, seconds: int) -> str:
        self.armed = seconds
        return "timer"

    def facts(self, device: Device) -> dict[str, Any]:
        return {"interface": device.name, **FACTS, "rings": dict(self.rings)}

    def apply(self, device: Device, values: tuned.Image) -> list[tuple[str, EngineError]]:
        for key, value in values["rings"].items():
            # A device that rounds.
            self.rings[key] = value // 8 * 8
        failing, self.failing = self.failing, ""
        return [("rings", EngineError(failing))] if failing else []


def replace(monkeypatch, name: str, function: Callable[..., Any]) -> None:
    """In every module that has it by that name."""
    for module in (profile, tuned, way_back, work):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)


@pytest.fixture
def host(tmp_path: Path, monkeypatch) -> Host:
    made = Host()
    monkeypatch.setattr(tuned, "STATE", tmp_path)
    monkeypatch.setattr(tuned, "RUN", tmp_path)
    monkeypatch.setattr(tuned, "apply", made.apply)
    replace(monkeypatch, "of_device", made.facts)
    replace(monkeypatch, "find", made.find)
    monkeypatch.setattr(service, "_wait_for", made.find)
    monkeypatch.setattr(tuned, "links", lambda: made.devices)
    monkeypatch.setattr(tuned, "boot_id", lambda: made.boot)
    monkeypatch.setattr(link, "exists", lambda interface: interface in [found.name for found in made.devices])
    # Functions, since a bound method would not get the device.
    for name in ("members", "link"):
        answer = getattr(made, name)
        monkeypatch.setattr(Device, name, lambda device, answer=answer: answer(device))
    monkeypatch.setattr(network_device, "LINK_STABLE", 0.0)
    monkeypatch.setattr(network_device, "LINK_TIMEOUT", 0.0)
    monkeypatch.setattr(link_file, "desired", lambda device, values: "")
    monkeypatch.setattr(link_file, "DIRECTORY", tmp_path)
    monkeypatch.setattr(revert_timer, "check", lambda: None)
    monkeypatch.setattr(revert_timer, "arm", made.arm)
    monkeypatch.setattr(revert_timer, "armed", lambda unit: unit == "timer" and bool(made.armed))
    monkeypatch.setattr(revert_timer, "disarm", lambda interface: setattr(made, "armed", 0))
    return made


def tune(rx: int, check: bool = False, interface: str = "eth0"):
    return profile.apply(interface, "custom", {"rings": {"rx": rx}}, 60, check)


def test_check_real_again_check(host: Host):
    assert tune(512, check=True).changed and host.rings["rx"] == 256 and not tuned.load("eth0")
    first = tune(512)
    assert first.changed and first.details["pending"] and host.rings["rx"] == 512 and host.armed == 60
    assert profile.confirm("eth0", check=False).changed and not host.armed
    again = tune(512)
    assert not again.changed and not again.details["pending"] and not host.armed
    assert not tune(512, check=True).changed
    assert not profile.confirm("eth0", check=False).changed


def test_what_nobody_confirms_is_taken_back_and_cannot_be_confirmed_later(host: Host):
    tune(512)
    assert way_back.revert("eth0") == (True, [])
    assert host.rings["rx"] == 256 and tuned.load("eth0") is None
    with pytest.raises(EngineError, match="eth0: there is nothing to confirm: the change was taken back"):
        profile.confirm("eth0", check=False)
    assert way_back.revert("eth0") == (False, [])


def test_a_second_change_is_taken_back_to_the_first(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    tune(1024)
    assert way_back.revert("eth0") == (True, [])
    assert host.rings["rx"] == 512
    with pytest.raises(EngineError, match="nothing to confirm"):
        profile.confirm("eth0", check=False)
    assert tuned.load("eth0").devices["eth0"].saved == {"rings": {"rx": 512}}
    tune(1024)
    assert profile.confirm("eth0", check=False).changed
    assert way_back.restore("eth0", check=False).changed
    assert host.rings["rx"] == 256 and tuned.load("eth0") is None
    assert not way_back.restore("eth0", check=False).changed


def test_a_confirmed_change_is_not_taken_back(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    assert way_back.revert("eth0") == (False, []) and host.rings["rx"] == 512


def test_a_change_that_fails_is_taken_back_at_once(host: Host):
    host.failing = "the link of eth0 did not come up"
    with pytest.raises(EngineError, match=r"did not come up \(all of the change was taken back\)"):
        tune(512)
    assert host.rings["rx"] == 256 and not host.armed and tuned.load("eth0") is None


def test_a_device_that_goes_away_meanwhile_fails_the_change(host: Host, monkeypatch):
    def facts(device: Device) -> dict[str, Any]:
        if host.rings["rx"] == 512:
            raise EngineError("eth0 went away while it was worked on")
        return host.facts(device)

    replace(monkeypatch, "of_device", facts)
    with pytest.raises(EngineError, match=r"went away .* \(all of the change was taken back\)"):
        tune(512)
    assert host.rings["rx"] == 256 and tuned.load("eth0") is None


def test_a_link_that_goes_down_and_stays_so_is_a_failure(host: Host, monkeypatch):
    def apply(device: Device, values: tuned.Image) -> list:
        host.up = values["rings"]["rx"] == 256
        return host.apply(device, values)

    monkeypatch.setattr(tuned, "apply", apply)
    with pytest.raises(EngineError, match=r"the link of eth0 did not come up .* \(all of the change was taken back\)"):
        tune(512)
    assert host.rings["rx"] == 256 and host.up
    host.up = False
    assert tune(512).changed


def test_a_link_that_is_down_by_the_time_of_the_confirmation(host: Host):
    tune(512)
    host.up = False
    with pytest.raises(EngineError, match="eth0: the link was up before the change and is down now"):
        profile.confirm("eth0", check=False)
    assert host.armed and tuned.load("eth0").pending
    host.up = True
    assert profile.confirm("eth0", check=False).changed and not host.armed


def test_a_change_that_brought_the_host_down_cannot_be_confirmed(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    tune(1024)
    host.boot = "second"
    with pytest.raises(EngineError, match="eth0: the host was booted after the change"):
        profile.confirm("eth0", check=False)
    host.rings["rx"] = 256
    assert service.apply("eth0") == [] and host.rings["rx"] == 512
    assert not tuned.load("eth0").pending
    with pytest.raises(EngineError, match="nothing to confirm: the change was taken back .* or by a reboot"):
        profile.confirm("eth0", check=False)
    assert tuned.load("eth0").devices["eth0"].saved == {"rings": {"rx": 512}}


def test_a_first_change_ends_with_a_reboot(host: Host):
    tune(512)
    host.boot, host.rings["rx"] = "second", 256
    assert service.apply("eth0") == [] and host.rings["rx"] == 256 and tuned.load("eth0") is None


def test_a_change_after_a_reboot_is_taken_back_to_what_is_there_now(host: Host):
    tune(512)
    host.boot, host.rings["rx"] = "second", 128
    tune(1024)
    assert way_back.revert("eth0") == (True, []) and host.rings["rx"] == 128


def test_without_its_timer_a_change_cannot_be_confirmed(host: Host):
    tune(512)
    host.armed = 0
    with pytest.raises(EngineError, match="eth0: timer.timer, which would have taken the change back, is gone"):
        profile.confirm("eth0", check=False)
    tune(512)
    assert host.armed and profile.confirm("eth0", check=False).changed


def test_a_change_is_kept_before_udev_gets_its_file_and_the_timer_is_the_last(host: Host, monkeypatch):
    monkeypatch.setattr(link_file, "desired", lambda device, values: str(values))
    monkeypatch.setattr(link_file, "write", lambda name, text: pytest.fail("killed"))
    tune(512)
    with pytest.raises(pytest.fail.Exception):
        profile.confirm("eth0", check=False)
    assert tuned.load("eth0").devices["eth0"].saved == {"rings": {"rx": 512}} and host.armed


def test_udev_gets_no_file_if_there_is_none_for_another_member(host: Host, tmp_path: Path, monkeypatch):
    def desired(device: Device, values: tuned.Image) -> str:
        if device.name == "m1":
            raise EngineError("m1 went away")
        return "text"

    a_bond(host)
    tune(512, interface="bond0")
    monkeypatch.setattr(link_file, "desired", desired)
    with pytest.raises(EngineError, match="m1 went away"):
        profile.confirm("bond0", check=False)
    assert not list(tmp_path.glob("*.link")) and tuned.load("bond0").pending and host.armed


def test_files_for_udev_go_with_the_change(host: Host, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(link_file, "desired", lambda device, values: f"rx={values['rings']['rx']}")
    file = link_file.path_of("eth0")
    tune(512)
    # Of a run that was killed.
    file.write_text("stale")
    way_back.revert("eth0")
    assert not file.exists()
    tune(512)
    profile.confirm("eth0", check=False)
    tune(1024)
    file.write_text("stale")
    way_back.revert("eth0")
    assert file.read_text() == "rx=512"
    tuned.path_of("eth0").unlink()
    assert way_back.restore("eth0", check=True).changed and file.exists()
    assert way_back.restore("eth0", check=False).changed and not file.exists()
    assert not way_back.restore("eth0", check=False).changed


def a_bond(host: Host) -> None:
    host.devices = [device_link(1, "bond0"), device_link(2, "m0", "00:02"), device_link(3, "m1", "00:03")]


def test_a_bond_that_lost_a_member_and_got_another_one(host: Host):
    a_bond(host)
    tune(512, interface="bond0")
    host.devices[2] = device_link(4, "m2", "00:04")
    assert profile.confirm("bond0", check=False).changed
    assert list(tuned.load("bond0").devices) == ["m0"]
    assert tune(512, interface="bond0").details["pending"]
    assert profile.confirm("bond0", check=False).changed
    assert list(tuned.load("bond0").devices) == ["m0", "m2"]
    del host.devices[1]
    tune(1024, interface="bond0")
    assert profile.confirm("bond0", check=False).changed
    saved = {name: entry.saved["rings"]["rx"] for name, entry in tuned.load("bond0").devices.items()}
    assert saved == {"m0": 512, "m2": 1024}


def test_restoring_finds_a_device_by_its_own_address(host: Host):
    host.devices = [device_link(7, "eth0", "00:07")]
    tune(512)
    profile.confirm("eth0", check=False)
    host.devices, host.boot = [device_link(8, "eth1", "00:07")], "second"
    with pytest.raises(EngineError, match="eth1: its device is tuned as eth0 already; go on with that name"):
        tune(1024, interface="eth1")
    with pytest.raises(EngineError, match="is tuned as eth0 already"):
        way_back.restore("eth1", check=False)
    assert way_back.restore("eth0", check=False).changed
    assert host.rings["rx"] == 256 and tuned.load("eth0") is None


def test_restoring_a_device_that_is_gone_keeps_what_it_was(host: Host):
    host.devices = [device_link(7, "eth0", "00:07"), device_link(8, "eth1")]
    tune(512)
    profile.confirm("eth0", check=False)
    del host.devices[0]
    for check in (True, False):
        with pytest.raises(EngineError, match=r"eth0 \(00:07\) is not there; bring it back, or remove .*nic-eth0.json"):
            way_back.restore("eth0", check=check)
    host.devices.append(device_link(9, "eth0", "00:07"))
    assert way_back.restore("eth0", check=False).changed and host.rings["rx"] == 256


def test_a_member_that_was_renamed(host: Host):
    a_bond(host)
    tune(512, interface="bond0")
    profile.confirm("bond0", check=False)
    host.devices[2].name = "m9"
    tune(1024, interface="bond0")
    assert {name: entry.before["rings"]["rx"] for name, entry in tuned.load("bond0").devices.items()} == {
        "m0": 256,
        "m9": 256,
    }
    assert way_back.revert("bond0") == (True, [])


def test_a_member_is_not_tuned_apart_from_its_bond(host: Host):
    a_bond(host)
    tune(512, interface="bond0")
    with pytest.raises(EngineError, match="m0: its device is tuned as bond0 already"):
        tune(1024, interface="m0")


def test_another_name_of_a_device_is_the_same_to_the_state(host: Host, monkeypatch):
    replace(monkeypatch, "find", lambda interface: host.find({"enp1s0": "eth0"}.get(interface, interface)))
    tune(512, interface="enp1s0")
    assert list(tuned.STATE.glob("nic-*")) == [tuned.path_of("eth0")]
    assert profile.confirm("enp1s0", check=False).changed and way_back.restore("enp1s0", check=False).changed
    for operation in (profile.confirm, way_back.restore):
        with pytest.raises(EngineError, match="interface '../eth0' does not exist"):
            operation("../eth0", check=False)


def test_drift_is_the_same_in_check_mode(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    host.rings["rx"] = 256
    expected = tune(512, check=True)
    real = tune(512)
    assert (expected.changed, expected.diff(), expected.after) == (real.changed, real.diff(), real.after)
    assert list(real.diff()[0]) == ["rings.rx"]


def test_what_the_device_makes_of_it_is_said_once_and_then_left_alone(host: Host):
    assert tune(500).warnings == ["eth0: rings.rx=500 was asked for, and 496 is what the device makes of it"]
    profile.confirm("eth0", check=False)
    again = tune(500)
    assert not again.changed and again.after == again.before == {"eth0": {"rings.rx": 496}}
    assert "496  # as the overrides say; the device makes that of 500" in again.diff()[1]["rings.rx"]
    host.rings["rx"] = 256
    assert tune(500).changed and host.rings["rx"] == 496


def test_what_was_rounded_is_not_tried_again_when_something_else_changes(host: Host, monkeypatch):
    asked: list[tuned.Image] = []

    def apply(device: Device, values: tuned.Image) -> list:
        asked.append(values)
        return host.apply(device, values)

    tune(500)
    profile.confirm("eth0", check=False)
    monkeypatch.setattr(tuned, "apply", apply)
    assert profile.apply("eth0", "custom", {"rings": {"rx": 500, "tx": 512}}, 60, False).changed
    assert asked == [{"rings": {"tx": 512}}]
    assert tuned.load("eth0").devices["eth0"].pending == {"rings": {"rx": 500, "tx": 512}}


@pytest.mark.parametrize("check", [True, False])
def test_the_plan_has_nothing_that_will_not_happen(host: Host, check: bool, monkeypatch):
    monkeypatch.setitem(FACTS, "rings_maximum", {"rx": 4096, "tx": 4096})
    with pytest.raises(EngineError, match="eth0: rings.rx=8192 is more than the device's maximum of 4096; ask for no"):
        tune(8192, check)
    overrides = {"rings": {"rx": 512}, "channels": {"other": 1}}
    found = profile.apply("eth0", "custom", overrides, 60, check)
    assert found.after == {"eth0": {"rings.rx": 512}}
    assert found.warnings == ["eth0: the device has no channels.other, so 1 is left out"]


def test_what_cannot_be_put_back_is_said(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    document = tuned.load("eth0")
    document.devices["eth0"].before["rings"]["rx"] = 300
    tuned.save(document)
    warnings = way_back.restore("eth0", check=False).warnings
    assert warnings == ["eth0: rings.rx was 300, and 296 is what the device makes of that now"]
    assert host.rings["rx"] == 296 and tuned.load("eth0") is None


def test_boot_applies_what_was_confirmed_and_only_that(host: Host):
    tune(512)
    profile.confirm("eth0", check=False)
    tune(1024)
    host.rings["rx"] = 256
    assert service.apply("eth0") == [] and host.rings["rx"] == 512


def test_the_state_file_is_kept_apart_from_balancers(tmp_path: Path, host: Host):
    tuned.save(Tuning("eth0", {"eth0": Tuned(before={})}))
    assert (tmp_path / "nic-eth0.json").stat().st_mode & 0o777 == 0o600
    assert state.balancers(state.Paths(tmp_path, tmp_path)) == []
    (tmp_path / "nic-eth0.json").write_text("{")
    with pytest.raises(EngineError, match="nic-eth0.json is damaged .*; remove it and apply again"):
        tuned.load("eth0")
