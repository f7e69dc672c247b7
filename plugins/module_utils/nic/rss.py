# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Receive-side scaling: the indirection table, the hash key, the hash function and the fields that are hashed."""

from __future__ import annotations

import errno
import re
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..kernel import ethtool_ioctl, rss_table
from ..kernel.device import Device
from ..kernel.ethtool_ioctl import FLOW_TYPES, HASH_FIELDS
from .channels import most_rx_queues, rx_queues
from .tuner import Knob, Plan, Rules, Tuner, clamp, plan, supported
from .tuners import given

# The two bytes, repeated, make Toeplitz give the same for both directions of a flow (Woo and Park, 2012).
SYMMETRIC = b"\x6d\x5a"
# What drivers are given for a key of their own, the same for all of them from boot to boot (net/ethtool/ioctl.c,
# netdev_rss_key_fill()).
HOST_KEY = Path("/proc/sys/net/core/netdev_rss_key")
KEY_WORDS = ("symmetric", "default")
_KEY = re.compile(r"[0-9a-f]{2}(:?[0-9a-f]{2})*", re.IGNORECASE)


def parse_key(text: str) -> bytes:
    """Bytes of a hexadecimal key, with or without colons. Raises EngineError."""
    if not _KEY.fullmatch(text):
        raise EngineError(f"key={text!r} is neither {', '.join(KEY_WORDS)} nor hexadecimal bytes such as 6d:5a:56:da")
    return bytes.fromhex(text.replace(":", ""))


def host_key(size: int) -> bytes:
    try:
        key = bytes.fromhex(HOST_KEY.read_text(encoding="ascii").strip().replace(":", ""))
    except OSError as error:
        raise EngineError(f"key=default: {HOST_KEY} cannot be read ({error.strerror}); give the key itself") from None
    if len(key) < size or not any(key):
        raise EngineError(f"key=default: {HOST_KEY} holds no key of {size} bytes; give the key itself")
    return key[:size]


def key_of(name: str, asked: str, size: int) -> str:
    """The key that is asked for, as colon-separated bytes of the device's size."""
    if asked == "symmetric":
        key = (SYMMETRIC * size)[:size]
    elif asked == "default":
        key = host_key(size)
    else:
        key = parse_key(asked)
        if len(key) != size:
            raise EngineError(f"{name}: the key has {len(key)} bytes, the device takes {size}")
    return key.hex(":")


def table_of(name: str, options: dict[str, Any], size: int, queues: int, rules: Rules) -> tuple[int, ...]:
    """The table that is asked for, for a device with `queues` receive queues and a table of `size` entries."""
    if "queues" in options:
        asked = options["queues"]
        return rss_table.equal(size, asked if asked <= queues else clamp(name, "queues", asked, queues, rules))
    if "weights" in options:
        weights = options["weights"]
        if len(weights) > queues:
            raise EngineError(
                f"{name}: {len(weights)} weights for {queues} receive queues; give one for each queue, or make more "
                "queues with nic_channels first"
            )
        table = rss_table.weighted(size, weights)
        for queue, weight in enumerate(weights):
            if weight and queue not in table:
                raise EngineError(
                    f"{name}: weight {weight} of queue {queue} is too small beside the others for a table of {size} "
                    "entries; make it larger, or 0"
                )
        return table
    table = tuple(options["table"])
    if len(table) != size:
        raise EngineError(f"{name}: the table has {len(table)} entries, the device's has {size}")
    for entry, queue in enumerate(table):
        if not 0 <= queue < queues:
            raise EngineError(
                f"{name}: entry {entry} of the table is queue {queue}; the device has receive queues 0 to {queues - 1}"
            )
    return table


def _check(options: dict[str, Any]) -> None:
    """What is wrong whatever the device."""
    if options.get("queues", 1) < 1:
        raise EngineError(f"queues={options['queues']}: packets need at least one queue")
    weights = options.get("weights")
    if weights is not None:
        for queue, weight in enumerate(weights):
            if weight < 0:
                raise EngineError(f"weights: queue {queue} has weight {weight}; a weight is 0 or more")
        if not any(weights):
            raise EngineError("weights: at least one queue needs a weight of more than 0")
    if "key" in options and options["key"] not in KEY_WORDS:
        parse_key(options["key"])
    for flow_type, fields in options.get("hash_fields", {}).items():
        if not fields:
            raise EngineError(f"hash_fields: {flow_type} has no fields, so all its packets would go to one queue")


class Rss(Tuner):
    subject = "receive-side scaling"

    def __init__(self, options: dict[str, Any]) -> None:
        options = given(options)
        if "hash_fields" in options:
            options["hash_fields"] = given(options["hash_fields"])
        _check(options)
        self._options = options
        # By index of the device, how many queues it lacks yet.
        self._lacking: dict[int, int] = {}

    @staticmethod
    def read(device: Device) -> dict[str, Knob]:
        rss = supported(lambda: ethtool_ioctl.rss(device.index))
        # Drivers without scaling may still name a hash function.
        if rss is None or not (rss.table or rss.key):
            return {}
        knobs = {}
        if rss.table:
            knobs["table"] = Knob(list(rss.table))
        if rss.key:
            knobs["key"] = Knob(rss.key.hex(":"))
        if rss.hash_function:
            knobs["hash_function"] = Knob(rss.hash_function)
        for flow_type in FLOW_TYPES:
            fields = supported(partial(ethtool_ioctl.hash_fields, device.index, flow_type))
            if fields is not None:
                knobs[f"hash_fields.{flow_type}"] = Knob(fields)
        return knobs

    def wanted(self, device: Device, knobs: dict[str, Knob], rules: Rules) -> dict[str, Any]:
        options = self._options
        wanted: dict[str, Any] = {}
        if not {"queues", "weights", "table"}.isdisjoint(options):
            wanted["table"] = None
            if "table" in knobs:
                size = len(knobs["table"].value)
                wanted["table"] = list(self._table(device, size, rules))
        if "key" in options:
            wanted["key"] = None
            if "key" in knobs:
                wanted["key"] = key_of(device.name, options["key"], len(parse_key(knobs["key"].value)))
        if "hash_function" in options:
            wanted["hash_function"] = options["hash_function"]
        for flow_type, fields in options.get("hash_fields", {}).items():
            wanted[f"hash_fields.{flow_type}"] = [name for name in HASH_FIELDS if name in fields]
        return wanted

    def _table(self, device: Device, size: int, rules: Rules) -> tuple[int, ...]:
        present = rx_queues(device)
        try:
            return table_of(device.name, self._options, size, present, rules)
        except EngineError:
            if not rules.check:
                raise
            # What even more channels are too few for is wrong in check mode, too.
            table = table_of(device.name, self._options, size, most_rx_queues(device), rules)
            self._lacking[device.index] = max(table) + 1 - present
            return table

    def warnings(self, device: Device, consequences: dict[str, Any]) -> list[str]:
        lacking = self._lacking.get(device.index)
        if not lacking:
            return []
        return [
            f"{device.name}: that is {lacking} more than the receive queues that there are; unless nic_channels makes "
            "more of them before, it fails"
        ]

    def plan(self, device: Device, rules: Rules) -> Plan:
        knobs = self.read(device)
        planned = plan(device.name, knobs, self.wanted(device, knobs, rules), rules)
        queues = self._options.get("queues")
        if queues is not None and "table" in knobs and device.index not in self._lacking:
            present = rx_queues(device)
            if queues > present:
                planned.clamped["queues"] = {"asked": queues, "given": present}
        return planned

    def parts(self, changes: dict[str, Any]) -> list[dict[str, Any]]:
        together = {key: value for key, value in changes.items() if "." not in key}
        return [part for part in [together, *({key: changes[key]} for key in changes if "." in key)] if part]

    def write(self, device: Device, changes: dict[str, Any], before: dict[str, Any]) -> dict[str, str]:
        for key, value in changes.items():
            if key.startswith("hash_fields."):
                self._write_fields(device, key.partition(".")[2], value)
                return {}
        table = changes.get("table")
        # A rollback gives the whole table; whoever asks for queues wants these, also when there are more of them later.
        write = ethtool_ioctl.bring_rss_back if "table" in self._options else ethtool_ioctl.set_rss
        write(
            device.index,
            None if table is None else tuple(table),
            parse_key(changes["key"]) if "key" in changes else b"",
            changes.get("hash_function"),
        )
        return {}

    @staticmethod
    def _write_fields(device: Device, flow_type: str, fields: list[str]) -> None:
        try:
            ethtool_ioctl.set_hash_fields(device.index, flow_type, fields)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # How drivers say that they do not hash this type of flow, or not by these fields.
            raise OSError(errno.EOPNOTSUPP, "Not a way in which the driver hashes such flows") from None

    @staticmethod
    def options(found: dict[str, Any]) -> dict[str, Any]:
        # A flow type without any fields is what the device does by itself, and nothing that one may ask for.
        fields = {name: value for name, value in found.get("hash_fields", {}).items() if value}
        return {name: value for name, value in {**found, "hash_fields": fields}.items() if value}
