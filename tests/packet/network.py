# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace of one's own, in which the kernel's tables are known in full."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.packet import reference
from tests.packet.reference import Hop

CLONE_NEWNET = 0x40000000

# The interface that frames arrive on, and another one that some backends are behind.
FRONT, BACK = "front", "back"
FRONT_MAC, BACK_MAC = "02:00:00:00:00:fe", "02:00:00:00:01:fe"
FRONT_ADDRESS, BACK_ADDRESS = "10.0.0.254", "10.0.1.254"
# The next hop of everything that is not on one of the two networks.
ROUTER, ROUTER_MAC = "10.0.0.253", "02:00:00:00:00:fd"
# 10.0.0.n and 10.0.1.n have neighbour entries for n up to here, the rest have none.
NEIGHBOURS = 200
UNRESOLVED, UNRESOLVED_BACK = "10.0.0.230", "10.0.1.230"
PROHIBITED, BLACKHOLE, UNREACHABLE = "172.16.1.1", "172.16.2.1", "172.16.3.1"
REFUSED = {PROHIBITED: "prohibit", BLACKHOLE: "blackhole", UNREACHABLE: "unreachable"}

_libc = ctypes.CDLL(None, use_errno=True)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def neighbour_mac(network: int, host: int) -> str:
    return f"02:00:00:00:{network:02x}:{host:02x}"


def _check(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def private_namespace() -> Iterator[None]:
    """This thread in a new network namespace, which vanishes with everything in it on return."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


def ip(*commands: str) -> None:
    """One `ip` for all of these commands."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def set_forwarding(enabled: bool) -> None:
    """The kernel asks the interface that a packet arrives on."""
    Path(f"/proc/sys/net/ipv4/conf/{FRONT}/forwarding").write_text("1" if enabled else "0", encoding="ascii")


@dataclass(frozen=True)
class Network:
    front: int
    back: int

    def resolve(self, address: str) -> Hop | str:
        """What the kernel is configured to answer."""
        octets = [int(octet) for octet in address.split(".")]
        if address in REFUSED:
            return reference.REFUSED
        if octets[0] == 127 or address in (FRONT_ADDRESS, BACK_ADDRESS, "10.0.0.255", "10.0.1.255"):
            return reference.NOT_FORWARDED
        if octets[:3] not in ([10, 0, 0], [10, 0, 1]):
            return Hop(self.front, mac(ROUTER_MAC), mac(FRONT_MAC))
        network, host = octets[2:]
        if address != ROUTER and not 1 <= host <= NEIGHBOURS:
            return reference.UNRESOLVED
        if network:
            return Hop(self.back, mac(neighbour_mac(network, host)), mac(BACK_MAC))
        return Hop(self.front, mac(neighbour_mac(network, host)), mac(FRONT_MAC))


@contextmanager
def network() -> Iterator[Network]:
    with private_namespace():
        ip(
            "link set lo up",
            f"link add {FRONT} address {FRONT_MAC} type veth peer name front-peer",
            f"link add {BACK} address {BACK_MAC} type veth peer name back-peer",
            *(f"link set {name} up" for name in (FRONT, "front-peer", BACK, "back-peer")),
            f"address add {FRONT_ADDRESS}/24 dev {FRONT}",
            f"address add {BACK_ADDRESS}/24 dev {BACK}",
            f"route add default via {ROUTER}",
            *(f"route add {kind} {address}/32" for address, kind in REFUSED.items()),
            f"neighbour add {ROUTER} lladdr {ROUTER_MAC} dev {FRONT} nud permanent",
            *(
                f"neighbour add 10.0.{number}.{host} lladdr {neighbour_mac(number, host)} dev {name} nud permanent"
                for number, name in enumerate((FRONT, BACK))
                for host in range(1, NEIGHBOURS + 1)
            ),
        )
        set_forwarding(True)
        yield Network(socket.if_nametoindex(FRONT), socket.if_nametoindex(BACK))
