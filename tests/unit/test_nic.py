# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning for network devices: what differs, what is too much, what a device lacks."""

from __future__ import annotations

import errno
import struct

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import ethtool_ioctl, rss_table
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.device import Device
from ansible_collections.lbops.xdp.plugins.module_utils.kernel.ethtool import Feature
from ansible_collections.lbops.xdp.plugins.module_utils.nic import channels, rss, tuner, tuners
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuner import Knob, Rules
from hypothesis import given
from hypothesis import strategies as st

FAIL, CLAMP, SKIP = Rules(), Rules(clamp=True), Rules(skip=True)
RINGS = {"rx": Knob(256, 4096), "tx": Knob(512, 4096)}
DEVICE = Device(7, "eth0")


def test_only_what_differs_is_changed():
    planned = tuner.plan("eth0", RINGS, {"rx": 256, "tx": 1024}, FAIL)
    assert planned.changes == {"tx": 1024}
    assert planned.before == {"rx": 256, "tx": 512}
    assert planned.after == {"rx": 256, "tx": 1024}


def test_beyond_the_maximum_fails_with_the_maximum():
    with pytest.raises(EngineError, match=r"eth0: rx=8192 .* maximum of 4096.*on_exceed=clamp"):
        tuner.plan("eth0", RINGS, {"rx": 8192}, FAIL)


def test_beyond_the_maximum_becomes_the_maximum():
    planned = tuner.plan("eth0", RINGS, {"rx": 8192}, CLAMP)
    assert planned.changes == {"rx": 4096}
    assert planned.clamped == {"rx": {"asked": 8192, "given": 4096}}
    settled = tuner.plan("eth0", {"rx": Knob(4096, 4096)}, {"rx": 8192}, CLAMP)
    assert not settled.changes


def test_a_missing_knob_fails_with_its_name_and_what_there_is():
    with pytest.raises(EngineError, match=r"eth0: the device has no combined; it has rx, tx; .*on_unsupported=skip"):
        tuner.plan("eth0", RINGS, {"combined": 4}, FAIL)
    with pytest.raises(EngineError, match="eth0: the device has no rx, nor anything of the kind"):
        tuner.plan("eth0", {}, {"rx": 4}, FAIL)
    with pytest.raises(EngineError, match="no xps.tx-9; it has xps.tx-0, xps.tx-1;"):
        tuner.plan("eth0", {"xps.tx-0": Knob(""), "xps.tx-1": Knob(""), "rps.rx-0": Knob("")}, {"xps.tx-9": "0"}, FAIL)


def test_a_missing_knob_is_skipped_and_reported():
    planned = tuner.plan("eth0", RINGS, {"combined": 4, "rx": 512}, SKIP)
    assert planned.changes == {"rx": 512}
    assert list(planned.unsupported) == ["combined"]


def test_a_fixed_knob_is_no_problem_while_it_is_as_wanted():
    knobs = {"lro": Knob(False, fixed=True)}
    assert not tuner.plan("eth0", knobs, {"lro": False}, FAIL).changes
    with pytest.raises(EngineError, match="lro is fixed at off"):
        tuner.plan("eth0", knobs, {"lro": True}, FAIL)
    assert tuner.plan("eth0", knobs, {"lro": True}, SKIP).unsupported == {"lro": "the device's lro is fixed at off"}


def test_grouped_knobs_become_nested_arguments():
    assert tuner.nest({"key": "6d", "hash_fields.udp4": ["ip_src"], "hash_fields.tcp4": []}) == {
        "key": "6d",
        "hash_fields": {"udp4": ["ip_src"], "tcp4": []},
    }


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENODEV, "eth0 went away"),
        (errno.EPERM, "needs root"),
        (errno.EROFS, "in a container"),
        (errno.EOPNOTSUPP, "on_unsupported=skip"),
        (errno.EINVAL, r"the kernel refuses: too many \(EINVAL\)"),
    ],
)
def test_refusals_say_what_to_do(number: int, words: str):
    error = tuner.refusal(DEVICE, "ring sizes", OSError(number, "too many"), {"rx": 9})
    with pytest.raises(EngineError, match=words):
        raise error


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (tuners.Rings, {"rx": None, "tx": None}, "at least one of rx, tx"),
        (tuners.Rings, {"rx": 0, "tx": None}, "rx=0 is not a number from 1"),
        (tuners.Coalesce, {"rx_usecs": -1}, "rx_usecs=-1"),
        (tuners.Coalesce, {"rx_usecs": 8, "adaptive_rx": True}, "contradict each other"),
        (rss.Rss, {"queues": 0}, "at least one queue"),
        (rss.Rss, {"weights": [0, 0]}, "more than 0"),
        (rss.Rss, {"weights": [1, -1]}, "queue 1 has weight -1"),
        (rss.Rss, {"key": "6d:5"}, "nor hexadecimal"),
        (rss.Rss, {"hash_fields": {"udp4": []}}, "udp4 has no fields"),
    ],
)
def test_what_makes_no_sense_on_any_device(make, options, words):
    with pytest.raises(EngineError, match=words):
        make(options)


@pytest.mark.parametrize(
    ("features", "knob"),
    [
        ([], None),
        ([Feature(True, False), Feature(False, True)], Knob(False)),
        ([Feature(True, True), Feature(False, True)], Knob(None)),
        ([Feature(True, False), Feature(False, False)], Knob(True, fixed=True)),
    ],
)
def test_several_features_are_one_option(features, knob):
    assert tuners.feature_knob(features) == knob


def test_weights_as_ethtool_deals_them_out():
    # ethtool -X eth0 weight 1 2 3 4, on a table of 128 entries: the queues begin at 0, 12, 38 and 76.
    table = rss_table.weighted(128, [1, 2, 3, 4])
    assert [table.index(queue) for queue in range(4)] == [0, 12, 38, 76]
    assert rss_table.weighted(8, [0, 1]) == (1,) * 8


@given(st.integers(1, 512), st.lists(st.integers(0, 50), min_size=1, max_size=16).filter(any))
def test_weights_fill_the_table_in_proportion(size: int, weights: list[int]):
    table = rss_table.weighted(size, weights)
    assert len(table) == size
    for queue, weight in enumerate(weights):
        assert abs(table.count(queue) - size * weight / sum(weights)) < 1


def test_tables_that_nobody_made():
    assert rss_table.is_default((0, 1, 0, 1), 2)
    assert rss_table.is_default((0, 0, 1, 1), 2)
    assert not rss_table.is_default((0, 1, 0, 1), 4)
    assert not rss_table.is_default((0, 0, 0, 1), 2)


class Card:
    """Receive-side scaling as the kernel keeps it; a strict driver changes no channels while a table is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: tuple[int, ...], queues: int, **quirks: bool) -> None:
        self.table, self.queues, self.quirks = table, queues, quirks
        self.configured = False
        monkeypatch.setattr(ethtool_ioctl, "rss", lambda _index: ethtool_ioctl.Rss(self.table, b"", None, 0))
        monkeypatch.setattr(ethtool_ioctl, "rx_rings", lambda _index: self.queues)
        monkeypatch.setattr(ethtool_ioctl, "call", self.set_rxfh)
        monkeypatch.setattr(tuners.Amounts, "write", self.set_channels)
        monkeypatch.setattr(Device, "sysfs", lambda _device: None)
        monkeypatch.setattr(Device, "driver", lambda _device: "virtio_net" if quirks.get("forgets") else "x")

    def set_rxfh(self, _index: int, request: bytes) -> None:
        entries = ethtool_ioctl.RXFH.unpack_from(request)[2]
        self.configured = entries > 0
        table = struct.unpack_from(f"={entries}I", request, ethtool_ioctl.RXFH.size)
        self.table = table or rss_table.equal(len(self.table), self.queues)

    def set_channels(self, _device, changes: dict, _before: dict) -> None:
        new = changes["combined"]
        if self.configured and (self.quirks.get("strict") or max(self.table) >= new):
            raise OSError(errno.EINVAL, "configured")
        if new > 8:
            raise OSError(errno.ENOMEM, "too many")
        self.queues = new
        if self.quirks.get("blocks"):
            self.table = rss_table.blocks(len(self.table), new)
        elif not self.configured and not self.quirks.get("forgets"):
            self.table = rss_table.equal(len(self.table), new)

    def write(self, **options) -> None:
        rss.Rss(options).write(DEVICE, options, {})

    def channels(self, new: int) -> None:
        channels.Channels({"combined": new}).write(DEVICE, {"combined": new}, {"combined": self.queues})


DEFAULT = (0, 1, 2, 3, 0, 1, 2, 3)


@pytest.mark.parametrize("quirk", ["none", "strict", "forgets"])
def test_a_table_that_is_the_default_again_is_nobodys(monkeypatch, quirk: str):
    card = Card(monkeypatch, DEFAULT, 4, **{quirk: True})
    card.write(table=[0] * 8)
    assert card.configured
    rss.Rss({"queues": 4}).write(DEVICE, {"table": list(DEFAULT)}, {})
    assert (card.table, card.configured) == (DEFAULT, True)
    card.write(table=list(DEFAULT))
    assert (card.table, card.configured) == (DEFAULT, False)
    for new in (8, 2, 4):
        card.channels(new)
        assert (card.table, card.configured) == (rss_table.equal(8, new), False)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_default_that_somebody_wrote_does_not_keep_channels_from_changing(monkeypatch, blocks: bool):
    default = rss_table.blocks if blocks else rss_table.equal
    card = Card(monkeypatch, default(8, 4), 4, blocks=blocks, strict=True)
    for new in (8, 2):
        card.configured = True
        card.channels(new)
        assert (card.table, card.configured) == (default(8, new), False)
    with pytest.raises(OSError, match="too many"):
        card.channels(16)
    assert card.table == default(8, 2)


def test_a_table_that_somebody_made_stays_while_it_fits(monkeypatch):
    card = Card(monkeypatch, (0, 0, 0, 1, 0, 0, 0, 1), 4, forgets=True)
    card.configured = True
    card.channels(2)
    assert (card.table, card.configured) == ((0, 0, 0, 1, 0, 0, 0, 1), True)
    card.channels(1)
    assert (card.table, card.configured) == ((0,) * 8, False)


def table(options: dict, rules: Rules = FAIL) -> tuple[int, ...]:
    return rss.table_of("eth0", options, size=8, queues=4, rules=rules)


def test_tables():
    assert table({"queues": 3}) == (0, 1, 2, 0, 1, 2, 0, 1)
    assert table({"queues": 9}, CLAMP) == (0, 1, 2, 3, 0, 1, 2, 3)
    assert table({"weights": [3, 1]}) == (0, 0, 0, 0, 0, 0, 1, 1)
    assert table({"table": [3] * 8}) == (3,) * 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queues": 9}, "queues=9 is more than the device's maximum of 4"),
        ({"weights": [1] * 5}, "5 weights for 4 receive queues"),
        ({"weights": [1, 100]}, "weight 1 of queue 0 is too small"),
        ({"table": [0, 1]}, "has 2 entries, the device's has 8"),
        ({"table": [0] * 7 + [4]}, "entry 7 of the table is queue 4; the device has receive queues 0 to 3"),
    ],
)
def test_tables_that_do_not_fit(options: dict, words: str):
    with pytest.raises(EngineError, match=words):
        table(options)


def test_check_mode_reckons_with_queues_that_are_yet_to_be_made(monkeypatch):
    """A task before, which changed nothing in check mode either, may have been to make them."""
    Card(monkeypatch, DEFAULT, 4)
    knobs = {"table": Knob(list(DEFAULT))}
    monkeypatch.setattr(channels.Channels, "read", lambda _device: {"combined": Knob(4, 6)})
    tuner = rss.Rss({"queues": 6})
    assert tuner.wanted(DEVICE, knobs, Rules(check=True)) == {"table": [0, 1, 2, 3, 4, 5, 0, 1]}
    [warning] = tuner.warnings(DEVICE, {})
    assert warning.startswith("eth0: that is 2 more than the receive queues that there are; unless nic_channels")
    with pytest.raises(EngineError, match="queues=6 is more than"):
        tuner.wanted(DEVICE, knobs, FAIL)
    with pytest.raises(EngineError, match="queues=7 is more than the device's maximum of 6"):
        rss.Rss({"queues": 7}).wanted(DEVICE, knobs, Rules(check=True))
    fits = rss.Rss({"queues": 4})
    assert fits.wanted(DEVICE, knobs, Rules(check=True)) == {"table": list(DEFAULT)} and not fits.warnings(DEVICE, {})


def test_keys():
    assert rss.key_of("eth0", "symmetric", 5) == "6d:5a:6d:5a:6d"
    assert rss.key_of("eth0", "6D5A:01", 3) == "6d:5a:01"
    with pytest.raises(EngineError, match="the key has 3 bytes, the device takes 40"):
        rss.key_of("eth0", "6d5a01", 40)


def test_the_hosts_key(tmp_path, monkeypatch):
    monkeypatch.setattr(rss, "HOST_KEY", tmp_path / "key")
    rss.HOST_KEY.write_text("01:02:03:04\n", encoding="ascii")
    assert rss.key_of("eth0", "default", 3) == "01:02:03"
    with pytest.raises(EngineError, match="no key of 8 bytes"):
        rss.key_of("eth0", "default", 8)
    rss.HOST_KEY.write_text("00:00:00:00\n", encoding="ascii")
    with pytest.raises(EngineError, match="give the key itself"):
        rss.key_of("eth0", "default", 3)


def test_rollback_leaves_out_fields_that_nobody_may_ask_for():
    tuner = rss.Rss({"queues": 2})
    assert tuner.arguments({"hash_fields.udp4": [], "hash_fields.tcp4": ["ip_src"]}) == {
        "hash_fields": {"tcp4": ["ip_src"]}
    }


def test_a_delay_needs_adaptive_coalescing_off():
    knobs = {"rx_usecs": Knob(3), "adaptive_rx": Knob(True), "tx_usecs": Knob(3), "adaptive_tx": Knob(False)}
    with pytest.raises(EngineError, match="eth0: rx_usecs=8: .* while adaptive_rx is on; set adaptive_rx=false as"):
        tuners.Coalesce({"rx_usecs": 8}).wanted(DEVICE, knobs, FAIL)
    for options in ({"rx_usecs": 8, "adaptive_rx": False}, {"tx_usecs": 8}):
        assert tuners.Coalesce(options).wanted(DEVICE, knobs, FAIL) == options
    assert tuners.Coalesce({"rx_usecs": 8}).wanted(DEVICE, {"rx_usecs": Knob(3)}, FAIL)


def test_rollback_leaves_out_a_delay_that_the_driver_changes():
    tuner = tuners.Coalesce({"rx_usecs": 8, "adaptive_rx": False})
    assert tuner.arguments({"rx_usecs": 3, "adaptive_rx": True}) == {"adaptive_rx": True}
