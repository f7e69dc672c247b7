# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a document asks for that a program in a network card cannot do. Pure functions.

Such a program has no clock, no per-CPU memory, no FIB, and no way out but the port that a packet came by.
"""

from __future__ import annotations

from collections import Counter

from ..config.filters import Filter
from ..config.model import Backend, Config, Service
from ..tables import offload
from ..tables.lookup import HASH_SLOTS
from .document import Document, Settings

FORWARDINGS = ("dsr", "ipip")
SCHEDULER = "hash"


def beyond(document: Document) -> list[str]:
    """A sentence for each option, service, backend and filter that mode offload does not have, with the remedy."""
    config = document.config
    return [
        *_of_settings(document.settings),
        *(problem for service in config.services.values() for problem in _of_service(service)),
        *(problem for backend in config.backends.values() for problem in _of_backend(backend)),
        *_of_numbers(config),
        *map(_of_filter, document.filters.values()),
    ]


def _of_settings(settings: Settings) -> list[str]:
    found = []
    if len(settings.interfaces) != 1:
        found.append(
            f"mode offload: interfaces are {', '.join(settings.interfaces)}, but the tables are in one network card; "
            "name one interface, and declare a balancer for each other one"
        )
    if settings.unserved != "pass":
        found.append(
            f"mode offload: unserved is {settings.unserved}, but a network card cannot ask the kernel's FIB whether it "
            "would send a packet back; set unserved: pass"
        )
    if settings.virtual_macs:
        found.append("mode offload: virtual_macs are not known to the network card; leave virtual_macs out")
    if settings.next_program:
        found.append("mode offload: a program in a network card cannot call another one; leave next_program out")
    for option in ("multi_buffer", "latency"):
        if getattr(settings, option):
            found.append(f"mode offload: {option} is not possible in a network card; set {option}: false")
    return found


def _of_service(service: Service) -> list[str]:
    what = f"service {service.name}: mode offload"
    found = []
    if service.forwarding not in FORWARDINGS:
        found.append(f"{what} has no forwarding {service.forwarding}; use {' or '.join(FORWARDINGS)}")
    if service.scheduler != SCHEDULER:
        found.append(f"{what} has no scheduler {service.scheduler}; use {SCHEDULER}")
    if service.family == 6:
        found.append(f"{what} has no IPv6, as of the VIP {service.address}; use an IPv4 address")
    if service.any_port:
        found.append(f"{what} has no port {service.port}; name the ports")
    if service.flow_table:
        found.append(f"{what} has no flow_table; set flow_table: false")
    if service.affinity_prefix or service.by_connection_id:
        found.append(f"{what} has no affinity; leave affinity out")
    if service.source_ranges:
        found.append(f"{what} has no source_ranges; leave source_ranges out")
    return found


def _of_backend(backend: Backend) -> list[str]:
    found = []
    if backend.local:
        found.append(f"{backend.label}: mode offload has no local backends; leave local out")
    elif not backend.mac:
        found.append(
            f"{backend.label}: mode offload needs its mac, because a network card cannot ask the kernel for the next "
            "hop; give mac"
        )
    if backend.address and ":" in backend.address:
        found.append(f"{backend.label}: mode offload has no IPv6; use an IPv4 address")
    return found


def _of_numbers(config: Config) -> list[str]:
    found = []
    if len(config.services) > offload.MAX_SERVICES:
        found.append(f"mode offload: there are {len(config.services)} services, at most {offload.MAX_SERVICES} fit")
    ports = sum(len(service.ports) for service in config.services.values())
    if ports > offload.MAX_PORTS:
        found.append(f"mode offload: services have {ports} ports in all, at most {offload.MAX_PORTS} fit")
    if len(config.backends) > offload.MAX_BACKENDS:
        found.append(f"mode offload: there are {len(config.backends)} backends, at most {offload.MAX_BACKENDS} fit")
    counts = Counter(backend.service for backend in config.backends.values() if backend.share)
    found += [
        f"service {name}: mode offload has {HASH_SLOTS} slots for {count} backends; declare at most {HASH_SLOTS}"
        for name, count in counts.items()
        if count > HASH_SLOTS
    ]
    return found


def _of_filter(item: Filter) -> str:
    return f"filter {item.prefix} {item.protocol}: mode offload has no filters; remove it, or use mode: native"
