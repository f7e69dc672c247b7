#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_backends
short_description: Declare the backends of an XDP load balancer
version_added: 0.1.0
description:
  - A backend serves one service; a host that serves several is declared once for each.
  - The whole list is checked before anything is touched, and only what differs is written. New backends are resolved
    and written first, then each service's ring changes over in one step, what went away is removed last.
  - A backend keeps its counters for as long as its service, address and port stay.
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
  backends:
    description:
      - The backends, each a dictionary with the keys below. Lists may be long, so the module checks them itself.
      - C(service), the name of the service; may be left out if O(service) is given.
      - C(address), an IPv4 or IPv6 address. Required, except for C(redirect).
      - C(interface), for C(redirect) only, and instead of C(address); the frame leaves by it while its link is up.
      - C(port), 1 to 65535. Without it the packet keeps its port, as it must for C(dsr), C(ipip), C(gue) and for
        services on several ports.
      - C(weight), 0 to 65535, its share in proportion to the other weights; 1 if it is left out. 0 is the same as
        C(drained).
      - C(state), C(enabled), C(drained) or C(backup). A drained backend gets nothing new, but its replies still get the
        VIP back, and with C(flow_table), C(full_nat) or C(affinity=quic) its flows stay. A backup gets new flows only
        while no other backend of the service does, since all are drained, unhealthy or have weight 0; then it is like a
        drained one.
      - C(mac), its Ethernet address. Without it, the kernel's routes and neighbours say where packets go.
      - C(local), whether it is this host. The kernel then gets its packets as they came, so the VIP must be an address
        of the host, on C(lo) for example, and C(port) that of the service. For all modes but C(redirect). Its replies
        leave by the kernel and are not counted.
      - C(server_id), hexadecimal digits in quotes, such as V('0a000001'); required for services with C(affinity=quic),
        unused elsewhere. The backend puts these bytes behind the first byte of the connection ids that it issues. As
        many bytes as the service's C(quic_server_id_length), and its own in the service.
      - C(name), for people and metrics.
    type: list
    elements: dict
    required: true
  service:
    description: Own only the backends of this service; those of others stay as they are.
    type: str
  purge:
    description: Remove backends that are not in the list.
    type: bool
    default: true
seealso:
  - module: lbops.xdp.xdp_services
  - module: lbops.xdp.xdp_program
"""

EXAMPLES = r"""
- name: Two web servers, the second with twice the share
  lbops.xdp.xdp_backends:
    backends:
      - service: web
        address: 198.51.100.11
        port: 8443
      - service: web
        address: 198.51.100.12
        port: 8443
        weight: 2

- name: Drain one backend of one service before maintenance
  lbops.xdp.xdp_backends:
    service: web
    purge: false
    backends:
      - address: 198.51.100.11
        port: 8443
        state: drained
"""

RETURN = r"""
before:
  description: The backends as they were, those of O(service) if it is given.
  returned: success
  type: list
  elements: dict
after:
  description: The backends as they are now, or would be.
  returned: success
  type: list
  elements: dict
created:
  description: Backends that are new, as service and address.
  returned: success
  type: list
  elements: str
modified:
  description: Backends that changed.
  returned: success
  type: list
  elements: str
removed:
  description: Backends that went away.
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
    outcome = balancer.apply_backends(params["backends"], params["purge"], check, service=params["service"])
    return part_outcome(outcome, "backends", params["service"])


def main():
    run(
        {
            "balancer": BALANCER_ARGUMENT,
            "backends": {"type": "list", "elements": "dict", "required": True},
            "service": {"type": "str"},
            "purge": {"type": "bool", "default": True},
        },
        apply,
    )


if __name__ == "__main__":
    main()
