# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The netlink codec, against what Linux 6.18 sent and took, and the ioctl structures."""

from __future__ import annotations

import errno
import struct

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import device, ethtool, ethtool_ioctl, netlink
from hypothesis import given
from hypothesis import strategies as st

# On a little-endian machine. A veth with four queues each way, of which index and name were 3 and v0.
CHANNELS_REQUEST = "20000000150005000200000000000000110100000c0001800800010003000000"
CHANNELS_REPLY = (
    "4800000015000000020000009e6f000012010000140001800800010003000000070002007630000008000200040000000800060004000000"
    "08000300040000000800070004000000"
)
TOO_MANY_CHANNELS = (
    "580000000200000304000000eb6b0000eaffffff280000001500050004000000000000002c000100726571756573746564206368616e6e65"
    "6c20636f756e742065786365656473206d6178696d756d000800020020000000"
)
NO_RINGS = "240000000200000105000000eb6b0000a1ffffff20000000150005000500000000000000"
ACKNOWLEDGED = "240000000200000103000000eb6b00000000000028000000150005000300000000000000"
SET_FEATURES = (
    "3c0000001500050006000000000000000c0100000c00018008000100030000001c00038018000380140001801000020072782d636865636b"
    "73756d00"
)
# virtio_net
RINGS_REPLY = (
    "5c0000001500000002000000ee6b000010010000180001800800010004000000090002006574683000000000080002000001000008000600"
    "000100000800050000010000080009000001000005000d000000000005000e0000000000"
)
FAMILY = 0x15


def only(datagram: str) -> tuple[int, int, int, bytes]:
    (message,) = netlink.messages(bytes.fromhex(datagram))
    return message


def reply(datagram: str) -> dict[int, bytes]:
    return dict(netlink.attributes(only(datagram)[3][netlink.GENERIC_HEADER.size :]))


def request(command: int, sequence: int, *members: bytes) -> str:
    payload = netlink.GENERIC_HEADER.pack(command, 1, 0) + b"".join(members)
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
    return netlink.message(FAMILY, flags, sequence, payload).hex()


HEADER = netlink.nested(ethtool.A_HEADER, netlink.u32(ethtool.A_HEADER_DEV_INDEX, 3))


def test_requests_are_those_that_the_kernel_took():
    assert request(ethtool.MSG_CHANNELS_GET, 2, HEADER) == CHANNELS_REQUEST
    wanted = ethtool.bitset(ethtool.A_FEATURES_WANTED, {"rx-checksum": False})
    assert request(ethtool.MSG_FEATURES_SET, 6, HEADER, wanted) == SET_FEATURES


def test_replies_are_understood():
    channels = ethtool.amounts(reply(CHANNELS_REPLY), ethtool.A_CHANNELS, ethtool.A_CHANNELS_MAXIMUM)
    assert channels == {"rx": ethtool.Amount(4, 4), "tx": ethtool.Amount(4, 4)}
    rings = ethtool.amounts(reply(RINGS_REPLY), ethtool.A_RINGS, ethtool.A_RINGS_MAXIMUM)
    assert rings == {"rx": ethtool.Amount(256, 256), "tx": ethtool.Amount(256, 256)}


def test_the_kernels_words_are_found():
    _kind, flags, sequence, payload = only(TOO_MANY_CHANNELS)
    error = netlink.error_of(flags, payload)
    assert (error.errno, error.words, sequence) == (errno.EINVAL, "requested channel count exceeds maximum", 4)


def test_a_refusal_without_words_says_what_its_number_means():
    _kind, flags, _sequence, payload = only(NO_RINGS)
    error = netlink.error_of(flags, payload)
    assert (error.errno, error.strerror, error.words) == (errno.EOPNOTSUPP, "Operation not supported", "")


def test_an_acknowledgement_is_no_error():
    _kind, flags, _sequence, payload = only(ACKNOWLEDGED)
    assert netlink.error_of(flags, payload) is None


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back_as_they_went(members):
    packed = b"".join(netlink.attribute(kind, payload) for kind, payload in members)
    assert list(netlink.attributes(packed)) == members


@given(st.dictionaries(st.text("abc-", min_size=1), st.booleans()))
def test_bitsets_come_back_as_they_went(values):
    ((_kind, payload),) = netlink.attributes(ethtool.bitset(ethtool.A_FEATURES_WANTED, values))
    assert ethtool.bitset_names(payload) == values


def test_a_bitset_without_mask_lists_what_is_set():
    bits = netlink.nested(
        ethtool.A_BITSET_BITS, netlink.nested(ethtool.A_BITSET_BIT, netlink.text(ethtool.A_BIT_NAME, "rx-gro"))
    )
    assert ethtool.bitset_names(netlink.attribute(ethtool.A_BITSET_NOMASK, b"") + bits) == {"rx-gro": True}


@given(st.binary(max_size=60))
def test_rubbish_is_cut_off(data):
    list(netlink.attributes(data))
    list(netlink.messages(data))


def test_rss_structures():
    current = ethtool_ioctl.Rss((0, 1), b"\x6d\x5a", "toeplitz", 1)
    assert ethtool_ioctl.rss_request(current, (1, 0), b"\x01\x02") == struct.pack(
        "=IIIIBBHIII2s", 0x47, 0, 2, 2, 0, 1, 0, 0, 1, 0, b"\x01\x02"
    )
    # Nothing about the table, and a table of none, which makes the driver's own.
    assert struct.unpack_from("=I", ethtool_ioctl.rss_request(current, hash_function="xor"), 8) == (0xFFFFFFFF,)
    assert struct.unpack_from("=I", ethtool_ioctl.rss_request(current, ()), 8) == (0,)
    answer = struct.pack("=IIIIBBHIII2s", 0x46, 0, 2, 2, 1, 1, 0, 0, 0, 1, b"\x6d\x5a")
    assert ethtool_ioctl.parse_rss(answer) == current


def test_a_link_is_up_with_a_carrier():
    assert link(flags=device.IFF_UP | device.IFF_LOWER_UP).up
    assert not link(flags=device.IFF_UP).up and not link(flags=device.IFF_LOWER_UP).up


def link(*members: bytes, flags: int = 0) -> device.Link:
    packed = device.IFINFOMSG.pack(0, 1, 7, flags, 0)
    return device.parse_link(packed + netlink.text(device.IFLA_IFNAME, "eth1") + b"".join(members))


def test_a_member_of_a_bond_is_usable_when_the_bond_says_so():
    up = netlink.u8(device.IFLA_OPERSTATE, device.OPERSTATES.index("up"))

    def member(state: int, *lacp: bytes) -> bytes:
        data = netlink.nested(device.IFLA_INFO_SLAVE_DATA, netlink.u8(device.IFLA_BOND_SLAVE_MII_STATUS, state), *lacp)
        kind = netlink.text(device.IFLA_INFO_SLAVE_KIND, "bond")
        return netlink.nested(device.IFLA_LINKINFO, kind, data)

    assert link(up, member(device.BOND_LINK_UP)).usable
    assert not link(up, member(2)).usable
    # Mode 802.3ad: negotiating, moving packets, and the same in an aggregator that is not the active one.
    for port, backup, usable in ((0x0F, 1, False), (0x3F, 0, True), (0x3F, 1, False), (0x1F, 0, False)):
        lacp = netlink.u8(device.IFLA_BOND_SLAVE_AD_ACTOR_OPER_PORT_STATE, port)
        state = netlink.u8(device.IFLA_BOND_SLAVE_STATE, backup)
        assert link(up, member(device.BOND_LINK_UP, lacp, state)).usable is usable
    # The backup of mode active-backup.
    assert link(up, member(device.BOND_LINK_UP, netlink.u8(device.IFLA_BOND_SLAVE_STATE, 1))).usable
    assert link(up).usable
    assert not link(netlink.u8(device.IFLA_OPERSTATE, device.OPERSTATES.index("down"))).usable
