# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes that pyroute2 writes and reads for us, and what anybody may ask the kernel about the loopback interface."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import link, neighbours, tc

# include/uapi/linux/if_link.h, pkt_cls.h, rtnetlink.h
IFLA_XDP, IFLA_XDP_FD, IFLA_XDP_FLAGS, IFLA_XDP_EXPECTED_FD = 43, 1, 3, 8
TCA_KIND, TCA_OPTIONS, TCA_CHAIN, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_TAG, TCA_BPF_ID = 1, 2, 11, 7, 8, 10, 11
NESTED = 1 << 15

pyroute2 = link.import_pyroute2()


def attribute(number: int, value: bytes) -> bytes:
    return (struct.pack("=HH", len(value) + 4, number) + value).ljust(4 + -(-len(value) // 4) * 4, b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, number = struct.unpack_from("=HH", data)
        found[number & ~NESTED] = data[4:length]
        data = data[-(-length // 4) * 4 :]
    return found


# --- bytes


def test_a_request_to_attach_is_what_the_kernel_reads():
    """Before 0.9, pyroute2 wrote the flags in another byte order and length."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    flags = link.FLAG_NATIVE | link.FLAG_REPLACE
    message = ifinfmsg()
    message["attrs"] = [
        ("IFLA_XDP", {"attrs": [["IFLA_XDP_FD", 7], ["IFLA_XDP_FLAGS", flags], ["IFLA_XDP_EXPECTED_FD", 9]]})
    ]
    message.encode()
    xdp = attributes(attributes(bytes(message.data)[32:])[IFLA_XDP])
    assert xdp == {
        IFLA_XDP_FD: struct.pack("=i", 7),
        IFLA_XDP_FLAGS: struct.pack("=I", 1 << 2 | 1 << 4),
        IFLA_XDP_EXPECTED_FD: struct.pack("=i", 9),
    }


def test_importing_twice_changes_nothing():
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    before = ifinfmsg.xdp.xdp_flags.fields
    assert link.import_pyroute2() is pyroute2
    assert ifinfmsg.xdp.xdp_flags.fields == before


def tc_filter(kind: bytes, *members: bytes) -> bytes:
    """What the kernel tells of a filter of tc behind the header of the message."""
    return (
        struct.pack("=BxxxiIII", 0, 2, 7, tc.INGRESS, 1 << 16 | 0x0300)
        + attribute(TCA_KIND, kind + b"\0")
        + b"".join(members)
    )


def test_a_filter_of_tc_with_its_program():
    values = {
        TCA_BPF_NAME: b"lbops_balancer\0",
        TCA_BPF_FLAGS: struct.pack("=I", 1),
        TCA_BPF_TAG: bytes(range(8)),
        TCA_BPF_ID: struct.pack("=I", 4711),
    }
    options = attribute(TCA_OPTIONS, b"".join(attribute(number, value) for number, value in values.items()))
    found = tc.parse_filter(tc_filter(b"bpf", options))
    assert found == tc.Filter(1, tc.ETH_P_ALL, 7, "bpf", "lbops_balancer", 4711) and found.ours


@pytest.mark.parametrize("kind", [b"bpf", b"nothing"])
def test_a_filter_of_tc_of_others(kind):
    found = tc.parse_filter(tc_filter(kind, attribute(TCA_OPTIONS, b"")))
    assert found == tc.Filter(1, tc.ETH_P_ALL, 7, kind.decode()) and not found.ours


def test_what_is_no_filter_of_tc_that_packets_meet():
    assert tc.parse_filter(tc_filter(b"bpf")) is None
    chain = attribute(TCA_CHAIN, struct.pack("=I", 5))
    assert tc.parse_filter(tc_filter(b"bpf", attribute(TCA_OPTIONS, b""), chain)) is None


# --- words


@pytest.mark.parametrize(
    "error, words",
    [
        (pyroute2.NetlinkError(errno.EBUSY, "XDP program already attached"), "XDP program already attached (EBUSY)"),
        (pyroute2.NetlinkError(errno.ENODEV), "No such device (ENODEV)"),
        (pyroute2.NetlinkError(9999, "what is this"), "what is this (9999)"),
    ],
    ids=["its own words", "a number only", "an unknown number"],
)
def test_words_of_the_kernel(error, words):
    assert link.kernel_words(error) == words


@pytest.mark.parametrize("name", ["no-such-if", "", "x" * 300, "a\0b"], ids=repr)
def test_interface_that_does_not_exist(name):
    with pytest.raises(EngineError) as caught:
        link.interface_index(name)
    assert str(caught.value).startswith(f"interface {name!r} does not exist; this host has ")
    assert "lo" in str(caught.value).rpartition("this host has ")[2].split(", ")
    assert not link.exists(name)


@pytest.mark.parametrize("hook", ["tc", "several"])
def test_a_hook_that_is_not_xdps_is_left_to_people(hook):
    with pytest.raises(EngineError, match=f"lo carries a program on the {hook} hook; detach that one by hand"):
        link.detach("lo", hook, -1)


# --- what anybody may ask


def test_the_loopback_interface():
    assert link.interface_index("lo") == int(Path("/sys/class/net/lo/ifindex").read_text())
    assert link.mtu("lo") == int(Path("/sys/class/net/lo/mtu").read_text())
    assert link.exists("lo")
    assert link.driver("lo") == "virtual"


def test_there_is_no_program_of_ours_on_the_loopback_interface():
    assert link.attached("lo") is None
    assert tc.attached("lo") is None


def test_links_that_are_not_there_are_not_up():
    up = Path("/sys/class/net/lo/operstate").read_text().strip() in ("up", "unknown")
    assert link.links_up(["lo", "no-such-if"]) == ({link.interface_index("lo")} if up else set())
    assert link.links_up([]) == set()


def test_neighbours_on_the_way_are_named_once_each():
    with link.route_socket() as route:
        found, problems = neighbours.neighbours(route, ["127.0.0.1", "127.0.0.1"])
    assert found == {neighbours.Neighbour(link.interface_index("lo"), "127.0.0.1"): "127.0.0.1"}
    assert problems == {}


def test_nothing_to_resolve_is_resolved_at_once():
    assert neighbours.resolve(neighbours.Ways(), 60) == {}
