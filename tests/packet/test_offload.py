# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program for network cards does what the model says, but for what a card cannot remember or ask."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import Interface
from ansible_collections.lbops.xdp.plugins.module_utils.config import model
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import REASONS
from ansible_collections.lbops.xdp.plugins.module_utils.tables.offload import pack_half
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.packet import fuzz, reference
from tests.packet.frames import CLIENT, tcp, udp
from tests.packet.network import FRONT_MAC, ROUTER_MAC, mac
from tests.support.offloaded import OffloadedProgram

FRAMES = 6000
MTU = 1500
DIRECT, MEDIA, TUNNEL, EMPTY = fuzz.VIPS[0], fuzz.VIPS[0], fuzz.VIPS[1], fuzz.VIPS[1]


def service(name: str, address: str, protocol: str, port: Any, forwarding: str, **others: Any) -> dict[str, Any]:
    keys = {"name": name, "address": address, "protocol": protocol, "port": port, "forwarding": forwarding}
    return {**keys, "scheduler": "hash", **others}


SERVICES = [
    service("direct", DIRECT, "tcp", 443, "dsr"),
    service("media", MEDIA, "udp", "6000-6015", "dsr"),
    service("tunnel", TUNNEL, "tcp", 80, "ipip", source="10.99.0.0/16"),
    service("tunnel-udp", TUNNEL, "udp", 53, "ipip", source="10.99.7.1"),
    service("empty", EMPTY, "tcp", 8080, "ipip", source="10.99.7.1"),
]
BACKENDS = [
    {"service": name, "address": f"10.0.0.{host}", "mac": f"52:54:00:00:00:{host:02x}", **others}
    for name, host, others in (
        ("direct", 11, {}),
        ("direct", 12, {}),
        ("direct", 13, {"weight": 5}),
        ("media", 14, {}),
        ("media", 15, {"state": "drained"}),
        ("tunnel", 16, {}),
        ("tunnel", 17, {"weight": 3}),
        ("tunnel-udp", 18, {}),
        ("tunnel-udp", 19, {}),
    )
]


class Model(reference.Balancer):
    """What docs/data-plane.md says of an offloaded program: fragments pass, nothing is answered as too big."""

    def _flow(self, packet: Any, frame: bytes) -> tuple[int, bytes]:
        return self._leave(packet, frame) if packet.fragment else super()._flow(packet, frame)

    def _follow_fragment(self, packet: Any, frame: bytes) -> tuple[int, bytes]:
        return self._leave(packet, frame)

    def _too_big(self, _packet: Any, frame: bytes, _mtu: int) -> tuple[int, bytes]:
        return self._because(reference.DROP, "too_big", frame)


class Frames(fuzz.Frames):
    """Those over IPv4."""

    def good(self) -> bytes:
        kinds = self.request, self.echo, self.error
        return self.random.choices(kinds, weights=(10, 1, 4))[0](4)


class Rig:
    def __init__(self, whole: bool, mtu: int = MTU) -> None:
        features = frozenset(("dsr", "ipip", "unserved_pass"))
        self.model = Model(SERVICES, BACKENDS, features=features, mtu=mtu, own_macs=[mac(FRONT_MAC)])
        self.program = OffloadedProgram(SERVICES, BACKENDS, whole, FRONT_MAC, mtu)

    def send(self, frame: bytes) -> tuple[int, bytes]:
        """The program's verdict and frame, once they are the model's, too."""
        found, wanted = self.program.run(frame), self.model.process(frame)
        assert (found[0], found[1].hex()) == (wanted[0], wanted[1].hex()), f"program != model for {frame.hex()}"
        return found

    def check_counters(self) -> None:
        rows = self.program.maps.read_counters()
        reasons = {reason: packets for reason, (packets, _bytes) in zip(REASONS, rows) if packets}
        assert reasons == dict(self.model.reasons)
        places = self.program.places
        services = {name: [*rows[number], 0, 0, 0] for name, number in places.services.items()}
        assert services == self.model.service_counters
        backends = {tuple(key): [*rows[number], 0, 0, 0] for key, number in places.backends.items()}
        assert backends == self.model.backend_counters


@pytest.fixture(scope="module", params=[False, True], ids=["records", "whole"])
def rig(request):
    made = Rig(request.param)
    yield made
    made.program.close()


@pytest.mark.parametrize("seed", range(3))
def test_bent_frames(rig, seed):
    source = Frames(seed, SERVICES, BACKENDS)
    for _frame in range(FRAMES):
        rig.send(source.bent())
    rig.check_counters()
    assert rig.model.reasons.keys() >= {
        *(("not_ours", "pass"), ("malformed", "pass"), ("not_ip", "pass"), ("ttl_expired", "pass")),
        *(("no_backend", "drop"), ("martian", "drop"), ("echo", "tx")),
    }
    assert all(row[0] for name, row in rig.model.service_counters.items() if name != "empty")


@pytest.mark.parametrize("address", ["52:54:00:00:00:77", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_frames_for_others_pass(rig, address):
    frame = mac(address) + tcp(CLIENT, 40000, DIRECT, 443)[6:]
    assert rig.send(frame) == (reference.PASS, frame)
    assert rig.model.last_reason == ("other_mac", "pass")


def test_dsr_changes_ethernet_addresses_alone(rig):
    frame = udp(CLIENT, 40000, MEDIA, 6007, b"payload")
    verdict, output = rig.send(frame)
    assert (verdict, output[12:]) == (reference.TX, frame[12:])
    assert output[:12] == mac("52:54:00:00:00:0e") + mac(FRONT_MAC)


@pytest.mark.parametrize("tags", [0, 1, 2])
def test_ipip_puts_a_header_in_front(rig, tags):
    link = Ether(src=ROUTER_MAC, dst=FRONT_MAC)
    for number in range(tags):
        link = link / Dot1Q(vlan=7 + number)
    packet = IP(src=CLIENT, dst=TUNNEL, tos=0xBB, ttl=9, flags="DF") / UDP(sport=40000, dport=53) / Raw(b"question")
    verdict, output = rig.send(bytes(link / packet))
    found = Ether(output)[IP]
    assert verdict == reference.TX
    assert (found.src, found.proto, found.ttl, found.tos, str(found.flags)) == ("10.99.7.1", 4, 64, 0xBB, "DF")
    assert found.dst in ("10.0.0.18", "10.0.0.19") and bytes(found.payload) == bytes(packet)
    computed = found.copy()
    del computed.chksum
    assert IP(bytes(computed)).chksum == found.chksum


def test_a_flow_keeps_its_backend_and_flows_are_spread(rig):
    chosen = {}
    for port in range(40000, 40400):
        frame = tcp(CLIENT, port, DIRECT, 443)
        outputs = {rig.send(frame)[1][:6] for _packet in range(2)}
        assert len(outputs) == 1
        chosen[port] = outputs.pop()
    counts = {address[-1]: list(chosen.values()).count(address) for address in set(chosen.values())}
    assert counts.keys() == {11, 12, 13}
    # Weight 5 of 7, within the chance of 400 flows.
    assert 240 < counts[13] < 330


def test_an_error_about_a_backends_packet_goes_to_that_backend(rig):
    for port in range(40000, 40020):
        request = tcp(CLIENT, port, DIRECT, 443)
        quoted = IP(src=DIRECT, dst=CLIENT) / TCP(sport=443, dport=port)
        error = IP(src="8.8.8.8", dst=DIRECT) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted
        frame = bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / error)
        assert rig.send(frame)[1][:6] == rig.send(request)[1][:6]


@pytest.mark.parametrize("flags, offset", [("MF", 0), (0, 100)])
def test_fragments_pass(rig, flags, offset):
    packet = IP(src=CLIENT, dst=DIRECT, flags=flags, frag=offset) / TCP(sport=40000, dport=443)
    assert rig.send(bytes(Ether(src=ROUTER_MAC, dst=FRONT_MAC) / packet))[0] == reference.PASS
    assert rig.model.last_reason == ("not_ours", "pass")


def test_the_outer_header_counts_for_the_mtu(rig):
    fits = MTU - 20 - 28
    assert rig.send(udp(CLIENT, 40000, TUNNEL, 53, bytes(fits)))[0] == reference.TX
    frame = udp(CLIENT, 40000, TUNNEL, 53, bytes(fits + 1))
    assert rig.send(frame) == (reference.DROP, frame)
    assert rig.model.last_reason == ("too_big", "drop")


def test_the_control_record_switches_halves(rig):
    program = rig.program
    frame = udp(CLIENT, 40000, MEDIA, 6007, b"payload")
    backends = dict(program.config.backends)
    (key,) = (key for key in backends if key.address == "10.0.0.14")
    backends[key] = backends[key]._replace(mac="52:54:00:00:00:99")
    changed = model.Config(program.config.services, backends)
    program.maps.write_half(1, pack_half(changed, program.places, program.maps.shape))
    before = program.run(frame)[1]
    assert before[:6] == mac("52:54:00:00:00:0e")
    program.maps.write_control(1, Interface(1, MTU, FRONT_MAC))
    assert program.run(frame)[1] == mac("52:54:00:00:00:99") + before[6:]
    program.maps.write_control(0, Interface(1, MTU, FRONT_MAC))
    assert program.run(frame)[1] == before
