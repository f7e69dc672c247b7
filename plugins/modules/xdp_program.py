#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_program
short_description: Attach the XDP load balancer to an interface
version_added: 0.1.0
description:
  - Compiles the balancer on the host with only the features asked for, loads it, pins it below
    C(/sys/fs/bpf/lbops/<interface>) and attaches it.
  - It is compiled again only when its source, its features, its sizes or the kernel changed; what was compiled is kept
    in C(/var/lib/lbops), for the next boot and for further interfaces.
  - A new program takes the old one's place in one step; maps, and with them services, backends and counters, stay. No
    packet is lost.
  - When sizes change, or a newer release lays out the maps differently, new maps are filled from
    C(/var/lib/lbops/<interface>.json) before the program that uses them takes over. Packets counted in that moment may
    be missing from the counters.
extends_documentation_fragment:
  - lbops.xdp.balancer
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns what has changed, or would have changed.
    support: full
options:
  state:
    description:
      - V(attached) loads the program and attaches it.
      - V(detached) loads the program but leaves it off the interface; everything in the maps stays.
      - V(absent) detaches it and removes its pins, its maps and its state. A program of somebody else stays.
    type: str
    choices: [attached, detached, absent]
    default: attached
  mode:
    description:
      - Where the program is attached.
      - V(native) is XDP in the driver; if the driver does not support it, or something is in its way, the module fails
        and says what, and how to change that. What is known beforehand fails before anything is touched.
      - V(tc) is the ingress of clsact, which every driver has. Others' filters there stay. It has no C(redirect) and no
        C(multi_buffer).
      - V(generic) is XDP without the driver's help. It works with every driver and costs most; going between native and
        generic leaves a moment in which packets pass without being balanced.
      - V(offload) is in the network card. None takes this program so far; the module fails with driver and reason.
      - V(auto) tries V(native), then V(tc), then V(generic). The result says which, and why.
    type: str
    choices: [auto, native, generic, tc, offload]
    default: auto
  prepare:
    description:
      - Change what keeps the driver from taking the program. That may be an MTU beyond what a page holds, LRO, or the
        numbers of channels. RV(prepared) says what was changed, and how it was before.
      - It is put back if the driver refuses the program nevertheless, but not when the program is detached later.
      - It is done again when the program is restored after a reboot.
      - With O(mode=auto), a program on another hook is tried on the driver's once more when this is switched on.
    type: bool
    default: false
  features:
    description:
      - What to compile in; the rest costs nothing. C(maglev) and C(hash) are always there.
      - C(dnat), C(full_nat), C(dsr), C(ipip), C(redirect) are the modes of forwarding; C(round_robin), C(flow_table),
        C(any_port), C(ipv6) and C(filters) what services and filters may ask for.
      - C(multi_buffer) accepts frames that are longer than a page, where the driver has them (kernel 5.18).
      - C(table_size) is for services with that option; looking for their tables takes all services some nanoseconds.
      - C(latency) measures how long the program takes, for one packet in 256.
      - What live services and filters use stays compiled in until they are gone, even if it is not listed.
    type: list
    elements: str
    choices:
      - dnat
      - full_nat
      - dsr
      - ipip
      - redirect
      - ipv6
      - round_robin
      - flow_table
      - any_port
      - filters
      - multi_buffer
      - latency
      - table_size
    default: [dnat, dsr, round_robin]
  max_services:
    description: How many services the maps hold, 65536 at the most.
    type: int
    default: 1024
  max_backends:
    description:
      - How many backends of all services the maps hold, plus one; 1048576 at the most.
      - A backend that changes needs a second place while both are in use.
    type: int
    default: 16384
  max_endpoints:
    description:
      - How many endpoints the maps hold, 1048576 at the most.
      - Each port of a service, each port of a C(dnat) backend and each VIP is one.
      - Kernels before 6.0 take no more than 32768, because a value of a map may have 4 MiB there.
    type: int
    default: 32768
  max_flows:
    description:
      - How many flows each CPU remembers, 16777216 at the most, with C(flow_table) and C(full_nat).
      - Each takes 16 bytes.
    type: int
    default: 262144
  max_new_flows:
    description: How many new flows a CPU remembers in a second. Packets of more are balanced without being remembered.
    type: int
    default: 100000
  max_sessions:
    description: How many source ports all C(full_nat) sources have together, 1048576 at the most.
    type: int
    default: 65536
  max_filters:
    description: How many filters the maps hold, 1048576 at the most; up to a kilobyte each, while filters exist.
    type: int
    default: 1024
  source:
    description: Directory of the program's C files on the host; the role P(lbops.xdp.balancer#role) installs them.
    type: path
    default: /usr/lib/lbops/bpf
  force:
    description:
      - Replace a program that somebody else attached.
      - With O(state=absent), remove everything even if the state file is damaged.
    type: bool
    default: false
requirements:
  - iovisor's BCC, from the target's distribution (C(python3-bpfcc) or C(python3-bcc))
  - kernel headers
seealso:
  - module: lbops.xdp.xdp_services
  - module: lbops.xdp.xdp_backends
"""

EXAMPLES = r"""
- name: Balance packets that arrive on eth0
  lbops.xdp.xdp_program:
    interface: eth0
    features: [dnat]

- name: Take the program off the interface, but keep its configuration
  lbops.xdp.xdp_program:
    interface: eth0
    state: detached

- name: Remove every trace
  lbops.xdp.xdp_program:
    interface: eth0
    state: absent
"""

RETURN = r"""
before:
  description: The program as it was found.
  returned: success
  type: dict
  sample: {"attached": false}
after:
  description: The program as it is now, or would be.
  returned: success
  type: dict
  contains:
    attached:
      description: Whether our program is on the interface.
      type: bool
    mode:
      description: The mode that was asked for.
      type: str
    hook:
      description: Where the program is, V(native), V(tc), V(generic) or V(offload).
      type: str
    why:
      description: Why it is there.
      type: str
    features:
      description: What is compiled in.
      type: list
      elements: str
    digest:
      description: SHA-256 of source, features, sizes, kind of hook and kernel release.
      type: str
    prepare:
      description: Whether the interface is prepared for the program, now and after a reboot.
      type: bool
    program_id:
      description: The kernel's id of the program.
      type: int
prepared:
  description: What was changed so that the driver takes the program; in check mode, what would be if it has to.
  returned: when something was changed
  type: list
  elements: dict
  contains:
    interface:
      description: Which interface; of a C(veth), it may be the other end.
      type: str
    group:
      description: V(mtu), or the module that sets it without its C(nic_), V(features) or V(channels).
      type: str
    before:
      description: Options of that module as they were found.
      type: dict
    after:
      description: The same options as they are now.
      type: dict
    why:
      description: What was in the way.
      type: str
    rollback:
      description: Arguments of that module that bring back what was there.
      type: dict
  sample:
    - interface: eth0
      group: features
      before: {"lro": true}
      after: {"lro": false}
      why: LRO is on, with which the driver refuses programs
      rollback: {"interface": "eth0", "lro": true}
compiled:
  description: Whether the program had to be compiled now.
  returned: when something was changed
  type: bool
new_maps:
  description: Whether the maps had to be made anew.
  returned: when something was changed
  type: bool
"""

from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import INTERFACE_ARGUMENT, run
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.program_request import ProgramRequest
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

MODES = ["auto", "native", "generic", "tc", "offload"]
FEATURES = [
    "dnat",
    "full_nat",
    "dsr",
    "ipip",
    "redirect",
    "ipv6",
    "round_robin",
    "flow_table",
    "any_port",
    "filters",
    "multi_buffer",
    "latency",
    "table_size",
]
SIZES = {
    "max_services": 1024,
    "max_backends": 16384,
    "max_endpoints": 32768,
    "max_flows": 262144,
    "max_new_flows": 100000,
    "max_sessions": 65536,
    "max_filters": 1024,
}


def apply(params, check):
    balancer = Balancer(params["interface"])
    if params["state"] == "absent":
        return balancer.remove_program(check, force=params["force"])
    request = ProgramRequest(
        mode=params["mode"],
        features=frozenset(params["features"]),
        sizes=Sizes(**{name: params[name] for name in SIZES}),
        source=Path(params["source"]),
        attached=params["state"] == "attached",
        force=params["force"],
        prepare=params["prepare"],
    )
    return balancer.apply_program(request, check)


def main():
    run(
        {
            "interface": INTERFACE_ARGUMENT,
            "state": {"type": "str", "choices": ["attached", "detached", "absent"], "default": "attached"},
            "mode": {"type": "str", "choices": MODES, "default": "auto"},
            "prepare": {"type": "bool", "default": False},
            "features": {
                "type": "list",
                "elements": "str",
                "choices": FEATURES,
                "default": ["dnat", "dsr", "round_robin"],
            },
            **{name: {"type": "int", "default": default} for name, default in SIZES.items()},
            "source": {"type": "path", "default": "/usr/lib/lbops/bpf"},
            "force": {"type": "bool", "default": False},
        },
        apply,
    )


if __name__ == "__main__":
    main()
