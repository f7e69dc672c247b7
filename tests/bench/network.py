# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the benchmarks of the data plane run: one CPU, and a network namespace with routes and neighbours."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link

from tests.bench import scenes
from tests.bench.scenes import mac_of, mac_of6
from tests.packet import reference
from tests.support import namespace

INTERFACE, PEER = "lb", "peer"


def resolve(address: str) -> reference.Hop | str:
    """Returns the next hop that the namespace's tables have for an address."""
    if address in (scenes.CLIENT, scenes.CLIENT6):
        address = scenes.ROUTER
    mac = mac_of6(address) if ":" in address else mac_of(address)
    return reference.Hop(socket.if_nametoindex(INTERFACE), _packed(mac), _packed(mac_of(scenes.BALANCER)))


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _ip(commands: list[str], *options: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write("\n".join(commands) + "\n")
        file.flush()
        subprocess.run(["ip", *options, "-batch", file.name], check=True)


@contextmanager
def private_network(attach: bool = True) -> Iterator[int]:
    """Enter a network namespace in which FIB and neighbour tables know all hosts; yields the balancer's interface.

    A veth registers its receive queues only while it carries an XDP program; with `attach` it gets one.
    """
    with namespace.private("net"):
        _fill()
        if attach:
            _attach_pass()
        yield socket.if_nametoindex(INTERFACE)


def _fill() -> None:
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("1", encoding="ascii")
    hosts = [scenes.ROUTER, *(address for number in range(8) for address in scenes.backend_addresses(4, number))]
    hosts6 = [scenes.ROUTER6, *scenes.backend_addresses(6)]
    _ip(
        [
            f"link add {INTERFACE} address {mac_of(scenes.BALANCER)} type veth peer name {PEER}",
            f"link add {scenes.OUT} type veth peer name out-peer",
            f"address add {scenes.BALANCER}/16 dev {INTERFACE}",
            f"address add {scenes.BALANCER6}/64 dev {INTERFACE} nodad",
            *(f"link set {name} up" for name in (INTERFACE, PEER, scenes.OUT, "out-peer")),
            f"route add default via {scenes.ROUTER}",
            *(f"neigh add {host} lladdr {mac_of(host)} nud permanent dev {INTERFACE}" for host in hosts),
            *(f"neigh add {host} lladdr {mac_of6(host)} nud permanent dev {INTERFACE}" for host in hosts6),
        ]
    )
    _ip([f"route add default via {scenes.ROUTER6}"], "-6")


def _attach_pass() -> None:
    program = bpf.program_load("pass", bpf.PASS_PROGRAM)
    try:
        link.attach(INTERFACE, program, "native", None)
    finally:
        os.close(program)


@contextmanager
def pinned_to_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
