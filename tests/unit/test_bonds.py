# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer by a bond or by its members: what is refused, what needs settings. tests/guests has real bonds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import host_check
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import Document, parse_document
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.interfaces import known_interfaces
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import device, link, neighbours, netlink

from .memory_tables import Kernel, index_of, installed
from .test_ethtool import link as parsed
from .test_transaction import PLAIN

DNAT = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80}
DSR = {**DNAT, "forwarding": "dsr"}
BACKEND = {"service": "web", "address": "10.0.0.1"}
WITH_MAC = {**BACKEND, "mac": "02:00:00:00:00:01"}
# Before and after a driver has a program, in most of them.
BEFORE, AFTER = ["basic", "redirect"], ["basic", "redirect", "ndo_xmit"]


def entry(index: int, name: str, kind: str = "", master: int | None = None, mode: str = "") -> device.Link:
    return device.Link(index, name, kind, master, "", "", True, True, "up", 1500, None, 0, None, True, bond_mode=mode)


@dataclass
class Host:
    """Devices, what drivers say, and over which device the kernel's routes lead."""

    links: list[device.Link] = field(
        default_factory=lambda: [
            entry(2, "m0", master=4),
            entry(3, "m1", master=4),
            entry(4, "bond0", "bond", mode="active-backup"),
            entry(5, "eth0"),
            entry(6, "veth0", "veth"),
        ]
    )
    features: dict[int, list[str] | None] = field(default_factory=lambda: dict.fromkeys(range(2, 7), BEFORE))
    drivers: dict[str, str] = field(default_factory=dict)
    route: int = 4

    def refuse(self, hooks: dict[str, str], service: dict | None = None, backend: dict | None = None) -> None:
        document = declared(service or DNAT, backend or BACKEND)
        host_check.refuse_lost_next_hops(list(document.config.backends.values()), document, hooks)


def declared(service: dict, backend: dict) -> Document:
    return parse_document({"interfaces": ["eth0"], "services": [service], "backends": [backend]})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()

    def ways(addresses: list[str]) -> neighbours.Ways:
        return neighbours.Ways({neighbours.Neighbour(made.route, address): address for address in addresses})

    for module in (device, host_check):
        monkeypatch.setattr(module, "links", lambda: made.links)
    monkeypatch.setattr(host_check, "xdp_features", lambda index: made.features[index])
    monkeypatch.setattr(neighbours, "ways", ways)
    monkeypatch.setattr(link, "driver", lambda name: made.drivers.get(name, "igb"))
    monkeypatch.setattr(link, "interface_index", lambda name: {each.name: each.index for each in made.links}[name])
    monkeypatch.setattr(link, "mtu", lambda name: {each.name: each.mtu for each in made.links}[name])
    return made


MEMBERS = {"m0": "native", "m1": "native"}


@pytest.mark.parametrize("told", [True, False])
def test_all_members_forward_by_their_bond(host: Host, told: bool):
    if not told:
        host.features = dict.fromkeys(host.features)
    host.refuse(MEMBERS)
    host.refuse({"bond0": "native"})
    host.refuse({"bond0": "native", "eth0": "native"})
    host.refuse({"m0": "tc", "m1": "native"} if told else {"m0": "tc", "m1": "tc"}, DSR, WITH_MAC)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("hooks", [{"m0": "native"}, {"m0": "native", "m1": "tc"}], ids=["one", "tc"])
@pytest.mark.parametrize(("service", "backend"), [(DNAT, BACKEND), (DNAT, WITH_MAC), (DSR, BACKEND)])
def test_a_bond_does_not_send_by_a_member_without_a_program(
    host: Host, told: bool, hooks: dict, service: dict, backend: dict
):
    if not told:
        host.features = dict.fromkeys(host.features)
    words = "over bond0, which takes no packets from native XDP on m0 .its member m1 has no native program of this"
    with pytest.raises(EngineError, match=words):
        host.refuse(hooks, service, backend)
    # Packets of a backend with an Ethernet address of its own leave by the member; without replies, that is all.
    host.refuse(hooks, DSR, WITH_MAC)
    host.refuse(dict.fromkeys(hooks, "tc"), service, backend)


def test_a_member_whose_driver_always_takes_packets(host: Host):
    host.features = {**host.features, 3: AFTER}
    host.refuse({"m0": "native"})


@pytest.mark.parametrize("mode", ["broadcast", "balance-tlb", "balance-alb"])
def test_a_bond_whose_mode_has_no_xdp(host: Host, mode: str):
    host.links[2] = replace(host.links[2], bond_mode=mode)
    with pytest.raises(EngineError, match=f"its mode is {mode}.; attach the program with mode: tc .* to bond0$"):
        host.refuse(MEMBERS)


def test_a_driver_that_is_known_to_have_none_where_the_kernel_does_not_say(host: Host):
    host.features, host.drivers = dict.fromkeys(host.features), {"m1": "vmxnet3"}
    with pytest.raises(EngineError, match="its member m1: vmxnet3 has native XDP from Linux 6.6 on"):
        host.refuse(MEMBERS)


def test_a_card_takes_packets_once_it_has_a_program(host: Host):
    host.route = 5
    host.refuse({"m0": "native", "m1": "native", "eth0": "native"})
    with pytest.raises(
        EngineError, match="backend 10.0.0.1 of service web is reached over eth0, which takes no packets"
    ):
        host.refuse(MEMBERS)
    host.route = 6
    with pytest.raises(EngineError, match="over veth0, which takes no .* to the interface that veth0 is made of$"):
        host.refuse({"eth0": "native", "veth0": "native"})


def test_a_member_that_turns_out_to_have_no_native_xdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before Linux 6.3 nobody knows before it is tried; mode auto then takes the hook of tc. Nothing of it stays."""
    with monkeypatch.context() as patch, installed(Kernel(tmp_path), patch) as kernel:
        members = [entry(index_of(name), name, master=index_of("eth2")) for name in ("eth0", "eth1")]
        bond = entry(index_of("eth2"), "eth2", "bond", mode="802.3ad")
        patch.setattr(host_check, "links", lambda: [*members, bond])

        def attach(interface: str, program: int, hook: str, replaces: int | None) -> None:
            if (interface, hook) == ("eth1", "native"):
                raise link.HookRefused("native XDP on eth1: Operation not supported")
            kernel.xdp_attach(interface, program, hook, replaces)

        patch.setattr(link, "attach", attach)
        balancer = Balancer("main", kernel.paths)
        with pytest.raises(
            EngineError, match="the program on eth0 forwards is sent over eth2, .*its member eth1 has no"
        ):
            balancer.apply(parse_document({**PLAIN, "mode": "auto"}), False)
        assert not kernel.xdp and not kernel.tc and not balancer.places.state_directory.exists()
        balancer.apply(parse_document({**PLAIN, "mode": "tc"}), False)
        assert set(kernel.tc) == {"eth0", "eth1"}


def test_which_devices_belong_together(host: Host):
    assert device.with_bonds(["bond0"]) == ["bond0", "m0", "m1"]
    assert device.with_bonds(["m1", "m0"]) == ["m1", "m0", "bond0"]
    assert device.with_bonds(["m1", "gone"]) == ["m1", "gone", "bond0"]
    assert device.with_bonds(["eth0"]) == ["eth0"]
    # A bridge is none.
    host.links[2] = replace(host.links[2], kind="bridge")
    assert device.with_bonds(["bond0", "m0"]) == ["bond0", "m0"]


def test_the_program_knows_the_mtu_of_a_bonds_members(host: Host):
    assert {found.index: found.mtu for found in known_interfaces(("bond0", "eth0"))} == dict.fromkeys(range(2, 6), 1500)
    host.links += [entry(number, f"m{number}", master=4) for number in range(10, 30)]
    found = [entry.index for entry in known_interfaces(("eth0", "bond0"))]
    assert len(set(found)) == 16 and {4, 5} <= set(found)


def test_the_mode_of_a_bond():
    def of_kind(kind: str, mode: int) -> str:
        data = netlink.nested(device.IFLA_INFO_DATA, netlink.u8(device.IFLA_BOND_MODE, mode))
        info = netlink.nested(device.IFLA_LINKINFO, netlink.text(device.IFLA_INFO_KIND, kind), data)
        return parsed(info).bond_mode

    assert [of_kind("bond", mode) for mode in (0, 4, 6, 9)] == ["balance-rr", "802.3ad", "balance-alb", "9"]
    assert of_kind("vlan", 4) == ""
