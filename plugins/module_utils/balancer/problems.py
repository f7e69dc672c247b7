# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a balancer does not forward on every one of its interfaces, in sentences for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.model import Config
from .document import addresses_of_kernel
from .state import State

SETTINGS = Path("/proc/sys/net")
# The program finds the next hop of the client that a reply goes to in the kernel's tables.
REPLIES_COME_BACK = ("dnat", "full_nat")


def find(name: str, current: State, interfaces: list[dict[str, Any]]) -> list[str]:
    """Returns one sentence for each problem; none for a balancer that was detached on purpose.

    `interfaces`: what reader.interface_facts() says of each.
    """
    if not current.document.settings.attached:
        return []
    families = _kernel_families(current.config)
    found = []
    for facts in interfaces:
        interface = facts["interface"]
        if not facts["present"]:
            found.append(
                f"interface {interface} does not exist: it was removed or renamed; lbops-watch@{name} attaches the "
                "program once it is back"
            )
            continue
        if not facts["attached"]:
            found.append(
                f"interface {interface}: the program is not attached; systemctl restart lbops-restore@{name} puts it "
                "back"
            )
        if not facts["up"]:
            found.append(f"interface {interface} is down; bring up its link")
        found += [_forwarding_problem(interface, family) for family in families if not _forwards(interface, family)]
    return found


def _kernel_families(config: Config) -> list[str]:
    """The address families in which the program asks the kernel's tables for next hops."""
    addresses = addresses_of_kernel(config.backends.values())
    served = {key.service for key, backend in config.backends.items() if not backend.local}
    addresses += [
        service.address
        for service in config.services.values()
        if service.forwarding in REPLIES_COME_BACK and service.name in served
    ]
    return sorted({"ipv6" if ":" in address else "ipv4" for address in addresses})


def _forwards(interface: str, family: str) -> bool:
    """bpf_fib_lookup() refuses packets that arrive on an interface whose forwarding is off (net/core/filter.c)."""
    try:
        return (SETTINGS / family / "conf" / interface / "forwarding").read_text(encoding="ascii").strip() != "0"
    except OSError:
        # The interface has just gone, or has no addresses of this family.
        return False


def _forwarding_problem(interface: str, family: str) -> str:
    setting = f"net.{family}.conf.{interface}.forwarding"
    return (
        f"interface {interface}: {setting} is not 1, so the kernel names no next hop for packets that arrive there; "
        f"sysctl -w {setting}=1"
    )
