# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The document of a balancer: everything that the inventory declares of it, parsed and checked as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..config.cross_check import check
from ..config.features import used_features
from ..config.filters import Filter, Filters, parse_filters
from ..config.model import Backend, Config, Service
from ..config.parsing import parse_backends, parse_mac, parse_services
from ..config.vocabulary import REPLY_CHECKS, UNSERVED
from ..errors import EngineError
from ..tables.layout import MAX_INTERFACES, MAX_VIRTUAL_MACS, Sizes

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
INTERFACE_PATTERN = re.compile(r"[^/\s]{1,15}")
# Of a pinned program: absolute, and no part of it is "." or "..".
NEXT_PROGRAM_PATTERN = re.compile(r"/sys/fs/bpf(?:/(?!\.{1,2}(?:/|$))[^/\s]+)+")
SEED_PATTERN = re.compile(r"[0-9a-f]{16}")
MODES = ("auto", "native", "tc", "generic", "offload")
SOURCE = "/usr/lib/lbops/current/bpf"
# Beyond these, maps take gigabytes, or the kernel refuses them without a reason.
SIZE_LIMITS = {
    "max_services": 65536,
    "max_backends": 1048576,
    "max_endpoints": 1048576,
    "max_flows": 16777216,
    "max_sessions": 1048576,
    "max_filters": 1048576,
    "max_new_flows": 100000000,
}


@dataclass(frozen=True)
class Settings:
    """Everything of a document but services, backends and filters."""

    interfaces: tuple[str, ...] = ()
    attached: bool = True
    mode: str = "auto"
    # Change what keeps a driver from taking the program.
    prepare: bool = False
    multi_buffer: bool = False
    latency: bool = False
    # One of config.vocabulary.UNSERVED.
    unserved: str = "drop"
    # One of config.vocabulary.REPLY_CHECKS.
    reply_check: str = "strict"
    # Ethernet addresses of VRRP, in lower case and in order.
    virtual_macs: tuple[str, ...] = ()
    # Path of the pinned XDP program that gets what this one passes; empty: none.
    next_program: str = ""
    sizes: Sizes = Sizes()
    # Directory of the program's C files on the host.
    source: str = SOURCE
    # 16 hexadecimal digits that nobody else is to know; empty: the flow hash is public.
    hash_seed: str = field(default="", repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What parse_settings() takes."""
        return {
            **vars(self),
            "interfaces": list(self.interfaces),
            "virtual_macs": list(self.virtual_macs),
            "sizes": asdict(self.sizes),
        }


@dataclass(frozen=True)
class Document:
    """What a balancer is to be. Two documents are equal if they ask for the same."""

    settings: Settings = Settings()
    config: Config = Config({}, {})
    filters: Filters = field(default_factory=dict)

    @property
    def interfaces(self) -> tuple[str, ...]:
        return self.settings.interfaces

    @property
    def sizes(self) -> Sizes:
        return self.settings.sizes

    @property
    def has_ipv6(self) -> bool:
        """Whether a VIP is of IPv6."""
        return any(service.family == 6 for service in self.config.services.values())

    @property
    def features(self) -> frozenset[str]:
        """What has to be compiled in."""
        chosen = {
            "multi_buffer": self.settings.multi_buffer,
            "latency": self.settings.latency,
            "unserved_pass": self.settings.unserved == "pass",
            "next_program": bool(self.settings.next_program),
            "reply_interface": self.settings.reply_check == "interface",
            "reply_unchecked": self.settings.reply_check == "off",
        }
        return used_features(self.config, self.filters).union(name for name, wanted in chosen.items() if wanted)

    @cached_property
    def text(self) -> str:
        """as_dict() as JSON, made once: a change writes it to the state, before it and after it, and to the history."""
        return json.dumps(self.as_dict(), separators=(",", ":"))

    def text_with(self, content: dict[str, Any]) -> str:
        """JSON of this content, which is not empty, and of the document under its name."""
        return f'{json.dumps(content, separators=(",", ":"))[:-1]},"document":{self.text}}}'

    def as_dict(self) -> dict[str, Any]:
        """What parse_document() takes."""
        return {
            **self.settings.as_dict(),
            "services": [service.as_dict() for service in self.config.services.values()],
            "backends": [backend.as_dict() for backend in self.config.backends.values()],
            "filters": [item.as_dict() for item in self.filters.values()],
        }


def check_name(name: Any) -> str:
    """The name of a balancer. Raises EngineError."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise EngineError(
            f"balancer {name!r}: a name has letters, digits, _ and -, begins with a letter or digit, and is at most 32 "
            "characters long"
        )
    return name


def parse_interfaces(raw: Any) -> tuple[str, ...]:
    """The names of a balancer's interfaces. Raises EngineError."""
    if not isinstance(raw, (list, tuple)):
        raise EngineError(f"interfaces is {raw!r}, not a list")
    if not raw:
        raise EngineError("interfaces is empty; name the interfaces whose packets are balanced")
    if len(raw) > MAX_INTERFACES:
        raise EngineError(f"interfaces has {len(raw)} entries; a balancer has at most {MAX_INTERFACES}")
    for position, name in enumerate(raw):
        if not isinstance(name, str) or not INTERFACE_PATTERN.fullmatch(name) or name in (".", ".."):
            raise EngineError(f"interfaces[{position}]: {name!r} is not a name of an interface")
        if name in raw[:position]:
            raise EngineError(f"interfaces[{position}]: {name} is listed twice")
    return tuple(raw)


def parse_virtual_macs(raw: Any) -> tuple[str, ...]:
    """Ethernet addresses of VRRP. Raises EngineError."""
    if not isinstance(raw, (list, tuple)):
        raise EngineError(f"virtual_macs is {raw!r}, not a list")
    if len(raw) > MAX_VIRTUAL_MACS:
        raise EngineError(f"virtual_macs has {len(raw)} entries; a balancer has at most {MAX_VIRTUAL_MACS}")
    found: list[str] = []
    for position, value in enumerate(raw):
        try:
            mac = parse_mac(value)
        except ValueError as error:
            raise EngineError(f"virtual_macs[{position}]: {error}") from None
        if mac in found:
            raise EngineError(f"virtual_macs[{position}]: {mac} is listed twice")
        found.append(mac)
    return tuple(sorted(found))


def parse_next_program(raw: Any, mode: str) -> str:
    """The path of a pinned program, empty for none. Raises EngineError."""
    text = "" if raw is None else str(raw)
    if text and not NEXT_PROGRAM_PATTERN.fullmatch(text):
        raise EngineError(f"next_program {text!r} is not a path of a pinned program, such as /sys/fs/bpf/firewall")
    if text and mode == "tc":
        raise EngineError(
            "next_program is for XDP, not for mode tc, where packets that pass go on to the next filter; leave it out, "
            "and attach the program as a filter behind the balancer's"
        )
    return text


def parse_sizes(raw: dict[str, Any]) -> Sizes:
    """Raises EngineError that names the option."""
    sizes = Sizes(**raw)
    for option, limit in SIZE_LIMITS.items():
        if not 1 <= getattr(sizes, option) <= limit:
            raise EngineError(f"{option} {getattr(sizes, option)} is not between 1 and {limit}")
    return sizes


def parse_hash_seed(raw: Any) -> str:
    """Empty for none. Raises EngineError, which does not quote what may be a secret with a typing error."""
    text = "" if raw is None else str(raw).lower()
    if text and not SEED_PATTERN.fullmatch(text):
        raise EngineError(
            "hash_seed is not 16 hexadecimal digits; make one with openssl rand -hex 8, and quote it in the inventory"
        )
    if text and not int(text, 16):
        raise EngineError("hash_seed is zero, which is no secret; make one with openssl rand -hex 8, or leave it out")
    return text


def parse_settings(raw: dict[str, Any]) -> Settings:
    """Raises EngineError that names the option."""
    mode = raw.get("mode", "auto")
    if mode not in MODES:
        raise EngineError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    unserved = raw.get("unserved", "drop")
    if unserved not in UNSERVED:
        raise EngineError(f"unserved {unserved!r} is not one of {', '.join(UNSERVED)}")
    reply_check = raw.get("reply_check", "strict")
    if reply_check not in REPLY_CHECKS:
        raise EngineError(f"reply_check {reply_check!r} is not one of {', '.join(REPLY_CHECKS)}")
    return Settings(
        parse_interfaces(raw.get("interfaces")),
        raw.get("attached", True),
        mode,
        raw.get("prepare", False),
        raw.get("multi_buffer", False),
        raw.get("latency", False),
        unserved,
        reply_check,
        parse_virtual_macs(raw.get("virtual_macs", [])),
        parse_next_program(raw.get("next_program"), mode),
        parse_sizes(raw.get("sizes", {})),
        raw.get("source", SOURCE),
        parse_hash_seed(raw.get("hash_seed")),
    )


def parse_document(raw: dict[str, Any]) -> Document:
    """Raises EngineError that names each bad entry of the first part that has any."""
    settings = parse_settings(raw)
    config = Config(parse_services(raw.get("services", [])), parse_backends(raw.get("backends", [])))
    check(config)
    return Document(settings, config, parse_filters(raw.get("filters", [])))


def addresses_of_kernel(backends: Iterable[Backend]) -> list[str]:
    """The addresses of the backends whose next hop the kernel's tables decide."""
    return sorted(
        {backend.address for backend in backends if backend.address and not backend.mac and not backend.local}
    )


def public(entry: Service | Backend | Filter) -> dict[str, Any]:
    """An entry as modules return it, without what was not given."""
    return {key: value for key, value in entry.as_dict().items() if value is not None}
