#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_services
short_description: Declare the services of an XDP load balancer
version_added: 0.1.0
description:
  - A service is a virtual IP address (VIP), a protocol and a port or a range of ports.
  - The whole list is checked before anything is touched. New and changed services are written first, what went away is
    removed last; a packet meets the old configuration or the new one, never a mix.
  - A service keeps its counters for as long as its name stays.
  - A backend that does not fit its service any more, by its port after a change to C(dsr) or to a range of ports, is
    removed with a warning until M(lbops.xdp.xdp_backends) declares it anew.
  - A service without backends drops its packets and counts them. A VIP of any service answers ICMP echo.
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
  services:
    description: The services.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - A name of letters, digits and C(_), C(.), C(:), C(-), by which backends, metrics and logs know the service.
        type: str
        required: true
      address:
        description: The VIP, an IPv4 address.
        type: str
        required: true
      protocol:
        description: V(tcp) or V(udp).
        type: str
        choices: [tcp, udp]
        required: true
      port:
        description: A port from 1 to 65535, or a range such as V(8000-8010).
        type: str
        required: true
      scheduler:
        description:
          - How a backend is chosen.
          - V(maglev) by a hash of client address and ports over a ring of 65537 slots; a change of one backend moves
            few flows of the others, and balancers with the same configuration choose alike.
          - V(round_robin) one packet after the other, so for UDP only.
        type: str
        choices: [maglev, round_robin]
        default: maglev
      forwarding:
        description:
          - How a packet reaches its backend.
          - V(dnat) rewrites destination address and port. The backend sees the client's address; it must route its
            replies through the balancer, which puts the VIP back.
          - V(dsr) rewrites the Ethernet address only. The backend holds the VIP itself, on its loopback interface say,
            and answers the client directly; it must be in the same Ethernet segment as the balancer.
        type: str
        choices: [dnat, dsr]
        default: dnat
  purge:
    description: Remove services that are not in the list, together with their backends.
    type: bool
    default: true
seealso:
  - module: lbops.xdp.xdp_backends
  - module: lbops.xdp.xdp_program
"""

EXAMPLES = r"""
- name: Serve DNS and a web site
  lbops.xdp.xdp_services:
    interface: eth0
    services:
      - name: dns
        address: 192.0.2.10
        protocol: udp
        port: 53
      - name: web
        address: 192.0.2.10
        protocol: tcp
        port: 443
"""

RETURN = r"""
before:
  description: The services as they were.
  returned: success
  type: list
  elements: dict
after:
  description: The services as they are now, or would be.
  returned: success
  type: list
  elements: dict
created:
  description: Names of the services that are new.
  returned: success
  type: list
  elements: str
modified:
  description: Names of the services that changed.
  returned: success
  type: list
  elements: str
removed:
  description: Names of the services that went away.
  returned: success
  type: list
  elements: str
repaired:
  description: Whether the maps held something else than what was written last.
  returned: success
  type: bool
write_seconds:
  description: Time spent in writing maps.
  returned: when something was changed
  type: float
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import INTERFACE_ARGUMENT, run
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import Balancer


def apply(params, check):
    return Balancer(params["interface"]).apply_services(params["services"], params["purge"], check)


def main():
    run(
        {
            "interface": INTERFACE_ARGUMENT,
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "protocol": {"type": "str", "choices": ["tcp", "udp"], "required": True},
                    "port": {"type": "str", "required": True},
                    "scheduler": {"type": "str", "choices": ["maglev", "round_robin"], "default": "maglev"},
                    "forwarding": {"type": "str", "choices": ["dnat", "dsr"], "default": "dnat"},
                },
            },
            "purge": {"type": "bool", "default": True},
        },
        apply,
    )


if __name__ == "__main__":
    main()
