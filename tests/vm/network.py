# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of one guest, in namespaces of their own: the guest's taps, a client and two backends.

Every guest has the same addresses and sees only its own client and backends:

    client 10.77.1.10 --+                  10.77.1.1
                        +-- bridge -- tap -- data0, the balancer
    be1, be2 10.77.2.11 +                  10.77.2.1
    and 10.77.2.12

A namespace is a mount on a file, so nothing of it is left when the file is unmounted and no process uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.vm.common import run

# The namespace with the guest's taps and QEMU itself.
FABRIC = "fabric"
DSR_VIP = "10.77.0.130"
MANAGEMENT_ADDRESS = "10.0.2.2/24"
DATA_TAP, DATA_QUEUES = "data0", 8
# Of taps that are not on the bridge, the guest's interfaces have a link and nobody to talk to.
SINGLE_QUEUE_TAPS = ("mgmt0", "igb0", "vmx0", "igb1")
DSR_TABLE = "100"


@dataclass(frozen=True)
class Peer:
    """A host beside the guest."""

    name: str
    address: str
    routes: tuple[str, ...]
    backend: bool


PEERS = (
    Peer("client", "10.77.1.10/24", ("10.77.0.0/24 via 10.77.1.1",), False),
    *(
        Peer(name, address, ("10.77.1.0/24 via 10.77.2.1", f"10.77.1.0/24 dev data0 table {DSR_TABLE}"), True)
        for name, address in (("be1", "10.77.2.11/24"), ("be2", "10.77.2.12/24"))
    ),
)


def inside(directory: Path, namespace: str) -> tuple[str, ...]:
    """What to put before a command to run it in a namespace."""
    return ("nsenter", f"--net={directory / namespace}")


def _ip(directory: Path, namespace: str, *commands: str) -> None:
    run(*inside(directory, namespace), "ip", "-batch", "-", input="\n".join(commands) + "\n")


def _sysctl(directory: Path, namespace: str, *settings: str) -> None:
    run(*inside(directory, namespace), "sysctl", "--quiet", "--ignore", "--write", *settings)


def _make_fabric(directory: Path) -> None:
    # A firewall of the machine that looks at bridged frames is none of ours.
    _sysctl(
        directory, FABRIC, *(f"net.bridge.bridge-nf-call-{hook}=0" for hook in ("arptables", "iptables", "ip6tables"))
    )
    _ip(
        directory,
        FABRIC,
        "link set lo up",
        "link add data type bridge mcast_snooping 0",
        "link set data addrgenmode none up",
        f"tuntap add {DATA_TAP} mode tap multi_queue",
        *(f"tuntap add {tap} mode tap" for tap in SINGLE_QUEUE_TAPS),
        f"link set {DATA_TAP} master data",
        *(f"link set {tap} up" for tap in (DATA_TAP, *SINGLE_QUEUE_TAPS)),
        f"address add {MANAGEMENT_ADDRESS} dev mgmt0",
    )


def _join(directory: Path, peer: Peer) -> None:
    outer = f"{peer.name}-data0"
    _ip(directory, FABRIC, f"link add {outer} type veth peer name data0 netns {directory / peer.name}")
    _ip(directory, FABRIC, f"link set {outer} master data addrgenmode none up")
    # Unfinished checksums would be part of the frame's contents to native XDP.
    run(*inside(directory, peer.name), "ethtool", "-K", "data0", "tx", "off")
    _ip(
        directory,
        peer.name,
        "link set lo up",
        f"address add {peer.address} dev data0",
        "link set data0 up",
        *(f"route add {route}" for route in peer.routes),
    )
    if peer.backend:
        _ip(
            directory,
            peer.name,
            f"address add {DSR_VIP}/32 dev lo",
            f"rule add from {DSR_VIP} table {DSR_TABLE}",
        )
        _sysctl(directory, peer.name, "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")


def up(directory: Path) -> None:
    directory.mkdir()
    for namespace in (FABRIC, *(peer.name for peer in PEERS)):
        (directory / namespace).touch()
        run("unshare", f"--net={directory / namespace}", "true")
    _make_fabric(directory)
    for peer in PEERS:
        _join(directory, peer)


def down(directory: Path) -> None:
    """Whatever there is of it."""
    for path in directory.glob("*"):
        run("umount", "--lazy", path, check=False)
        path.unlink()
    if directory.exists():
        directory.rmdir()
