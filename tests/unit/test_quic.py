# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services whose backend follows from connection ids of QUIC: what may be declared, and what the tables get of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import plan
from ansible_collections.lbops.xdp.plugins.module_utils.config import cross_check, model
from ansible_collections.lbops.xdp.plugins.module_utils.config.features import used_features
from ansible_collections.lbops.xdp.plugins.module_utils.config.parsing import parse_backends, parse_services
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.tables import digest, layout, server_ids, tables

WEB = {
    "name": "web",
    "address": "192.0.2.1",
    "protocol": "udp",
    "port": 443,
    "affinity": "quic",
    "quic_server_id_length": 2,
}
ONE = {"service": "web", "address": "198.51.100.1", "server_id": "0a01"}
TWO = {"service": "web", "address": "198.51.100.2", "server_id": "0A02"}
SIZES = layout.Sizes(max_services=64, max_backends=1024, max_endpoints=4096)
KIND, MASK = 5, (1 << 64) - 1


def config(*backends: dict[str, Any], **service: Any) -> model.Config:
    """With these backends, and the service's other keys."""
    found = model.Config(parse_services([{**WEB, **service}]), parse_backends(list(backends)))
    cross_check.check(found)
    return found


def ids_in(found: tables.Endpoints | None) -> dict[bytes, int]:
    return {key: number for key, number in (found or {}).items() if key[-1] == KIND}


def parsed(raw: dict[str, Any]) -> model.Service:
    return parse_services([raw])[raw["name"]]


def test_a_service_is_read_as_it_is_written():
    service = parsed({**WEB, "quic_config_id": 3})
    assert parsed(service.as_dict()) == service
    assert (service.server_id_length, service.quic_config_id, service.affinity_prefix) == (2, 3, 0)
    assert "quic" in used_features(config()) and "affinity" not in used_features(config())
    assert "quic" not in used_features(config(affinity="client", quic_server_id_length=None))


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"quic_server_id_length": 0}, "quic_server_id_length 0 is not between 1 and 8"),
        ({"quic_server_id_length": 9}, "quic_server_id_length 9 is not between 1 and 8"),
        (
            {"quic_server_id_length": None},
            "quic_server_id_length is missing: affinity quic needs to know how many bytes of a connection id, 1 to 8, "
            "are the id of a server",
        ),
        ({"quic_config_id": 7}, "quic_config_id 7 is not between 0 and 6"),
        ({"affinity": "none"}, "quic_server_id_length is for services with affinity: quic"),
        (
            {"affinity": "client", "quic_server_id_length": None, "quic_config_id": 1},
            "quic_config_id is for services with affinity: quic",
        ),
        ({"affinity_prefix": 24}, "affinity_prefix is for services with affinity: client"),
        ({"affinity_group": "shop"}, "affinity_group is for services with affinity: client"),
        ({"protocol": "tcp"}, "affinity 'quic' is for protocol udp, which QUIC runs over"),
        (
            {"forwarding": "full_nat", "source": "192.0.2.9"},
            "affinity 'quic' is not for forwarding full_nat, whose sessions are of addresses and ports; use another "
            "forwarding",
        ),
        (
            {"forwarding": "redirect"},
            "affinity 'quic' is not for forwarding redirect, whose backends are interfaces and no servers; use another "
            "forwarding",
        ),
        (
            {"scheduler": "round_robin"},
            "affinity 'quic' with scheduler 'round_robin' needs flow_table: true, or the packets of a handshake go to "
            "several backends; set that, or another scheduler",
        ),
    ],
)
def test_services_that_are_refused(more, problem):
    with pytest.raises(EngineError) as caught:
        parse_services([{**WEB, **more}])
    assert str(caught.value) == f"services[0] (web 192.0.2.1): {problem}"


@pytest.mark.parametrize("value", ["0a0", "0x0a", "0a g1", "", "zz", True])
def test_a_server_id_is_whole_bytes_in_hexadecimal(value):
    with pytest.raises(EngineError) as caught:
        parse_backends([{**ONE, "server_id": value}])
    assert str(caught.value) == (
        f"backends[0] (web 198.51.100.1): server_id {value!r} is not a row of bytes of two hexadecimal digits "
        "each; quote it in the inventory"
    )


@pytest.mark.parametrize(
    "backends, problem",
    [
        (
            [ONE, {**TWO, "server_id": None}],
            "backend 198.51.100.2 of service web: server_id is missing, by which affinity quic finds the server of a "
            "connection; give 2 bytes, such as 0a0a",
        ),
        (
            [ONE, {**TWO, "server_id": "0a"}],
            "backend 198.51.100.2 of service web: server_id 0a has 1 bytes, but quic_server_id_length of the service "
            "is 2",
        ),
        (
            [ONE, {**TWO, "server_id": "0A01"}],
            "backend 198.51.100.2 of service web: server_id 0a01 is that of backend 198.51.100.1 already; give each "
            "its own",
        ),
    ],
)
def test_backends_that_are_refused(backends, problem):
    with pytest.raises(EngineError) as caught:
        config(*backends)
    assert str(caught.value) == problem


def test_an_id_may_be_declared_before_the_service_needs_it():
    found = config(ONE, TWO, affinity="none", quic_server_id_length=None)
    made = plan.make(model.Config({}, {}), plan.Allocation(), found, SIZES)
    assert not ids_in(made.endpoints)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_key_of_a_server(address):
    """As layout.h has it: a hash of the id, the place of the service's lookup table, the config id and the length."""
    tail = (7 << 8 | 3 << 5 | 2) * 0xFF51AFD7ED558CCD
    # The two bytes of the id are the last ones of a little-endian word.
    mixed = (0x010A << 48 ^ tail & MASK) * 0x9E3779B97F4A7C15 & MASK
    expected = (mixed >> 8 | KIND << 56).to_bytes(8, "little")
    key = server_ids.server_key(parsed({**WEB, "address": address, "quic_config_id": 3}), 7, "0a01")
    assert key == (expected if "." in address else expected + bytes(8) + b"\0\0\0\5")


def test_two_servers_that_have_one_key_are_refused():
    """The hash keeps 56 of 64 bits, so ids of eight bytes can be found that share it."""
    back = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    tail = (8 * 0xFF51AFD7ED558CCD) & MASK
    ids = [
        ((number * back & MASK) ^ tail).to_bytes(8, "little").hex()
        for number in (0x1234567890ABCD00, 0x1234567890ABCD01)
    ]
    found = config({**ONE, "server_id": ids[0]}, {**TWO, "server_id": ids[1]}, quic_server_id_length=8)
    with pytest.raises(EngineError, match=f"server_id {ids[1]} has the hash of another server's; take another id"):
        plan.make(model.Config({}, {}), plan.Allocation(), found, SIZES)


def test_drained_backends_keep_their_ids_and_the_service_its_table():
    found = config({**ONE, "state": "drained"}, {**TWO, "weight": 0})
    made = plan.make(model.Config({}, {}), plan.Allocation(), found, SIZES)
    assert sorted(ids_in(made.endpoints).values()) == sorted(made.allocation.backends.values())
    packed = tables.pack_ring(found.services["web"], found.backends.values(), made.allocation.backends)
    assert packed and layout.LOOKUP_TABLE.unpack_from(packed)[1:3] == (0, 2 << 4)


@pytest.mark.parametrize(
    "backends, service",
    [
        ([ONE, {**TWO, "server_id": "0a03"}], {}),
        ([{**ONE, "server_id": "0a02"}, {**TWO, "server_id": "0a01"}], {}),
        ([ONE, TWO], {"quic_config_id": 1}),
        ([{**ONE, "server_id": "0a0100"}, {**TWO, "server_id": "0a0200"}], {"quic_server_id_length": 3}),
    ],
)
def test_other_ids_of_the_same_backends(backends, service):
    """First the old ids and the new ones are known, then the new ones; the backends stay where they are."""
    before, after = config(ONE, TWO), config(*backends, **service)
    first = plan.make(model.Config({}, {}), plan.Allocation(), before, SIZES)
    second = plan.make(before, plan.settled(first.allocation), after, SIZES)
    assert second.allocation.backends == first.allocation.backends
    assert second.changed
    old, new = ids_in(first.endpoints), ids_in(second.endpoints)
    assert old != new and len(new) == 2
    if old.keys() - new.keys():
        assert ids_in(second.interim_endpoints) == {**old, **new}
    assert ("web" in second.swapped_rings) == ("quic_server_id_length" in service)


def test_a_removed_backend_has_no_id():
    before, after = config(ONE, TWO), config(ONE)
    first = plan.make(model.Config({}, {}), plan.Allocation(), before, SIZES)
    second = plan.make(before, plan.settled(first.allocation), after, SIZES)
    assert len(ids_in(second.interim_endpoints)) == 2
    assert len(ids_in(second.endpoints)) == 1


def test_whatever_ids_say_changes_the_digest():
    digests = {
        digest.tables_digest(found)
        for found in (
            config(ONE, TWO),
            config(ONE, {**TWO, "server_id": "0a03"}),
            config(ONE, TWO, quic_config_id=1),
            config(ONE, TWO, affinity="none", quic_server_id_length=None),
        )
    }
    assert len(digests) == 4
