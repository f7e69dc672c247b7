# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus metrics of the XDP balancers of this host, read from the kernel at each scrape."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from engine.balancer import Balancer
from engine.errors import EngineError
from engine.state import HOST_PATHS, interfaces
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

SERVICE_LABELS = ["interface", "service", "direction"]
BACKEND_LABELS = ["interface", "service", "backend", "address", "port", "direction"]


def _directions(entry: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    yield "to_backend", entry["packets"], entry["bytes"]
    yield "to_client", entry["reply_packets"], entry["reply_bytes"]


def _target(backend: dict) -> str:
    """Its address, or for redirect its interface."""
    return backend.get("address") or backend["interface"]


class BalancerCollector:
    """One scrape; an interface that cannot be read is a metric, not a failure."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("lbops_up", "Whether the balancer's program is attached.", labels=["interface"])
        readable = GaugeMetricFamily(
            "lbops_collector_success", "Whether the balancer could be read.", labels=["interface"]
        )
        program = InfoMetricFamily("lbops_program", "The balancer's program.", labels=["interface"])
        program_id = GaugeMetricFamily("lbops_program_id", "The kernel's id of the program.", labels=["interface"])
        service_packets = CounterMetricFamily("lbops_service_packets", "Packets by service.", labels=SERVICE_LABELS)
        service_bytes = CounterMetricFamily("lbops_service_bytes", "Bytes of frames by service.", labels=SERVICE_LABELS)
        backend_packets = CounterMetricFamily("lbops_backend_packets", "Packets by backend.", labels=BACKEND_LABELS)
        backend_bytes = CounterMetricFamily("lbops_backend_bytes", "Bytes of frames by backend.", labels=BACKEND_LABELS)
        weight = GaugeMetricFamily(
            "lbops_backend_weight", "Share of new packets a backend gets, 0 when drained.", labels=BACKEND_LABELS[:-1]
        )
        reasons = CounterMetricFamily(
            "lbops_reason_packets",
            "Packets that were passed to the kernel, dropped or answered, by reason.",
            labels=["interface", "verdict", "reason"],
        )
        new_flows = CounterMetricFamily(
            "lbops_service_new_flows", "Flows remembered or sessions started.", labels=["interface", "service"]
        )
        filtered = CounterMetricFamily(
            "lbops_filter_packets",
            "Packets a filter decided on, by what it did.",
            labels=["interface", "prefix", "protocol", "verdict"],
        )
        for interface in interfaces(HOST_PATHS):
            try:
                info = Balancer(interface).info()
            except (EngineError, OSError) as error:
                sys.stderr.write(f"exporter interface={interface} event=unreadable: {error}\n")
                readable.add_metric([interface], 0)
                continue
            readable.add_metric([interface], 1)
            facts = info["program"]
            up.add_metric([interface], facts["attached"])
            if "program_id" in facts:
                program_id.add_metric([interface], facts["program_id"])
                program.add_metric(
                    [interface],
                    {"name": facts["name"], "tag": facts["tag"], "digest": facts["digest"], "hook": facts["hook"]},
                )
            for item in info["filters"]:
                labels = [interface, item["prefix"], item["protocol"]]
                filtered.add_metric([*labels, "drop"], item["dropped"])
                filtered.add_metric([*labels, "pass"], item["packets"] - item["dropped"])
            for service in info["services"]:
                new_flows.add_metric([interface, service["name"]], service["new_flows"])
                for direction, packets, size in _directions(service):
                    service_packets.add_metric([interface, service["name"], direction], packets)
                    service_bytes.add_metric([interface, service["name"], direction], size)
            for backend in info["backends"]:
                labels = [
                    interface,
                    backend["service"],
                    backend.get("name", _target(backend)),
                    _target(backend),
                    str(backend.get("port", "")),
                ]
                weight.add_metric(labels, backend["weight"] if backend["state"] == "enabled" else 0)
                for direction, packets, size in _directions(backend):
                    backend_packets.add_metric([*labels, direction], packets)
                    backend_bytes.add_metric([*labels, direction], size)
            for row in info["reasons"]:
                reasons.add_metric([interface, row["verdict"], row["reason"]], row["packets"])
        yield from (
            up,
            readable,
            program,
            program_id,
            service_packets,
            service_bytes,
            backend_packets,
            backend_bytes,
            weight,
            new_flows,
            filtered,
            reasons,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9477)
    arguments = parser.parse_args()
    registry = CollectorRegistry()
    registry.register(BalancerCollector())
    start_http_server(arguments.port, arguments.address, registry)
    sys.stdout.write(f"exporter address={arguments.address} port={arguments.port} event=started\n")
    sys.stdout.flush()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_arguments: stopped.set())
    stopped.wait()


if __name__ == "__main__":
    main()
