# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of the kernel's interfaces, as a C compiler finds them in its headers."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import watch
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import (
    attachments,
    bpf,
    device,
    link,
    neighbours,
    tc,
    veth,
)
from ansible_collections.lbops.xdp.plugins.module_utils.nic import device_info

HEADERS = (
    "sys/socket.h",
    "asm/unistd.h",
    "linux/bpf.h",
    "linux/if_bonding.h",
    "linux/if_ether.h",
    "linux/if_link.h",
    "linux/neighbour.h",
    "linux/pkt_cls.h",
    "linux/pkt_sched.h",
    "linux/rtnetlink.h",
    "linux/virtio_net.h",
)
COMMANDS = [name for name in vars(bpf) if name.startswith(("MAP_", "PROG_", "OBJ_"))]
COMMANDS = [name for name in COMMANDS if not name.startswith(("MAP_TYPE_", "MAP_FLAG_", "PROG_TYPE_", "PROG_FLAG_"))]
TYPES = [name for name in vars(bpf) if name.startswith(("MAP_TYPE_", "PROG_TYPE_"))]
BOND_MODES = {
    "ROUNDROBIN": "balance-rr",
    "ACTIVEBACKUP": "active-backup",
    "XOR": "balance-xor",
    "BROADCAST": "broadcast",
    "8023AD": "802.3ad",
    "TLB": "balance-tlb",
    "ALB": "balance-alb",
}
VALID = "NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT"
# An expression of C, and what it is here.
NUMBERS = {
    **{f"BPF_{name}": getattr(bpf, name) for name in (*COMMANDS, *TYPES)},
    "BPF_LINK_GET_FD_BY_ID": attachments.LINK_GET_FD_BY_ID,
    "BPF_LINK_GET_NEXT_ID": attachments.LINK_GET_NEXT_ID,
    # TCX, which attachments.py knows too, is newer than the headers of Debian 12.
    "BPF_LINK_TYPE_XDP": attachments.LINK_TYPE_XDP,
    "offsetof(struct bpf_link_info, xdp.ifindex)": attachments.LINK_INFO.size - 4,
    "offsetof(union bpf_attr, query.prog_ids)": 16,
    "BPF_F_MMAPABLE": bpf.MAP_FLAG_MMAPABLE,
    "BPF_F_XDP_HAS_FRAGS": bpf.PROG_FLAG_XDP_HAS_FRAGS,
    "BPF_OBJ_NAME_LEN": bpf.NAME_LENGTH + 1,
    "BPF_LD | BPF_IMM | BPF_DW": bpf.LOAD_IMMEDIATE_64,
    "BPF_PSEUDO_MAP_FD": bpf.PSEUDO_MAP_FD,
    "BPF_PSEUDO_MAP_VALUE": bpf.PSEUDO_MAP_VALUE,
    "sizeof(struct bpf_insn)": bpf.INSTRUCTION.size,
    "__NR_bpf": bpf.SYSCALL_NUMBERS.get(platform.machine()),
    "XDP_FLAGS_UPDATE_IF_NOEXIST": link.FLAG_IF_NOEXIST,
    "XDP_FLAGS_REPLACE": link.FLAG_REPLACE,
    "XDP_FLAGS_DRV_MODE": link.HOOK_FLAGS["native"],
    "XDP_FLAGS_SKB_MODE": link.HOOK_FLAGS["generic"],
    "XDP_FLAGS_HW_MODE": link.HOOK_FLAGS["offload"],
    "IFLA_INFO_DATA": device.IFLA_INFO_DATA,
    "IFLA_BOND_MODE": device.IFLA_BOND_MODE,
    **{f"BOND_MODE_{name}": device.BOND_MODES.index(mode) for name, mode in BOND_MODES.items()},
    "IFLA_BOND_SLAVE_STATE": device.IFLA_BOND_SLAVE_STATE,
    "IFLA_BOND_SLAVE_MII_STATUS": device.IFLA_BOND_SLAVE_MII_STATUS,
    "IFLA_BOND_SLAVE_AD_ACTOR_OPER_PORT_STATE": device.IFLA_BOND_SLAVE_AD_ACTOR_OPER_PORT_STATE,
    "BOND_STATE_ACTIVE": device.BOND_STATE_ACTIVE,
    "BOND_LINK_UP": device.BOND_LINK_UP,
    "LACP_STATE_COLLECTING | LACP_STATE_DISTRIBUTING": device.LACP_MOVES_PACKETS,
    "IFLA_LINK": veth.IFLA_LINK,
    "IFLA_LINK_NETNSID": veth.IFLA_LINK_NETNSID,
    "IFLA_TARGET_NETNSID": veth.IFLA_TARGET_NETNSID,
    "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS": device_info.VIRTIO_CTRL_GUEST_OFFLOADS,
    **{
        f"VIRTIO_NET_F_{name.upper()}": bit
        for bit, name in device_info.VIRTIO_GUEST_OFFLOADS.items()
        if "uso" not in name  # Newer than the headers of Debian 12.
    },
    "TC_H_MAKE(TC_H_CLSACT, 0)": tc.CLSACT,
    "TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)": tc.INGRESS,
    "TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)": tc.EGRESS,
    "RTM_GETQDISC": tc.RTM_GETQDISC,
    "RTM_GETTFILTER": tc.RTM_GETTFILTER,
    "TCA_KIND": tc.TCA_KIND,
    "TCA_OPTIONS": tc.TCA_OPTIONS,
    "TCA_CHAIN": tc.TCA_CHAIN,
    "TCA_BPF_NAME": tc.TCA_BPF_NAME,
    "TCA_BPF_ID": tc.TCA_BPF_ID,
    "ETH_P_ALL": tc.ETH_P_ALL,
    "NTF_USE": neighbours.NTF_USE,
    "NUD_NONE": neighbours.NUD_NONE,
    "NUD_FAILED": neighbours.NUD_FAILED,
    VALID: neighbours.NUD_VALID,
    "AF_INET": neighbours.AF_INET,
    "AF_INET6": neighbours.AF_INET6,
    "RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE": watch.GROUPS,
}
HOOKS = {
    "XDP_ATTACHED_NONE": None,
    "XDP_ATTACHED_DRV": "native",
    "XDP_ATTACHED_SKB": "generic",
    "XDP_ATTACHED_HW": "offload",
    "XDP_ATTACHED_MULTI": "several",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, int]:
    """What the compiler makes of every expression."""
    directory = tmp_path_factory.mktemp("kernel")
    source, program = directory / "numbers.c", directory / "numbers"
    expressions = [*NUMBERS, *HOOKS]
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        + "".join(f"#include <{header}>\n" for header in HEADERS)
        + "int main(void)\n{\n"
        + "".join(f'printf("%lld\\n", (long long)({expression}));\n' for expression in expressions)
        + "return 0;\n}\n",
        encoding="utf-8",
    )
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler, "no C compiler: install gcc or clang"
    subprocess.run([compiler, "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, output.split())))


@pytest.mark.parametrize("expression", NUMBERS)
def test_number(compiled, expression):
    assert NUMBERS[expression] == compiled[expression]


@pytest.mark.parametrize("expression", HOOKS)
def test_hook(compiled, expression):
    assert link.HOOKS.get(compiled[expression]) == HOOKS[expression]


def test_commands_and_types_are_all_looked_at():
    assert {"MAP_CREATE", "PROG_LOAD", "OBJ_PIN", "MAP_UPDATE_BATCH"} <= set(COMMANDS)
    assert {"MAP_TYPE_ARRAY_OF_MAPS", "MAP_TYPE_DEVMAP_HASH", "PROG_TYPE_XDP"} <= set(TYPES)


def test_families_are_those_of_this_machine():
    assert (neighbours.AF_INET, neighbours.AF_INET6) == (socket.AF_INET, socket.AF_INET6)
