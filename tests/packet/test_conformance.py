# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of another balancer's suite: what it does with IPIP, this one does as well, but for what it does on purpose.

data/ipip_frames.json is taken as data from Katran's published fixtures, katran/lib/testing/fixtures/
KatranBaseTestFixtures.h.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.packet import reference

SUITE = json.loads((Path(__file__).parent / "data" / "ipip_frames.json").read_text(encoding="utf-8"))
VERDICTS = {"XDP_TX": reference.TX, "XDP_PASS": reference.PASS, "XDP_DROP": reference.DROP}
CASES = {case["id"]: case for case in SUITE["cases"]}
# What this balancer decides otherwise: IPv4 options are as good as none; of fragments, the first is balanced by its
# ports and the others follow it, so this one, whose first was not seen, is dropped here, too.
BALANCED_ON_PURPOSE = ["ipip-12"]
# To a port of a VIP that no service has: here the kernel would send it back.
DROPPED_ON_PURPOSE = ["ipip-15", "ipip-16"]
SOURCES = {4: "10.0.13.37", 6: "fc00:2307::1337"}


def is_ip6(address: str) -> bool:
    return ":" in address


@pytest.fixture(scope="module")
def rig(make_rig):
    services, backends = [], []
    for number, declared in enumerate(SUITE["setup"]["services"]):
        name = f"service-{number}"
        family = 6 if is_ip6(declared["backends"][0]) else 4
        services.append(
            {
                "name": name,
                "address": declared["address"],
                "protocol": declared["protocol"],
                "port": declared["port"],
                "forwarding": "ipip",
                "source": SOURCES[family],
            }
        )
        mac = SUITE["setup"]["next_hop_mac"]
        backends += [{"service": name, "address": address, "mac": mac} for address in declared["backends"]]
    # Its frames are for this address.
    return make_rig(services, backends, virtual_macs=("02:00:00:00:00:00",))


def allowed_destinations() -> set[bytes]:
    addresses = {address for declared in SUITE["setup"]["services"] for address in declared["backends"]}
    return {socket.inet_pton(socket.AF_INET6 if is_ip6(item) else socket.AF_INET, item) for item in addresses}


def masked(frame: bytes) -> bytes:
    """Without the outer header's addresses and checksum."""
    if frame[12:14] == b"\x08\x00":
        return frame[:24] + bytes(10) + frame[34:]
    return frame[:22] + bytes(32) + frame[54:]


def outer_destination(frame: bytes) -> bytes:
    return frame[30:34] if frame[12:14] == b"\x08\x00" else frame[38:54]


@pytest.mark.parametrize("name", [name for name in CASES if name not in BALANCED_ON_PURPOSE + DROPPED_ON_PURPOSE])
def test_as_the_other_suite_has_it(rig, name):
    case = CASES[name]
    frame = bytes.fromhex(case["frame_in"])
    verdict, output = rig.send(frame)
    assert verdict == VERDICTS[case["verdict"]], case["description"]
    if "frame_out" not in case or verdict != reference.TX:
        assert output == frame
        return
    expected = bytes.fromhex(case["frame_out"])
    if len(output) == len(frame):
        assert output[:14] == expected[:14] and output[34:36] == expected[34:36], case["description"]
        return
    assert masked(output).hex() == masked(expected).hex(), case["description"]
    assert outer_destination(output) in allowed_destinations()


@pytest.mark.parametrize("name", BALANCED_ON_PURPOSE)
def test_otherwise_on_purpose(rig, name):
    frame = bytes.fromhex(CASES[name]["frame_in"])
    verdict, output = rig.send(frame)
    assert verdict == reference.TX
    assert output[34:] == frame[14:] and outer_destination(output) in allowed_destinations()


@pytest.mark.parametrize("name", DROPPED_ON_PURPOSE)
def test_dropped_on_purpose(rig, name):
    frame = bytes.fromhex(CASES[name]["frame_in"])
    assert rig.send(frame) == (reference.DROP, frame)
    assert rig.model.last_reason == ("vip_unserved", "drop")
