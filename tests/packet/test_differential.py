# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Program and model on thousands of frames that were bent in ways nobody thought of; always the same ones."""

from __future__ import annotations

import random
import socket

import pytest

from tests.packet.frames import CLIENT, icmp, padded, tcp, udp, with_bytes
from tests.packet.network import (
    BACK_ADDRESS,
    BLACKHOLE,
    FRONT_ADDRESS,
    PROHIBITED,
    ROUTER,
    UNREACHABLE,
    UNRESOLVED,
    UNRESOLVED_BACK,
)

VIPS = ["203.0.113.10", "203.0.113.11", "203.0.113.12"]
SERVICES = [
    {"name": "web", "address": VIPS[0], "protocol": "tcp", "port": 80},
    {"name": "web-udp", "address": VIPS[0], "protocol": "udp", "port": 80},
    {"name": "dns", "address": VIPS[0], "protocol": "udp", "port": "53"},
    {"name": "game", "address": VIPS[1], "protocol": "udp", "port": "27000-27015"},
    {"name": "sip", "address": VIPS[1], "protocol": "udp", "port": 5060, "scheduler": "round_robin"},
    {"name": "direct", "address": VIPS[2], "protocol": "tcp", "port": "443-445", "forwarding": "dsr"},
    {
        "name": "media",
        "address": VIPS[2],
        "protocol": "udp",
        "port": 6000,
        "forwarding": "dsr",
        "scheduler": "round_robin",
    },
    {"name": "empty", "address": VIPS[2], "protocol": "tcp", "port": 9},
]
BACKENDS = [
    *({"service": "web", "address": f"10.0.0.{host}", "port": 8080, "weight": host} for host in (1, 2, 3)),
    {"service": "web", "address": "10.0.0.4", "port": 8080, "state": "drained"},
    {"service": "web", "address": "10.0.1.5", "port": 8080, "weight": 2},
    {"service": "web", "address": UNRESOLVED, "port": 8080},
    {"service": "web", "address": PROHIBITED, "port": 8080},
    {"service": "web-udp", "address": "10.0.0.1", "port": 8080, "mac": "52:54:00:00:00:01"},
    {"service": "web-udp", "address": "10.0.1.5", "weight": 3},
    {"service": "dns", "address": "10.0.0.1"},
    {"service": "dns", "address": "10.0.0.2", "port": 5353, "weight": 3},
    {"service": "game", "address": "10.0.0.7"},
    {"service": "game", "address": "10.0.0.8", "mac": "52:54:00:00:00:08", "weight": 2},
    {"service": "sip", "address": "10.0.0.9", "port": 5070, "weight": 1},
    {"service": "sip", "address": "10.0.0.10", "port": 5070, "weight": 2},
    {"service": "sip", "address": UNRESOLVED_BACK, "port": 5070, "weight": 4},
    {"service": "direct", "address": "10.0.0.11"},
    {"service": "direct", "address": "10.0.1.12"},
    {"service": "direct", "address": UNRESOLVED},
    {"service": "direct", "address": BLACKHOLE},
    {"service": "media", "address": "10.0.0.13", "weight": 3},
    {"service": "media", "address": "10.0.0.14", "mac": "52:54:00:00:00:0e", "weight": 5},
]
CLIENTS = [
    CLIENT,
    "192.0.2.1",
    "10.0.0.100",
    "10.0.1.100",
    UNRESOLVED,
    UNRESOLVED_BACK,
    FRONT_ADDRESS,
    BACK_ADDRESS,
    ROUTER,
    PROHIBITED,
    UNREACHABLE,
    "127.0.0.1",
    "10.0.0.255",
    "8.8.8.8",
]
ADDRESSES = [socket.inet_aton(address) for address in (*VIPS, *CLIENTS, *(item["address"] for item in BACKENDS))]


def words(*numbers: int) -> list[bytes]:
    return [number.to_bytes(2, "big") for number in numbers]


def octets(*numbers: int) -> list[bytes]:
    return [bytes((number,)) for number in numbers]


# Where a field can be and what it may become. Addresses only become known ones, since the model must know what
# the kernel says of them.
FIELDS = [
    ((14,), octets(0x40, 0x44, 0x45, 0x46, 0x4F, 0x55, 0x65)),  # version and header length
    ((16,), words(0, 20, 27, 28, 39, 40, 41, 65535)),  # total length
    ((20,), words(0x0001, 0x1FFF, 0x2000, 0x3FFF, 0x4000, 0x8000)),  # fragment flags and offset
    ((22,), octets(0, 1, 2, 3, 255)),  # TTL
    ((23,), octets(1, 6, 17, 47, 132)),  # protocol
    ((26, 30), ADDRESSES),
    ((34, 36), words(0, 9, 53, 80, 443, 5060, 5070, 5353, 6000, 8080, 27000, 27015, 65535)),  # ports
    ((24, 36, 38, 40, 50), words(0, 1, 0xFFFE, 0xFFFF)),  # checksums, UDP length
    ((*range(26), *range(34, 60)), octets(0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)),
    ((*range(26), *range(34, 60)), octets(*range(256))),
]


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig(SERVICES, BACKENDS)


def good_frame(generator: random.Random) -> bytes:
    """To a service, from a backend, or an echo request."""
    payload = generator.randbytes(generator.choice((0, 1, 2, 3, 18, 64, 513, 1400)))
    client, client_port = generator.choice(CLIENTS), generator.randrange(1024, 65536)
    fields = {"ttl": generator.choice((1, 2, 64, 255)), "id": generator.randrange(65536)}
    kind = generator.randrange(9)
    if kind == 0:
        return icmp(client, generator.choice(VIPS), payload, **fields)
    service = generator.choice(SERVICES)
    build = tcp if service["protocol"] == "tcp" else udp
    port = int(str(service["port"]).partition("-")[0]) + generator.randrange(2)
    if kind < 5:
        return build(client, client_port, service["address"], port, payload, **fields)
    backend = generator.choice(BACKENDS)
    service = next(service for service in SERVICES if service["name"] == backend["service"])
    build = tcp if service["protocol"] == "tcp" else udp
    port = backend.get("port") or int(str(service["port"]).partition("-")[0])
    return build(backend["address"], port, client, client_port, payload, **fields)


def bend(generator: random.Random, frame: bytes) -> bytes:
    """One mutation."""
    kind = generator.randrange(len(FIELDS) + 3)
    if kind == 0:
        return frame[: generator.randrange(14, max(15, len(frame)))]
    if kind == 1:
        return frame + generator.randbytes(generator.randrange(1, 40))
    if kind == 2:
        position, value = 16, (len(frame) - 14 + generator.randrange(-1, 2)).to_bytes(2, "big")
    else:
        positions, values = FIELDS[kind - 3]
        position, value = generator.choice(positions), generator.choice(values)
    return with_bytes(frame, position, value)[: len(frame)]


@pytest.mark.parametrize("seed", range(4))
def test_bent_frames(rig, seed):
    generator = random.Random(seed)
    for _frame in range(1000):
        frame = good_frame(generator)
        for _mutation in range(generator.choice((0, 1, 1, 1, 2, 3))):
            frame = bend(generator, frame)
        rig.send(frame)
    rig.check_counters()


def test_every_header_byte_with_every_value(rig):
    """One frame, all of its header's bytes one after the other, except for the addresses."""
    frame = padded(udp(CLIENT, 40000, VIPS[0], 53, b"x"))
    for position in (*range(12, 26), *range(34, 42)):
        for value in octets(*range(256)):
            rig.send(with_bytes(frame, position, value))
    rig.check_counters()


def test_traffic_was_as_mixed_as_it_was_meant_to_be(rig):
    """The tests above are worth something only if they reach every end that the program knows."""
    generator = random.Random(99)
    for _frame in range(500):
        rig.send(good_frame(generator))
    for number in range(40):
        rig.send(tcp(CLIENT, 1024 + number, VIPS[0], 80))
        rig.send(tcp(CLIENT, 1024 + number, VIPS[2], 443))
    rig.check_counters()
    assert {reason for reason, verdict in rig.model.reasons} >= {"not_ours", "ttl_expired", "local_reply", "echo"}
    assert {reason for reason, verdict in rig.model.reasons if verdict == "drop"} == {
        "no_backend",
        "no_route",
        "no_neighbour",
    }
    assert ("no_neighbour", "pass") in rig.model.reasons
    forwarded = [counters[0] for key, counters in rig.model.backend_counters.items() if key[0] == "web"]
    assert sum(1 for count in forwarded if count) == 4
