# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The outer side of a lab's networks: a bridge for management with a way to the package mirror, and one for data."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from pathlib import Path

from common import Lab, LabError, run

MANAGEMENT_POOL = ipaddress.ip_network("10.213.0.0/16")
INTERFACES = Path("/sys/class/net")
DATA_BRIDGE = "data"


def routed_networks(ignore_interface: str) -> list[ipaddress.IPv4Network]:
    routes = json.loads(run("ip", "-4", "-json", "route", "show").stdout)
    return [
        ipaddress.ip_network(route["dst"])
        for route in routes
        if route["dst"] != "default" and route.get("dev") != ignore_interface
    ]


def choose_subnet(lab: Lab, remembered: str | None) -> str:
    """A /24 nobody routes: the remembered one if still free, else the first from a place the lab's digest gives."""
    taken = routed_networks(lab.management_bridge)
    subnets = list(MANAGEMENT_POOL.subnets(new_prefix=24))
    start = int(lab.digest[:8], 16) % len(subnets)
    candidates = subnets[start:] + subnets[:start]
    if remembered:
        candidates.insert(0, ipaddress.ip_network(remembered))
    for candidate in candidates:
        if not any(candidate.overlaps(network) for network in taken):
            return str(candidate)
    raise LabError(f"no free /24 for the management link in {MANAGEMENT_POOL}")


def default_interface() -> str:
    routes = json.loads(run("ip", "-4", "-json", "route", "show", "default").stdout)
    if not routes:
        raise LabError("this machine has no IPv4 default route; the hosts would not reach the package mirror")
    return routes[0]["dev"]


def forwarding_switch(interface: str) -> Path:
    return Path("/proc/sys/net/ipv4/conf") / interface / "forwarding"


def recorded_forwarding() -> dict[str, str]:
    """What running labs remember in their bridges' aliases: uplinks and their switches' values before any lab came."""
    records = {}
    for path in INTERFACES.iterdir():
        if re.fullmatch(r"l[0-9a-f]{5}-mgmt", path.name):
            with contextlib.suppress(OSError):
                records.update(word.split("=") for word in (path / "ifalias").read_text().split() if "=" in word)
    return records


def forwarding_before(remembered: dict[str, str]) -> dict[str, str]:
    uplink = default_interface()
    return {uplink: forwarding_switch(uplink).read_text().strip(), **remembered, **recorded_forwarding()}


def ensure_management_bridge(lab: Lab, address: str) -> bool:
    name = lab.management_bridge
    if (INTERFACES / name).exists() and f" {address} " in run(
        "ip", "-oneline", "-4", "address", "show", "dev", name
    ).stdout:
        return False
    run("ip", "link", "delete", name, check=False)
    # A fixed address keeps the bridge from taking over the lowest one of its ports, which come and go.
    run("ip", "link", "add", name, "address", lab.mac(name), "type", "bridge", "mcast_snooping", "0")
    run("ip", "link", "set", name, "addrgenmode", "none")
    run("ip", "address", "add", address, "dev", name)
    run("ip", "link", "set", name, "up")
    return True


def ensure_data_bridge(lab: Lab) -> bool:
    """The data bridge has a network namespace to itself.

    On a bridge beside the machine's own interfaces, frames would pass the machine's firewall and connection tracking
    (br_netfilter), which drop and change some.
    """
    namespace = lab.data_network
    inside = ("nsenter", f"--net={namespace}")
    if run(*inside, "ip", "link", "show", DATA_BRIDGE, check=False).returncode == 0:
        return False
    run("umount", "--lazy", namespace, check=False)
    namespace.touch()
    run("unshare", f"--net={namespace}", "true")
    for hook in ("arptables", "iptables", "ip6tables"):
        run(*inside, "sysctl", "--quiet", "--ignore", "--write", f"net.bridge.bridge-nf-call-{hook}=0")
    run(
        *inside,
        "ip",
        "link",
        "add",
        DATA_BRIDGE,
        "address",
        lab.mac(DATA_BRIDGE),
        "type",
        "bridge",
        "mcast_snooping",
        "0",
    )
    run(*inside, "ip", "link", "set", DATA_BRIDGE, "addrgenmode", "none", "up")
    return True


def ensure_masquerade(lab: Lab, subnet: str) -> bool:
    rule = f'ip saddr {subnet} oifname != "{lab.management_bridge}" masquerade'
    if rule in run("nft", "list", "table", "ip", lab.nft_table, check=False).stdout:
        return False
    run(
        "nft",
        "-f",
        "-",
        input=(
            f"table ip {lab.nft_table}\ndelete table ip {lab.nft_table}\n"
            f"table ip {lab.nft_table} {{\n"
            f"  chain postrouting {{ type nat hook postrouting priority srcnat; {rule}; }}\n"
            "}\n"
        ),
    )
    return True


def ensure_forwarding(lab: Lab, before: dict[str, str]) -> bool:
    """Forward on two interfaces only; the machine's own ip_forward stays as it is."""
    (INTERFACES / lab.management_bridge / "ifalias").write_text(
        " ".join(f"{uplink}={value}" for uplink, value in before.items())
    )
    changed = False
    for interface in (default_interface(), lab.management_bridge):
        switch = forwarding_switch(interface)
        if switch.read_text().strip() != "1":
            switch.write_text("1")
            changed = True
    return changed


def up(lab: Lab, state: dict) -> bool:
    subnet = state["subnet"]
    gateway = next(ipaddress.ip_network(subnet).hosts())
    return any(
        [
            ensure_management_bridge(lab, f"{gateway}/24"),
            ensure_data_bridge(lab),
            ensure_masquerade(lab, subnet),
            ensure_forwarding(lab, state["forwarding_before"]),
        ]
    )


def down(lab: Lab) -> bool:
    before = {**lab.read_state().get("forwarding_before", {}), **recorded_forwarding()}
    mine = [path.name for path in INTERFACES.iterdir() if path.name.startswith(f"{lab.id}-")]
    for name in mine:
        # The peer of a veth goes with it.
        run("ip", "link", "delete", name, check=False)
    still_needed = recorded_forwarding()
    for uplink, value in before.items():
        if uplink not in still_needed and forwarding_switch(uplink).exists():
            forwarding_switch(uplink).write_text(value)
    table = run("nft", "delete", "table", "ip", lab.nft_table, check=False)
    return bool(mine) or table.returncode == 0
