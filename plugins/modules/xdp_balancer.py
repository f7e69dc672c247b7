#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_balancer
short_description: Declare an XDP load balancer as a whole
version_added: 0.3.0
description:
  - Makes a balancer what these arguments say; everything of it that they do not name is removed. The whole document is
    checked before anything is touched, and only what differs is written.
  - A packet meets the old document or the new one, never a mix. Only a switch between native and generic XDP leaves a
    moment in which packets are not balanced, since the kernel takes no two at once. The program is compiled
    on the host with what services and filters need, and compiled again only when that, its sizes or its source changed.
  - Each change counts the generation up. The last ten documents are kept in C(/var/lib/lbops/<balancer>/history).
  - When sizes change, or another release lays out the maps differently, new maps are filled before the program that
    uses them takes over. Flows, sessions and counters stay unless it is their own map whose size changes.
  - The role P(lbops.xdp.balancer#role) uses this module only. M(lbops.xdp.xdp_services), M(lbops.xdp.xdp_backends),
    M(lbops.xdp.xdp_filters) and M(lbops.xdp.xdp_program) change one part of the document, in the same way.
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
      - V(present) attaches the program to the interfaces.
      - V(detached) keeps everything in the maps, but takes the program off the interfaces.
      - V(absent) removes program, maps, pins and state. A program of somebody else stays.
    type: str
    choices: [present, detached, absent]
    default: present
  services:
    description: The services, each a dictionary as M(lbops.xdp.xdp_services) takes it.
    type: list
    elements: dict
    default: []
  backends:
    description: The backends, each a dictionary as M(lbops.xdp.xdp_backends) takes it.
    type: list
    elements: dict
    default: []
  filters:
    description: The filters, each a dictionary as M(lbops.xdp.xdp_filters) takes it.
    type: list
    elements: dict
    default: []
  generation:
    description: The generation that this document was made from. It is refused if somebody changed the balancer since.
    type: int
  lock_timeout:
    description: Seconds to wait for another change on this host. The error names the process that holds the lock.
    type: int
    default: 30
seealso:
  - module: lbops.xdp.xdp_info
"""

EXAMPLES = r"""
- name: Clients on eth0, backends on eth1
  lbops.xdp.xdp_balancer:
    interfaces: [eth0, eth1]
    services:
      - name: web
        address: 192.0.2.10
        protocol: tcp
        port: 443
    backends:
      - service: web
        address: 198.51.100.11
      - service: web
        address: 198.51.100.12

- name: Remove every trace
  lbops.xdp.xdp_balancer:
    state: absent
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
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import parse_document
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.slices import document_outcome


def apply(params, check):
    balancer = Balancer(params["balancer"])
    conditions = Conditions(generation=params["generation"], force=params["force"], lock_timeout=params["lock_timeout"])
    if params["state"] == "absent":
        return document_outcome(balancer.remove(check, conditions))
    document = parse_document(
        {
            **settings_of(params, attached=params["state"] == "present"),
            "services": params["services"],
            "backends": params["backends"],
            "filters": params["filters"],
        }
    )
    return document_outcome(balancer.apply(document, check, conditions))


def main():
    entries = {"type": "list", "elements": "dict", "default": []}
    run(
        {
            "balancer": BALANCER_ARGUMENT,
            "state": {"type": "str", "choices": ["present", "detached", "absent"], "default": "present"},
            **PROGRAM_ARGUMENTS,
            "services": entries,
            "backends": entries,
            "filters": entries,
            "generation": {"type": "int"},
            "lock_timeout": {"type": "int", "default": 30},
        },
        apply,
        required_if=[("state", "present", ["interfaces"]), ("state", "detached", ["interfaces"])],
    )


if __name__ == "__main__":
    main()
