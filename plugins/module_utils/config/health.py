# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the backends of services are checked, as the key `health` of a service declares it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import EngineError, Problems
from .addresses import Address
from .entries import Entry
from .model import Backend, Config, Service
from .vocabulary import TUNNELS

# The keys that each kind of check has besides those that all have.
KINDS: dict[str, frozenset[str]] = {
    "tcp": frozenset(("port",)),
    "http": frozenset(("port", "path", "host", "status", "body")),
    "https": frozenset(("port", "path", "host", "status", "body", "verify")),
    "udp": frozenset(("port", "request", "response")),
    "dns": frozenset(("port", "name")),
    "icmp": frozenset(),
}
COMMON_KEYS = frozenset(("check", "interval", "timeout", "rise", "fall", "source", "all_down", "end_to_end"))
KEYS = COMMON_KEYS.union(*KINDS.values())
ALL_DOWN = ("keep", "drop")
# Those that can be put into frames by hand, without a connection of the kernel's.
END_TO_END_KINDS = ("tcp", "udp", "dns", "icmp")
END_TO_END_FORWARDINGS = ("dsr", *TUNNELS)
SECONDS_PATTERN = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
HOST_PATTERN = re.compile(
    r"(?P<name>[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*|\[(?P<six>[^\]]+)\])(:(?P<port>[0-9]{1,5}))?"
)
HOST_EXAMPLES = "www.example.net, 192.0.2.1:8080 or [2001:db8::1]:8080"
# RFC 1035, section 2.3.4, without the length of the first label and the root.
LONGEST_NAME = 253
# In bytes: 65535 is the most that a packet says it has, with the headers of UDP, IPv6 and a tunnel's IPv4,
# UDP and GUE in it.
LONGEST_REQUEST = 65535 - 8 - 40 - 32
LONGEST_RESPONSE = 65535 - 8 - 20
LONGEST_BODY = 1048576
PATH_PATTERN = re.compile(r"/[!-~]*")
DOMAIN_PATTERN = re.compile(r"([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\.")


@dataclass(frozen=True)
class Health:
    """Of one service. Times are seconds."""

    service: str
    check: str
    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    port: int | None = None  # None: the backend's
    source: str | None = None  # None: the kernel chooses
    all_down: str = "keep"
    end_to_end: bool = False
    path: str = "/"
    host: str | None = None  # None: the backend's address
    status: list[list[int]] = field(default_factory=lambda: [[200, 399]])  # first and last
    body: str | None = None
    verify: bool = True
    request: str | None = None
    response: str | None = None
    name: str | None = None

    @property
    def gap(self) -> float:
        """Between the starts of two checks: `fall` of them are over within interval times fall, timeouts included."""
        return self.interval - self.timeout / self.fall

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _HealthEntry(Entry):
    """The dictionary of one service; errors name the service."""

    def __init__(self, service: str, raw: Any) -> None:
        self.service = service
        super().__init__("health", 0, raw, KEYS)

    @property
    def where(self) -> str:
        return f"service {self.service}: health"

    def seconds(self, key: str, default: float, lowest: float, highest: float) -> float:
        value = self.raw.get(key)
        if value is None:
            return default
        if not SECONDS_PATTERN.fullmatch(str(value)):
            raise self.error(f"{key} {value!r} is not a number of seconds")
        if not lowest <= float(value) <= highest:
            raise self.error(f"{key} {value!r} is not between {lowest:g} and {highest:g} seconds")
        return float(value)

    def number(self, key: str, default: int, lowest: int, highest: int) -> int:
        value = self.raw.get(key)
        return default if value is None else self.integer(key, lowest, highest, value)

    def text(self, key: str, pattern: re.Pattern[str] | None = None, example: str = "") -> str | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise self.error(f"{key} {value!r} is not a text; put it in quotes")
        if not value.isascii() and any(0xD800 <= ord(character) < 0xE000 for character in value):
            raise self.error(f"{key} {value!r} holds half a character, which UTF-8 has not; leave it out")
        if pattern and not pattern.fullmatch(value):
            raise self.error(f"{key} {value!r} is not one such as {example}")
        return value

    def host(self) -> str | None:
        value = self.text("host", HOST_PATTERN, HOST_EXAMPLES)
        found = HOST_PATTERN.fullmatch(value or "")
        if not found:
            return value
        six = found["six"]
        port = found["port"]
        if (
            len(found["name"]) > LONGEST_NAME
            or (six and not _is_ipv6(six))
            or (port is not None and not 1 <= int(port) <= 65535)
        ):
            raise self.error(f"host {value!r} is not one such as {HOST_EXAMPLES}")
        return value

    def short(self, key: str, longest: int, why: str) -> str | None:
        value = self.text(key)
        if value is not None and len(value.encode()) > longest:
            raise self.error(f"{key} is longer than {longest} bytes, {why}; shorten it")
        return value

    def domain(self) -> str | None:
        value = self.text("name", DOMAIN_PATTERN, "www.example.net")
        if value is not None and len(value.rstrip(".")) > LONGEST_NAME:
            raise self.error(f"name is longer than {LONGEST_NAME} characters, which DNS has not; shorten it")
        return value

    def status_ranges(self) -> list[list[int]]:
        value = self.raw.get("status")
        if value is None:
            return [[200, 399]]
        ranges = []
        for item in value if isinstance(value, list) else [value]:
            ends = str(item).split("-")
            if len(ends) > 2 or not all(re.fullmatch("[2-5][0-9][0-9]", end) for end in ends) or ends[0] > ends[-1]:
                raise self.error(f"status {item!r} is neither a status such as 200 nor a range such as 200-299")
            ranges.append([int(ends[0]), int(ends[-1])])
        if not ranges:
            raise self.error("status is an empty list; leave it out for 200-399")
        return ranges


def _is_ipv6(text: str) -> bool:
    try:
        return Address(text).family == 6 and bool(Address(text).packed)
    except (OSError, ValueError):
        return False


def parse_one(service: str, raw: Any) -> Health:
    """Raises EngineError that names the service, the value and the remedy."""
    if not isinstance(raw, dict):
        raise EngineError(f"service {service}: health is {raw!r}, not a mapping such as {{check: tcp}}")
    entry = _HealthEntry(service, raw)
    entry.required("check")
    kind = entry.choice("check", KINDS)
    strange = min((key for key in raw.keys() - COMMON_KEYS - KINDS[kind] if raw[key] is not None), default=None)
    if strange:
        having = [other for other, keys in KINDS.items() if strange in keys]
        raise entry.error(f"{strange} is for {' and '.join(having)}, not for {kind}; leave it out")
    for key, of_kind in (("request", "udp"), ("name", "dns")):
        if kind == of_kind:
            entry.required(key)
    interval = entry.seconds("interval", Health.interval, 0.1, 3600)
    timeout = entry.seconds("timeout", min(Health.timeout, interval / 2), 0.01, 60)
    if timeout > interval / 2:
        raise entry.error(
            f"timeout {timeout:g} is longer than half the interval, {interval:g}: checks that end by it could not keep "
            f"to interval times fall; lower it to {interval / 2:g}, or raise interval to {timeout * 2:g}"
        )
    verify = entry.raw.get("verify")
    return Health(
        service=service,
        check=kind,
        interval=interval,
        timeout=timeout,
        rise=entry.number("rise", Health.rise, 1, 100),
        fall=entry.number("fall", Health.fall, 1, 100),
        port=None if raw.get("port") is None else entry.integer("port", 1, 65535, raw["port"]),
        source=None if raw.get("source") is None else entry.address("source"),
        all_down=entry.choice("all_down", ALL_DOWN, Health.all_down),
        end_to_end=entry.boolean("end_to_end"),
        path=entry.text("path", PATH_PATTERN, "/health?full=1, percent-encoded") or Health.path,
        host=entry.host(),
        status=entry.status_ranges(),
        body=entry.short("body", LONGEST_BODY, "the most that is read of an answer"),
        verify=True if verify is None else entry.boolean("verify"),
        request=entry.short("request", LONGEST_REQUEST, "which no datagram holds"),
        response=entry.short("response", LONGEST_RESPONSE, "which no datagram holds"),
        name=entry.domain(),
    )


def parse(declared: Iterable[dict[str, Any]]) -> dict[str, Health]:
    """Those of the services that have one, by the service's name. Raises Problems that lists what is wrong."""
    found, problems = {}, []
    for service in declared:
        if service.get("health") is None:
            continue
        try:
            found[str(service["name"])] = parse_one(str(service["name"]), service["health"])
        except EngineError as error:
            problems.append(str(error))
    if problems:
        raise Problems(problems)
    return found


def load(rows: list[dict[str, Any]]) -> dict[str, Health]:
    """What as_dict() gave."""
    return {row["service"]: Health(**row) for row in rows}


def problems(checks: dict[str, Health], config: Config) -> list[str]:
    """What is wrong with checks together with their services and backends."""
    found = []
    members = config.backends_of()
    for name, health in checks.items():
        service = config.services.get(name)
        if service is not None:
            problem = _misfit(health, service, members[name])
            if problem:
                found.append(f"service {name}: health: {problem}")
    return found


def _misfit(health: Health, service: Service, members: list[Backend]) -> str:
    if service.forwarding == "redirect":
        return "redirect goes to interfaces, whose links are watched anyway; leave health out"
    if health.check != "icmp" and health.port is None and service.any_port:
        if any(backend.port is None for backend in members):
            return f"port is missing: the service is on any port, so say which one {health.check} is to check"
    problem = _misfit_of_way(health, service, members) if health.end_to_end else ""
    if problem:
        return problem
    if health.source is not None:
        family = Address(health.source).family
        targets = [service.address] if health.end_to_end else [backend.target for backend in members]
        for target in targets:
            if Address(target).family != family:
                return f"source {health.source!r} is IPv{family}, which cannot reach {target}; give one of its family"
    return ""


def _misfit_of_way(health: Health, service: Service, members: list[Backend]) -> str:
    if service.forwarding not in END_TO_END_FORWARDINGS:
        return (
            f"end_to_end is for {', '.join(END_TO_END_FORWARDINGS)}; with {service.forwarding} a check already "
            "takes the backend's own address; leave it out"
        )
    if health.check not in END_TO_END_KINDS or (health.check, service.protocol) == ("dns", "tcp"):
        return (
            f"end_to_end cannot check {health.check} here, which needs a whole connection; take one of "
            f"{', '.join(END_TO_END_KINDS)}"
        )
    if health.source is None and any(Address(backend.target).family != service.family for backend in members):
        return (
            f"source is missing: the VIP answers to IPv{service.family}, and the way to backends of the other family "
            f"tells no such address; give an IPv{service.family} address of the balancer"
        )
    return ""
