# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network device as the kernel's link messages and sysfs describe it, followed by its index.

Numbers are those of include/uapi/linux/if_link.h and rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError
from . import netlink
from .netlink import attributes, number, string

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
# family, type, index, flags, change
IFINFOMSG = struct.Struct("=BxHiII")
IFF_UP, IFF_NOARP, IFF_LOWER_UP = 0x1, 0x80, 0x10000

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_QDISC, IFLA_MASTER, IFLA_OPERSTATE, IFLA_LINKINFO = 1, 3, 4, 6, 10, 16, 18
IFLA_LINK = 5
IFLA_XDP, IFLA_MAX_MTU, IFLA_ALT_IFNAME, IFLA_PERM_ADDRESS = 43, 51, 53, 54
IFNAMSIZ = 16
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BOND_MODE = 1
IFLA_BOND_SLAVE_STATE, IFLA_BOND_SLAVE_MII_STATUS, IFLA_BOND_SLAVE_AD_ACTOR_OPER_PORT_STATE = 1, 2, 7
BOND_STATE_ACTIVE, BOND_LINK_UP = 0, 0
# Of the numbers of BOND_MODE_*, as ip(8) writes them.
BOND_MODES = ("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb")
# LACP_STATE_COLLECTING, LACP_STATE_DISTRIBUTING of include/uapi/linux/if_bonding.h
LACP_MOVES_PACKETS = 0x10 | 0x20
IFLA_XDP_ATTACHED, IFLA_XDP_PROG_ID = 2, 4
# RFC 2863, as in include/uapi/linux/if.h
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
LINK_TIMEOUT = 30.0  # seconds; autonegotiation at 10 Gbit/s and more takes several
# Some cards answer first and are reset then, so that the link goes down only after a while.
LINK_STABLE = 2.0  # seconds


@dataclass(frozen=True)
class Link:
    index: int
    name: str
    kind: str  # of virtual devices: bond, veth and the like
    master: int | None
    address: str
    permanent_address: str  # empty if it was made up
    enabled: bool
    carrier: bool
    operstate: str
    mtu: int
    max_mtu: int | None
    xdp_attached: int  # IFLA_XDP_ATTACHED
    xdp_program: int | None
    member_up: bool  # what a bond says of this member; true for all others
    qdisc: str = ""
    lower: int | None = None  # IFLA_LINK: the index of the device that this one is made of; of a veth, its other end
    bond_mode: str = ""  # of a bond

    @property
    def usable(self) -> bool:
        """Dummies and some other virtual devices have no state."""
        return self.operstate in ("up", "unknown") and self.member_up

    @property
    def up(self) -> bool:
        """The state follows the carrier with a delay of up to a second."""
        return self.enabled and self.carrier and self.usable


def _member_up(member: dict[int, bytes]) -> bool:
    if number(member.get(IFLA_BOND_SLAVE_MII_STATUS, b"")) != BOND_LINK_UP:
        return False
    # Of mode 802.3ad only (bond_fill_slave_info()), where a member outside the active aggregator is a backup
    # (__enable_port()).
    lacp = member.get(IFLA_BOND_SLAVE_AD_ACTOR_OPER_PORT_STATE)
    if lacp is None:
        return True
    active = number(member.get(IFLA_BOND_SLAVE_STATE, b"")) == BOND_STATE_ACTIVE
    return active and number(lacp) & LACP_MOVES_PACKETS == LACP_MOVES_PACKETS


def _bond_mode(data: dict[int, bytes]) -> str:
    mode = number(data.get(IFLA_BOND_MODE, b""))
    return BOND_MODES[mode] if mode < len(BOND_MODES) else str(mode)


def parse_link(message: bytes) -> Link:
    _family, _type, index, flags, _change = IFINFOMSG.unpack_from(message)
    found = dict(attributes(message[IFINFOMSG.size :]))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    xdp = dict(attributes(found.get(IFLA_XDP, b"")))
    member_up = True
    if string(info.get(IFLA_INFO_SLAVE_KIND, b"")) == "bond":
        member_up = _member_up(dict(attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))))
    state = number(found.get(IFLA_OPERSTATE, b""))
    kind = string(info.get(IFLA_INFO_KIND, b""))
    return Link(
        index=index,
        name=string(found[IFLA_IFNAME]),
        kind=kind,
        master=number(found[IFLA_MASTER]) if IFLA_MASTER in found else None,
        address=found.get(IFLA_ADDRESS, b"").hex(":"),
        permanent_address=found.get(IFLA_PERM_ADDRESS, b"").hex(":"),
        enabled=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else str(state),
        mtu=number(found.get(IFLA_MTU, b"")),
        max_mtu=number(found.get(IFLA_MAX_MTU, b"")) or None,
        xdp_attached=number(xdp.get(IFLA_XDP_ATTACHED, b"")),
        xdp_program=number(xdp[IFLA_XDP_PROG_ID]) if IFLA_XDP_PROG_ID in xdp else None,
        member_up=member_up,
        qdisc=string(found.get(IFLA_QDISC, b"")),
        lower=number(found[IFLA_LINK]) if IFLA_LINK in found else None,
        bond_mode=_bond_mode(dict(attributes(info.get(IFLA_INFO_DATA, b"")))) if kind == "bond" else "",
    )


def dump() -> list[bytes]:
    """All links, each as the payload of RTM_NEWLINK. Raises OSError."""
    with netlink.Socket(netlink.NETLINK_ROUTE) as route:
        return route.request(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0), netlink.NLM_F_DUMP)


def links() -> list[Link]:
    return [parse_link(payload) for payload in dump()]


def with_bonds(interfaces: Sequence[str]) -> list[str]:
    """These, the members of those that are bonds, and the bonds of those that are members.

    Native XDP on a bond runs on its members. The kernel's routes lead over the bond, and what it gets comes from there.
    """
    found = links()
    bonds = {entry.index: entry for entry in found if entry.kind == "bond"}
    chosen = list(interfaces)
    for entry in found:
        bond = bonds.get(entry.master or 0)
        if bond and bond.name in interfaces:
            chosen.append(entry.name)
        if bond and entry.name in interfaces:
            chosen.append(bond.name)
    return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Device:
    """The index stays when somebody renames the device; the name is the one it had when it was found."""

    index: int
    name: str

    def link(self) -> Link:
        try:
            with netlink.Socket(netlink.NETLINK_ROUTE) as route:
                return parse_link(route.request(RTM_GETLINK, IFINFOMSG.pack(0, 0, self.index, 0, 0))[0])
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise self.gone() from None
            raise

    def exists(self) -> bool:
        return any(index == self.index for index, _name in socket.if_nameindex())

    def gone(self) -> EngineError:
        return EngineError(f"{self.name} went away while it was worked on; apply again once it is back")

    def check_name(self) -> None:
        """Raises EngineError if the device went away or has another name now."""
        try:
            name = socket.if_indextoname(self.index)
        except OSError:
            raise self.gone() from None
        if name != self.name:
            raise EngineError(
                f"{self.name} was renamed to {name} while it was worked on; apply again with the new name"
            )

    def sysfs(self) -> Path | None:
        """Its directory in sysfs; None if the sysfs mounted here is that of another network namespace."""
        directory = Path("/sys/class/net") / self.name
        try:
            index = (directory / "ifindex").read_text(encoding="ascii").strip()
            address = (directory / "address").read_text(encoding="ascii").strip()
        except OSError:
            return None
        return directory if (index, address) == (str(self.index), self.link().address) else None

    def driver(self) -> str | None:
        """The name of the driver; virtual devices have none."""
        directory = self.sysfs()
        link = directory / "device" / "driver" if directory else None
        return os.path.basename(os.path.realpath(link)) if link and link.exists() else None

    def numa_node(self) -> int | None:
        """None if the machine has one node only or the device is virtual."""
        directory = self.sysfs()
        for file in ("device/numa_node", "device/../numa_node"):
            path = directory / file if directory else None
            if path and path.exists():
                node = int(path.read_text(encoding="ascii"))
                return node if node >= 0 else None
        return None

    def members(self) -> list[Device]:
        """The devices below a bond, in the order of their indexes; of any other device it is itself."""
        if self.link().kind != "bond":
            return [self]
        return [Device(link.index, link.name) for link in links() if link.master == self.index]

    def wait_for_link(self, steady: bool = False) -> None:
        """Raises EngineError if the link does not come up again, or if it is to be steady, does not stay so."""
        since, stable = None, LINK_STABLE if steady else 0.0
        deadline = time.monotonic() + LINK_TIMEOUT + stable
        while True:
            now = time.monotonic()
            if not self.link().up:
                since = None
            elif since is None:
                since = now
            if since is not None and now - since >= stable:
                return
            if now > deadline:
                raise EngineError(
                    f"the link of {self.name} did not come up within {LINK_TIMEOUT:.0f} s after the change, or not for "
                    "long; look at the cable and the switch port, or apply the result's rollback"
                )
            time.sleep(0.1)


def missing(interface: str) -> EngineError:
    known = ", ".join(name for _index, name in socket.if_nameindex())
    return EngineError(f"interface {interface!r} does not exist; this host has {known}")


def find(interface: str) -> Device:
    """By name or alternative name. Raises EngineError if there is no such device."""
    # A request by name also finds alternative ones, unless they are too long for it.
    kind = IFLA_IFNAME if len(interface) < IFNAMSIZ else IFLA_ALT_IFNAME
    try:
        with netlink.Socket(netlink.NETLINK_ROUTE) as route:
            request = IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(kind, interface)
            link = parse_link(route.request(RTM_GETLINK, request)[0])
        return Device(link.index, link.name)
    except OSError:
        raise missing(interface) from None
