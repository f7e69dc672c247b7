# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each module on network cards that carry no program: four runs and back, with ethtool or the kernel as the referee.

What each of the emulated cards can do is written down here, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.guests.conftest import Guests
from tests.support.batch import Task, shell

KEY = ":".join(f"{byte:02x}" for byte in range(1, 41))
ADDRESSES = ["ip_src", "ip_dst"]
PORTS = [*ADDRESSES, "port_src", "port_dst"]
CHANNELS = "sed -n '/Current/,$ s/Combined:\t*//p'"


def table(device: str) -> str:
    """Prints the indirection table in one line."""
    return f"ethtool -x {device} | sed -nE 's/^ +[0-9]+: *//p' | tr -s ' \\n' ' '"


def vectors(device: str) -> str:
    """Prints each vector that moves packets, and its CPUs."""
    pattern = {
        "data0": "$(basename $(readlink -f /sys/class/net/data0/device))-input",
        "igb0": "igb0-[rt]x-",
        "vmx0": "vmx0-rxtx-",
    }[device]
    return f"""grep -E " {pattern}" /proc/interrupts | while read irq rest; do
        echo "${{rest##* }} $(cat /proc/irq/${{irq%:}}/smp_affinity_list);"; done"""


def xps(device: str) -> str:
    return f"cd /sys/class/net/{device}/queues; grep . tx-*/xps_cpus"


@dataclass(frozen=True)
class Case:
    """A module with its arguments, what prints the state, and what is in that once the module has done its work."""

    device: str
    module: str
    arguments: dict[str, Any]
    referee: str
    expected: str
    bounces: bool | None = None

    def __str__(self) -> str:
        return f"{self.module}-{self.device}-{'-'.join(self.arguments)}"

    def tasks(self, first: int) -> list[Task]:
        arguments = {"interface": self.device, **self.arguments}
        runs = [Task(self.module, arguments, check=check) for check in (True, False, False, True)]
        rollback = Task(self.module, "{{ item }}", keywords={"loop": f"{{{{ result_{first + 2}.rollback }}}}"})
        state = shell(self.referee)
        return [state, *runs, state, rollback, state]


def rings(device: str, **values: int) -> Case:
    expected = "".join(rf"\n{name.upper()}:\s+{value}(?=\n).*" for name, value in values.items())
    return Case(device, "nic_rings", values, f"ethtool -g {device}", f"(?s)Current.*{expected}", bounces=True)


CASES = [
    rings("data0", rx=256, tx=512),
    rings("igb0", rx=512, tx=1024),
    rings("vmx0", rx=512, tx=256),
    Case(
        "data0",
        "nic_channels",
        {"combined": 2},
        f"ethtool -l data0 | {CHANNELS}; {table('data0')}",
        r"^2\n(0 1 )+$",
        True,
    ),
    Case(
        "igb0", "nic_channels", {"combined": 2}, f"ethtool -l igb0 | {CHANNELS}; {table('igb0')}", r"^2\n[01 ]+$", True
    ),
    Case("data0", "nic_rss", {"queues": 3}, table("data0"), r"^(0 1 2 ){42}0 1 $"),
    Case("data0", "nic_rss", {"weights": [1, 2, 1]}, table("data0"), r"^(0 ){32}(1 ){64}(2 ){32}$"),
    Case("data0", "nic_rss", {"table": [3, 2, 1, 0] * 32}, table("data0"), r"^(3 2 1 0 ){32}$"),
    Case("igb0", "nic_rss", {"weights": [0, 3, 1, 0]}, table("igb0"), r"^(1 ){96}(2 ){32}$"),
    Case("vmx0", "nic_rss", {"queues": 2}, table("vmx0"), r"^(0 1 )+$"),
    Case("data0", "nic_rss", {"key": KEY}, "ethtool -x data0", rf"\n{KEY}\n"),
    Case("data0", "nic_rss", {"key": "symmetric"}, "ethtool -x data0", r"\n(6d:5a:){19}6d:5a\n"),
    Case(
        "data0",
        "nic_rss",
        {"hash_fields": {"udp4": ADDRESSES, "tcp6": ADDRESSES}},
        "ethtool -n data0 rx-flow-hash udp4; ethtool -n data0 rx-flow-hash tcp6",
        r"^UDP over IPV4[^\n]*\nIP SA\nIP DA\n\nTCP over IPV6[^\n]*\nIP SA\nIP DA\n*$",
    ),
    Case(
        "igb0", "nic_rss", {"hash_fields": {"udp4": PORTS}}, "ethtool -n igb0 rx-flow-hash udp4", "UDP/?[^\n]*dst port"
    ),
    Case("igb0", "nic_coalesce", {"rx_usecs": 20}, "ethtool -c igb0", r"\nrx-usecs:\s+20\n"),
    Case(
        "nsim0",
        "nic_coalesce",
        {"rx_usecs": 33, "rx_frames": 44, "tx_usecs": 55, "tx_frames": 66},
        "ethtool -c nsim0",
        r"(?s)\nrx-usecs:\s+33\nrx-frames:\s+44\n.*\ntx-usecs:\s+55\ntx-frames:\s+66\n",
    ),
    Case("data0", "nic_features", {"gro_hw": False}, "ethtool -k data0", r"\nrx-gro-hw: off\n"),
    Case("data0", "nic_features", {"tx_checksum": False}, "ethtool -k data0", r"\ntx-checksumming: off\n"),
    Case(
        "igb0",
        "nic_features",
        {"rx_vlan_offload": False, "tx_vlan_offload": False, "rx_checksum": False},
        "ethtool -k igb0",
        r"(?s)rx-checksumming: off\n.*rx-vlan-offload: off\ntx-vlan-offload: off\n",
    ),
    Case(
        "data0",
        "nic_irq_affinity",
        {"vectors": "2-3", "xps": "keep"},
        vectors("data0"),
        r"input\.0 2;\n.*input\.1 3;\n.*input\.2 2;\n.*input\.3 3;",
    ),
    Case("igb0", "nic_irq_affinity", {"vectors": "1", "xps": "keep"}, vectors("igb0"), r"^(igb0-[rt]x-\d 1;\n?){8}$"),
    Case("vmx0", "nic_irq_affinity", {"vectors": "3", "xps": "keep"}, vectors("vmx0"), r"^(vmx0-rxtx-\d 3;\n?){4}$"),
    Case(
        "data0",
        "nic_irq_affinity",
        {"vectors": "0-1", "xps": "match"},
        xps("data0"),
        "tx-0.*:1\ntx-1.*:2\ntx-2.*:1\ntx-3.*:2$",
    ),
    Case(
        "igb0",
        "nic_irq_affinity",
        {"vectors": "keep", "rps": "0-2"},
        "cat /sys/class/net/igb0/queues/rx-*/rps_cpus",
        r"^(7\n?){4}$",
    ),
]
LENGTH = len(CASES[0].tasks(0))


@pytest.fixture(scope="module")
def results(guests: Guests) -> Iterator[dict[str, list[dict]]]:
    """Those of all cases, by guest, from one run of ansible-playbook."""
    guests.each(
        "modprobe netdevsim && echo '10 1 4' >/sys/bus/netdevsim/new_device && udevadm settle && "
        "ip link set $(ls /sys/bus/netdevsim/devices/netdevsim10/net) name nsim0 up"
    )
    tasks = [task for number, case in enumerate(CASES) for task in case.tasks(number * LENGTH)]
    yield guests.run(*tasks)
    guests.each("echo 10 >/sys/bus/netdevsim/del_device")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_four_runs_and_back(results: dict, guest: str, case: Case):
    first = CASES.index(case) * LENGTH
    before, check, real, again, again_check, after, rollback, back = results[guest][first : first + LENGTH]
    runs = [check, real, again, again_check]
    assert [run.get("msg") for run in runs] == [None] * 4
    assert [run["changed"] for run in runs] == [True, True, False, False]
    assert check["before"] == real["before"]
    assert check["after"] == real["after"] == again["before"] == again["after"]
    assert check["diff"] == real["diff"] and again["diff"]["before"] == again["diff"]["after"]
    assert real.get("link_bounced") == case.bounces
    assert not re.search(case.expected, before["stdout"] + "\n")
    assert re.search(case.expected, after["stdout"] + "\n")
    assert not rollback.get("failed"), rollback
    assert back["stdout"] == before["stdout"]


def test_what_goes_off_with_another_feature_comes_back(guests: Guests):
    # Without the checksum vmxnet3 has no LRO.
    off = Task("nic_features", {"interface": "vmx0", "rx_checksum": False})
    back = Task("nic_features", "{{ item }}", keywords={"loop": "{{ result_0.rollback }}"})
    state = shell("ethtool -k vmx0 | grep -oE '^(rx-checksumming|large-receive-offload): [onf]+'")
    for real, without, _rollback, again in guests.run(off, state, back, state).values():
        assert (real["before"]["lro"], real["after"]["lro"]) == (True, False)
        assert without["stdout_lines"] == ["rx-checksumming: off", "large-receive-offload: off"]
        assert again["stdout_lines"] == ["rx-checksumming: on", "large-receive-offload: on"]


def test_fewer_channels_than_a_table_names(guests: Guests):
    for device in ("data0", "igb0"):
        found = guests.run(
            Task("nic_rss", {"interface": device, "weights": [1, 2, 3, 4]}),
            Task("nic_channels", {"interface": device, "combined": 2}),
            shell(table(device)),
            Task("nic_rss", {"interface": device, "queues": 3}),
            Task("nic_channels", {"interface": device, "combined": 4}),
            Task("nic_rss", {"interface": device, "queues": 4}),
        )
        for _weights, fewer, shown, too_many, _more, _equal in found.values():
            assert fewer["rss_table_reset"] and "nic_rss" in fewer["warnings"][0]
            assert set(shown["stdout"].split()) == {"0", "1"}
            assert too_many["msg"].startswith(f"{device}: queues=3 is more than")


REFUSED = {
    "more than the maximum": (
        "data0",
        "nic_rings",
        {"rx": 2048},
        "data0: rx=2048 is more than the device's maximum of 1024",
    ),
    "read only": (
        "vmx0",
        "nic_channels",
        {"combined": 2},
        "vmx0: channels combined=2: Operation not supported (EOPNOTSUPP)",
    ),
    "fixed": ("igb0", "nic_features", {"ntuple": True}, "igb0: the device's ntuple is fixed at off"),
    "absent": ("vmx0", "nic_coalesce", {"rx_usecs": 10}, "vmx0: the device has no rx_usecs"),
    "short key": ("data0", "nic_rss", {"key": "6d:5a"}, "data0: the key has 2 bytes, the device takes 40"),
    "no key": ("igb0", "nic_rss", {"key": "symmetric"}, "igb0: the device has no key"),
    "weights": ("data0", "nic_rss", {"weights": [1] * 5}, "data0: 5 weights for 4 receive queues"),
    "table": ("data0", "nic_rss", {"table": [0] * 127 + [4]}, "data0: entry 127 of the table is queue 4"),
    "CPU": ("data0", "nic_irq_affinity", {"vectors": "2-4"}, "this host has no CPU 4"),
    "device": ("eth7", "nic_rings", {"rx": 256}, "interface 'eth7' does not exist; this host has lo, "),
}


def test_what_a_card_does_not_do(guests: Guests):
    tasks = [Task(module, {"interface": device, **values}) for device, module, values, _words in REFUSED.values()]
    state = shell("for i in data0 igb0 vmx0; do ethtool -l $i; ethtool -g $i; ethtool -x $i; ethtool -k $i; done")
    for before, *refused, after in guests.run(state, *tasks, state).values():
        assert before["stdout"] == after["stdout"]
        for result, (*_arguments, words) in zip(refused, REFUSED.values()):
            assert result["failed"] and words in result["msg"]


def test_clamped_and_skipped(guests: Guests):
    skip = {"on_unsupported": "skip"}
    found = guests.run(
        Task("nic_rings", {"interface": "data0", "rx": 2048, "on_exceed": "clamp"}),
        Task("nic_channels", {"interface": "vmx0", "combined": 2, **skip}),
        Task("nic_rss", {"interface": "igb0", "key": "symmetric", **skip}),
        Task("nic_coalesce", {"interface": "data0", "rx_usecs": 10, **skip}),
    )
    for clamped, *skipped in found.values():
        assert not clamped["changed"] and clamped["clamped"] == {"rx": {"asked": 2048, "given": 1024}}
        for result, knob in zip(skipped, ("combined", "key", "rx_usecs")):
            assert not result["changed"] and list(result["unsupported"]) == [knob]


def test_tasks_that_contradict_each_other(guests: Guests):
    found = guests.run(*(Task("nic_rings", {"interface": "data0", "tx": size}) for size in (512, 256, 1024)))
    for first, second, _back in found.values():
        assert not first.get("warnings")
        assert any("tx=256 contradicts tx=512" in warning for warning in second["warnings"])
