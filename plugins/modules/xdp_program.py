#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_program
short_description: Declare interfaces, mode and sizes of an XDP load balancer
version_added: 0.1.0
description:
  - Changes what M(lbops.xdp.xdp_balancer) declares besides services, backends and filters, which stay as they are.
    There need be no balancer before.
extends_documentation_fragment:
  - lbops.xdp.balancer
  - lbops.xdp.program
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
      - V(attached) attaches the program to the interfaces.
      - V(detached) keeps everything in the maps, but takes the program off the interfaces.
      - V(absent) removes program, maps, pins and state. A program of somebody else stays.
    type: str
    choices: [attached, detached, absent]
    default: attached
seealso:
  - module: lbops.xdp.xdp_balancer
"""

EXAMPLES = r"""
- name: Balance packets that arrive on eth0
  lbops.xdp.xdp_program:
    interfaces: [eth0]

- name: Take the program off the interface, but keep its configuration
  lbops.xdp.xdp_program:
    interfaces: [eth0]
    state: detached
"""

RETURN = r"""
program:
  description: The program as it is now; in check mode as it was found.
  returned: success
  type: dict
  contains:
    attached:
      description: Whether it is on all interfaces.
      type: bool
    interfaces:
      description:
        - For each interface C(attached), C(present), C(hook), which is V(native), V(tc), V(generic) or V(offload),
          C(why) it is there, C(attached_at) in seconds since 1970, and C(program_id), the kernel's id.
      type: list
      elements: dict
    features:
      description: What is compiled in.
      type: list
      elements: str
    digest:
      description: SHA-256 of source, features, sizes and number of possible CPUs.
      type: str
changes:
  description: C(created), C(modified) and C(removed) of interfaces, services, backends and filters.
  returned: success
  type: dict
  sample: {"backends": {"created": ["web 198.51.100.12"], "modified": [], "removed": []}}
generation:
  description: How often the balancer was changed.
  returned: success
  type: int
repaired:
  description: Whether the maps held something else than what was written last.
  returned: success
  type: bool
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
  returned: success
  type: bool
new_maps:
  description: Whether the maps had to be made anew.
  returned: success
  type: bool
timings:
  description: Seconds spent in waiting for the lock, planning and writing.
  returned: success
  type: dict
write_seconds:
  description: Time spent in writing maps.
  returned: when something was changed
  type: float
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import (
    BALANCER_ARGUMENT,
    PROGRAM_ARGUMENTS,
    run,
    settings_of,
)
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer, Conditions
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import parse_settings
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.slices import document_outcome


def apply(params, check):
    balancer, conditions = Balancer(params["balancer"]), Conditions(force=params["force"])
    if params["state"] == "absent":
        return document_outcome(balancer.remove(check, conditions))
    settings = parse_settings(settings_of(params, attached=params["state"] == "attached"))
    return document_outcome(balancer.apply_program(settings, check, conditions))


def main():
    run(
        {
            "balancer": BALANCER_ARGUMENT,
            "state": {"type": "str", "choices": ["attached", "detached", "absent"], "default": "attached"},
            **PROGRAM_ARGUMENTS,
        },
        apply,
        required_if=[("state", "attached", ["interfaces"]), ("state", "detached", ["interfaces"])],
    )


if __name__ == "__main__":
    main()
