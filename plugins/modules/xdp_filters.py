#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_filters
short_description: Declare which sources an XDP load balancer drops or limits
version_added: 0.2.0
description:
  - A filter is a source prefix, and what happens to packets from there before services are looked up. It holds for
    every well-formed IP packet that arrives on an interface of the balancer, for services or not, SSH and the replies
    of backends included; exempt those with C(pass).
  - The longest prefix that holds a packet's source and has a rule for its protocol decides; a rule for one protocol
    comes before one for all.
  - All filters change over in one step. A filter keeps its counters for as long as its prefix and protocol stay.
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
  filters:
    description:
      - The filters, each a dictionary with the keys below. Lists may be long, so the module checks them itself.
      - C(prefix), an IPv4 or IPv6 prefix such as C(198.51.100.0/24), or an address. Required.
      - C(action), C(drop), C(pass), which exempts from what shorter prefixes say, or C(limit). Required.
      - C(protocol), C(tcp), C(udp), C(icmp) or C(any), which is the default.
      - C(rate), for C(limit), packets a second that the prefix may send altogether.
      - C(burst), for C(limit), packets at once; a tenth of the rate if it is left out. Less than a hundredth of the
        rate lowers the rate, since the kernel's coarse clock advances every 1 to 10 ms.
      - C(name), for people and metrics.
    type: list
    elements: dict
    required: true
  purge:
    description: Remove filters that are not in the list.
    type: bool
    default: true
seealso:
  - module: lbops.xdp.xdp_program
  - module: lbops.xdp.xdp_services
"""

EXAMPLES = r"""
- name: Nothing from these networks, UDP from anywhere only slowly, and everything from our own
  lbops.xdp.xdp_filters:
    filters:
      - prefix: 203.0.113.0/24
        action: drop
      - prefix: 2001:db8:bad::/48
        action: drop
      - prefix: 0.0.0.0/0
        protocol: udp
        action: limit
        rate: 20000
      - prefix: 198.51.100.0/24   # backends and operators
        action: pass
"""

RETURN = r"""
before:
  description: The filters as they were.
  returned: success
  type: list
  elements: dict
after:
  description: The filters as they are now, or would be.
  returned: success
  type: list
  elements: dict
created:
  description: Filters that are new, as prefix and protocol.
  returned: success
  type: list
  elements: str
modified:
  description: Filters that changed.
  returned: success
  type: list
  elements: str
removed:
  description: Filters that went away.
  returned: success
  type: list
  elements: str
generation:
  description: How often the balancer was changed.
  returned: success
  type: int
repaired:
  description: Whether the maps held something else than what was written last.
  returned: success
  type: bool
write_seconds:
  description: Time spent in writing maps.
  returned: when something was changed
  type: float
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import BALANCER_ARGUMENT, run
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.slices import part_outcome


def apply(params, check):
    balancer = Balancer(params["balancer"])
    return part_outcome(balancer.apply_filters(params["filters"], params["purge"], check), "filters")


def main():
    run(
        {
            "balancer": BALANCER_ARGUMENT,
            "filters": {"type": "list", "elements": "dict", "required": True},
            "purge": {"type": "bool", "default": True},
        },
        apply,
    )


if __name__ == "__main__":
    main()
