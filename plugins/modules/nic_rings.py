#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_rings
short_description: Set the ring sizes of a network device
version_added: 0.2.0
description:
  - A ring is where a queue of the network card keeps packets until somebody takes them. A long one survives bursts, a
    short one stays in the CPU's cache.
  - Only what differs is written. Most drivers take the link down for a moment when it is; the module waits until it is
    up again before it goes on to the next member of a bond.
extends_documentation_fragment:
  - lbops.xdp.nic
  - lbops.xdp.nic.rules
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns what has changed, or would have changed.
    support: full
options:
  rx:
    description: Entries of each receive ring.
    type: int
  tx:
    description: Entries of each transmit ring.
    type: int
seealso:
  - module: lbops.xdp.nic_info
"""

EXAMPLES = r"""
- name: Rings of 4096, or as many as there are
  lbops.xdp.nic_rings:
    interface: eth0
    rx: 4096
    tx: 4096
    on_exceed: clamp
  register: rings

- name: Back to what it was
  lbops.xdp.nic_rings: "{{ item }}"
  loop: "{{ rings.rollback }}"
"""

RETURN = r"""
before:
  description: Ring sizes as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"rx": 256, "tx": 256}
after:
  description: Ring sizes as they are now, or would be.
  returned: success
  type: dict
link_bounced:
  description: Whether something was written, or would be, that makes most drivers take the link down for a moment.
  returned: always
  type: bool
clamped:
  description: By option, what was asked for and what was given instead, with O(on_exceed=clamp).
  returned: always
  type: dict
  sample: {"rx": {"asked": 8192, "given": 4096}}
unsupported:
  description: By option, why it was left alone, with O(on_unsupported=skip).
  returned: always
  type: dict
  sample: {"tx": "the device has no tx; it has rx"}
rollback:
  description: Arguments of this module that bring the earlier values back, for each device.
  returned: always
  type: list
  elements: dict
"""

from ansible_collections.lbops.xdp.plugins.module_utils.nic.adapter import tune
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuners import Rings


def main():
    tune({"rx": {"type": "int"}, "tx": {"type": "int"}}, Rings)


if __name__ == "__main__":
    main()
