# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balancers of mode offload, with the kernel in place of a network card: the program is on the generic hook."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import (
    hooks,
    observed,
    offload_change,
    offload_maps,
    state,
)
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.config.model import BackendKey
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link

from tests.packet.frames import CLIENT, udp
from tests.packet.network import FRONT, FRONT_MAC, ip, mac
from tests.support import balancer as support
from tests.support.balancer import declared, settings

VIP = "203.0.113.10"
WEB = {"name": "web", "address": VIP, "protocol": "udp", "port": 80, "forwarding": "dsr", "scheduler": "hash"}
DNS = {**WEB, "name": "dns", "port": 53}
ONE = {"service": "web", "address": "10.0.0.11", "mac": "52:54:00:00:00:11"}
TWO = {"service": "web", "address": "10.0.0.12", "mac": "52:54:00:00:00:12"}
OF_DNS = {"service": "dns", "address": "10.0.0.13", "mac": "52:54:00:00:00:13"}
FLOWS = range(40000, 40032)


def document(services: list[dict] | None = None, backends: list[dict] | None = None, **options: Any) -> Any:
    chosen = settings(FRONT, **{"mode": "offload", "unserved": "pass", **options})
    return declared(chosen, [WEB] if services is None else services, [ONE, TWO] if backends is None else backends)


@pytest.fixture(autouse=True)
def kernel_instead_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hooks.HOOKS_OF_MODE, "offload", ("generic",))
    monkeypatch.setattr(offload_change, "device_of", lambda _interface: 0)


@pytest.fixture
def few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses maps of more than two entries, as netdevsim does."""
    create = bpf.map_create

    def limited(name: str, kind: int, size: int, entries: int, **options: Any) -> int:
        if entries > 2:
            raise OSError(12, "Cannot allocate memory")
        return create(name, kind, size, entries, **options)

    monkeypatch.setattr(bpf, "map_create", limited)


@pytest.fixture
def balancer(net: Any) -> Iterator[Balancer]:
    with support.balancer() as made:
        yield made


def apply(balancer: Balancer, wanted: Any, check: bool = False) -> Any:
    return balancer.apply(wanted, check)


def chosen(port: int = 80) -> set[bytes]:
    """The Ethernet addresses that flows to a port go to."""
    attached = link.attached(FRONT)
    assert attached is not None
    descriptor = bpf.program_fd(attached.program_id)
    try:
        found = [bpf.test_run(descriptor, udp(CLIENT, flow, VIP, port, b"x")) for flow in FLOWS]
    finally:
        os.close(descriptor)
    return {output[:6] for verdict, output, _duration in found if verdict == 3}


def program_id() -> int:
    found = link.attached(FRONT)
    return found.program_id if found else 0


def rows(balancer: Balancer) -> dict[str, int]:
    return {entry["name"]: entry["packets"] for entry in balancer.info()["services"]}


def packets_of(balancer: Balancer, backend: dict) -> int:
    (packets,) = [entry["packets"] for entry in balancer.info()["backends"] if entry["address"] == backend["address"]]
    return packets


def macs(*backends: dict) -> set[bytes]:
    return {mac(backend["mac"]) for backend in backends}


def test_four_runs(balancer):
    """Check mode, for real, again, again in check mode."""
    assert apply(balancer, document(), check=True).changed
    assert not balancer.places.pins.exists() and program_id() == 0
    first = apply(balancer, document())
    assert first.changed and first.details["program"]["attached"] and first.details["new_maps"]
    assert chosen() == macs(ONE, TWO)
    assert not apply(balancer, document()).changed and not apply(balancer, document(), check=True).changed


def test_whole_values(few_entries, balancer):
    apply(balancer, document())
    before = program_id()
    assert chosen() == macs(ONE, TWO)
    apply(balancer, document(backends=[TWO]))
    assert (chosen(), program_id()) == (macs(TWO), before)


def test_a_change_switches_halves_and_keeps_the_program(balancer):
    apply(balancer, document())
    before = program_id()
    chosen()
    outcome = apply(balancer, document([WEB, DNS], [ONE, OF_DNS]))
    assert outcome.changed and not outcome.details["new_maps"] and program_id() == before
    assert outcome.details["changes"]["backends"] == {
        "created": ["dns 10.0.0.13"],
        "modified": [],
        "removed": ["web 10.0.0.12"],
    }
    assert (chosen(80), chosen(53)) == (macs(ONE), macs(OF_DNS))
    assert rows(balancer) == {"web": 2 * len(FLOWS), "dns": len(FLOWS)}
    assert outcome.details["generation"] == 2


def test_counters_of_a_new_service_begin_at_zero(balancer):
    apply(balancer, document())
    chosen()
    apply(balancer, document([DNS], [OF_DNS]))
    chosen(53)
    # Its counters are none of those that web had; those are free again after this.
    apply(balancer, document([WEB], [ONE]))
    assert rows(balancer) == {"web": 0}


def test_larger_maps_take_the_place_of_the_old_ones_with_their_counters(balancer):
    apply(balancer, document())
    before = program_id()
    chosen()
    to_one = packets_of(balancer, ONE)
    assert 0 < to_one < len(FLOWS)
    services = [{**DNS, "name": f"s{number}", "port": 1000 + number} for number in range(20)]
    outcome = apply(balancer, document([WEB, *services], [ONE]))
    assert outcome.details["new_maps"] and program_id() != before
    assert chosen() == macs(ONE)
    assert rows(balancer)["web"] == 2 * len(FLOWS)
    assert packets_of(balancer, ONE) == to_one + len(FLOWS)


@pytest.mark.parametrize("what", ["table", "control", "program"])
def test_what_others_changed_is_repaired(balancer, what):
    apply(balancer, document())
    attached = program_id()
    descriptor = bpf.program_fd(attached)
    maps = offload_maps.of_program(descriptor)
    if what == "table":
        half, _known = maps.read_control()
        content = maps.read_half(half)
        maps.write_half(half, {**content, "slots": bytes(len(content["slots"]))})
        assert chosen() == set()
    elif what == "control":
        maps.write_control(0, offload_maps.Interface(1, 1500, "52:54:00:00:00:77"))
        assert chosen() == set()
    else:
        link.detach(FRONT, "generic", descriptor)
    maps.close()
    os.close(descriptor)
    assert apply(balancer, document(), check=True).changed
    outcome = apply(balancer, document())
    assert outcome.changed and outcome.details["generation"] == 1
    assert outcome.details["repaired"] == (what != "program")
    assert chosen() == macs(ONE, TWO) and not apply(balancer, document()).changed


def test_a_boot_puts_back_program_and_tables(balancer):
    apply(balancer, document())
    descriptor = bpf.program_fd(program_id())
    link.detach(FRONT, "generic", descriptor)
    os.close(descriptor)
    balancer.places.program(FRONT).unlink()
    assert balancer.restore().changed
    assert chosen() == macs(ONE, TWO) and not balancer.restore().changed


def test_health_and_a_new_address_reach_the_tables(balancer):
    apply(balancer, document())
    down = BackendKey("web", "10.0.0.11", None)
    assert balancer.observe(observed.Observed({down: False})).out == {down}
    assert chosen() == macs(TWO)
    # A change of the document leaves it out as well, and nothing of this is drift.
    observed.save(balancer.health_file, observed.Observed({down: False}))
    assert not apply(balancer, document()).changed
    balancer.observe(observed.Observed({down: True}))
    assert chosen() == macs(ONE, TWO)
    ip(f"link set {FRONT} address 52:54:00:00:00:77")
    try:
        assert chosen() == macs(ONE, TWO)
        balancer.forget_next_hops()
        assert chosen() == set()
    finally:
        ip(f"link set {FRONT} address {FRONT_MAC}")
    balancer.forget_next_hops()
    assert chosen() == macs(ONE, TWO)
    balancer.forget_health()


def test_detached_and_removed(balancer):
    apply(balancer, document())
    assert apply(balancer, document(attached=False)).changed
    assert program_id() == 0 and not apply(balancer, document(attached=False)).changed
    assert apply(balancer, document()).changed and chosen() == macs(ONE, TWO)
    balancer.remove(check=False)
    assert program_id() == 0 and not balancer.places.pins.exists() and not balancer.places.state_directory.exists()


def test_other_modes_are_refused_both_ways(balancer):
    apply(balancer, document())
    before = program_id()
    with pytest.raises(EngineError, match="has mode offload, and mode native .* state: absent"):
        apply(balancer, document(mode="native"))
    assert program_id() == before
    balancer.remove(check=False)
    apply(balancer, document(mode="generic"))
    before = program_id()
    with pytest.raises(EngineError, match="has mode generic, and mode offload .* state: absent"):
        apply(balancer, document())
    assert program_id() == before


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return fail


def test_a_refusal_of_the_hook_leaves_nothing(balancer, monkeypatch):
    monkeypatch.setattr(link, "attach", failing(link.HookRefused("no")))
    with pytest.raises(EngineError, match="no"):
        apply(balancer, document())
    assert not balancer.places.pins.exists() and not balancer.state_file.exists()


@pytest.mark.parametrize("name", ["set_counters", "write_half", "write_control"])
def test_the_next_run_completes_a_killed_one(balancer, monkeypatch, name):
    apply(balancer, document())
    with monkeypatch.context() as context:
        context.setattr(offload_maps.OffloadMaps, name, failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            apply(balancer, document([WEB, DNS], [ONE, OF_DNS]))
        # Packets see the old tables.
        assert (chosen(80), chosen(53)) == (macs(ONE, TWO), set())
    saved = state.load(balancer.state_file)
    assert saved is not None and saved.generation == 2
    outcome = apply(balancer, document([WEB, DNS], [ONE, OF_DNS]))
    assert outcome.changed and outcome.details["repaired"]
    assert (chosen(80), chosen(53)) == (macs(ONE), macs(OF_DNS))
