# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Next hops from the kernel's routes and neighbours, remembered until the engine says otherwise."""

from __future__ import annotations

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import Interface
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.frames import CLIENT, CLIENT_PORT, Case, dropped, passed, sent, tcp, udp
from tests.packet.network import (
    BACK,
    BACK_MAC,
    BLACKHOLE,
    FRONT,
    FRONT_ADDRESS,
    FRONT_MAC,
    NEIGHBOURS,
    PROHIBITED,
    ROUTER_MAC,
    UNREACHABLE,
    UNRESOLVED,
    ip,
    mac,
    neighbour_mac,
    set_forwarding,
)
from tests.packet.reference import DROP, PASS, REDIRECT, TX

VIP = "203.0.113.10"
NEW_MAC = "02:00:00:00:ff:01"
BACKENDS = {
    "near": "10.0.0.1",
    "behind": "10.0.1.1",
    "routed": "192.0.2.77",
    "unresolved": UNRESOLVED,
    "prohibited": PROHIBITED,
    "blackhole": BLACKHOLE,
    "unreachable": UNREACHABLE,
    "own": FRONT_ADDRESS,
    "changing": "10.0.0.2",
    "moving": "192.0.2.1",
    "vanishing": "10.0.0.3",
    "appearing": "10.0.0.231",
}
PORTS = {name: 1000 + number for number, name in enumerate(BACKENDS)}
DSR = 1000


def declared() -> tuple[list[dict], list[dict]]:
    """A service for each of the backends, with dnat and, 1000 ports higher, with dsr."""
    services, backends = [], []
    for name, address in BACKENDS.items():
        for forwarding, shift in (("dnat", 0), ("dsr", DSR)):
            service = f"{name}-{forwarding}"
            port = PORTS[name] + shift
            services.append(
                {"name": service, "address": VIP, "protocol": "tcp", "port": port, "forwarding": forwarding}
            )
            backends.append({"service": service, "address": address})
    return services, backends


# By the interface's index; none of these tests has a packet that is too big.


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(*declared())


@pytest.fixture(scope="module")
def second_rig(make_rig):
    return make_rig(*declared())


@pytest.fixture
def forgetful(second_rig):
    """For tests that change the tables, of which the model knows nothing: nothing is remembered at their start."""
    second_rig.program.maps.update_control([])
    return second_rig


def request(name: str, forwarding: str) -> bytes:
    return tcp(CLIENT, CLIENT_PORT, VIP, PORTS[name] + (DSR if forwarding == "dsr" else 0))


def forwarded(name: str, forwarding: str, source_mac: str, destination_mac: str, ttl: int = 63) -> bytes:
    macs = (source_mac, destination_mac)
    if forwarding == "dsr":
        return tcp(CLIENT, CLIENT_PORT, VIP, PORTS[name] + DSR, macs=macs)
    return tcp(CLIENT, CLIENT_PORT, BACKENDS[name], PORTS[name], macs=macs, ttl=ttl)


BOTH = pytest.mark.parametrize("forwarding", ["dnat", "dsr"])


@BOTH
def test_neighbour_on_the_same_interface(rig, forwarding):
    expected = forwarded("near", forwarding, FRONT_MAC, neighbour_mac(0, 1))
    rig.check(sent("", request("near", forwarding), expected))


@BOTH
def test_neighbour_behind_another_interface(rig, forwarding):
    expected = forwarded("behind", forwarding, BACK_MAC, neighbour_mac(1, 1))
    rig.check(Case("", request("behind", forwarding), REDIRECT, expected))


@BOTH
def test_backend_behind_a_router(rig, forwarding):
    expected = forwarded("routed", forwarding, FRONT_MAC, ROUTER_MAC)
    rig.check(sent("", request("routed", forwarding), expected))


def test_unresolved_dnat_backend_gets_the_packet_from_the_kernel(rig):
    # The kernel lowers the TTL when it forwards the packet.
    expected = forwarded("unresolved", "dnat", ROUTER_MAC, FRONT_MAC, ttl=64)
    rig.check(passed("", request("unresolved", "dnat"), "no_neighbour", expected))


def test_unresolved_dsr_backend_drops(rig):
    rig.check(dropped("", request("unresolved", "dsr"), "no_neighbour"))


@BOTH
@pytest.mark.parametrize("name", ["prohibited", "blackhole", "unreachable", "own"])
def test_no_route_drops(rig, name, forwarding):
    rig.check(dropped("", request(name, forwarding), "no_route"))


def test_ttl_is_checked_before_the_route(rig):
    frame = tcp(CLIENT, CLIENT_PORT, VIP, PORTS["prohibited"], ttl=1)
    rig.check(passed("", frame, "ttl_expired"))


def run(rig, frame: bytes) -> tuple[int, bytes]:
    verdict, output, _duration = rig.program.run(frame, interface=rig.interface)
    return verdict, output


@BOTH
def test_answer_is_remembered_until_told_to_forget(forgetful, forwarding):
    frame = request("changing", forwarding)
    old = (TX, forwarded("changing", forwarding, FRONT_MAC, neighbour_mac(0, 2)))
    new = (TX, forwarded("changing", forwarding, FRONT_MAC, NEW_MAC))
    assert run(forgetful, frame) == old
    ip(f"neighbour replace 10.0.0.2 lladdr {NEW_MAC} dev {FRONT} nud permanent")
    try:
        assert run(forgetful, frame) == old
        forgetful.program.maps.update_control([])
        assert run(forgetful, frame) == new
    finally:
        ip(f"neighbour replace 10.0.0.2 lladdr {neighbour_mac(0, 2)} dev {FRONT} nud permanent")


@BOTH
def test_route_to_another_interface(forgetful, forwarding):
    frame = request("moving", forwarding)
    assert run(forgetful, frame) == (TX, forwarded("moving", forwarding, FRONT_MAC, ROUTER_MAC))
    ip(f"route add 192.0.2.1/32 via 10.0.1.50 dev {BACK}")
    try:
        forgetful.program.maps.update_control([])
        assert run(forgetful, frame) == (REDIRECT, forwarded("moving", forwarding, BACK_MAC, neighbour_mac(1, 50)))
    finally:
        ip("route delete 192.0.2.1/32")


def test_neighbour_that_vanishes(forgetful):
    frame = request("vanishing", "dnat")
    assert run(forgetful, frame)[0] == TX
    ip(f"neighbour delete 10.0.0.3 dev {FRONT}")
    try:
        forgetful.program.maps.update_control([])
        assert run(forgetful, frame) == (PASS, forwarded("vanishing", "dnat", ROUTER_MAC, FRONT_MAC, ttl=64))
        assert run(forgetful, request("vanishing", "dsr"))[0] == DROP
    finally:
        ip(f"neighbour add 10.0.0.3 lladdr {neighbour_mac(0, 3)} dev {FRONT} nud permanent")


@BOTH
def test_neighbour_that_appears_is_used_at_once(forgetful, forwarding):
    """A failure is not remembered."""
    frame = request("appearing", forwarding)
    assert run(forgetful, frame)[0] in (PASS, DROP)
    ip(f"neighbour add 10.0.0.231 lladdr {NEW_MAC} dev {FRONT} nud permanent")
    try:
        assert run(forgetful, frame) == (TX, forwarded("appearing", forwarding, FRONT_MAC, NEW_MAC))
    finally:
        ip(f"neighbour delete 10.0.0.231 dev {FRONT}")


@BOTH
def test_host_that_does_not_forward_drops(forgetful, forwarding):
    set_forwarding(False)
    try:
        assert run(forgetful, request("near", forwarding)) == (DROP, request("near", forwarding))
    finally:
        set_forwarding(True)


def reply(client: str) -> bytes:
    return tcp(BACKENDS["near"], PORTS["near"], client, CLIENT_PORT)


def test_reply_on_a_host_that_does_not_forward_is_left_to_the_kernel(forgetful):
    """No route leads to the backend then, by which the reply could be verified."""
    set_forwarding(False)
    try:
        assert run(forgetful, reply(CLIENT)) == (PASS, reply(CLIENT))
    finally:
        set_forwarding(True)


def test_next_hop_of_a_client_is_remembered_until_told_to_forget(forgetful):
    frame = reply("10.0.0.60")
    assert run(forgetful, frame)[1][:6].hex(":") == neighbour_mac(0, 60)
    ip(f"neighbour replace 10.0.0.60 lladdr {NEW_MAC} dev {FRONT} nud permanent")
    try:
        assert run(forgetful, frame)[1][:6].hex(":") == neighbour_mac(0, 60)
        forgetful.program.maps.update_control([])
        assert run(forgetful, frame)[1][:6].hex(":") == NEW_MAC
    finally:
        ip(f"neighbour replace 10.0.0.60 lladdr {neighbour_mac(0, 60)} dev {FRONT} nud permanent")


def test_every_client_keeps_its_own_next_hop(rig):
    """Also those that share a place in the cache, in turns."""
    clients = [f"10.0.{network}.{host}" for network in (0, 1) for host in range(1, NEIGHBOURS + 1)]
    for client in clients + clients[::-1]:
        rig.send(reply(client))
    rig.check_counters()


def test_clients_that_share_a_place_in_the_cache(rig):
    for _time in range(3):
        for client in ("10.0.0.2", "10.64.0.2", "10.128.0.2", "10.0.1.3"):
            rig.send(reply(client))


def test_generation_is_never_0(forgetful):
    """Zeroed entries of the caches must not look current."""
    maps = forgetful.program.maps
    last = layout.CONTROL.pack(layout.LAYOUT_VERSION, 0xFFFFFFFF, 7, b"", layout.MAC.pack(mac(NEW_MAC)))
    bpf.map_update(maps["control"], layout.index(0), last)
    maps.update_control([Interface(3, 9000, NEW_MAC, 7)])
    version, generation, seed, interfaces, virtual_macs = layout.CONTROL.unpack(
        bpf.map_lookup(maps["control"], layout.index(0), layout.CONTROL.size)
    )
    assert (version, generation, seed) == (layout.LAYOUT_VERSION, 1, 7)
    first = layout.INTERFACE.pack(3, 9000, layout.MAC.pack(mac(NEW_MAC)), 7)
    assert (interfaces.rstrip(b"\0"), virtual_macs.rstrip(b"\0")) == (
        first.rstrip(b"\0"),
        layout.MAC.pack(mac(NEW_MAC)),
    )


def test_address_from_the_inventory_needs_no_route(make_rig):
    services = [{"name": "web", "address": VIP, "protocol": "udp", "port": 80}]
    rig = make_rig(services, [{"service": "web", "address": PROHIBITED, "mac": NEW_MAC}])
    expected = udp(CLIENT, CLIENT_PORT, PROHIBITED, 80, macs=(FRONT_MAC, NEW_MAC), ttl=63)
    rig.check(sent("", udp(CLIENT, CLIENT_PORT, VIP, 80), expected))
