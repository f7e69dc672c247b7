# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile on a device of the kernel's: applied, confirmed, applied again, taken back by the service, restored."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nic.conftest import Module, channels, features, run

OVERRIDES = {
    "channels": {"rx": 2},
    "features": {"rx_vlan_offload": False},
    "irq_affinity": {"vectors": "keep", "xps": "match", "rps": "0"},
}
ROOT = Path(__file__).parents[2]
MODULE_UTILS = "ansible_collections.lbops.xdp.plugins.module_utils"


@pytest.fixture
def own_state(namespace: None) -> Path:
    """The directory of state, which is not there yet."""
    return Path("/var/lib/lbops")


def service(operation: str, interface: str) -> str:
    """As systemd runs it."""
    return run(sys.executable, "-m", f"{MODULE_UTILS}.nic.service", operation, interface)


def test_a_profile_from_check_to_restore(own_state: Path, veth: str, module: Module):
    arguments = {"interface": veth, "overrides": OVERRIDES}
    assert module("nic_profile", check=True, **arguments)["changed"]
    assert channels(veth)["rx"] == 4 and not own_state.exists()

    first = module("nic_profile", **arguments)
    assert first["changed"] and first["pending"], first
    assert "features.rx_vlan_offload=False  # as the overrides say" in first["diff"]["after"]
    assert channels(veth)["rx"] == 2 and not features(veth)["rx-vlan-offload"]

    assert module("nic_profile", interface=veth, state="confirmed")["changed"]
    for check in (False, True):
        again = module("nic_profile", check=check, **arguments)
        assert not again["changed"] and not again["pending"]
        assert again["diff"]["before"] == again["diff"]["after"]

    assert module("nic_profile", interface=veth, state="restored")["changed"]
    assert channels(veth)["rx"] == 4 and features(veth)["rx-vlan-offload"]
    assert not list(own_state.iterdir())
    assert not module("nic_profile", interface=veth, state="restored")["changed"]


def test_a_change_that_nobody_confirms(own_state: Path, veth: str, module: Module):
    module("nic_profile", interface=veth, overrides=OVERRIDES)
    assert "result=done" in service("revert", veth)
    assert channels(veth)["rx"] == 4 and features(veth)["rx-vlan-offload"]
    assert "nothing to confirm" in module("nic_profile", interface=veth, state="confirmed")["msg"]
    assert "result=nothing to do" in service("revert", veth)


def test_boot(own_state: Path, veth: str, module: Module):
    module("nic_profile", interface=veth, overrides=OVERRIDES)
    module("nic_profile", interface=veth, state="confirmed")
    run("ethtool", "-L", veth, "rx", "4")
    assert "result=done" in service("apply", veth)
    assert channels(veth)["rx"] == 2


def test_a_bond_is_its_members(own_state: Path, bond: str, module: Module):
    overrides = {"features": {"rx_vlan_offload": False}}
    result = module("nic_profile", interface=bond, profile="custom", overrides=overrides)
    assert sorted(result["plan"]) == ["m0", "m1"]
    assert not features("m0")["rx-vlan-offload"] and not features("m1")["rx-vlan-offload"]
    assert list(json.loads((own_state / f"nic-{bond}.json").read_text())["devices"]) == ["m0", "m1"]
    module("nic_profile", interface=bond, state="restored")
    assert features("m0")["rx-vlan-offload"] and features("m1")["rx-vlan-offload"]


def test_what_makes_no_sense_touches_nothing(own_state: Path, veth: str, module: Module):
    for overrides, words in (
        ({"rings": {"rx": 0}}, "rx=0 is not a number from 1"),
        ({"irq_affinity": {"vectors": "4096"}}, "this host has no CPU 4096"),
        ({"irq_affinity": {"vectors": "match"}}, "vectors=match is neither CPUs nor auto nor keep"),
        ({"irq_affinity": {"rps": [[0]]}}, "overrides.irq_affinity.rps: '[0]' is not a CPU list"),
        ({"channel": {}}, "there is no 'channel'"),
    ):
        result = module("nic_profile", interface=veth, overrides={**overrides, "features": {"lro": False}})
        assert result["failed"] and words in result["msg"]
    assert not own_state.exists()


def test_the_timer_wants_systemd(own_state: Path, veth: str, module: Module):
    result = module("nic_profile", interface=veth, overrides=OVERRIDES, revert_after=60)
    assert result["failed"] and "revert_after needs systemd" in result["msg"]
    assert channels(veth)["rx"] == 4


# --- the role

ARMED = Path("/run/armed/lbops-nic-revert-v0.timer")
STAND_INS = {
    "systemd-run": 'echo "$0 $*" >>/run/log; touch "/run/armed/${1#--unit=}.timer"',
    "systemctl": """
for last; do :; done
case "$*" in
*is-active*) [ -e "/run/armed/$last" ] ;;
*stop*.timer*) rm "/run/armed/$last" ;;
*show*) echo LoadState=loaded; echo ActiveState=inactive; [ ! -e /run/enabled ] || echo UnitFileState=enabled ;;
*is-enabled*) [ -e /run/enabled ] && echo enabled ;;
*enable*) touch /run/enabled ;;
*disable*) rm /run/enabled ;;
esac""",
}


@pytest.fixture
def own_host(own_state: Path, veth: str) -> Path:
    """A copy of the host's files to write to, without those of lbops if it has any, and stand-ins for systemd, which
    record what is asked of it."""
    for directory in ("etc", "usr/lib"):
        layers = [Path("/run/layers") / directory / name for name in ("upper", "work")]
        for layer in layers:
            layer.mkdir(parents=True)
        options = f"lowerdir=/{directory},upperdir={layers[0]},workdir={layers[1]}"
        run("mount", "-t", "overlay", "overlay", "-o", options, f"/{directory}")
    for directory in ("/etc/sysctl.d", "/etc/systemd/system", "/usr/lib"):
        run("find", directory, "-maxdepth", "1", "-name", "*lbops*", "-exec", "rm", "-r", "{}", "+")
    Path("/run/systemd/system").mkdir(parents=True)
    programs = Path("/run/bin")
    programs.mkdir()
    ARMED.parent.mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return programs


def play(name: str, programs: Path, *options: str, **variables: object) -> str:
    variables = {
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "nic_tuning_hosts": "localhost",
        "nic_tuning_interface": "v0",
        **variables,
    }
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"),
        "ANSIBLE_HOME": "/run/ansible",
        "COLUMNS": "400",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local"]
    arguments = [str(ROOT / "playbooks" / name), *options, "-e", json.dumps(variables)]
    result = subprocess.run(
        [*command, *arguments], cwd="/run", env=environment, check=False, capture_output=True, text=True
    )
    assert not result.returncode, result.stdout + result.stderr
    return result.stdout


def test_the_role_from_check_to_restore(own_host: Path, own_state: Path):
    wanted = {"nic_tuning_overrides": {"features": {"rx_vlan_offload": False}}, "nic_tuning_dsr_backend": True}
    arp_announce = Path("/proc/sys/net/ipv4/conf/all/arp_announce")
    own = Path("/etc/sysctl.d/91-lbops-nic-v0.conf")
    arp_ignore, units = Path("/proc/sys/net/ipv4/conf/all/arp_ignore"), Path("/etc/systemd/system")

    rp_filter, rp_filter_of_all = (Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") for name in ("v0", "all"))
    rp_filter.write_text("1")
    rp_filter_of_all.write_text("0")

    output = play("nic_tune.yml", own_host, "--check", "--diff", **wanted)
    assert "v0: features.lro False: XDP needs packets as they came" in output
    assert "+net/ipv4/conf/v0/rp_filter = 0" in output
    assert not own_state.exists() and features("v0")["rx-vlan-offload"]

    play("nic_tune.yml", own_host, **wanted)
    assert not features("v0")["rx-vlan-offload"]
    assert "--on-active=120s" in Path("/run/log").read_text() and not ARMED.exists()
    assert Path("/run/enabled").exists() and (units / "lbops-nic@.service").exists()
    assert arp_ignore.read_text() == "1\n" and rp_filter.read_text() == "0\n"
    for options in ((), ("--check",)):
        assert " changed=0 " in play("nic_tune.yml", own_host, *options, **wanted)

    # The larger of both holds.
    rp_filter_of_all.write_text("1")
    play("nic_tune.yml", own_host, **wanted)
    assert rp_filter.read_text() == "2\n"
    rp_filter_of_all.write_text("0")
    play("nic_tune.yml", own_host, **wanted)
    assert rp_filter.read_text() == "0\n"

    # Another interface wants some of it as well.
    other = Path("/etc/sysctl.d/91-lbops-nic-other.conf")
    other.write_text("# before: net/ipv4/conf/all/arp_announce = 0\n# wanted: net/ipv4/conf/all/arp_announce = 2\n")
    unwanted = {**wanted, "nic_tuning_dsr_backend": False}
    assert "net/ipv4/conf/all/arp_ignore=0" in play("nic_tune.yml", own_host, "--check", **unwanted)
    play("nic_tune.yml", own_host, **unwanted)
    assert arp_ignore.read_text() == "0\n" and arp_announce.read_text() == "2\n"
    assert "arp_" not in own.read_text()
    assert " changed=0 " in play("nic_tune.yml", own_host, **unwanted)
    play("nic_tune.yml", own_host, **wanted)
    assert "# before: net/ipv4/conf/all/arp_announce = 0\n" in own.read_text()

    run("ip", "link", "property", "add", "dev", "v0", "altname", "another")
    assert " changed=0 " not in play("nic_restore.yml", own_host, nic_tuning_interface="another")
    assert features("v0")["rx-vlan-offload"] and arp_ignore.read_text() == "0\n" and arp_announce.read_text() == "2\n"
    assert rp_filter.read_text() == "1\n"
    other.unlink()
    left = [*units.glob("lbops*"), *Path("/etc/sysctl.d").glob("*lbops*"), *Path("/run").glob("lbops*")]
    assert not left and not own_state.exists() and not Path("/usr/lib/lbops").exists()
    assert " changed=0 " in play("nic_restore.yml", own_host)


def test_what_the_timer_runs(own_host: Path, own_state: Path):
    """The controller goes away after the change: the engine on the host takes it back by the command in the timer."""
    overrides = {"features": {"rx_vlan_offload": False}}
    play("nic_tune.yml", own_host, nic_tuning_profile="custom")
    change = {"interface": "v0", "profile": "custom", "overrides": overrides, "revert_after": 30}
    arguments = {"ANSIBLE_MODULE_ARGS": change}
    environment = {**os.environ, "PATH": f"{own_host}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "ansible_collections.lbops.xdp.plugins.modules.nic_profile"]
    subprocess.run(command, input=json.dumps(arguments), check=True, env=environment, capture_output=True, text=True)
    assert not features("v0")["rx-vlan-offload"] and ARMED.exists()

    armed = Path("/run/log").read_text().splitlines()[-1]
    program = armed.partition("/usr/bin/python3 ")[2].split()
    [directory] = re.findall(r"--working-directory=(\S+)", armed)
    output = subprocess.run(
        ["/usr/bin/python3", *program], check=True, capture_output=True, text=True, cwd=directory, env={}
    ).stdout
    assert output == "nic interface=v0 operation=revert result=done\n"
    assert features("v0")["rx-vlan-offload"]
