#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_irq_affinity
short_description: Give the queues of a network device to CPUs
version_added: 0.2.0
description:
  - Sets the CPUs that the interrupt vectors of a device's queues go to, the CPUs that send through each transmit queue
    (XPS), and the CPUs that the kernel spreads received packets over (RPS, RFS).
  - Tells a running irqbalance to leave these vectors alone, until it is restarted.
  - A vector that the kernel does not move is reported with a warning and under C(refused). It does not fail the module,
    and it is not tried again in the same run. The next run tries again if the kernel is older than Linux 6.11, which
    does not say before which vectors it manages itself.
  - Apply it after M(lbops.xdp.nic_channels), and after a program was attached, which may make queues anew.
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
  vectors:
    description:
      - V(auto) gives each queue a CPU. Those of the device's NUMA node come first, then the nearest; CPUs that are
        offline or isolated (C(isolcpus)) get none. Queues of the same number share a CPU. With more queues than CPUs it
        starts over.
      - A CPU list such as V(0-3,8), or a YAML list of CPUs, does the same with these, isolated or not.
      - A dictionary of a CPU list for each queue, such as C(rx-0), C(tx-0), or C(combined-0) for a vector that serves
        both directions. At least one CPU of each list must be online; the others may be offline.
      - V(keep) leaves them as they are.
    type: raw
    default: auto
  xps:
    description:
      - V(match) has each CPU send through the queue whose vector it gets.
      - A dictionary of a CPU list, or V(none), for each queue such as C(tx-0).
      - V(none) lets the kernel choose by a hash; V(keep) leaves it as it is.
    type: raw
    default: match
  rps:
    description:
      - A CPU list for all receive queues, V(none), or a dictionary of these for each queue such as C(rx-0).
      - Left alone if it is left out. A device with as many queues as CPUs needs none.
    type: raw
  rfs:
    description:
      - How many flows receive flow steering remembers for the device, 0 to switch it off, or a dictionary of a number
        for each queue such as C(rx-0). The kernel rounds each queue's share up to a power of two.
      - C(net.core.rps_sock_flow_entries), which is for the whole host, is raised where it is too small, never lowered,
        not by a rollback either.
    type: raw
  irqbalance_ban:
    description:
      - Whether a running irqbalance leaves the vectors of this device alone. Nothing happens where none runs.
    type: bool
    default: true
notes:
  - These have no maximum, so O(on_exceed) makes no difference.
seealso:
  - module: lbops.xdp.nic_channels
"""

EXAMPLES = r"""
- name: Each queue to a CPU near the device
  lbops.xdp.nic_irq_affinity:
    interface: eth0

- name: To CPUs that were isolated for this, with RPS off
  lbops.xdp.nic_irq_affinity:
    interface: eth0
    vectors: 4-7
    rps: none

- name: A single-queue device whose packets several CPUs handle
  lbops.xdp.nic_irq_affinity:
    interface: eth1
    vectors: "0"
    xps: keep
    rps: 1-3
    rfs: 32768
"""

RETURN = r"""
before:
  description: CPUs of vectors and queues as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"vectors": {"combined-0": "0-7"}, "xps": {"tx-0": ""}}
after:
  description: CPUs of vectors and queues as they are now, or would be.
  returned: success
  type: dict
refused:
  description: By vector, why the kernel does not move it.
  returned: when there is one
  type: dict
  sample: {"vectors.combined-0": "the kernel manages interrupt 33 itself"}
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
from ansible_collections.lbops.xdp.plugins.module_utils.nic.irq_affinity import IrqAffinity


def main():
    tune(
        {
            "vectors": {"type": "raw", "default": "auto"},
            "xps": {"type": "raw", "default": "match"},
            "rps": {"type": "raw"},
            "rfs": {"type": "raw"},
            "irqbalance_ban": {"type": "bool", "default": True},
        },
        IrqAffinity,
    )


if __name__ == "__main__":
    main()
