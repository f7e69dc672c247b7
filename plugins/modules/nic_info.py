#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_info
short_description: Read everything about a network device
version_added: 0.2.0
description:
  - Returns driver, link, CPUs near the device, what it can do for XDP, and all that the other C(nic_) modules set.
    Changes nothing.
  - What a device does not have is null or empty.
extends_documentation_fragment:
  - lbops.xdp.nic
attributes:
  check_mode:
    description: Changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: full
seealso:
  - module: lbops.xdp.nic_rings
  - module: lbops.xdp.nic_channels
  - module: lbops.xdp.nic_rss
  - module: lbops.xdp.nic_coalesce
  - module: lbops.xdp.nic_features
  - module: lbops.xdp.nic_irq_affinity
"""

EXAMPLES = r"""
- name: Look at a device
  lbops.xdp.nic_info:
    interface: eth0
  register: nic

- name: Refuse an MTU that native XDP does not take
  ansible.builtin.assert:
    that: nic.mtu <= nic.xdp.mtu_limit
"""

RETURN = r"""
driver:
  description: The driver's name.
  returned: success
  type: str
  sample: virtio_net
driver_version:
  description: The driver's version.
  returned: success
  type: str
firmware:
  description: The firmware's version.
  returned: success
  type: str
bus:
  description: Where the device is, mostly a PCI address.
  returned: success
  type: str
  sample: "0000:00:03.0"
numa_node:
  description: The NUMA node it is attached to; null if the machine has only one or the device is virtual.
  returned: success
  type: int
cpus:
  description:
    - CPUs for the device's queues in the order in which M(lbops.xdp.nic_irq_affinity) takes them, one of each physical
      core of its NUMA node, and which are online, isolated, or could be plugged in.
  returned: success
  type: dict
  sample: {"cores": [0, 1], "isolated": "", "online": "0-3", "possible": "0-3", "preferred": [0, 1, 2, 3]}
address:
  description: The hardware address.
  returned: success
  type: str
mtu:
  description: The MTU.
  returned: success
  type: int
max_mtu:
  description: The largest MTU that the driver takes.
  returned: success
  type: int
link:
  description: Whether it is enabled, its operational state, its speed in Mbit/s and its duplex.
  returned: success
  type: dict
  sample: {"duplex": "full", "enabled": true, "speed": 10000, "state": "up"}
xdp:
  description: XDP on this device.
  returned: success
  type: dict
  contains:
    hook:
      description: Where a program is attached, V(native), V(generic), V(offload) or V(several).
      type: str
    program_id:
      description: The kernel's id of the program.
      type: int
    features:
      description:
        - What the driver says it can do natively, of C(basic), C(redirect), C(ndo_xmit), C(xsk_zerocopy),
          C(hw_offload), C(rx_sg) and C(ndo_xmit_sg). Null where the kernel cannot say, before Linux 6.3.
      type: list
      elements: str
    mtu_limit:
      description:
        - The largest MTU at which a program without C(multi_buffer) can be attached natively. Of C(veth) it is the MTU
          of the other end.
      type: int
    mtu_limit_measured:
      description:
        - Whether that was measured with this driver. If not, it is what a page holds, and a driver may take less.
      type: bool
    peer:
      description:
        - Of C(veth) the other end, with C(interface), C(mtu) and the number of transmit queues, C(tx). Of one in
          another network namespace only the MTU can be known, and not always.
      type: dict
    fixed_offloads:
      description: Of C(virtio_net), what the hypervisor does and the guest cannot switch off, so that XDP is refused.
      type: list
      elements: str
rings:
  description: Ring sizes; their maxima are in C(rings_maximum).
  returned: success
  type: dict
channels:
  description: Numbers of channels; their maxima are in C(channels_maximum).
  returned: success
  type: dict
rss:
  description: Indirection table, key, hash function and hash fields.
  returned: success
  type: dict
coalesce:
  description: Interrupt coalescing.
  returned: success
  type: dict
features:
  description: Offloads.
  returned: success
  type: dict
queues:
  description: CPUs of vectors and queues, and whether irqbalance leaves the vectors alone, if one runs.
  returned: success
  type: dict
irqs:
  description: Interrupt numbers by queue.
  returned: success
  type: dict
irqbalance_fits:
  description: Whether a running irqbalance can be told to leave all of these alone; true if none runs.
  returned: success
  type: bool
members:
  description: Of a bond, all this of each member.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import INTERFACE_ARGUMENT, report
from ansible_collections.lbops.xdp.plugins.module_utils.nic.device_info import info


def main():
    report({"interface": INTERFACE_ARGUMENT}, lambda params: info(params["interface"]))


if __name__ == "__main__":
    main()
