# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CPUs work for a device's queues: interrupt vectors, transmit packet steering (XPS), receive packet and flow
steering (RPS, RFS), and what irqbalance leaves alone.

Knobs are vectors.<queue>, xps.<queue>, rps.<queue> with CPU lists and rfs.<queue> with a number of flows, where a queue
is rx-0, tx-0, or combined-0 for a vector of both directions.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import cpus, irqbalance, irqs
from ..kernel.device import Device
from ..kernel.irqs import Vector
from .tuner import Knob, Plan, Rules, Tuner, check_range
from .tuners import given

TOO_MANY_BANS = "irqbalance takes no list of so many interrupts; start it with a --policyscript that leaves them alone"
KEEP, NONE, AUTO, MATCH = "keep", "none", "auto", "match"
STEERING = {"xps": ("tx", "xps_cpus"), "rps": ("rx", "rps_cpus"), "rfs": ("rx", "rps_flow_cnt")}
# Writing the affinity of an interrupt fails so if the kernel manages it, if its controller cannot move it, or if the
# CPU has no vector left.
_UNMOVABLE = (errno.EIO, errno.EPERM, errno.EINVAL, errno.ENOSPC, errno.EBUSY)


def list_text(value: Any) -> str:
    """YAML makes a number of 3, and people may write a list."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def parse_cpus(what: str, value: Any) -> str:
    """A CPU list in the kernel's form; none is empty. Raises EngineError."""
    text = list_text(value).strip()
    if text in ("", NONE):
        return ""
    try:
        return cpus.format_list(cpus.parse_list(text))
    except ValueError as error:
        raise EngineError(f"{what}: {text!r} {error}") from None


def by_queue(found: Iterable[Vector]) -> dict[str, Vector]:
    """The first one of each queue; there should be no others."""
    vectors: dict[str, Vector] = {}
    for vector in found:
        vectors.setdefault(vector.queue, vector)
    return vectors


def of_device(device: Device) -> dict[str, Vector]:
    return by_queue(irqs.vectors(device))


def assign(queues: Iterable[str], order: tuple[int, ...]) -> dict[str, str]:
    """One CPU to each queue in turn; queues of the same number, rx-0 and tx-0 say, share theirs."""
    return {queue: str(order[int(queue.rsplit("-", 1)[1]) % len(order)]) for queue in queues}


def match_xps(tx_queues: Iterable[str], vectors: dict[str, str], order: tuple[int, ...]) -> dict[str, str]:
    """Each transmit queue is for the CPUs that its vector interrupts."""
    matched = assign(tx_queues, order)
    for queue in matched:
        number = queue.rsplit("-", 1)[1]
        matched[queue] = vectors.get(queue) or vectors.get(f"combined-{number}") or matched[queue]
    return matched


def flows_per_queue(flows: int, queues: int) -> int:
    """The kernel rounds it up to a power of two."""
    share = -(-flows // queues)
    return 1 << (share - 1).bit_length() if share else 0


class IrqAffinity(Tuner):
    subject = "CPUs of queues"

    def __init__(self, options: dict[str, Any], sys: Path = Path("/sys")) -> None:
        self._topology = cpus.topology(sys)
        self._options = given(options)
        # By index of the device, as they were when it was planned for.
        self._vectors: dict[int, dict[str, Vector]] = {}
        for name in ("vectors", "xps", "rps"):
            value = self._options.get(name)
            if isinstance(value, dict):
                for queue, entry in value.items():
                    self._check_entry(f"{name}.{queue}", entry)
            elif value is not None:
                self._options[name] = list_text(value)
                self._check_entry(name, value)
        rfs = self._options.get("rfs")
        every = [] if rfs is None else [("", rfs)]
        for queue, entry in rfs.items() if isinstance(rfs, dict) else every:
            check_range(f"rfs.{queue}" if queue else "rfs", self._number(entry), 0)

    @staticmethod
    def _number(value: Any) -> int:
        try:
            return int(value)
        except (TypeError, ValueError):
            raise EngineError(f"rfs={value!r} is neither a number of flows nor such a number for each queue") from None

    def _check_entry(self, what: str, value: Any) -> None:
        """Every CPU that is named must exist and be online; a mask of one vector may have others beside one that is."""
        if value in (KEEP, AUTO, MATCH):
            return
        listed = parse_cpus(what, value)
        if listed:
            check = self._topology.check_mask if what.startswith("vectors.") else self._topology.check
            check(what, cpus.parse_list(listed))
        elif what.startswith("vectors"):
            raise EngineError(f"{what}: an interrupt needs at least one CPU")

    @staticmethod
    def read(device: Device) -> dict[str, Knob]:
        knobs: dict[str, Knob] = {}
        vectors = of_device(device)
        for queue, vector in vectors.items():
            knobs[f"vectors.{queue}"] = Knob(irqs.affinity(vector))
        directory = device.sysfs()
        if directory is None:
            return knobs
        for group, (kind, file) in STEERING.items():
            for queue in irqs.queues(directory, kind):
                path = directory / "queues" / queue / file
                value = irqs.read_mask(path) if group != "rfs" else _read_number(path)
                if value is not None:
                    knobs[f"{group}.{queue}"] = Knob(value)
        daemon = irqbalance.running()
        if daemon and vectors:
            left_alone = irqbalance.banned(daemon)
            knobs["irqbalance_ban"] = Knob(all(vector.irq in left_alone for vector in vectors.values()))
        return knobs

    def _order(self, device: Device) -> tuple[int, ...]:
        value = self._options.get("vectors")
        if isinstance(value, str) and value not in (KEEP, AUTO):
            return cpus.parse_list(parse_cpus("vectors", value))
        return self._topology.preferred(device.numa_node())

    def wanted(self, device: Device, knobs: dict[str, Knob], rules: Rules) -> dict[str, Any]:
        present = {group: members_of(knobs, group) for group in ("vectors", *STEERING)}
        order = self._order(device)
        wanted: dict[str, Any] = {}
        vectors = self._options.get("vectors", KEEP)
        if isinstance(vectors, dict):
            wanted.update({f"vectors.{queue}": parse_cpus("vectors", value) for queue, value in vectors.items()})
        elif vectors != KEEP:
            chosen = assign(present["vectors"], order)
            if not chosen and not rules.skip and device.driver() and not device.link().enabled:
                raise EngineError(
                    f"{device.name} is down and has no vectors; most drivers request them when the link is brought up: "
                    "do that first"
                )
            # Without any, the plan says that the device has none.
            wanted.update({f"vectors.{queue}": value for queue, value in chosen.items()} or {"vectors": str(order[0])})
        wanted.update(self._steering(present, order, wanted))
        if "irqbalance_ban" in self._options and "irqbalance_ban" in knobs:
            wanted["irqbalance_ban"] = self._options["irqbalance_ban"]
        return wanted

    def _steering(
        self, present: dict[str, dict[str, Any]], order: tuple[int, ...], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for group in STEERING:
            value = self._options.get(group, KEEP)
            if value == KEEP:
                continue
            queues = present[group]
            chosen: Mapping[str, int | str]
            if isinstance(value, dict):
                chosen = {
                    queue: flows_per_queue(self._number(entry), 1) if group == "rfs" else parse_cpus(group, entry)
                    for queue, entry in value.items()
                }
            elif value == MATCH:
                affinities = {**present["vectors"], **members_of(wanted, "vectors")}
                # A device with one transmit queue has nothing to match.
                chosen = match_xps(queues, affinities, order)
            elif group == "rfs":
                chosen = dict.fromkeys(queues, flows_per_queue(self._number(value), len(queues) or 1))
            else:
                chosen = dict.fromkeys(queues, parse_cpus(group, value))
            found.update({f"{group}.{queue}": entry for queue, entry in chosen.items()})
        return found

    def plan(self, device: Device, rules: Rules) -> Plan:
        if device.sysfs() is None:
            raise EngineError(
                f"{device.name}: /sys does not show it, because it is that of another network namespace; mount the "
                "sysfs of this one"
            )
        planned = super().plan(device, rules)
        vectors = self._vectors[device.index] = of_device(device)
        refused = {}
        for key in planned.changes:
            group, _dot, queue = key.partition(".")
            if group == "vectors" and not irqs.movable(vectors[queue]):
                refused[key] = f"the kernel manages interrupt {vectors[queue].irq} itself"
        # Those of a bond's members that were planned for before count, too.
        together = [vector for found in self._vectors.values() for vector in found.values()]
        if planned.changes.get("irqbalance_ban") and not bans_fit(together):
            if not rules.skip:
                raise EngineError(f"{device.name}: {TOO_MANY_BANS}, and set irqbalance_ban=false")
            refused["irqbalance_ban"] = TOO_MANY_BANS
        changes = {key: value for key, value in planned.changes.items() if key not in refused}
        return replace(planned, changes=changes, refused=refused)

    def consequences(self, device: Device, planned: Plan) -> dict[str, Any]:
        for key in planned.changes:
            path = self._path(device, key)
            if path is not None and not os.access(path, os.W_OK):
                raise EngineError(
                    f"{device.name}: {path} is read-only here; in a container, tune the device from the host that "
                    "owns it"
                )
        return {}

    def warnings(self, device: Device, consequences: dict[str, Any]) -> list[str]:
        taken = self._vectors[device.index]
        return [
            f"{device.name}: interrupt {vector.irq} has a name like that of {vector.queue}, which is interrupt "
            f"{taken[vector.queue].irq}; it is left alone"
            for vector in irqs.vectors(device)
            if vector.queue in taken and vector != taken[vector.queue]
        ]

    def _path(self, device: Device, key: str) -> Path | None:
        group, _dot, queue = key.partition(".")
        if group == "vectors":
            return self._vectors[device.index][queue].path
        directory = device.sysfs()
        if group not in STEERING or directory is None:
            return None
        return directory / "queues" / queue / STEERING[group][1]

    def parts(self, changes: dict[str, Any]) -> list[dict[str, Any]]:
        """irqbalance first, so that it does not move what is moved here."""
        return [{key: changes[key]} for key in sorted(changes, key=lambda key: (key != "irqbalance_ban", key))]

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        refused = {}
        for key, value in changes.items():
            group, _dot, queue = key.partition(".")
            if key == "irqbalance_ban":
                self._ban(device, value)
            elif group == "vectors":
                reason = move(self._vectors[device.index][queue], value)
                if reason:
                    refused[key] = reason
            else:
                self._write_steering(device, key, value)
        return refused

    def _write_steering(self, device: Device, key: str, value: Any) -> None:
        path = self._path(device, key)
        if path is None:
            # The device went away since the plan was made.
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if key.startswith("rfs."):
            _write_flows(path, value)
        else:
            irqs.write_mask(path, value)

    def _ban(self, device: Device, ban: bool) -> None:
        daemon = irqbalance.running()
        if daemon is None:
            return
        own = {vector.irq for vector in self._vectors[device.index].values()}
        left_alone = irqbalance.banned(daemon)
        irqbalance.ban(daemon, left_alone | own if ban else left_alone - own)

    @staticmethod
    def options(found: dict[str, Any]) -> dict[str, Any]:
        lists: dict[str, Any] = {
            group: {queue: listed or NONE for queue, listed in found[group].items()}
            for group in ("vectors", "xps", "rps")
            if group in found
        }
        return {**found, **lists}

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        # What was not asked for is to stay.
        return {"vectors": KEEP, "xps": KEEP, **super().arguments(values)}


def bans_fit(vectors: Iterable[Vector]) -> bool:
    """Whether a running irqbalance can be told of these besides those that it knows."""
    daemon = irqbalance.running()
    return daemon is None or irqbalance.fits(irqbalance.banned(daemon).union(vector.irq for vector in vectors))


def members_of(values: dict[str, Any], group: str) -> dict[str, Any]:
    """Queues and values of a group of knobs."""
    found = {}
    for key, value in values.items():
        if key.startswith(f"{group}."):
            found[key.partition(".")[2]] = value.value if isinstance(value, Knob) else value
    return found


def move(vector: Vector, listed: str) -> str | None:
    """Why the kernel refuses, None if it does not."""
    try:
        vector.path.write_text(listed, encoding="ascii")
    except OSError as error:
        if error.errno not in _UNMOVABLE:
            raise
        return f"the kernel refuses to move interrupt {vector.irq} to CPU {listed}: {error.strerror}"
    return None


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except OSError:
        return None


def _write_flows(path: Path, flows: int) -> None:
    """Flows of one queue; the host's table of sockets is made large enough for all queues of a device.

    Only the host's own network namespace shows that table.
    """
    path.write_text(str(flows), encoding="ascii")
    needed = sum(_read_number(other / path.name) or 0 for other in path.parents[1].glob("rx-*"))
    entries = _read_number(irqs.SOCKET_FLOWS)
    if entries is not None and needed > entries:
        irqs.SOCKET_FLOWS.write_text(str(needed), encoding="ascii")
