# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings that the balancers of a host need, and what they were before the first balancer came.

Each balancer has a file below /etc/sysctl.d, for the boot. What several balancers need is put back after the last of
them. A change is recorded before it is made and forgotten after it was undone, so an interrupted run can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError
from ..kernel import files, sysctl

# By name: the interfaces, and whether a VIP is an IPv6 address.
Balancers = Mapping[str, tuple[Sequence[str], bool]]

PREFIX = "90-lbops-"
# Of the collection's first releases, which did not record what they found: the kernel's defaults have to do.
LEGACY = "90-lbops.conf"
DEFAULTS = {"forwarding": "0", "accept_ra": "1", "send_redirects": "1"}

HEADER = "# Written for the balancer {name} by lbops.xdp, which overwrites changes.\n"
COMMENTS = {
    "send_redirects": (
        "# Packets come and go on one interface, so the kernel would tell backends to answer clients directly, past\n"
        "# the balancer. It sends redirects if either of all and the interface says so.\n"
    ),
    "forwarding": (
        "# The program asks the kernel's FIB for next hops, which answers only for interfaces that forward; the\n"
        "# kernel forwards packets whose next hop is not resolved yet.\n"
    ),
    "accept_ra": "# Routes that a router announces are still taken although the interface forwards.\n",
}


@dataclass(frozen=True)
class Paths:
    proc: Path = sysctl.ROOT
    configuration: Path = Path("/etc/sysctl.d")
    record: Path = files.STATE / "sysctl.json"

    def file_of(self, name: str) -> Path:
        return self.configuration / f"{PREFIX}{name}.conf"


HOST = Paths()


def wanted(interfaces: Sequence[str], ipv6: bool) -> dict[str, str]:
    """In the order in which they are set: when an interface begins to forward IPv6, the kernel removes the default
    routes that routers announced on it, unless accept_ra is 2."""
    found = {"net/ipv4/conf/all/send_redirects": "0"}
    for interface in interfaces:
        found[f"net/ipv4/conf/{interface}/send_redirects"] = "0"
        found[f"net/ipv4/conf/{interface}/forwarding"] = "1"
        if ipv6:
            found[f"net/ipv6/conf/{interface}/accept_ra"] = "2"
            found[f"net/ipv6/conf/{interface}/forwarding"] = "1"
    return found


def apply(balancers: Balancers, check: bool = False, paths: Paths = HOST, lenient: Collection[str] = ()) -> list[str]:
    """Sets what all balancers of the host need, and puts back what none of them needs any more.

    Returns what was changed, or would be. Raises EngineError, with nothing changed, if an interface does not have a
    setting, unless it belongs to one of the `lenient` balancers.
    """
    current = _current(balancers, paths, lenient)
    values = _values(balancers)
    before = {**_legacy(paths), **_read_record(paths)}
    found = {key: sysctl.read(key, paths.proc) for key in before if key not in values}
    drift = {key: value for key, value in values.items() if current.get(key, value) != value}
    put_back = {key: before[key] for key, value in found.items() if value not in (None, before[key])}
    contents = {paths.file_of(name): _content(name, *entry) for name, entry in balancers.items()}
    written = {path: text for path, text in contents.items() if _read_text(path) != text}
    removed = [path for path in _configured(paths) if path not in contents]
    changes = [
        *(f"{key}: {current[key]} -> {value}" for key, value in drift.items()),
        *(f"{key}: {found[key]} -> {value}" for key, value in put_back.items()),
        *(f"{path}: written" for path in written),
        *(f"{path}: removed" for path in removed),
    ]
    if not check:
        known = {**current, **before}
        first = {key: known[key] for key in values if key in known}
        _write_record({**before, **first}, paths)
        for path, text in written.items():
            paths.configuration.mkdir(parents=True, exist_ok=True)
            files.write(path, text, 0o644)
        _set(drift, paths)
        # The other way round, so that forwarding ends before accept_ra is put back.
        _set(dict(reversed(put_back.items())), paths)
        for path in removed:
            files.remove(path)
        _write_record(first, paths)
    return changes


def restore(balancers: Balancers, paths: Paths = HOST) -> list[str]:
    """After a boot: sets what differs, and leaves all files alone. Returns what was changed.

    An interface that did not come back does not keep the others from working.
    """
    current = _current(balancers, paths, balancers)
    drift = {key: value for key, value in _values(balancers).items() if current.get(key, value) != value}
    _set(drift, paths)
    return [f"{key}: {current[key]} -> {value}" for key, value in drift.items()]


def _values(balancers: Balancers) -> dict[str, str]:
    return {key: value for entry in balancers.values() for key, value in wanted(*entry).items()}


def _current(balancers: Balancers, paths: Paths, lenient: Collection[str]) -> dict[str, str]:
    """Raises EngineError for what an interface does not have, or leaves it out."""
    found = {}
    for name, entry in balancers.items():
        for key in wanted(*entry):
            value = sysctl.read(key, paths.proc)
            if value is not None:
                found[key] = value
            elif name not in lenient:
                raise EngineError(f"balancer {name}: {_missing(key, paths)}")
    return found


def _missing(key: str, paths: Paths) -> str:
    family, interface = key.split("/")[1], key.split("/")[3]
    if family == "ipv6" and sysctl.read(f"net/ipv4/conf/{interface}/forwarding", paths.proc) is not None:
        return f"interface {interface} has no IPv6, which the service addresses need; enable IPv6 on it"
    return f"interface {interface} does not exist; correct the list of interfaces"


def _content(name: str, interfaces: Sequence[str], ipv6: bool) -> str:
    text = HEADER.format(name=name)
    values = wanted(interfaces, ipv6)
    for setting, comment in COMMENTS.items():
        lines = [f"{key} = {value}\n" for key, value in values.items() if key.endswith(f"/{setting}")]
        text += comment + "".join(lines) if lines else ""
    return text


def _set(values: Mapping[str, str], paths: Paths) -> None:
    for key, value in values.items():
        sysctl.write(key, value, paths.proc)


def _configured(paths: Paths) -> list[Path]:
    return [
        path
        for path in sorted(paths.configuration.glob("*.conf"))
        if path.name.startswith(PREFIX) or path.name == LEGACY
    ]


def _legacy(paths: Paths) -> dict[str, str]:
    """What the settings in the file of an earlier release were before."""
    text = _read_text(paths.configuration / LEGACY) or ""
    keys = [line.partition("=")[0].strip() for line in text.splitlines() if line.startswith("net/")]
    return {key: DEFAULTS[key.rpartition("/")[2]] for key in keys}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _read_record(paths: Paths) -> dict[str, str]:
    text = _read_text(paths.record)
    if text is None:
        return {}
    try:
        return {str(key): str(value) for key, value in json.loads(text)["before"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{paths.record} is damaged ({error}); it has the kernel settings from before the first balancer: "
            "remove it, and put these settings back yourself when the last balancer is gone"
        ) from None


def _write_record(before: dict[str, str], paths: Paths) -> None:
    if not before:
        files.remove(paths.record)
    elif before != _read_record(paths):
        paths.record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(paths.record, json.dumps({"schema": 1, "before": before}, indent=1) + "\n")
