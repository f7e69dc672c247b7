# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets arrive at every step of changes that are killed, and of those after them: each counts for what it belongs to.

Services, backends and filters have addresses of their own, so what a packet belongs to is known without any table; the
tables say where it is counted. No service, backend or filter has more packets than belong to it, and one that is in all
documents has all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document
from ansible_collections.lbops.xdp.plugins.module_utils.config.filters import FilterKey
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey

from .memory_tables import CPUS, INTERFACES, WITHIN, Map, Snapshot
from .packet_model import LivePackets, Packet, words
from .test_transaction import PLAIN, SIZES, Host, moments, parse
from .test_transaction import host as host_in_memory

host = host_in_memory
NAMES = "abcdef"


def document(services: str, filters: str, **settings: object) -> dict:
    """With these services, two backends each, and these filters."""
    return {
        **PLAIN,
        "services": [
            {"name": name, "address": vip(name), "protocol": "tcp", "port": 80, "scheduler": "hash"}
            for name in services
        ],
        "backends": [{"service": name, "address": address} for name in services for address in backend_addresses(name)],
        "filters": [{"prefix": f"{prefix(name)}.0/24", "action": "drop"} for name in filters],
        **settings,
    }


def vip(name: str) -> str:
    return f"192.0.2.{1 + NAMES.index(name)}"


def backend_addresses(name: str) -> list[str]:
    return [f"10.0.{NAMES.index(name)}.{number}" for number in (1, 2)]


def prefix(name: str) -> str:
    return f"198.18.{NAMES.index(name)}"


TO_SERVICES = {
    name: [Packet("203.0.113.9", vip(name), "tcp", port, 80) for port in range(1000, 1006)] for name in NAMES
}
TO_FILTERS = {name: Packet(f"{prefix(name)}.7", "192.0.2.99", "tcp", 5, 80) for name in NAMES}
BACKENDS = {words(address): (name, address) for name in NAMES for address in backend_addresses(name)}
Owner = tuple[str, Hashable]


class Traffic:
    """Counts packets where the tables say, and by what they belong to."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.belonging: Counter[Owner] = Counter()
        self.keeps = False
        # What a run leaves that is killed there, with the packets until then.
        self.kills: dict[int, tuple[Snapshot, Counter[Owner]]] = {}

    def __call__(self, step: str) -> None:
        if self.keeps and not step.startswith(WITHIN):
            snapshot = self.host.kernel.snapshot(step)
            self.kills[id(snapshot)] = snapshot, self.belonging.copy()
        self.arrive()

    def arrive(self) -> None:
        programs = {program.id: program for program in map(self.host.kernel.on_hook, INTERFACES) if program}
        for program in programs.values():
            live, maps = LivePackets(program), program.maps
            for name, packet in TO_FILTERS.items():
                rule = live.rule(packet) if "filters" in program.features else None
                if rule:
                    self._count(maps["filter_counters"], rule[0], ("filter", FilterKey(f"{prefix(name)}.0/24", "any")))
            for name, packets in TO_SERVICES.items():
                for packet in packets:
                    entry = live.chosen(packet)
                    if entry and entry.forwarding:
                        self._count(maps["service_counters"], entry.service_counters, ("service", name))
                        key = BackendKey(*BACKENDS[entry.address], None)
                        self._count(maps["backend_counters"], entry.backend_counters, ("backend", key))

    def _count(self, counters: Map, index: int, owner: Owner) -> None:
        value = counters.values.get(index, bytes(counters.value_size * CPUS))
        counters.values[index] = (int.from_bytes(value[:8], "little") + 1).to_bytes(8, "little") + value[8:]
        self.belonging[owner] += 1


def counted(host: Host) -> dict[Owner, int]:
    """The packets of what the state declares."""
    current = host.state
    program = host.kernel.on_hook(current.document.interfaces[0])
    assert program
    places: list[tuple[str, dict]] = [
        ("service", current.allocation.service_counters),
        ("backend", current.allocation.backend_counters),
        ("filter", current.filter_ids),
    ]
    found = {}
    for kind, indexes in places:
        rows = program.maps[f"{kind}_counters"]
        assert len(set(indexes.values())) == len(indexes)
        for key, index in indexes.items():
            value = rows.values.get(index, bytes(rows.value_size * CPUS))
            words_of_cpus = [value[start : start + 8] for start in range(0, len(value), rows.value_size)]
            found[kind, key] = sum(int.from_bytes(packets, "little") for packets in words_of_cpus)
    return found


def keys(found: Document) -> set[Owner]:
    return {
        *(("service", key) for key in found.config.services),
        *(("backend", key) for key in found.config.backends),
        *(("filter", key) for key in found.filters),
    }


# The document before, the one whose run is killed, and another one for which the next run is.
CHANGES = {
    "filters": (document("ab", "ab"), document("ab", "bc"), document("ab", "bd")),
    "filters for others": (document("ab", "abc"), document("ab", "d"), document("ab", "ef")),
    "first filters": (document("ab", ""), document("ab", "ab"), document("ab", "cd")),
    "services": (document("ab", "a"), document("bc", "a"), document("bd", "a")),
    "services for others": (document("abc", ""), document("d", ""), document("ef", "")),
    "services and filters": (document("ab", "ab"), document("bc", "bc"), document("bd", "bd")),
    "services, then filters": (document("ab", "ab"), document("bc", "ab"), document("bc", "bd")),
    "filters, then services": (document("ab", "ab"), document("ab", "bc"), document("bd", "bc")),
    "filters, then both": (document("ab", "ab"), document("ab", "bc"), document("bd", "bd")),
    "larger maps": (
        document("ab", "ab"),
        document("bc", "bc", sizes={**SIZES, "max_endpoints": 100}),
        document("bd", "bd"),
    ),
    "larger counters": (
        document("ab", "ab"),
        document("bc", "bc", sizes={**SIZES, "max_services": 30, "max_backends": 50, "max_filters": 10}),
        document("bd", "bd"),
    ),
    "filters, then larger maps": (
        document("ab", "ab"),
        document("ab", "bc"),
        document("bd", "bd", sizes={**SIZES, "max_endpoints": 100}),
    ),
    "another hook": (document("ab", "ab"), document("bc", "bc", mode="tc"), document("bd", "bd")),
}


# What counts between the last look at the old counters and the switch of programs is lost.
FORGETTING = ("larger counters",)


@pytest.mark.parametrize("next_run", ["the same", "the former", "another"])
@pytest.mark.parametrize("name", CHANGES)
def test_packets_count_for_what_they_belong_to(host, name, next_run):
    documents = before, killed, other = [parse(found) for found in CHANGES[name]]
    staying = set() if name in FORGETTING else set.intersection(*map(keys, documents))
    traffic = Traffic(host)
    host.apply(before, traffic)
    traffic.keeps = True
    host.apply(killed, traffic)
    check(host, traffic, staying)
    for snapshot in moments([snapshot for snapshot, _belonging in traffic.kills.values()]):
        host.restart(snapshot)
        again = Traffic(host)
        again.belonging = traffic.kills[id(snapshot)][1].copy()
        again.arrive()
        host.apply({"the same": killed, "the former": before, "another": other}[next_run], again)
        check(host, again, staying, f", killed before {snapshot.step!r}")


@pytest.mark.parametrize("last", [("ef", "ab"), ("ab", "ef"), ("ef", "ef")], ids=["services", "filters", "both"])
@pytest.mark.parametrize("name", ["filters", "services", "services and filters", "filters, then both"])
def test_packets_count_for_what_they_belong_to_after_two_runs_that_were_killed(host, name, last):
    before, killed, other = [parse(found) for found in CHANGES[name]]
    final = parse(document(*last))
    traffic = Traffic(host)
    host.apply(before, traffic)
    traffic.keeps = True
    host.apply(killed, traffic)
    for snapshot in moments([snapshot for snapshot, _belonging in traffic.kills.values()])[::3]:
        host.restart(snapshot)
        second = Traffic(host)
        second.belonging = traffic.kills[id(snapshot)][1].copy()
        second.keeps = True
        host.apply(other, second)
        for later in moments([snapshot for snapshot, _belonging in second.kills.values()])[::4]:
            host.restart(later)
            third = Traffic(host)
            third.belonging = second.kills[id(later)][1].copy()
            host.apply(final, third)
            check(host, third, set(), f", killed before {snapshot.step!r} and before {later.step!r}")


def check(host: Host, traffic: Traffic, staying: set[Owner], when: str = "") -> None:
    found = counted(host)
    assert found.keys() == keys(host.state.document)
    for owner, packets in found.items():
        own = traffic.belonging[owner]
        assert packets <= own, f"{owner} has {packets - own} packets of others{when}"
        assert packets == own or owner not in staying, f"{owner} lacks {own - packets} packets{when}"
