# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What mode offload does not have is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import offload_limits
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, parse_document

WEB = {
    "name": "web",
    "address": "203.0.113.10",
    "protocol": "tcp",
    "port": 80,
    "forwarding": "dsr",
    "scheduler": "hash",
}
BACKEND = {"service": "web", "address": "10.0.0.11", "mac": "52:54:00:00:00:11"}
MAC = {"mac": BACKEND["mac"]}
WEB6 = {**WEB, "address": "2001:db8::10"}
IPIP = {**WEB, "forwarding": "ipip", "source": "10.99.0.0/16"}


def document(service: dict[str, Any] | None = None, backend: dict[str, Any] | None = None, **options: Any) -> Document:
    chosen = {"interfaces": ["eth0"], "mode": "offload", "unserved": "pass", **options}
    return parse_document({**chosen, "services": [service or WEB], "backends": [backend or BACKEND]})


@pytest.mark.parametrize("service", [WEB, {**WEB, "protocol": "udp", "port": "6000-6999"}, IPIP])
def test_what_it_has_is_not_refused(service):
    assert offload_limits.beyond(document(service, hash_seed="9f86d081884c7d65")) == []


OPTIONS = {
    "interfaces": ({"interfaces": ["eth0", "eth1"]}, "interfaces are eth0, eth1"),
    "unserved": ({"unserved": "drop"}, "unserved is drop"),
    "virtual_macs": ({"virtual_macs": ["00:00:5e:00:01:01"]}, "virtual_macs are not known"),
    "multi_buffer": ({"multi_buffer": True}, "multi_buffer is not possible"),
    "next_program": ({"next_program": "/sys/fs/bpf/firewall"}, "a program in a network card cannot call another one"),
    "latency": ({"latency": True}, "latency is not possible"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options, words = OPTIONS[name]
    (found,) = offload_limits.beyond(document(**options))
    assert found.startswith(f"mode offload: {words}")


SERVICES = {
    "dnat": ({**WEB, "forwarding": "dnat"}, "forwarding dnat; use dsr or ipip"),
    "full_nat": (
        {**WEB, "forwarding": "full_nat", "source": "10.0.0.1", "source_ports": "1024-2047"},
        "forwarding full_nat; use dsr or ipip",
    ),
    "gue": ({**IPIP, "forwarding": "gue"}, "forwarding gue; use dsr or ipip"),
    "maglev": ({**WEB, "scheduler": "maglev"}, "scheduler maglev; use hash"),
    "round_robin": ({**WEB, "protocol": "udp", "scheduler": "round_robin"}, "scheduler round_robin; use hash"),
    "any port": ({**WEB, "port": "any"}, "port any; name the ports"),
    "flow_table": ({**WEB, "flow_table": True}, "flow_table; set flow_table: false"),
    "affinity": ({**WEB, "affinity": "client"}, "affinity; leave affinity out"),
    "quic": (
        {**WEB, "protocol": "udp", "affinity": "quic", "quic_server_id_length": 1},
        "affinity; leave affinity out",
    ),
    "source_ranges": ({**WEB, "source_ranges": ["192.0.2.0/24"]}, "source_ranges; leave source_ranges out"),
}


@pytest.mark.parametrize("name", SERVICES)
def test_services(name):
    service, words = SERVICES[name]
    (found,) = offload_limits.beyond(document(service, {**BACKEND, "server_id": "0a"}))
    assert found == f"service web: mode offload has no {words}"


def test_local_backends():
    (found,) = offload_limits.beyond(document(backend={"service": "web", "address": "10.0.0.1", "local": True}))
    assert found == "backend 10.0.0.1 of service web: mode offload has no local backends; leave local out"


def test_backends_and_ipv6():
    found = offload_limits.beyond(document(WEB6, {"service": "web", "address": "fd00::11"}))
    assert [problem.split(";")[0].split(",")[0] for problem in found] == [
        "service web: mode offload has no IPv6",
        "backend fd00::11 of service web: mode offload needs its mac",
        "backend fd00::11 of service web: mode offload has no IPv6",
    ]


def test_filters():
    found = offload_limits.beyond(document(filters=[{"prefix": "192.0.2.0/24", "action": "drop", "protocol": "udp"}]))
    assert found == ["filter 192.0.2.0/24 udp: mode offload has no filters; remove it, or use mode: native"]


def test_more_backends_than_slots():
    backends = [{**MAC, "service": "web", "address": f"10.0.{host // 200}.{host % 200 + 1}"} for host in range(513)]
    options = {"interfaces": ["eth0"], "mode": "offload", "unserved": "pass"}
    (found,) = offload_limits.beyond(parse_document({**options, "services": [WEB], "backends": backends}))
    assert found == "service web: mode offload has 512 slots for 513 backends; declare at most 512"
    backends[0]["state"] = "drained"
    assert offload_limits.beyond(parse_document({**options, "services": [WEB], "backends": backends})) == []


def test_more_ports_than_endpoints():
    (found,) = offload_limits.beyond(document({**WEB, "port": "1-16385"}))
    assert found == "mode offload: services have 16385 ports in all, at most 16384 fit"
