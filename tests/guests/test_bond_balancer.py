# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer by a bond's members, and by the bond: the client and the backends beside the guest are behind the bond.

Next hops are the kernel's, whose routes lead over the bond, or given by their Ethernet addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.guests.conftest import GUESTS, Guests
from tests.guests.data0 import ASKER
from tests.support.batch import Task
from tests.vm import network

BOND, MEMBERS, ADDRESSES = "bond8", ["igb0", "igb1"], ("10.77.1.1/24", "10.77.2.1/24")
BACKENDS = {peer.name: peer.address.partition("/")[0] for peer in network.PEERS if peer.backend}
DNAT = {"address": "10.77.0.10", "port": 7}
# What has the features of the inventory's services has the same program.
SERVICES = [
    {"name": "udp", "protocol": "udp", **DNAT},
    {"name": "tcp", "protocol": "tcp", **DNAT},
    {"name": "dsr", "address": network.DSR_VIP, "protocol": "udp", "port": 8080, "forwarding": "dsr"},
]
FLOWS = 40
NAME, OTHER = "bond", "other"
ACTIVE = f"cat /sys/class/net/{BOND}/bonding/active_slave"


def rewire(guests: Guests, bond: bool) -> None:
    """Let the client and the backends have the bond's members in place of data0, or data0 again."""
    taps = {"data0": not bond, **dict.fromkeys(MEMBERS, bond)}
    steps = [f"ip link set {tap} {'master data' if joined else 'nomaster'}" for tap, joined in taps.items()]
    for guest in GUESTS:
        guests.beside(guest, network.FABRIC, "; ".join(steps))
        for peer in network.PEERS:
            guests.beside(guest, peer.name, "ip neighbour flush dev data0")


def add_addresses(device: str) -> str:
    return "; ".join(f"ip address add {address} dev {device}" for address in ADDRESSES)


def make_bond(mode: str) -> str:
    """What makes the bond."""
    join = "ip link set {0} down && ip link set {0} master {1} && ip link set {0} up"
    return " && ".join(
        [
            f"ip link add {BOND} type bond mode {mode} miimon 50",
            *(join.format(member, BOND) for member in MEMBERS),
            f"ip link set {BOND} up",
        ]
    )


REMOVE_BOND = "; ".join([f"ip link del {BOND}", *(f"ip link set {member} up" for member in MEMBERS)])
# Attaching a program resets such a card.
UP = f"[ $(grep -c 'MII Status: up' /proc/net/bonding/{BOND}) = {1 + len(MEMBERS)} ]"
ALL_UP = f"for i in $(seq 200); do {UP} && exit; sleep 0.2; done; cat /proc/net/bonding/{BOND} >&2; false"


@pytest.fixture(scope="module")
def wired(guests: Guests) -> Iterator[None]:
    rewire(guests, bond=True)
    guests.each(
        f"ip -4 address flush dev data0; {make_bond('active-backup')} && {{ {add_addresses(BOND)}; {ALL_UP}; }}"
    )
    yield
    guests.each(f"{REMOVE_BOND}; {add_addresses('data0')}")
    rewire(guests, bond=False)


def document(guests: Guests, name: str, interfaces: list[str], macs: bool) -> Task:
    backends = []
    for peer, address in BACKENDS.items():
        shown = {guest: guests.beside(guest, peer, "ip -j link show dev data0") for guest in GUESTS}
        known = {guest: json.loads(text)[0]["address"] for guest, text in shown.items()}
        for service in SERVICES:
            mac = {"mac": f"{{{{ {json.dumps(known)}[inventory_hostname] }}}}"} if macs else {}
            port = {"port": 8080} if service.get("forwarding") != "dsr" else {}
            backends.append({"service": service["name"], "address": address, **port, **mac})
    arguments = {"balancer": name, "interfaces": interfaces, "mode": "auto", "services": SERVICES, "backends": backends}
    return Task("xdp_balancer", arguments)


def assert_answers(guests: Guests, guest: str) -> None:
    """Both backends answer every flow; what they get and what they send goes through the balancer on the bond."""
    for service in SERVICES:
        command = ("python3", ASKER, service["address"], service["port"], service["protocol"], FLOWS, 100, 0)
        found = json.loads(guests.client(guest, *map(str, command)))
        assert {answer[0] for answer in found} == set(BACKENDS), (service["name"], found)


INFO = Task("xdp_info", {"balancer": NAME})


def forwarded(info: dict) -> list[int]:
    """The packets of each service, and the replies of those whose replies come back through the balancer."""
    counts = [entry["packets"] for entry in info["services"]]
    return counts + [entry["reply_packets"] for entry in info["services"] if entry["name"] != "dsr"]


def native(guests: Guests, guest: str) -> list[str]:
    """The interfaces on whose driver's hook there is a program, according to ip(8)."""
    shown = json.loads(guests.ssh(guest, "ip -d -j link show"))
    return sorted(
        entry["ifname"] for entry in shown if entry.get("xdp", {}).get("mode") == 1 and entry["ifname"] != "data0"
    )


def test_a_bond_that_takes_no_packets_from_native_programs(guests: Guests):
    """Before those that use the fixture, which makes the same bond."""
    guests.each(make_bond("balance-alb"))
    try:
        asked = document(guests, OTHER, MEMBERS, macs=True)
        words = f"over {BOND}, which takes no packets from native XDP on igb0 (its mode is balance-alb); attach"
        for guest, refused in guests.run(asked, Task(asked.module, asked.arguments, check=True)).items():
            assert all(words in result["msg"] for result in refused), refused
            assert not native(guests, guest)
        guests.each(f"! ls -d /var/lib/lbops/{OTHER} /sys/fs/bpf/lbops/{OTHER}")
    finally:
        guests.each(REMOVE_BOND)


@pytest.fixture(scope="module", params=[MEMBERS, [BOND]], ids=["members", "bond"])
def interfaces(request: pytest.FixtureRequest, guests: Guests, wired: None) -> Iterator[list[str]]:
    """Those that the balancer has."""
    # Compiling takes an emulated processor a minute.
    kept = "/var/lib/lbops/{}/compiled"
    guests.each(f"mkdir -p {kept.format(NAME)}; cp {kept.format('main')}/* {kept.format(NAME)}")
    for guest, (applied,) in guests.run(document(guests, NAME, request.param, macs=False)).items():
        assert not applied.get("failed"), (guest, applied)
        assert not applied["compiled"] and native(guests, guest) == sorted(request.param)
    guests.each(ALL_UP)
    yield request.param
    guests.run(Task("xdp_balancer", {"balancer": NAME, "state": "absent"}))
    assert not any(native(guests, guest) for guest in GUESTS)


@pytest.mark.parametrize("macs", [False, True], ids=["kernel", "mac"])
def test_packets_go_both_ways(guests: Guests, interfaces: list[str], macs: bool):
    before = guests.run(document(guests, NAME, interfaces, macs), INFO)
    for guest, (applied, _info) in before.items():
        assert not applied.get("failed") and applied["changed"] is macs, (guest, applied)
        # The settings of the balancer's interfaces have to do.
        assert guests.ssh(guest, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.default.forwarding").split() == ["0", "0"]
        assert_answers(guests, guest)
        # The other member goes on.
        active = guests.ssh(guest, ACTIVE)
        guests.ssh(guest, f"ip link set {active} down")
        assert guests.ssh(guest, ACTIVE) != active
        assert_answers(guests, guest)
        guests.ssh(guest, f"ip link set {active} up; {ALL_UP}")
    for guest, (info,) in guests.run(INFO).items():
        grown = [now - then for now, then in zip(forwarded(info), forwarded(before[guest][1]))]
        assert min(grown) >= 2 * FLOWS, (guest, grown)


def test_no_other_balancer_has_what_belongs_to_the_bond(guests: Guests, interfaces: list[str]):
    """The kernel would take the second program on another hook."""
    again = f"interface {{}} is in balancer {NAME} already"
    related = f"is a member of bond {BOND}, which is in balancer "
    tasks, words = [], []
    for taken in (BOND, MEMBERS[0]):
        asked = document(guests, OTHER, [taken], macs=False)
        tasks += [asked, Task(asked.module, asked.arguments, check=True)]
        words += 2 * [again.format(taken) if taken in interfaces else related]
    for results in guests.run(*tasks).values():
        for result, expected in zip(results, words):
            assert expected in result["msg"], result
    guests.each(f"! ls -d /var/lib/lbops/{OTHER} /sys/fs/bpf/lbops/{OTHER}")
