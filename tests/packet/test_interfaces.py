# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One balancer on two interfaces, clients on one and backends on the other: real frames in and out of both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.places import remove_tree
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from tests.packet.frames import CLIENT, CLIENT_PORT, icmp, tcp, udp
from tests.packet.network import (
    BACK,
    BACK_MAC,
    FRONT,
    FRONT_ADDRESS,
    FRONT_MAC,
    PROHIBITED,
    ROUTER,
    ROUTER_MAC,
    ip,
    neighbour_mac,
    write_setting,
)
from tests.support import balancer as support
from tests.support.balancer import declared, settings

FRONT_PEER, BACK_PEER = "front-peer", "back-peer"
VIP, SOURCE = "203.0.113.10", "10.0.1.250"
BACKEND, BACKEND_MAC = "10.0.1.1", neighbour_mac(1, 1)
SERVICES = [
    {"name": "dnat", "address": VIP, "protocol": "tcp", "port": 80},
    {"name": "nat", "address": VIP, "protocol": "udp", "port": 53, "forwarding": "full_nat", "source": SOURCE},
    {"name": "dsr", "address": VIP, "protocol": "udp", "port": 54, "forwarding": "dsr"},
    {"name": "ipip", "address": VIP, "protocol": "udp", "port": 55, "forwarding": "ipip", "source": "10.0.1.254"},
    {"name": "table", "address": VIP, "protocol": "udp", "port": 56, "flow_table": True},
]
BACKENDS = [
    {"service": "dnat", "address": BACKEND, "port": 8080},
    {"service": "nat", "address": BACKEND, "port": 5353},
    *({"service": name, "address": BACKEND} for name in ("dsr", "ipip")),
    *({"service": "table", "address": f"10.0.1.{host}"} for host in (1, 2, 3)),
]
# With this MTU on its peer a veth refuses native programs.
TOO_LARGE = 9000


@pytest.fixture(scope="module", autouse=True)
def two_arms(net) -> None:
    for family in ("ipv4", "ipv6"):
        write_setting(f"{family}/conf/{BACK}/forwarding", 1)
    for name in (FRONT_PEER, BACK_PEER):
        pass_frames(name)


def pass_frames(interface: str) -> None:
    """A veth delivers frames from native XDP only to a peer that has a program, too."""
    program = bpf.program_load("pass", bpf.PASS_PROGRAM)
    link.attach(interface, program, "native", None)
    os.close(program)


def listen(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((interface, 0))
    made.settimeout(0.5)
    return made


def heard(receiver: socket.socket) -> list[Ether]:
    """IP packets that came from the balancer."""
    found, deadline = [], time.monotonic() + 0.3
    while time.monotonic() < deadline:
        try:
            frame, (_interface, _protocol, kind, *_address) = receiver.recvfrom(10000)
        except TimeoutError:
            break
        if kind != socket.PACKET_OUTGOING and IP in (packet := Ether(frame)):
            found.append(packet)
    return found


def exchange(frame: bytes, into: str, out_of: str) -> list[Ether]:
    """What leaves by one interface for a frame that comes in by another; both are named by their peers."""
    with listen(out_of) as receiver, listen(into) as sender:
        sender.send(frame)
        return heard(receiver)


def request(builder, port: int, client_port: int = CLIENT_PORT) -> list[Ether]:
    return exchange(builder(CLIENT, client_port, VIP, port), FRONT_PEER, BACK_PEER)


def reply(builder, port: int, to: tuple[str, int]) -> list[Ether]:
    return exchange(builder(BACKEND, port, *to, macs=(BACKEND_MAC, BACK_MAC)), BACK_PEER, FRONT_PEER)


@pytest.fixture(scope="module", params=["native", "tc", "generic"])
def balancer(request, two_arms) -> Iterator[Balancer]:
    with support.balancer() as made:
        made.apply(declared(settings(FRONT, BACK, mode=request.param), SERVICES, BACKENDS), check=False)
        found = {entry["interface"]: entry["hook"] for entry in made.info()["program"]["interfaces"]}
        assert found == {FRONT: request.param, BACK: request.param}
        yield made


def test_dnat_over_both(balancer):
    (packet,) = request(tcp, 80)
    assert (packet.dst, packet.src) == (BACKEND_MAC, BACK_MAC)
    assert (packet[IP].src, packet[IP].dst, packet[TCP].sport) == (CLIENT, BACKEND, CLIENT_PORT)
    assert packet[TCP].dport == 8080
    (packet,) = reply(tcp, 8080, (CLIENT, CLIENT_PORT))
    assert (packet.dst, packet.src) == (ROUTER_MAC, FRONT_MAC)
    assert (packet[IP].src, packet[IP].dst, packet[TCP].sport, packet[TCP].dport) == (VIP, CLIENT, 80, CLIENT_PORT)


def test_replies_find_the_sessions_of_full_nat_on_the_other_interface(balancer):
    (packet,) = request(udp, 53)
    assert (packet[IP].src, packet[IP].dst, packet[UDP].dport) == (SOURCE, BACKEND, 5353)
    (answer,) = reply(udp, 5353, (SOURCE, packet[UDP].sport))
    assert (answer[IP].src, answer[IP].dst, answer[UDP].sport, answer[UDP].dport) == (VIP, CLIENT, 53, CLIENT_PORT)


def test_dsr_and_ipip_leave_by_the_other_interface(balancer):
    (packet,) = request(udp, 54)
    assert (packet.dst, packet[IP].src, packet[IP].dst) == (BACKEND_MAC, CLIENT, VIP)
    (packet,) = request(udp, 55)
    inner = packet[IP].payload
    assert (packet[IP].src, packet[IP].dst, inner[IP].dst, inner[UDP].dport) == ("10.0.1.254", BACKEND, VIP, 55)


def test_flows_are_remembered_for_both(balancer):
    """A flow that came in by one interface keeps its backend when the router sends it to the other one."""
    chosen = {port: request(udp, 56, port)[0][IP].dst for port in range(41000, 41020)}
    assert len(set(chosen.values())) > 1
    weighted = [{**entry, "weight": 1 if entry["address"] == "10.0.1.3" else 0} for entry in BACKENDS[-3:]]
    balancer.apply_backends(weighted, True, False, service="table")
    try:
        for port, backend in chosen.items():
            frame = udp(CLIENT, port, VIP, 56, macs=("02:00:00:00:01:77", BACK_MAC))
            assert [packet[IP].dst for packet in exchange(frame, BACK_PEER, BACK_PEER)] == [backend]
    finally:
        balancer.apply_backends(BACKENDS[-3:], True, False, service="table")


def test_a_filter_holds_on_both(balancer):
    balancer.apply_filters([{"prefix": f"{CLIENT}/32", "action": "drop"}], True, False)
    try:
        assert not request(tcp, 80)
        frame = udp(CLIENT, CLIENT_PORT, VIP, 56, macs=("02:00:00:00:01:77", BACK_MAC))
        assert not exchange(frame, BACK_PEER, BACK_PEER)
        assert balancer.info()["filters"][0]["packets"] == 2
    finally:
        balancer.apply_filters([], True, False)
    assert request(tcp, 80)


def test_a_vip_answers_echo_on_both(balancer):
    for peer, macs in ((FRONT_PEER, (ROUTER_MAC, FRONT_MAC)), (BACK_PEER, ("02:00:00:00:01:77", BACK_MAC))):
        source = CLIENT if peer == FRONT_PEER else "10.0.1.9"
        (packet,) = exchange(icmp(source, VIP, macs=macs), peer, peer)
        assert (packet[IP].src, packet[ICMP].type) == (VIP, 0)


def test_fragments_and_icmp_errors_come_by_the_other_interface(balancer):
    """A backend's later fragment, and an error about a packet to the client, arrive where backends are."""
    (packet,) = request(tcp, 80)
    whole = tcp(BACKEND, 8080, CLIENT, CLIENT_PORT, bytes(64), macs=(BACKEND_MAC, BACK_MAC), id=7)
    body = Ether(whole)[IP]
    first = Ether(src=BACKEND_MAC, dst=BACK_MAC) / IP(src=BACKEND, dst=CLIENT, proto=6, id=7, flags="MF")
    later = Ether(src=BACKEND_MAC, dst=BACK_MAC) / IP(src=BACKEND, dst=CLIENT, proto=6, id=7, frag=6)
    data = bytes(body.payload)
    sent = [bytes(first / data[:48]), bytes(later / data[48:])]
    found = [answer for frame in sent for answer in exchange(frame, BACK_PEER, FRONT_PEER)]
    assert [(answer[IP].src, answer[IP].frag) for answer in found] == [(VIP, 0), (VIP, 6)]


def test_one_interface_goes_and_the_other_goes_on(balancer):
    """What leaves by the interface that is left is still balanced."""
    local = [{**entry, "address": "10.0.0.1"} for entry in BACKENDS[:1]]
    balancer.apply_backends(local, True, False, service="dnat")
    try:
        ip(f"link set {BACK} down")
        (packet,) = exchange(tcp(CLIENT, 40001, VIP, 80), FRONT_PEER, FRONT_PEER)
        assert packet[IP].dst == "10.0.0.1"
    finally:
        ip(f"link set {BACK} up")
        restore_neighbours()
        balancer.apply_backends(BACKENDS[:1], True, False, service="dnat")
        balancer.forget_next_hops()
    assert request(tcp, 80, 40002)


def restore_neighbours() -> None:
    """The kernel forgets addresses and neighbours of an interface that goes down."""
    for host in (1, 2, 3):
        ip(f"neighbour replace 10.0.1.{host} lladdr {neighbour_mac(1, host)} dev {BACK} nud permanent")


# --- each interface by itself


@pytest.fixture
def single(two_arms) -> Iterator[Balancer]:
    with support.balancer() as made:
        yield made


def hook_of(interface: str) -> str:
    """As ip(8) and tc(8) see it."""
    shown = subprocess.run(["ip", "-j", "link", "show", interface], check=True, capture_output=True).stdout
    mode = {1: "native", 2: "generic"}.get(json.loads(shown)[0].get("xdp", {}).get("mode", 0), "")
    command = ["tc", "filter", "show", "dev", interface, "ingress"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return mode or ("tc" if "lbops_balancer" in shown else "")


@pytest.fixture
def refusing(single) -> Iterator[None]:
    """The interface of the backends refuses native programs."""
    ip(f"link set {BACK_PEER} xdp off", f"link set {BACK_PEER} mtu {TOO_LARGE}")
    subprocess.run(["ethtool", "-K", BACK_PEER, "gro", "on"], check=True, stdout=subprocess.DEVNULL)
    yield
    ip(f"link set {BACK_PEER} mtu 1500")
    pass_frames(BACK_PEER)


def test_each_interface_has_the_hook_that_it_takes(single, refusing):
    single.apply(declared(settings(FRONT, BACK, mode="auto"), SERVICES, BACKENDS), False)
    assert (hook_of(FRONT), hook_of(BACK)) == ("native", "tc")
    found = {entry["interface"]: entry for entry in single.info()["program"]["interfaces"]}
    assert "MTU" in found[BACK]["why"] and found[FRONT]["hook"] == "native"
    (packet,) = request(tcp, 80)
    assert packet[IP].dst == BACKEND
    (packet,) = reply(tcp, 8080, (CLIENT, CLIENT_PORT))
    assert packet[IP].src == VIP


def test_one_that_refuses_is_named_and_nothing_is_touched(single, refusing):
    for check in (True, False):
        with pytest.raises(EngineError, match=f"native XDP on {BACK}|{BACK}.*MTU"):
            single.apply(declared(settings(FRONT, BACK), SERVICES, BACKENDS), check)
        assert (hook_of(FRONT), hook_of(BACK)) == ("", "")
        assert not single.places.pins.exists() and not single.places.state_directory.exists()


def test_interfaces_come_and_go_while_the_others_stay(single):
    single.apply(declared(settings(FRONT), SERVICES[:1], BACKENDS[:1]), False)
    before = single.info()["program"]["program_id"]
    outcome = single.apply(declared(settings(FRONT, BACK), SERVICES[:1], BACKENDS[:1]), False)
    assert outcome.details["changes"]["interfaces"] == {"created": [BACK], "modified": [], "removed": []}
    found = {entry["interface"]: entry["program_id"] for entry in single.info()["program"]["interfaces"]}
    assert found[FRONT] == before and (hook_of(FRONT), hook_of(BACK)) == ("native", "native")
    single.apply(declared(settings(BACK), SERVICES[:1], BACKENDS[:1]), False)
    assert (hook_of(FRONT), hook_of(BACK)) == ("", "native")
    assert single.places.pinned_interfaces() == [BACK]


def test_a_boot_serves_the_interfaces_that_are_there(single):
    """As a repair it is no other generation; a run of a module refuses the interface by name."""
    ip("link add gone type veth peer name gone-peer", "link set gone up")
    document = declared(settings(FRONT, "gone", mode="tc"), SERVICES[:1], BACKENDS[:1])
    single.apply(document, False)
    before = state.load(single.state_file)
    ip("link del gone", f"link set {FRONT} up")
    subprocess.run(["tc", "qdisc", "del", "dev", FRONT, "clsact"], check=True)
    remove_tree(single.places.pins)
    assert single.restore().changed
    assert hook_of(FRONT) == "tc" and single.places.pinned_interfaces() == [FRONT]
    after = state.load(single.state_file)
    assert (after.generation, after.applied_at) == (before.generation, before.applied_at)
    assert after.document == before.document
    assert [entry["generation"] for entry in single.info()["history"]] == [1]
    assert single.info()["program"]["problems"][0].startswith("interface gone does not exist")
    for check in (True, False):
        with pytest.raises(EngineError, match="interface 'gone' does not exist"):
            single.apply(document, check)
    ip("link add gone type veth peer name gone-peer", "link set gone up")
    assert single.restore().changed and not single.restore().changed
    assert (hook_of(FRONT), hook_of("gone")) == ("tc", "tc")
    ip("link del gone")


def test_an_interface_belongs_to_one_balancer(single):
    single.apply(declared(settings(FRONT), SERVICES[:1], BACKENDS[:1]), False)
    other = Balancer("other", single.paths)
    for check in (True, False):
        with pytest.raises(EngineError, match=f"interface {FRONT} is in balancer main already"):
            other.apply(declared(settings(BACK, FRONT), [], []), check)
    assert hook_of(BACK) == "" and not other.places.state_directory.exists()


def test_two_balancers_share_a_host(single):
    single.apply(declared(settings(FRONT), SERVICES[:1], BACKENDS[:1]), False)
    other = Balancer("other", single.paths)
    other.apply(declared(settings(BACK), [{**SERVICES[2], "address": "203.0.113.99"}], BACKENDS[2:3]), False)
    assert state.balancers(single.paths) == ["main", "other"]
    other.remove(check=False)
    assert (hook_of(FRONT), hook_of(BACK)) == ("native", "")
    assert single.info()["program"]["attached"]


def test_another_generation_is_refused(single):
    document = declared(settings(FRONT), SERVICES[:1], BACKENDS[:1])
    first = single.apply(document, False, support.Conditions(generation=0))
    assert first.details["generation"] == 1
    for check in (True, False):
        with pytest.raises(EngineError, match="generation 0 is not the current one, which is 1"):
            single.apply(declared(settings(FRONT), [], []), check, support.Conditions(generation=0))
    assert len(single.info()["services"]) == 1


def test_a_packet_that_is_too_big_is_told_the_mtu_of_the_interface_it_came_by(single):
    """A backend whose Ethernet address is given is reached over the interface that the packet came by."""
    tunnel = {"name": "tunnel", "address": VIP, "protocol": "udp", "port": 77, "forwarding": "ipip", "source": SOURCE}
    # The kernel has no route to it.
    backend = {"service": "tunnel", "address": PROHIBITED, "mac": "02:00:00:00:00:99"}
    ip(f"link set {FRONT} mtu 1400", f"link set {FRONT_PEER} mtu 1400")
    try:
        single.apply(declared(settings(FRONT, BACK), [tunnel], [backend]), False)
        frames = {
            FRONT_PEER: udp(CLIENT, CLIENT_PORT, VIP, 77, bytes(1390 - 28), flags="DF"),
            BACK_PEER: udp(CLIENT, CLIENT_PORT, VIP, 77, bytes(1390 - 28), flags="DF", macs=(BACKEND_MAC, BACK_MAC)),
        }
        (answer,) = exchange(frames[FRONT_PEER], FRONT_PEER, FRONT_PEER)
        assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1400 - 20)
        (packet,) = exchange(frames[BACK_PEER], BACK_PEER, BACK_PEER)
        assert (packet.dst, packet[IP].dst, packet[IP].len) == (backend["mac"], backend["address"], 1390 + 20)
    finally:
        ip(f"link set {FRONT} mtu 1500", f"link set {FRONT_PEER} mtu 1500")
        ip(f"route replace default via {ROUTER} dev {FRONT}")


def test_a_backend_with_an_ethernet_address_that_one_interface_reaches_is_refused(single):
    wrong = [{**BACKENDS[0], "mac": BACKEND_MAC}]
    words = f"backend {BACKEND} of service dnat: with mac {BACKEND_MAC} .* the kernel reaches it over {BACK} only"
    for check in (True, False):
        with pytest.raises(EngineError, match=words):
            single.apply(declared(settings(FRONT, BACK), SERVICES[:1], wrong), check)
    single.apply(declared(settings(BACK), SERVICES[:1], wrong), False)


def test_a_vip_of_this_host_and_what_it_shadows_is_warned_of(single):
    taken = {**SERVICES[0], "name": "ssh", "address": FRONT_ADDRESS, "port": 2222}
    with socket.create_server((FRONT_ADDRESS, 2222)):
        warnings = single.apply(declared(settings(FRONT), [taken], [{**BACKENDS[0], "service": "ssh"}]), True).warnings
    owner = Path("/proc/self/comm").read_text().strip()
    words = f"service ssh: the VIP {FRONT_ADDRESS} is an address of this host; {owner} on port 2222 of this host will"
    assert [warning for warning in warnings if warning.startswith(words)]
    (empty,) = single.apply(declared(settings(FRONT), SERVICES[:1], []), True).warnings
    assert empty == "service dnat has no backends: its packets are dropped as no_backend"


def test_the_history_says_who_applied_what_and_when(single):
    before = time.time()
    for number in range(1, 13):
        weight = [{**BACKENDS[0], "weight": number}]
        conditions = support.Conditions(applied_by=f"ops{number}")
        single.apply(declared(settings(FRONT), SERVICES[:1], weight), False, conditions)
    (single.places.history / "7.json").write_text("half a docu")
    found = single.info()["history"]
    assert [entry["generation"] for entry in found] == list(range(12, 2, -1))
    assert found[0]["applied_by"] == "ops12" and before <= found[0]["applied_at"] <= time.time()
    assert found[5] == {"generation": 7, "damaged": True}
