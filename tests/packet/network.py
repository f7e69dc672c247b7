# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace of one's own, in which the kernel's tables are known in full."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.packet import reference
from tests.packet.reference import Hop
from tests.support import namespace

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
# The same over IPv6: fd00:0::n and fd00:0:0:1::n.
PREFIXES6 = ["fd00:0:0:0::", "fd00:0:0:1::"]
FRONT_ADDRESS6, BACK_ADDRESS6 = "fd00::fe", "fd00:0:0:1::fe"
ROUTER6 = "fd00::fd"
UNRESOLVED6, UNRESOLVED_BACK6 = "fd00::e6", "fd00:0:0:1::e6"
PROHIBITED6, BLACKHOLE6 = "2001:db8:bad::1", "2001:db8:bad::2"
REFUSED6 = {PROHIBITED6: "prohibit", BLACKHOLE6: "blackhole"}
# Behind the router, where the path is narrow.
NARROW, NARROW6, NARROW_MTU = "172.16.9.1", "2001:db8:9::1", 1400
# Narrower than IPv6 allows, and so narrow that a tunnel's header leaves less than IPv4 asks for.
TIGHT, TIGHT6, TIGHT_MTU = "172.16.9.2", "2001:db8:9::2", 1000
TINY, TINY_MTU = "172.16.9.3", 70
ROUTE_MTUS = {NARROW: NARROW_MTU, NARROW6: NARROW_MTU, TIGHT: TIGHT_MTU, TIGHT6: TIGHT_MTU, TINY: TINY_MTU}


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def neighbour_mac(network: int, host: int) -> str:
    return f"02:00:00:00:{network:02x}:{host:02x}"


def ip(*commands: str) -> None:
    """One `ip` for all of these commands, and one for those of IPv6 that have to say so."""
    for options in ([], ["-6"]):
        chosen = [command.removeprefix("-6 ") for command in commands if command.startswith("-6 ") == bool(options)]
        if chosen:
            subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(chosen), text=True, check=True)


def write_setting(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(str(value), encoding="ascii")


def set_forwarding(enabled: bool) -> None:
    """The kernel asks the interface that a packet arrives on."""
    for family in ("ipv4", "ipv6"):
        for name in (FRONT, BACK):
            write_setting(f"{family}/conf/{name}/forwarding", int(enabled))


@dataclass(frozen=True)
class Network:
    front: int
    back: int

    def interface_to(self, address: str) -> int | None:
        """Where the route to an address leads, whether or not there is a neighbour."""
        hop = self.resolve(address)
        if isinstance(hop, Hop):
            return hop.interface
        if hop != reference.UNRESOLVED:
            return None
        packed = ipaddress.ip_address(address).packed
        return self.back if packed[2 if len(packed) == 4 else 7] else self.front

    def resolve(self, address: str) -> Hop | str:
        """What the kernel is configured to answer."""
        address = str(ipaddress.ip_address(address))
        if address in REFUSED or address in REFUSED6:
            return reference.REFUSED
        return self._resolve6(address) if ":" in address else self._resolve4(address)

    def _resolve4(self, address: str) -> Hop | str:
        octets = [int(octet) for octet in address.split(".")]
        if octets[0] == 127 or address in (FRONT_ADDRESS, BACK_ADDRESS, "10.0.0.255", "10.0.1.255"):
            return reference.NOT_FORWARDED
        if octets[:3] not in ([10, 0, 0], [10, 0, 1]):
            return self._router(address)
        return self._neighbour(octets[2], octets[3], address == ROUTER)

    def _resolve6(self, address: str) -> Hop | str:
        packed = ipaddress.ip_address(address).packed
        if address in ("::1", FRONT_ADDRESS6, BACK_ADDRESS6) or packed in _ANYCAST or packed[0] == 0xFF:
            return reference.NOT_FORWARDED
        if packed[:8] not in _NETWORKS6:
            return self._router(address)
        if any(packed[8:15]):
            return reference.UNRESOLVED
        return self._neighbour(packed[7], packed[15], address == ROUTER6)

    def _router(self, address: str) -> Hop:
        return Hop(self.front, mac(ROUTER_MAC), mac(FRONT_MAC), ROUTE_MTUS.get(address, 1500), on_link=False)

    def _neighbour(self, network: int, host: int, is_router: bool) -> Hop | str:
        if not is_router and not 1 <= host <= NEIGHBOURS:
            return reference.UNRESOLVED
        if network:
            return Hop(self.back, mac(neighbour_mac(network, host)), mac(BACK_MAC))
        return Hop(self.front, mac(ROUTER_MAC if is_router else neighbour_mac(network, host)), mac(FRONT_MAC))


_NETWORKS6 = [ipaddress.ip_address(prefix).packed[:8] for prefix in PREFIXES6]
# A router answers for the first address of each of its networks.
_ANYCAST = [network + bytes(8) for network in _NETWORKS6]


@contextmanager
def network() -> Iterator[Network]:
    with namespace.private("net"):
        for name in ("default", "all"):
            write_setting(f"ipv6/conf/{name}/accept_dad", 0)
            write_setting(f"ipv6/conf/{name}/router_solicitations", 0)
        ip(
            "link set lo up",
            f"link add {FRONT} address {FRONT_MAC} type veth peer name front-peer",
            f"link add {BACK} address {BACK_MAC} type veth peer name back-peer",
            *(f"link set {name} up" for name in (FRONT, "front-peer", BACK, "back-peer")),
            f"address add {FRONT_ADDRESS}/24 dev {FRONT}",
            f"address add {BACK_ADDRESS}/24 dev {BACK}",
            f"route add default via {ROUTER}",
            f"address add {FRONT_ADDRESS6}/64 dev {FRONT} nodad",
            f"address add {BACK_ADDRESS6}/64 dev {BACK} nodad",
            f"-6 route add default via {ROUTER6}",
            *(
                f"-6 route add {address}/128 via {ROUTER6} mtu lock {mtu}"
                if ":" in address
                else f"route add {address}/32 via {ROUTER} mtu lock {mtu}"
                for address, mtu in ROUTE_MTUS.items()
            ),
            *(f"route add {kind} {address}/32" for address, kind in REFUSED.items()),
            *(f"-6 route add {kind} {address}/128" for address, kind in REFUSED6.items()),
            f"neighbour add {ROUTER} lladdr {ROUTER_MAC} dev {FRONT} nud permanent",
            f"neighbour add {ROUTER6} lladdr {ROUTER_MAC} dev {FRONT} nud permanent",
            *(
                f"neighbour add {prefix}{host:x} lladdr {neighbour_mac(number, host)} dev {name} nud permanent"
                for number, (name, prefix) in enumerate(zip((FRONT, BACK), PREFIXES6))
                for host in range(1, NEIGHBOURS + 1)
            ),
            *(
                f"neighbour add 10.0.{number}.{host} lladdr {neighbour_mac(number, host)} dev {name} nud permanent"
                for number, name in enumerate((FRONT, BACK))
                for host in range(1, NEIGHBOURS + 1)
            ),
        )
        set_forwarding(True)
        yield Network(socket.if_nametoindex(FRONT), socket.if_nametoindex(BACK))
