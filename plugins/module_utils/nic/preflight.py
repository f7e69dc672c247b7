# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a driver from taking a program: from what a device is to problems with their remedies. Pure functions.

Facts are those of device_info.for_xdp(). Where a rule comes from a driver's source, its function is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernel import cpus

# What a driver does: refuse the program, hand it packets that it can only drop, or have CPUs wait for each other.
REFUSE, DROP, LOCK = "refuse", "drop", "lock"

# Drivers that take as many transmit queues for XDP as they have channels, from the same pool, and refuse a program when
# there are too few: ena_xdp_legal_queue_count(), gve's verify_xdp_configuration(), bnxt_xdp_set().
HALF_FOR_XDP = ("ena", "gve", "bnxt_en")
# It reserves them with the firmware, which may have more of them than of channels (bnxt_check_rings()).
_MAY_HAVE_MORE = "bnxt_en"
# Its transmit queues for XDP are one for each CPU, or shared with locks (virtnet_xdp_set()).
ONE_FOR_EACH_CPU = "virtio_net"

_MERGING = {"lro": "LRO", "gro_hw": "GRO in hardware"}
# Refused while that is on: mlx5e_xdp_allowed(), gve's verify_xdp_configuration(), netvsc_xdp_set(). ixgbe_xdp_setup()
# goes by its rings, which may not merge although LRO is on.
_REFUSED_WITH = {"mlx5_core": ("lro", "gro_hw"), "gve": ("lro",), "hv_netvsc": ("lro",)}
# They switch it off: virtnet_xdp_set(), vmxnet3_xdp_set(), bnxt_set_rx_skb_mode(), aq_ndo_fix_features().
_SWITCH_OFF = ("virtio_net", "vmxnet3", "bnxt_en", "atlantic")

# Kernels before 6.3 do not say what a driver can do; of these it is known that they can do nothing there.
LATER_OR_NEVER = {
    "vmxnet3": "vmxnet3 has native XDP from Linux 6.6 on",
    "e1000": "e1000 has no native XDP",
    "e1000e": "e1000e has no native XDP",
}
_OTHER_MODES = "use mode auto, tc or generic"


@dataclass(frozen=True)
class Change:
    """What removes a problem: options of the module nic_<group>, or the MTU, as they are and as they are to be."""

    interface: str
    group: str
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    interface: str
    driver: str
    found: str
    remedy: str
    effect: str = REFUSE
    # If not, the kernel has the last word.
    certain: bool = True
    change: Change | None = None

    def __str__(self) -> str:
        return f"native XDP on {self.interface} (driver {self.driver}): {self.found}; {self.remedy}"

    @property
    def refuses(self) -> bool:
        return self.effect == REFUSE

    @property
    def blocks(self) -> bool:
        return self.refuses and self.certain

    @property
    def doubtful(self) -> bool:
        return self.refuses and not self.certain


def problems(facts: dict[str, Any], multi_buffer: bool) -> list[Problem]:
    """Everything that is in the way of a native program."""
    features = facts["xdp"]["features"]
    merging = _merging(facts)
    # While something is in their way, veth and mlx5 say that they have none: veth_set_xdp_features(),
    # mlx5e_set_xdp_feature().
    explained = facts["driver"] == "veth" or any(problem.blocks for problem in merging)
    if features is not None and "basic" not in features and not explained:
        return [_problem(facts, "the driver does not support XDP in native mode", _OTHER_MODES)]
    if features is None and facts["driver"] in LATER_OR_NEVER:
        return [_problem(facts, LATER_OR_NEVER[facts["driver"]], _OTHER_MODES, certain=False)]
    others = [_offloads(facts), mtu_problem(facts, multi_buffer), _half(facts), _veth_queues(facts), _locks(facts)]
    found = merging + [problem for problem in others if problem]
    if features is None and not any(problem.refuses for problem in found):
        words = "whether the driver has native XDP is what this kernel does not say, as Linux does from 6.3 on"
        found.append(_problem(facts, words, _OTHER_MODES, certain=False))
    return found


def _problem(facts: dict[str, Any], found: str, remedy: str, **more: Any) -> Problem:
    return Problem(facts["interface"], facts["driver"] or "virtual", found, remedy, **more)


def _change(facts: dict[str, Any], group: str, **after: Any) -> Change:
    before = {option: facts[group][option] for option in after}
    return Change(facts["interface"], group, before, after)


def mtu_problem(facts: dict[str, Any], multi_buffer: bool = False) -> Problem | None:
    xdp = facts["xdp"]
    limit, features, peer = xdp["mtu_limit"], xdp["features"], xdp.get("peer")
    if multi_buffer and features is not None and "rx_sg" in features:
        return None
    whose, owner, mtu = "its MTU", facts["interface"], facts["mtu"]
    if facts["driver"] == "veth":
        if peer is None:
            return None
        whose, owner, mtu = "the MTU of the other end", peer["interface"], peer["mtu"]
    if mtu <= limit:
        return None
    # Before 6.3 it is not known which drivers take long frames.
    certain = xdp["mtu_limit_measured"] and not multi_buffer
    remedy = "lower it where the host's network is configured"
    if not multi_buffer and (features is None or "rx_sg" in features):
        remedy += ", or let the program be one for long frames (multi_buffer)"
    return _problem(
        facts,
        f"{whose} is {mtu}, and the driver {'refuses' if certain else 'most likely refuses'} more than {limit}",
        remedy,
        certain=certain,
        # An end in another network namespace has no name here.
        change=Change(owner, "mtu", {"mtu": mtu}, {"mtu": limit}) if owner else None,
    )


def _merging(facts: dict[str, Any]) -> list[Problem]:
    driver, found = facts["driver"], []
    for option, name in _MERGING.items():
        if not facts["features"].get(option) or driver in _SWITCH_OFF:
            continue
        remedy = f"switch it off (nic_features {option}=false)"
        change = _change(facts, "features", **{option: False})
        if option in _REFUSED_WITH.get(driver, ()):
            found.append(
                _problem(facts, f"{name} is on, with which the driver refuses programs", remedy, change=change)
            )
        else:
            words = f"{name} is on, so the driver may refuse programs, or hand them packets merged from several"
            found.append(_problem(facts, words, remedy, effect=DROP, certain=False, change=change))
    return found


def _offloads(facts: dict[str, Any]) -> Problem | None:
    """virtnet_xdp_set() switches GRO_HW and checksums off, if the hypervisor lets it (F_CTRL_GUEST_OFFLOADS)."""
    fixed = facts["xdp"].get("fixed_offloads")
    if not fixed:
        return None
    return _problem(
        facts,
        f"the hypervisor fixes {', '.join(fixed)}, with which the driver refuses programs",
        "switch that off at the hypervisor, or let the guest do it (ctrl_guest_offloads)",
    )


def channels_beside_xdp(driver: str | None, maximum: int, possible: int) -> int:
    """How many channels leave the driver transmit queues for XDP."""
    if driver in HALF_FOR_XDP:
        return max(maximum // 2, 1)
    return maximum - possible if driver == ONE_FOR_EACH_CPU else maximum


def _half(facts: dict[str, Any]) -> Problem | None:
    driver, channels, maxima = facts["driver"], facts["channels"], facts.get("channels_maximum", {})
    if driver not in HALF_FOR_XDP:
        return None
    # gve has channels of rx and tx, and wants as many of both.
    names = ("combined",) if channels.get("combined") else ("rx", "tx")
    if not all(name in channels and name in maxima for name in names):
        return None
    maximum = maxima[names[-1]]
    limit = channels_beside_xdp(driver, maximum, 0)
    now = {name: channels[name] for name in names}
    wanted = dict.fromkeys(names, min(limit, *now.values()))
    if now == wanted:
        return None
    certain = driver != _MAY_HAVE_MORE
    return _problem(
        facts,
        f"it has channels {_options(now)}, and XDP needs as many transmit queues again, of {maximum} in all"
        f"{', and as many tx as rx' if len(names) > 1 else ''}, so the driver "
        f"{'refuses' if certain else 'most likely refuses'} programs",
        f"have fewer (nic_channels {_options(wanted)})",
        certain=certain,
        change=_change(facts, "channels", **wanted),
    )


def _options(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _veth_queues(facts: dict[str, Any]) -> Problem | None:
    """veth_xdp_set(): no fewer receive queues than the other end has transmit queues."""
    if facts["driver"] != "veth":
        return None
    features, peer = facts["xdp"]["features"], facts["xdp"].get("peer") or {}
    queues, maximum = facts["channels"]["rx"], facts["channels_maximum"]["rx"]
    needed = peer.get("tx")
    if needed is not None:
        short = queues < needed
    else:
        # It is in another network namespace, but the driver has counted.
        short = features is not None and "basic" not in features
    if not short:
        return None
    wanted = needed or maximum
    if queues < wanted <= maximum:
        change, remedy = _change(facts, "channels", rx=wanted), f"have {wanted} (nic_channels rx={wanted})"
    else:
        change, remedy = None, f"have {maximum} at the other end (nic_channels tx={maximum} there)"
    return _problem(
        facts,
        f"its receive queues ({queues}) are fewer than the other end's transmit queues"
        f"{f' ({needed})' if needed else ''}, so the driver refuses programs",
        remedy,
        change=change,
    )


def _locks(facts: dict[str, Any]) -> Problem | None:
    driver, channels = facts["driver"], facts["channels"].get("combined")
    if driver != ONE_FOR_EACH_CPU or not channels:
        return None
    maximum, possible = facts["channels_maximum"]["combined"], len(cpus.parse_list(facts["cpus"]["possible"]))
    limit = channels_beside_xdp(driver, maximum, possible)
    if channels <= limit:
        return None
    fewer = f"have {limit} channels (nic_channels combined={limit}, before attaching), or " if limit > 0 else ""
    return _problem(
        facts,
        f"{channels} channels and a transmit queue for each of {possible} CPUs are more than its queue pairs "
        f"({maximum}), so CPUs wait for each other to send",
        f"{fewer}give it {channels + possible} queue pairs at the hypervisor",
        effect=LOCK,
    )
