# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a guest: a balancer of mode offload in a netdevsim device, from refusals to removal.

offload_balancer.py nsim0 10: the device is netdevsim10, and is removed and made anew on the way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/lbops/current")

from engine.balancer import document, observed, state  # noqa: E402
from engine.balancer.balancer import Balancer  # noqa: E402
from engine.config.model import BackendKey  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.kernel import link  # noqa: E402
from offload import expect, kernel  # noqa: E402

VIP = "203.0.113.10"
WEB = {"name": "web", "address": VIP, "protocol": "udp", "port": 80, "forwarding": "dsr", "scheduler": "hash"}
TUNNEL = {**WEB, "name": "tunnel", "port": 53, "forwarding": "ipip", "source": "10.99.0.0/16"}
ONE = {"service": "web", "address": "10.0.0.11", "mac": "52:54:00:00:00:11"}
TWO = {"service": "web", "address": "10.0.0.12", "mac": "52:54:00:00:00:12"}
OF_TUNNEL = {"service": "tunnel", "address": "10.0.0.13", "mac": "52:54:00:00:00:13"}
BEYOND = [
    "mode offload: unserved is drop",
    "service nat: mode offload has no forwarding dnat",
    "service nat: mode offload has no scheduler maglev",
    "backend 10.0.0.9 of service nat: mode offload needs its mac",
    "filter 192.0.2.0/24 any: mode offload has no filters",
]


def declared(interface: str, services: list[dict], backends: list[dict], **options: Any) -> document.Document:
    settings = {"interfaces": [interface], "mode": "offload", "unserved": "pass", **options}
    return document.parse_document({**settings, "services": services, "backends": backends})


def refusal(balancer: Balancer, wanted: document.Document, check: bool) -> str:
    try:
        balancer.apply(wanted, check)
    except EngineError as error:
        return str(error)
    return ""


def in_device() -> list[str]:
    """The names of the maps that are in a device."""
    shown = json.loads(subprocess.check_output(["bpftool", "-j", "map", "show"]))
    return sorted(entry["name"] for entry in shown if "dev" in entry)


def half() -> int:
    """Which half of the tables packets would see, says bpftool."""
    shown = json.loads(subprocess.check_output(["bpftool", "-j", "map", "dump", "name", "control"]))
    return int(shown[0]["value"][0], 16)


def program_id(interface: str) -> int:
    found = link.attached(interface)
    return found.program_id if found else 0


class Device:
    """netdevsim, which refuses what it is told to."""

    def __init__(self, number: str, interface: str) -> None:
        self.number, self.interface = number, interface

    def accept(self, what: str, accepted: bool) -> None:
        path = Path(f"/sys/kernel/debug/netdevsim/netdevsim{self.number}/ports/0/{what}")
        path.write_text("Y" if accepted else "N", encoding="ascii")

    def renew(self) -> None:
        Path("/sys/bus/netdevsim/del_device").write_text(self.number, encoding="ascii")
        Path("/sys/bus/netdevsim/new_device").write_text(f"{self.number} 1 4", encoding="ascii")
        (found,) = Path(f"/sys/bus/netdevsim/devices/netdevsim{self.number}/net").iterdir()
        if found.name != self.interface:
            subprocess.run(["ip", "link", "set", found.name, "down"], check=True)
            subprocess.run(["ip", "link", "set", found.name, "name", self.interface], check=True)
        subprocess.run(["ip", "link", "set", self.interface, "up"], check=True)


def refuse(balancer: Balancer, device: Device) -> None:
    interface = device.interface
    nat = {**WEB, "name": "nat", "forwarding": "dnat", "scheduler": "maglev"}
    beyond = declared(
        interface,
        [nat],
        [{"service": "nat", "address": "10.0.0.9"}],
        unserved="drop",
        filters=[{"prefix": "192.0.2.0/24", "action": "drop"}],
    )
    for check in (True, False):
        words = refusal(balancer, beyond, check)
        expect("what is beyond it, by name", [name for name in BEYOND if name not in words], [])
    device.accept("bpf_map_accept", False)
    words = refusal(balancer, declared(interface, [WEB], [ONE]), True)
    expect("without maps", "the device takes programs, but no maps: Operation not supported" in words, True)
    device.accept("bpf_map_accept", True)
    left = [str(path) for path in (balancer.places.pins, balancer.places.state_directory) if path.exists()]
    expect("left by refusals", (left, in_device(), kernel(interface)), ([], [], ([], [])))


def change(balancer: Balancer, device: Device) -> None:
    interface = device.interface
    maps = ["backends", "control", "counters", "endpoints", "slots"]
    small = declared(interface, [WEB], [ONE, TWO])
    expect("would change", balancer.apply(small, True).changed, True)
    expect("nothing is there yet", (in_device(), kernel(interface)), ([], ([], [])))
    expect("changed", balancer.apply(small, False).changed, True)
    expect("in the device", (in_device(), kernel(interface)), (maps, (["offload"], [interface])))
    first = program_id(interface)
    expect("again", [balancer.apply(small, check).changed for check in (False, True)], [False, False])
    expect("half", half(), 0)
    both = declared(interface, [WEB, TUNNEL], [ONE, OF_TUNNEL])
    outcome = balancer.apply(both, False)
    expect("the other half", (outcome.changed, half(), program_id(interface)), (True, 1, first))
    expect("again", balancer.apply(both, False).changed, False)
    down = BackendKey("web", "10.0.0.11", None)
    balancer.observe(
        observed.Observed({down: False, BackendKey("tunnel", "10.0.0.13", None): True}, frozenset(["web"]))
    )
    expect("health", (half(), program_id(interface)), (0, first))
    info = balancer.info()
    expect("info", [entry["name"] for entry in info["services"]], ["web", "tunnel"])
    expect("problems", (info["program"]["attached"], info["program"]["problems"]), (True, []))

    services = [{**WEB, "name": f"s{number}", "port": 1000 + number} for number in range(20)]
    larger = declared(interface, [WEB, *services], [ONE])
    device.accept("bpf_xdpoffload_accept", False)
    words = refusal(balancer, larger, False)
    print(words)
    expect("refused by the driver", f"offload XDP on {interface} (driver netdevsim)" in words, True)
    expect(
        "as before", (in_device(), kernel(interface), program_id(interface)), (maps, (["offload"], [interface]), first)
    )
    device.accept("bpf_xdpoffload_accept", True)
    expect("still what it was", balancer.apply(both, True).changed, False)
    expect("larger", balancer.apply(larger, False).details["new_maps"], True)
    expect("replaced", (in_device(), kernel(interface)), (maps, (["offload"], [interface])))
    expect("another program", program_id(interface) != first, True)
    subprocess.run(["ip", "link", "set", "dev", interface, "xdpoffload", "off"], check=True)
    expect("put back", balancer.apply(larger, False).changed, True)
    expect("in the device", (in_device(), kernel(interface)), (maps, (["offload"], [interface])))
    device.renew()
    # bpftool fails at programs whose device is gone.
    expect("gone with the device", program_id(interface), 0)
    expect("restored", balancer.restore().changed, True)
    expect("in the device", (in_device(), kernel(interface)), (maps, (["offload"], [interface])))
    words = refusal(balancer, declared(interface, [WEB], [ONE], mode="native"), True)
    expect("another mode", "state: absent" in words, True)
    balancer.remove(check=False)
    left = [str(path) for path in (balancer.places.pins, balancer.places.state_directory) if path.exists()]
    expect("removed", (left, in_device(), kernel(interface)), ([], [], ([], [])))


def main() -> None:
    interface, number = sys.argv[1:]
    balancer = Balancer("offloaded", state.Paths(Path("/sys/fs/bpf/lbops"), Path("/var/lib/lbops")))
    device = Device(number, interface)
    refuse(balancer, device)
    change(balancer, device)
    print("DONE")


if __name__ == "__main__":
    main()
