# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning: what is written, where, and that nothing a packet may look at is ever rewritten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = Sizes(max_services=8, max_backends=32, max_endpoints=256)
EMPTY = model.Config({}, {})


def config(services: list[dict], backends: list[dict]) -> model.Config:
    made = model.Config(parse_services(services), parse_backends(backends))
    cross_check.check(made)
    return made


def service(name: str = "dns", **other) -> dict:
    return {"name": name, "address": "192.0.2.10", "protocol": "udp", "port": 53, **other}


def backend(last: int, **other) -> dict:
    return {"service": "dns", "address": f"198.51.100.{last}", "port": 5353, **other}


def applied(desired: model.Config, sizes: Sizes = SIZES) -> plan.Plan:
    return plan.make(EMPTY, plan.Allocation(), desired, sizes)


def settled(planned: plan.Plan) -> plan.Allocation:
    return replace(planned.allocation, retiring_rings=frozenset(), retiring_backends=frozenset())


def follow(first: model.Config, second: model.Config, sizes: Sizes = SIZES) -> tuple[plan.Plan, plan.Plan]:
    before = applied(first, sizes)
    return before, plan.make(first, settled(before), second, sizes)


def test_the_same_configuration_changes_nothing():
    desired = config([service()], [backend(1), backend(2)])
    _before, again = follow(desired, desired)
    assert not again.changed
    assert again.endpoints is None
    assert not (again.new_rings or again.swapped_rings or again.written_backends or again.removed_rings)


def test_another_order_in_the_inventory_changes_nothing():
    _before, again = follow(
        config([service()], [backend(1), backend(2)]), config([service()], [backend(2), backend(1)])
    )
    assert not again.changed


def test_a_new_backend_takes_a_free_place_and_swaps_one_ring():
    before, after = follow(
        config([service(), service("other", port=54)], [backend(1)]),
        config([service(), service("other", port=54)], [backend(1), backend(2)]),
    )
    assert after.backends.created == [("dns", "198.51.100.2", 5353)]
    assert after.swapped_rings == ["dns"]
    assert after.new_rings == []
    assert set(after.allocation.backends.values()) > set(before.allocation.backends.values())
    # Whoever is known before is known after, so one swap of the endpoints is enough.
    assert after.interim_endpoints is None


def test_a_removed_backend_is_known_until_the_ring_has_changed_over():
    _before, after = follow(config([service()], [backend(1), backend(2)]), config([service()], [backend(1)]))
    assert after.interim_endpoints is not None and after.endpoints is not None
    assert len(after.interim_endpoints) == len(after.endpoints) + 1
    assert after.replies_linger


def test_weight_and_state_touch_nothing_but_the_ring():
    for change in ({"weight": 3}, {"state": "drained"}):
        _before, after = follow(
            config([service()], [backend(1), backend(2)]), config([service()], [backend(1), backend(2, **change)])
        )
        assert after.swapped_rings == ["dns"]
        assert after.written_backends == []
        assert after.endpoints is None


def test_a_changed_entry_gets_a_new_place_but_keeps_its_counters():
    before, after = follow(
        config([service()], [backend(1)]), config([service()], [backend(1, mac="02:00:00:00:00:01")])
    )
    key = model.BackendKey("dns", "198.51.100.1", 5353)
    assert after.allocation.backends[key] != before.allocation.backends[key]
    assert after.allocation.backend_counters == before.allocation.backend_counters
    assert after.zero_backend_counters == []


def test_a_service_that_moves_gets_a_new_ring_and_keeps_its_counters():
    before, after = follow(config([service()], [backend(1)]), config([service(address="192.0.2.11")], [backend(1)]))
    assert after.new_rings == ["dns"]
    assert after.allocation.rings["dns"] != before.allocation.rings["dns"]
    assert after.removed_rings == {before.allocation.rings["dns"]}
    assert after.allocation.service_counters == before.allocation.service_counters


def test_forwarding_and_scheduler_change_with_the_ring():
    before, after = follow(
        config([service()], [backend(1, port=None)]), config([service(forwarding="dsr")], [backend(1, port=None)])
    )
    assert after.swapped_rings == ["dns"]
    assert after.allocation.rings == before.allocation.rings
    assert set(after.allocation.backends.values()).isdisjoint(before.allocation.backends.values())
    _before, after = follow(config([service()], [backend(1)]), config([service(scheduler="round_robin")], [backend(1)]))
    assert after.swapped_rings == ["dns"]


def test_counters_of_a_newcomer_start_at_zero():
    before, after = follow(
        config([service()], [backend(1)]), config([service(), service("other", port=54)], [backend(2)])
    )
    assert after.zero_service_counters == [after.allocation.service_counters["other"]]
    assert after.zero_backend_counters == list(after.allocation.backend_counters.values())
    # The counters of what goes away belong to packets still being counted, until the next run.
    assert set(after.allocation.backend_counters.values()).isdisjoint(before.allocation.backend_counters.values())


def test_places_left_by_a_killed_run_are_not_given_away():
    first = config([service()], [backend(1)])
    second = config([service()], [backend(1), backend(2)])
    before = applied(first)
    killed = replace(settled(before), retiring_backends=frozenset({2, 3}), retiring_rings=frozenset({1}))
    after = plan.make(first, killed, second, SIZES)
    assert after.allocation.backends[model.BackendKey("dns", "198.51.100.2", 5353)] == 4
    assert after.removed_rings == {1}


def test_a_place_that_becomes_free_is_given_away_last():
    """Flow tables remember places: a flow of the one who had it must not go to whoever has it next."""
    sizes = replace(SIZES, max_backends=5)
    desired = config([service()], [backend(1), backend(2)])
    allocation, places = plan.settled(applied(desired, sizes).allocation), []
    for last in (3, 4, 5, 6):
        wanted = config([service()], [backend(1), backend(last)])
        allocation = plan.settled(plan.make(desired, allocation, wanted, sizes).allocation)
        desired = wanted
        places.append(allocation.backends[model.BackendKey("dns", f"198.51.100.{last}", 5353)])
    assert places == [3, 4, 2, 3]


@pytest.mark.parametrize(
    ("drift", "what"),
    [
        (plan.Drift(endpoints=True), "endpoints"),
        (plan.Drift(rings=frozenset({0})), "swapped_rings"),
        (plan.Drift(backends=True), "written_backends"),
    ],
)
def test_drift_is_a_change_and_is_repaired(drift, what):
    desired = config([service()], [backend(1)])
    before = applied(desired)
    repaired = plan.make(desired, settled(before), desired, SIZES, drift)
    assert repaired.changed
    assert getattr(repaired, what)


@pytest.mark.parametrize(
    ("services", "backends", "option"),
    [(9, 0, "max_services"), (1, 32, "max_backends")],
)
def test_more_than_the_maps_hold_is_refused_with_the_option_to_raise(services, backends, option):
    desired = config(
        [service(f"dns{n}" if n else "dns", port=53 + n) for n in range(services)],
        [backend(n + 1) for n in range(backends)],
    )
    with pytest.raises(EngineError, match=f"raise {option} of the balancer"):
        applied(desired)


def test_a_change_that_needs_second_places_says_so():
    full = [backend(n + 1) for n in range(31)]
    with pytest.raises(EngineError, match="second place"):
        follow(config([service()], full), config([service(address="192.0.2.11")], full))


backends_strategy = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 12)),
    st.tuples(st.integers(0, 3), st.sampled_from([None, "02:00:00:00:00:01", "02:00:00:00:00:02"])),
    max_size=12,
)
config_strategy = st.builds(
    lambda backends, vip, forwarding: config(
        [service("a", address=f"192.0.2.{vip}", forwarding=forwarding), service("b", port=54)],
        [
            {"service": name, "address": f"198.51.100.{last}", "weight": weight, "mac": mac}
            for (name, last), (weight, mac) in backends.items()
        ],
    ),
    backends_strategy,
    st.integers(1, 2),
    st.sampled_from(["dnat", "dsr"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(config_strategy, min_size=2, max_size=5))
def test_no_place_in_use_is_ever_rewritten(configs):
    """Over any history: a place that the running configuration uses keeps its entry, and counters do not collide."""
    sizes = Sizes(max_services=8, max_backends=64, max_endpoints=256)
    current, allocation = EMPTY, plan.Allocation()
    entries: dict[int, tuple] = {}
    for desired in configs:
        planned = plan.make(current, allocation, desired, sizes)
        in_use = set(allocation.backends.values())
        for key in planned.written_backends:
            assert planned.allocation.backends[key] not in in_use
        for key, place in planned.allocation.backends.items():
            declared, declared_service = desired.backends[key], desired.services[key.service]
            entry = (key, declared.mac, declared_service.address, declared_service.forwarding)
            if key in planned.written_backends:
                entries[place] = entry
            assert entries[place] == entry
        for places in (
            planned.allocation.backends,
            planned.allocation.backend_counters,
            planned.allocation.rings,
            planned.allocation.service_counters,
        ):
            assert len(set(places.values())) == len(places)
        assert 0 not in planned.allocation.backends.values()
        current, allocation = desired, settled(planned)


def nat(name: str, source: str = "10.0.0.250", ports: str = "10000-10099", port: int = 53) -> dict:
    return service(name, port=port, forwarding="full_nat", source=source, source_ports=ports)


def test_services_with_the_same_source_share_its_ports():
    planned = applied(config([nat("one"), nat("two", port=54)], []))
    assert [(place.id, place.first_session) for place in planned.allocation.pools.values()] == [(0, 0)]


def test_pools_lie_side_by_side_and_keep_their_places():
    first = config([nat("one"), nat("two", "10.0.0.251", port=54)], [])
    second = config([nat("two", "10.0.0.251", port=54), nat("three", "10.0.0.252", "1-50", port=55)], [])
    before, after = follow(first, second)
    assert [place.first_session for place in before.allocation.pools.values()] == [0, 100]
    two, three = list(after.allocation.pools.values())
    assert two == list(before.allocation.pools.values())[1]
    # The first one's place may still be looked at while the change goes on.
    assert (three.id, three.first_session) == (2, 200)
    assert [pool.address for pool in after.written_pools] == ["10.0.0.252"]


def test_other_ports_of_a_source_are_another_pool():
    before, after = follow(config([nat("one")], []), config([nat("one", ports="10000-10149")], []))
    assert list(before.allocation.pools) != list(after.allocation.pools)
    assert after.changed and after.endpoints is not None


def test_more_source_ports_than_sessions_are_refused():
    sizes = replace(SIZES, max_sessions=64)
    with pytest.raises(EngineError, match="source 10.0.0.250 with 100 source_ports does not fit: max_sessions .* 64"):
        applied(config([nat("one")], []), sizes)
