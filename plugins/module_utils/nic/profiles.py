# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: from what a network device is to what it should be set to, each value with the reason. Pure functions.

Facts are those of device_info.of_device(). Groups are named after the modules that set them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from ..kernel import cpus, rss_table
from .device_info import fact_of
from .irq_affinity import AUTO, KEEP, MATCH, NONE, TOO_MANY_BANS, assign, match_xps, parse_cpus
from .preflight import HALF_FOR_XDP, ONE_FOR_EACH_CPU, channels_beside_xdp
from .tuners import FEATURES

PROFILES = ("throughput", "latency", "custom")

# Options of each group and their types; None is checked by the group itself.
_COALESCE = {name: int for name in ("rx_usecs", "rx_frames", "tx_usecs", "tx_frames")}
OPTIONS: dict[str, dict[str, Any]] = {
    "channels": {name: int for name in ("combined", "rx", "tx", "other")},
    "features": {name: bool for name in FEATURES},
    "rings": {"rx": int, "tx": int},
    "coalesce": {**_COALESCE, "adaptive_rx": bool, "adaptive_tx": bool},
    "rss": {"queues": int, "weights": list, "table": list, "key": str, "hash_function": str, "hash_fields": dict},
    "irq_affinity": {"vectors": None, "xps": None, "rps": None, "rfs": None, "irqbalance_ban": bool},
}
# What nic_irq_affinity takes besides CPUs.
_WORDS = {"vectors": (AUTO, KEEP), "xps": (MATCH, KEEP), "rps": (KEEP,)}
# Options that a device has or has not.
_PLAIN = ("channels", "features", "rings", "coalesce")
# Of these, one given by hand leaves no place for the computed others.
_EXCLUSIVE = (
    ("coalesce", {"adaptive_rx", "rx_usecs"}),
    ("coalesce", {"adaptive_tx", "tx_usecs"}),
    ("rss", {"queues", "weights", "table"}),
    ("channels", {"combined", "rx"}),
)

# Tables, keys and lists of CPUs can be said in many ways; the same again is recognized by what came of it.
RECOGNIZED_BY_RESULT = frozenset(
    f"{group}.{option}"
    for group, options in (("rss", ("weights", "table", "key", "hash_function")), ("irq_affinity", ("rps", "rfs")))
    for option in options
)

# What a ring must hold: packets of 64 bytes, with preamble and gap, at line rate while the CPU is busy elsewhere.
_PACKET_BITS = (64 + 20) * 8
_ABSENCE = {"throughput": 500, "latency": 250}  # microseconds
# Below, bursts get lost; above, the buffers (2 KiB each) leave the cache, and delay grows but not throughput.
_RING_BOUNDS = {"throughput": (512, 2048), "latency": (256, 1024)}
# The shortest delay that igb and e1000e take as it is; 3 and less are modes to them.
_LATENCY_USECS = 10
# How many queues a driver's indirection table may name, where that is fewer than it may have, by the table's length:
# 82599 and X540 have 128 entries (ixgbe_rss_indir_tbl_max(), ixgbe_rss_indir_tbl_entries()).
_RSS_QUEUES = {("ixgbe", 128): 16}
_PORTS = ["ip_src", "ip_dst", "port_src", "port_dst"]


@dataclass(frozen=True)
class Choice:
    group: str
    option: str
    value: Any
    why: str

    @property
    def name(self) -> str:
        return f"{self.group}.{self.option}"


def check_overrides(overrides: dict[str, Any]) -> None:
    """Raises EngineError for what no module has."""
    for group, options in overrides.items():
        if group not in OPTIONS:
            raise EngineError(f"overrides: there is no {group!r}; there are {', '.join(OPTIONS)}")
        if not isinstance(options, dict):
            raise EngineError(f"overrides.{group} is {options!r}, not a dictionary of {', '.join(OPTIONS[group])}")
        for option, value in options.items():
            if option not in OPTIONS[group]:
                raise EngineError(f"overrides.{group}: there is no {option!r}; there are {', '.join(OPTIONS[group])}")
            kind = OPTIONS[group][option]
            # True is an int to Python.
            if kind and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
                raise EngineError(f"overrides.{group}.{option}={value!r} is not of type {kind.__name__}")


def _in_one_form(group: str, option: str, value: Any) -> Any:
    """Lists of CPUs, which can be said in many ways, as the kernel says them. Raises EngineError."""
    if group != "irq_affinity" or option not in _WORDS:
        return value
    name = f"overrides.{group}.{option}"
    if isinstance(value, dict):
        return {queue: parse_cpus(f"{name}.{queue}", listed) or NONE for queue, listed in value.items()}
    if value in _WORDS[option]:
        return value
    if value in (AUTO, KEEP, MATCH):
        raise EngineError(f"{name}={value} is neither CPUs nor {' nor '.join(_WORDS[option])}")
    return parse_cpus(name, value) or NONE


def choose(facts: dict[str, Any], profile: str, overrides: dict[str, Any]) -> list[Choice]:
    """What to set, in the order of the groups. Raises EngineError for overrides that make no sense."""
    check_overrides(overrides)
    computed: list[Choice] = []
    if profile != "custom":
        channels = _channels(facts)
        asked = overrides.get("channels", {}).get("combined")
        current = facts.get("channels", {}).get("combined")
        receiving = [queue for queue in facts.get("queues", {}).get("vectors", {}) if not queue.startswith("tx")]
        queues = asked or (channels[0].value if channels else current)
        computed = [
            *channels,
            *_features(facts),
            *_rings(facts, profile, queues or len(receiving) or 1),
            *_coalesce(facts, profile),
            *_rss(facts, queues),
            *_irq_affinity(facts),
        ]
    given = [
        Choice(group, option, _in_one_form(group, option, value), "as the overrides say")
        for group, options in overrides.items()
        for option, value in options.items()
    ]
    replaced = {choice.name for choice in given}
    for group, options in _EXCLUSIVE:
        if not options.isdisjoint(overrides.get(group, {})):
            replaced |= {f"{group}.{option}" for option in options}
    order = list(OPTIONS)
    chosen = [choice for choice in computed if choice.name not in replaced] + given
    return sorted(chosen, key=lambda choice: order.index(choice.group))


def lacking(facts: dict[str, Any], choices: list[Choice]) -> list[Choice]:
    """Those of which the device has nothing. Raises EngineError for what is beyond its maximum."""
    found = []
    for choice in choices:
        if choice.group not in _PLAIN:
            continue
        if choice.option not in facts.get(choice.group, {}):
            found.append(choice)
        most = facts.get(f"{choice.group}_maximum", {}).get(choice.option)
        if most is not None and choice.value > most:
            raise EngineError(
                f"{facts['interface']}: {choice.name}={choice.value} is more than the device's maximum of {most}; ask "
                "for no more than that in the overrides"
            )
    return found


def arguments(choices: list[Choice]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for choice in choices:
        found.setdefault(choice.group, {})[choice.option] = choice.value
    return found


def _channels(facts: dict[str, Any]) -> list[Choice]:
    maximum = facts.get("channels_maximum", {}).get("combined")
    if not maximum:
        return []
    current, driver = facts["channels"]["combined"], facts["driver"]
    if driver == ONE_FOR_EACH_CPU and facts["xdp"]["hook"] in ("native", "several"):
        why = "virtio_net changes no channels while an XDP program is attached"
        return [Choice("channels", "combined", current, why)]
    cores = len(facts["cpus"]["cores"])
    node = facts["numa_node"]
    why = f"{cores} physical cores" + (f" of NUMA node {node}" if node is not None else "")
    value = cores
    if value > maximum:
        value, why = maximum, f"{why}, of which the device serves {maximum}"
    limit, reason = _xdp_limit(driver, maximum, len(cpus.parse_list(facts["cpus"]["possible"])), value)
    if reason:
        why = f"{why}; {reason}"
    return [Choice("channels", "combined", min(value, limit), why)]


def _xdp_limit(driver: str, maximum: int, possible: int, wanted: int) -> tuple[int, str]:
    """How many channels leave the driver transmit queues for XDP, and how so."""
    limit = channels_beside_xdp(driver, maximum, possible)
    if wanted <= limit:
        return limit, ""
    if driver in HALF_FOR_XDP:
        return limit, f"{driver} takes half of {maximum} for what XDP sends"
    # A lock around sending costs less than half of the receiving CPUs.
    if 2 * limit >= wanted:
        return limit, f"{possible} of {maximum} are for what XDP sends, one for each CPU"
    return maximum, f"{maximum} are too few for a transmit queue for each of {possible} CPUs, so XDP locks them"


def _features(facts: dict[str, Any]) -> list[Choice]:
    reasons = {
        "lro": "XDP needs packets as they came, and must not get several merged into one",
        "gro_hw": "packets that the device merges are too long for XDP",
    }
    present = facts.get("features", {})
    return [Choice("features", name, False, why) for name, why in reasons.items() if name in present]


def _rings(facts: dict[str, Any], profile: str, queues: int) -> list[Choice]:
    maxima = facts.get("rings_maximum", {})
    least, most = _RING_BOUNDS[profile]
    speed = facts["link"]["speed"]
    if speed:
        absence = _ABSENCE[profile]
        needed = speed * absence // _PACKET_BITS // queues
        size = min(max(1 << max(needed - 1, 0).bit_length(), least), most)
        why = f"{needed} small packets come to a queue, of {queues}, in {absence} us at {speed} Mbit/s"
        if needed < least or needed > most:
            why += f"; between {least} and {most} it is neither bursts that get lost nor buffers that leave the cache"
    else:
        size = 2 * least
        why = "what a queue of 10 Gbit/s needs; the device tells no speed"
    found = []
    for name in ("rx", "tx"):
        if name in maxima:
            value = min(size, maxima[name])
            found.append(Choice("rings", name, value, why if value == size else f"the device's maximum, below {size}"))
    return found


def _coalesce(facts: dict[str, Any], profile: str) -> list[Choice]:
    present = facts.get("coalesce", {})
    if profile == "throughput":
        why = "the driver waits longer under load, so that an interrupt serves many packets"
        return [Choice("coalesce", name, True, why) for name in ("adaptive_rx", "adaptive_tx") if name in present]
    found = []
    if "adaptive_rx" in present:
        found.append(Choice("coalesce", "adaptive_rx", False, "the delay is to be the same at any load"))
    if "rx_usecs" in present:
        why = f"no packet waits more than {_LATENCY_USECS} us for its interrupt, and a CPU gets no more than 100,000/s"
        found.append(Choice("coalesce", "rx_usecs", _LATENCY_USECS, why))
    return found


def _rss(facts: dict[str, Any], queues: int | None) -> list[Choice]:
    present = facts.get("rss", {})
    found = []
    if "table" in present and queues:
        most = _RSS_QUEUES.get((facts["driver"], len(present["table"])), queues)
        why = "as many as channels, so that every CPU has work"
        if queues > most:
            why = f"the device's table names no more, of {queues} channels"
        found.append(Choice("rss", "queues", min(queues, most), why))
    fields = {name: _PORTS for name in ("udp4", "udp6") if name in present.get("hash_fields", {})}
    if fields:
        why = "without the ports all UDP between two hosts is one queue's"
        found.append(Choice("rss", "hash_fields", fields, why))
    return found


def _irq_affinity(facts: dict[str, Any]) -> list[Choice]:
    present = facts.get("queues", {})
    if not present.get("vectors"):
        return []
    near = cpus.format_list(facts["cpus"]["cores"])
    found = [Choice("irq_affinity", "vectors", near, "one physical core for each queue, near the device")]
    if present.get("xps"):
        found.append(Choice("irq_affinity", "xps", MATCH, "a CPU sends through the queue whose interrupts it gets"))
    if "irqbalance_ban" in present:
        fits = present["irqbalance_ban"] or facts["irqbalance_fits"]
        why = "irqbalance would move them elsewhere" if fits else TOO_MANY_BANS
        found.append(Choice("irq_affinity", "irqbalance_ban", fits, why))
    return found


def current(facts: dict[str, Any], choice: Choice) -> Any:
    """The value that the option has now: one like the choice's own, or a text that differs from any."""
    group, option, value = choice.group, choice.option, choice.value
    present = facts.get(fact_of(group), {})
    if group == "rss" and option == "queues":
        table = tuple(present.get("table", ()))
        spread = max(table, default=0) + 1
        return spread if table and table == rss_table.equal(len(table), spread) else f"table {_text(table)}"
    if group == "rss" and option == "hash_fields":
        known = present.get("hash_fields", {})
        # Their order says nothing.
        return {
            name: fields if sorted(known.get(name) or ()) == sorted(fields) else known.get(name)
            for name, fields in value.items()
        }
    if group == "irq_affinity" and option in ("vectors", "xps"):
        return value if _as_chosen(facts, choice) else _text(present.get(option, {}))
    if choice.name in RECOGNIZED_BY_RESULT:
        return _text(present.get("table" if option == "weights" else option))
    return present.get(option)


def _as_chosen(facts: dict[str, Any], choice: Choice) -> bool:
    present = facts.get("queues", {})
    vectors: dict[str, str] = present.get("vectors", {})
    if choice.value == KEEP:
        return True
    now = present.get(choice.option, {})
    if isinstance(choice.value, dict):
        return all(now.get(queue) == ("" if listed == NONE else listed) for queue, listed in choice.value.items())
    if choice.option == "xps":
        # Queues without a vector get the CPUs of the vectors, or those that are near.
        orders = [tuple(facts["cpus"][name]) for name in ("cores", "preferred")]
        if choice.value != MATCH:
            return all(listed == ("" if choice.value == NONE else choice.value) for listed in now.values())
        return any(now == match_xps(now, vectors, order) for order in orders)
    order = tuple(facts["cpus"]["preferred"])
    return vectors == assign(vectors, order if choice.value == AUTO else cpus.parse_list(str(choice.value)))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
