# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Program and model on hundreds of thousands of frames; `make fuzz` goes on with others for as long as one likes."""

from __future__ import annotations

import os
import time

import pytest

from tests.packet import fuzz
from tests.packet.frames import padded, udp, with_bytes

FRAMES = 35_000
SEEDS = range(6)
SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))
CLIENT = fuzz.CLIENT


@pytest.fixture(scope="module", params=["xdp", "tc"])
def hook(request):
    return request.param


@pytest.fixture(scope="module")
def rig(make_rig, hook):
    if hook == "tc":
        return make_rig(fuzz.ON_TC, fuzz.ON_TC_BACKENDS, filters=fuzz.FILTERS, tc=True)
    return make_rig(fuzz.SERVICES, fuzz.BACKENDS, filters=fuzz.FILTERS)


def frames(seed: int, hook: str, rig) -> fuzz.Frames:
    declared = (fuzz.ON_TC, fuzz.ON_TC_BACKENDS) if hook == "tc" else (fuzz.SERVICES, fuzz.BACKENDS)
    return fuzz.Frames(seed, *declared, rig.model.ports_in_use)


def compare(rig, source: fuzz.Frames, frames: int) -> int:
    """Returns how many of the frames were sent: a test run refuses some on tc."""
    sent = 0
    for _frame in range(frames):
        frame = source.bent()
        if rig.can_take(frame):
            rig.send(frame)
            sent += 1
    rig.check_counters()
    return sent


@pytest.mark.parametrize("seed", SEEDS)
def test_bent_frames(rig, hook, seed):
    wanted = FRAMES // 5 if hook == "tc" else FRAMES
    sent = compare(rig, frames(seed, hook, rig), wanted)
    assert sent == wanted if hook == "xdp" else sent > 0.9 * wanted


def test_frames_of_other_seeds(rig, hook):
    """For as many seconds as FUZZ_SECONDS says, each time others."""
    deadline, sent = time.monotonic() + SECONDS / 2, 0
    while not sent or time.monotonic() < deadline:
        seed = time.time_ns()
        try:
            sent += compare(rig, frames(seed, hook, rig), 2000)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} on {hook}, after {sent} frames: {error}") from None
    print(f"\n{hook}: program and model agree on {sent:,} frames")


def test_every_header_byte_with_every_value(rig):
    """One frame, all of its header's bytes one after the other, except for the addresses."""
    frame = padded(udp(CLIENT, 40000, fuzz.VIPS[0], 53, b"x"))
    for position in (*range(12, 26), *range(34, 42)):
        for value in fuzz.octets(*range(256)):
            rig.send(with_bytes(frame, position, value))
    rig.check_counters()


def test_traffic_was_as_mixed_as_it_was_meant_to_be(rig, hook):
    """The tests above are worth something only if they reach every end that the program knows."""
    source = frames(99, hook, rig)
    for _frame in range(20_000):
        rig.send(source.good())
    rig.check_counters()
    assert {verdict for label, verdict in rig.model.reasons if label == "too_big"} == {"pass", "drop", "tx"}
    known = {label for label, _verdict in rig.model.reasons}
    assert known >= {
        *("not_ip", "not_ours", "malformed", "extension_headers", "ttl_expired", "local_reply", "no_neighbour"),
        *("no_backend", "no_route", "martian", "fragment", "filtered", "echo", "too_big"),
    }
    idle = [name for name, counters in rig.model.service_counters.items() if not counters[0] and "empty" not in name]
    assert not idle
    for service in ("nat", "nat-tcp6", "web", "dns6", "rest"):
        assert rig.model.service_counters[service][2], f"no reply of {service}"
    for service in ("nat", "nat-tcp6", "sticky", "sticky-tunnel6"):
        assert rig.model.service_counters[service][4], f"no new flow of {service}"
    for services in (("web",), ("dns6",), ("rest",), ("nat", "nat-tcp"), ("nat6", "nat-tcp6")):
        assert any(rig.model.errors_to_clients[name] for name in services), f"no error from behind {services}"
