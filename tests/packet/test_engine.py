# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine on an interface of a private network: changes that go wrong half-way, and what they leave."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import (
    history,
    host_check,
    map_set,
    maps,
    programs,
    state,
)
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.places import pinned_id
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, tc
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.faults import on_hooks
from tests.packet.frames import CLIENT, tcp, udp
from tests.packet.network import FRONT, FRONT_ADDRESS, ip
from tests.packet.reference import DROP, REDIRECT, TX
from tests.support import balancer as support
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

VIP = "203.0.113.10"
WEB = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}


@pytest.fixture
def balancer(net) -> Iterator[Balancer]:
    with support.balancer() as made:
        attach(made)
        yield made


def attach(balancer: Balancer, mode: str = "native", **others) -> bool:
    return balancer.apply_program(settings(FRONT, mode=mode, **others), check=False).changed


def declare(balancer: Balancer, services: list[dict], backends: list[dict]) -> bool:
    """Whether anything changed."""
    return any(
        outcome.changed
        for outcome in (balancer.apply_services(services, True, False), balancer.apply_backends(backends, True, False))
    )


def web(*hosts: int, **keys) -> list[dict]:
    return [{"service": "web", "address": f"10.0.0.{host}", **keys} for host in hosts]


def run(balancer: Balancer, net, frame: bytes) -> tuple[int, bytes]:
    descriptor = bpf.object_get(str(balancer.places.program(FRONT)))
    try:
        return bpf.test_run(descriptor, frame, 1, net.front)[:2]
    finally:
        os.close(descriptor)


def live_maps(balancer: Balancer) -> maps.Maps:
    return map_set.open_pinned(balancer.places.maps, SIZES)


def killed_before_writing(balancer: Balancer, backends: list[dict]) -> None:
    """In a process of its own, which ends the hard way between the intent and its execution."""
    child = os.fork()
    if not child:
        maps.Maps.write_backends = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)
        balancer.apply_backends(backends, True, False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_run_leaves_no_backend_with_anothers_counters_and_next_hop(balancer, net):
    declare(balancer, [WEB], web(1, 2))
    for port in range(20000, 20100):
        run(balancer, net, tcp(CLIENT, port, VIP, 80))
    place = state.load(balancer.state_file).allocation.backend_counters[("web", "10.0.0.2", None)]
    declare(balancer, [WEB], web(1))
    killed_before_writing(balancer, web(1, 9))
    assert declare(balancer, [WEB], web(1, 9))
    assert state.load(balancer.state_file).allocation.backend_counters[("web", "10.0.0.9", None)] == place
    with live_maps(balancer) as live:
        size = layout.BACKEND_COUNTERS.size * bpf.possible_cpus()
        assert not any(bpf.map_lookup(live["backend_counters"], layout.index(place), size))


def test_what_does_not_fit_its_backends_is_refused_alone_and_taken_together(balancer):
    dsr = [{**WEB, "name": name, "port": port, "forwarding": "dsr"} for name, port in (("one", 80), ("two", 81))]
    shared = [{"service": name, "address": "10.0.0.1"} for name in ("one", "two")]
    balancer.apply(declared(settings(FRONT), dsr, shared), False)
    dnat = [{**entry, "forwarding": "dnat", "port": 80, "address": f"203.0.113.{n}"} for n, entry in enumerate(dsr, 1)]
    before = state.load(balancer.state_file)
    for check in (True, False):
        with pytest.raises(EngineError, match="tcp port 80 serves one already"):
            balancer.apply_services(dnat, True, check)
    assert state.load(balancer.state_file) == before
    ports = [{**backend, "port": 8080 + number} for number, backend in enumerate(shared)]
    assert balancer.apply(declared(settings(FRONT), dnat, ports), False).changed


def test_a_part_changes_nothing_of_the_others(balancer):
    declare(balancer, [WEB], web(1))
    balancer.apply_filters([{"prefix": "198.18.0.0/15", "action": "drop"}], True, False)
    balancer.apply_backends(web(2), True, False)
    found = state.load(balancer.state_file).document
    assert list(found.config.services) == ["web"]
    assert [backend.address for backend in found.config.backends.values()] == ["10.0.0.2"]
    assert [item.prefix for item in found.filters.values()] == ["198.18.0.0/15"]
    with pytest.raises(EngineError, match="unknown service 'other'"):
        balancer.apply_backends([*web(1), {"service": "other", "address": "10.0.0.2"}], True, True)


@pytest.mark.parametrize("latency", [False, True], ids=["the program there is", "another one"])
def test_a_switch_that_fails_leaves_program_state_and_pins_as_they_were(balancer, monkeypatch, latency):
    before, hooks, put = balancer.info()["program"], on_hooks(FRONT), link.attach
    pins = sorted(str(path) for path in balancer.places.pins.rglob("*"))

    def busy(interface: str, program: int, hook: str, replaces: int | None) -> None:
        if hook == "generic":
            raise EngineError("generic XDP on front: EBUSY")
        put(interface, program, hook, replaces)

    with monkeypatch.context() as patch:
        patch.setattr(link, "attach", busy)
        with pytest.raises(EngineError, match=f"EBUSY; program {before['program_id']} .* is back on the native hook"):
            attach(balancer, "generic", latency=latency)
    after = balancer.info()["program"]
    moving = ("run_time_ns", "run_count")
    assert {**after, **dict.fromkeys(moving)} == {**before, **dict.fromkeys(moving)}
    assert on_hooks(FRONT) == hooks == {"native": before["program_id"]}
    assert sorted(str(path) for path in balancer.places.pins.rglob("*")) == pins
    assert not attach(balancer)


def test_detached_from_tc_it_stays_so(balancer):
    attach(balancer, "tc")
    assert attach(balancer, "tc", attached=False)
    assert not attach(balancer, "tc", attached=False)
    assert attach(balancer, "tc")
    assert not attach(balancer, "tc")


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_what_tc_cannot_do_does_not_keep_the_next_document_from_it(balancer, mode):
    """The program that knows both documents on the way leaves out what the old one alone needs of XDP."""
    redirect = [{**WEB, "forwarding": "redirect"}]
    to_tc = declared(settings(FRONT, mode="tc"), [WEB], web(1))
    balancer.apply(declared(settings(FRONT, mode=mode), redirect, []), False)
    assert balancer.apply(to_tc, False).changed
    found = balancer.info()["program"]
    assert (found["features"], [entry["hook"] for entry in found["interfaces"]]) == (["dnat"], ["tc"])
    assert not balancer.apply(to_tc, False).changed


def test_auto_goes_from_tc_to_xdp_for_what_tc_cannot_do(net):
    """Device lo has no native XDP."""
    redirect = [{**WEB, "forwarding": "redirect"}]
    with support.balancer() as on_lo:
        on_lo.apply(declared(settings("lo", mode="auto"), redirect, []), False)
        assert [entry["hook"] for entry in on_lo.info()["program"]["interfaces"]] == ["generic"]
    with support.balancer() as on_lo:
        on_lo.apply(declared(settings("lo", mode="auto"), [WEB], []), False)
        assert [entry["hook"] for entry in on_lo.info()["program"]["interfaces"]] == ["tc"]
        for check, changed in ((True, True), (False, True), (False, False), (True, False)):
            assert on_lo.apply_services(redirect, True, check).changed is changed
        (entry,) = on_lo.info()["program"]["interfaces"]
        assert entry["attached"] and entry["hook"] == "generic"
        assert "redirect is possible with XDP only" in entry["why"]


def put_filter(verdict: int, priority: int) -> None:
    """Somebody else's, which gives every packet that verdict."""
    code = bpf.INSTRUCTION.pack(0xB7, 0, 0, verdict) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)
    program = bpf.program_load("foreign", code, program_type=bpf.PROG_TYPE_SCHED_CLS)
    options = {"fd": program, "name": "foreign", "parent": tc.INGRESS, "direct_action": True, "protocol": tc.ETH_P_ALL}
    with link.route_socket() as route:
        route.tc("add-filter", "bpf", socket.if_nametoindex(FRONT), 1, prio=priority, **options)
    os.close(program)


def is_received() -> bool:
    """Whether a datagram to this host, which is no service's, reaches its socket."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far,
    ):
        near.bind((FRONT_ADDRESS, 5353))
        near.settimeout(0.2)
        far.bind(("front-peer", 0))
        far.send(udp("10.0.0.1", 40000, FRONT_ADDRESS, 5353))
        try:
            return bool(near.recv(100))
        except TimeoutError:
            return False


def test_others_filters_on_tc_are_neither_replaced_nor_skipped(balancer):
    subprocess.run(["tc", "qdisc", "add", "dev", FRONT, "clsact"], check=True)
    put_filter(-1, priority=1)
    with pytest.raises(
        EngineError, match=r"filter foreign \(priority 1, handle 0x1, kind bpf, program .*\) is in the balancer's place"
    ):
        attach(balancer, "tc")
    subprocess.run(["tc", "filter", "del", "dev", FRONT, "ingress", "prio", "1"], check=True)
    attach(balancer, "tc")
    assert is_received()
    put_filter(2, priority=9)
    assert not is_received()
    attach(balancer, "tc", attached=False)
    assert not is_received()
    subprocess.run(["tc", "qdisc", "del", "dev", FRONT, "clsact"], check=True)


def test_a_raised_limit_holds_at_once(balancer, net):
    def limit(rate: int) -> None:
        filters = [{"prefix": f"{CLIENT}/32", "action": "limit", "rate": rate, "burst": 1000}]
        balancer.apply_filters(filters, True, False)

    declare(balancer, [WEB], web(1))
    limit(10)
    verdicts = [run(balancer, net, tcp(CLIENT, 40000, VIP, 80))[0] for _packet in range(1100)]
    assert verdicts[0] == TX and verdicts[-1] == DROP
    limit(100000)
    assert run(balancer, net, tcp(CLIENT, 40000, VIP, 80))[0] == TX


def add_link() -> None:
    """A veth takes frames from XDP while its peer receives with NAPI, for GRO or a program."""
    ip("link add out type veth peer name out-peer", "link set out up", "link set out-peer up")
    subprocess.run(["ethtool", "-K", "out-peer", "gro", "on"], check=True)


def test_an_interface_of_redirect_that_was_made_anew_is_used_again(balancer, net):
    moved = {**WEB, "name": "moved", "forwarding": "redirect"}
    entries = [moved], [{"service": "moved", "interface": "out"}]
    add_link()
    declare(balancer, *entries)
    ip("link del out")
    add_link()
    assert declare(balancer, *entries)
    assert not declare(balancer, *entries)
    assert run(balancer, net, tcp(CLIENT, 40000, VIP, 80))[0] == REDIRECT
    ip("link del out")
    balancer.restore()
    assert run(balancer, net, tcp(CLIENT, 40000, VIP, 80))[0] == DROP
    with pytest.raises(EngineError, match="other"):
        declare(balancer, [moved], [{"service": "moved", "interface": "other"}])


def test_backends_that_native_xdp_cannot_reach_are_refused(balancer, net):
    ip("link add bridge type bridge", "link add port type veth peer name port-peer", "link set port master bridge")
    ip(*(f"link set {name} up" for name in ("bridge", "port", "port-peer")), "address add 10.9.0.254/24 dev bridge")
    ip("neighbour add 10.9.0.1 lladdr 02:00:00:00:09:01 dev bridge nud permanent")
    behind = [*web(1), {"service": "web", "address": "10.9.0.1"}]
    balancer.apply_services([WEB], True, False)
    for check in (True, False):
        with pytest.raises(EngineError, match="backend 10.9.0.1 of service web is reached over bridge, which takes no"):
            balancer.apply_backends(behind, True, check)
    assert not balancer.info()["backends"]
    attach(balancer, "generic")
    assert declare(balancer, [WEB], behind)
    ip("link del bridge", "link del port")


def test_sessions_outlive_a_repair(balancer, net):
    nat = {**WEB, "name": "nat", "forwarding": "full_nat", "source": "10.0.0.250"}
    wanted = [nat], [{"service": "nat", "address": "10.0.0.1"}]
    declare(balancer, *wanted)
    first = run(balancer, net, tcp(CLIENT, 40000, VIP, 80))
    with live_maps(balancer) as live:
        entries = live.read_backends()
        place = state.load(balancer.state_file).allocation.backends[("nat", "10.0.0.1", None)]
        damaged = bytearray(entries[place * layout.BACKEND.size :][: layout.BACKEND.size])
        damaged[-10] ^= 1
        live.write_backends({place: bytes(damaged)})
    assert balancer.apply_backends(wanted[1], True, False).details["repaired"]
    assert run(balancer, net, tcp(CLIENT, 40000, VIP, 80, tcp_flags="A"))[1][34:36] == first[1][34:36]


def counted(balancer: Balancer) -> dict[str, int]:
    """Packets by everything that counts them."""
    info = balancer.info()
    found = {f"service {entry['name']}": entry["packets"] for entry in info["services"]}
    found |= {f"backend {entry['address']}": entry["packets"] for entry in info["backends"]}
    return found | {f"{row['verdict']} {row['reason']}": row["packets"] for row in info["reasons"]}


def test_what_comes_again_goes_on_counting_where_it_was(balancer, net):
    declare(balancer, [WEB], web(1))
    for port in range(20000, 20010):
        run(balancer, net, tcp(CLIENT, port, VIP, 80))
    before = counted(balancer)
    assert before["service web"] == before["backend 10.0.0.1"] == 10
    declare(balancer, [WEB], web(2))
    assert "backend 10.0.0.1" not in counted(balancer)
    declare(balancer, [WEB], web(1, 2))
    assert counted(balancer) == {**before, "backend 10.0.0.2": 0}
    declare(balancer, [], [])
    declare(balancer, [WEB], web(1, 2))
    assert counted(balancer) == {**before, "backend 10.0.0.2": 0}
    assert not state.load(balancer.state_file).retained.backends


def test_new_maps_go_on_counting_where_the_old_ones_were(balancer, net):
    declare(balancer, [WEB], web(1))
    for port in range(20000, 20010):
        run(balancer, net, tcp(CLIENT, port, VIP, 80))
        run(balancer, net, udp(CLIENT, port, VIP, 9))
    before, known = counted(balancer), state.load(balancer.state_file)
    assert before["drop vip_unserved"] == 10
    larger = dataclasses.replace(SIZES, max_backends=2048)
    assert balancer.apply_program(settings(FRONT, sizes=larger), check=False).details["new_maps"]
    assert counted(balancer) == before
    after = state.load(balancer.state_file)
    assert after.counting_since == known.counting_since > 0
    assert after.generation == known.generation + 1
    assert after.applied_at > known.applied_at


def test_packets_are_counted_by_cpu(balancer, net):
    declare(balancer, [WEB], web(1))
    everywhere = os.sched_getaffinity(0)
    try:
        for cpu, count in zip(sorted(everywhere), (3, 5)):
            os.sched_setaffinity(0, {cpu})
            for port in range(20000, 20000 + count):
                run(balancer, net, tcp(CLIENT, port, VIP, 80))
                run(balancer, net, udp(CLIENT, port, VIP, 9))
    finally:
        os.sched_setaffinity(0, everywhere)
    found = [packets for packets in balancer.read(state.load(balancer.state_file)).cpus if packets]
    assert found == [6, 10][: len(everywhere)]


def test_reading_needs_no_more_than_descriptors_to_read(balancer):
    declare(balancer, [WEB], web(1))
    with map_set.open_pinned(balancer.places.maps, SIZES, read_only=True) as live:
        with pytest.raises(PermissionError):
            live.zero_counters("service_counters", [0])


def test_counters_are_read_as_far_as_asked_for_and_in_pieces(balancer, monkeypatch):
    with live_maps(balancer) as live:
        live.set_counters("backend_counters", {place: (place, 2, 3, 4, 5) for place in range(100)})
        whole = live.read_counters("backend_counters")
        assert whole[7] == (7, 2, 3, 4, 5) and len(whole) == SIZES.max_backends
        monkeypatch.setattr(maps, "READ_BYTES", 1000)
        assert live.read_counters("backend_counters") == whole
        assert live.read_counters("backend_counters", 9) == whole[:9]
        assert live.read_counters("backend_counters", 0) == []


def test_maps_that_do_not_fit_into_memory_are_refused_before_anything_is_touched(net, tmp_path, monkeypatch):
    monkeypatch.setattr(host_check, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable:  1024 kB\n")
    with support.balancer() as balancer:
        for check in (True, False):
            with pytest.raises(EngineError, match=r"need \d+ MiB of the kernel's memory, and 1 MiB are available"):
                balancer.apply_program(settings(FRONT), check)
        assert link.attached(FRONT) is None
        assert not balancer.places.pins.exists() and not balancer.places.state_directory.exists()


def test_maps_that_are_there_are_paid_for(balancer, tmp_path, monkeypatch):
    """On a host with little memory left a balancer still changes."""
    declare(balancer, [WEB], web(2))
    monkeypatch.setattr(host_check, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable:  8192 kB\n")
    assert declare(balancer, [WEB], web(2, 3))
    (tmp_path / "meminfo").write_text("MemAvailable:  0 kB\n")
    assert not declare(balancer, [WEB], web(2, 3))
    with pytest.raises(EngineError, match="lower max_endpoints|lower table_size"):
        declare(balancer, [WEB], web(2))


def killed_when(patch: Callable[[], None], run: Callable[[], object]) -> None:
    """In a process of its own, in which `patch` has something end it the hard way."""
    child = os.fork()
    if not child:
        patch()
        run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def end(*_arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_first_run_attached_is_removed(net, monkeypatch):
    with support.balancer() as made:
        killed_when(lambda: monkeypatch.setattr(programs, "adopt_new_maps", end), lambda: attach(made))
        assert on_hooks(FRONT)
        made.remove(check=False)
        assert not on_hooks(FRONT)


def test_a_removal_of_another_generation_is_refused(balancer):
    with pytest.raises(EngineError, match="generation 7 is not the current one, which is 1"):
        balancer.remove(False, support.Conditions(generation=7))
    assert on_hooks(FRONT)


def test_a_document_of_a_killed_run_counts_as_a_generation(balancer):
    declare(balancer, [WEB], web(1))
    before = state.load(balancer.state_file).generation
    killed_before_writing(balancer, web(1, 2))
    after = state.load(balancer.state_file)
    assert (after.generation, len(after.config.backends)) == (before + 1, 2)
    with pytest.raises(EngineError, match=f"generation {before} is not the current one"):
        balancer.apply(after.document, False, support.Conditions(generation=before))
    assert balancer.apply(after.document, False).changed
    assert state.load(balancer.state_file).generation == before + 1
    assert history.entries(balancer.places.history)[0]["generation"] == before + 1


def test_a_signal_while_new_maps_take_their_place_waits(balancer, monkeypatch):
    real = programs.adopt_new_maps

    def interrupted(places) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(places)

    monkeypatch.setattr(programs, "adopt_new_maps", interrupted)
    larger = dataclasses.replace(SIZES, max_backends=2048)
    # What a shell starts in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            attach(balancer, sizes=larger)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    map_set.open_pinned(balancer.places.maps, larger).close()
    assert on_hooks(FRONT)["native"] == pinned_id(balancer.places.program(FRONT))
    assert attach(balancer, sizes=larger)
    assert not attach(balancer, sizes=larger)


def test_nobody_counts_on_for_others_in_new_maps(balancer, net):
    other = {**WEB, "name": "other", "port": 81}
    declare(balancer, [WEB, other], [*web(1, 2), {"service": "other", "address": "10.0.0.3"}])
    for port in range(20000, 20100):
        run(balancer, net, tcp(CLIENT, port, VIP, 80))
        run(balancer, net, tcp(CLIENT, port, VIP, 81))
    before = counted(balancer)
    declare(balancer, [WEB], web(1))
    larger = settings(FRONT, sizes=dataclasses.replace(SIZES, max_endpoints=2 * SIZES.max_endpoints))
    new = {**WEB, "name": "new", "port": 82}
    balancer.apply(declared(larger, [new], [{"service": "new", "address": "10.0.0.9"}]), False)
    after = counted(balancer)
    assert (after["service new"], after["backend 10.0.0.9"]) == (0, 0)
    larger = settings(FRONT, sizes=dataclasses.replace(SIZES, max_endpoints=4 * SIZES.max_endpoints))
    outcome = balancer.apply(declared(larger, [WEB], web(1, 2)), False)
    assert outcome.details["new_maps"]
    after = counted(balancer)
    for name in ("service web", "backend 10.0.0.1", "backend 10.0.0.2"):
        assert after[name] == before[name]


def test_a_link_of_redirect_stays_until_no_table_uses_it(balancer, monkeypatch):
    add_link()
    try:
        moved = {**WEB, "name": "moved", "forwarding": "redirect"}
        declare(balancer, [moved], [{"service": "moved", "interface": "out"}])
        seen = []
        real = maps.Maps.write_rings

        def write_rings(live: maps.Maps, *arguments) -> None:
            seen.append(live.links())
            real(live, *arguments)

        monkeypatch.setattr(maps.Maps, "write_rings", write_rings)
        declare(balancer, [moved], [{"service": "moved", "interface": FRONT}])
        assert seen[0] == 2
        with live_maps(balancer) as live:
            assert live.links() == 1
    finally:
        ip("link del out")
