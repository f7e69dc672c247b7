# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change does to open connections is said before it is made."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.consequences import resets
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, parse_document

WEB = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 443}
BACKENDS = [{"service": "web", "address": f"198.51.100.{host}"} for host in (1, 2, 3)]


def document(service: dict[str, Any], backends: list[dict[str, Any]]) -> Document:
    return parse_document({"interfaces": ["eth0"], "services": [service], "backends": backends})


@pytest.mark.parametrize(
    ("service", "backends", "words"),
    [
        (WEB, BACKENDS, []),
        (WEB, [*BACKENDS, {"service": "web", "address": "198.51.100.4"}], []),
        ({**WEB, "scheduler": "hash"}, BACKENDS, []),
        (
            {**WEB, "forwarding": "dsr"},
            BACKENDS,
            ["service web: forwarding changes from dnat to dsr, which resets the open connections of its 3 backends"],
        ),
        ({**WEB, "port": 8443}, BACKENDS, ["service web: its VIP or port changes, so its open connections end"]),
        (WEB, BACKENDS[:2], ["service web: 1 backend removed, whose open connections are reset"]),
        (
            WEB,
            [{**BACKENDS[0], "state": "drained"}, {**BACKENDS[1], "weight": 0}, BACKENDS[2]],
            [
                "service web: 2 backends drained, whose open connections are reset, because the service has no flow "
                "table; set flow_table: true before draining to keep them"
            ],
        ),
        ({**WEB, "flow_table": True}, [{**BACKENDS[0], "state": "drained"}, *BACKENDS[1:]], []),
        (
            WEB,
            [{**BACKENDS[0], "state": "backup"}, *BACKENDS[1:]],
            [
                "service web: backups hand over to other backends, which resets the open connections of 1 backend, "
                "because the service has no flow table; set flow_table: true before to keep them"
            ],
        ),
        ({**WEB, "flow_table": True}, [{**BACKENDS[0], "state": "backup"}, *BACKENDS[1:]], []),
        (WEB, [{**entry, "state": "backup"} for entry in BACKENDS], []),
    ],
)
def test_resets_are_named_with_the_number_of_backends(service, backends, words):
    assert resets(document(WEB, BACKENDS), document(service, backends)) == words


def test_packets_without_connections_reset_none():
    udp = {**WEB, "protocol": "udp"}
    assert resets(document(udp, BACKENDS), document({**udp, "forwarding": "dsr"}, BACKENDS)) == []
