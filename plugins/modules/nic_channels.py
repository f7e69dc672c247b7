#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_channels
short_description: Set the number of channels of a network device
version_added: 0.2.0
description:
  - A channel is an interrupt with the queues that it serves. Packets are spread over the receive queues, and so over
    the CPUs that their interrupts go to.
  - An indirection table that names queues which go away would make the kernel refuse fewer channels. It is given back
    to the driver first, and the result says so; apply M(lbops.xdp.nic_rss) afterwards. A table that still fits is
    written again, since C(virtio_net) forgets it.
  - Interrupt affinities and transmit packet steering may change with the channels; apply
    M(lbops.xdp.nic_irq_affinity) afterwards.
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
  combined:
    description: Channels with a receive and a transmit queue each.
    type: int
  rx:
    description: Channels with a receive queue only.
    type: int
  tx:
    description: Channels with a transmit queue only.
    type: int
notes:
  - C(virtio_net) changes no channels while it carries an XDP program.
  - Native XDP needs transmit queues of its own on many drivers, one for each CPU; leave room for them below the
    maximum.
seealso:
  - module: lbops.xdp.nic_rss
  - module: lbops.xdp.nic_irq_affinity
"""

EXAMPLES = r"""
- name: Four channels
  lbops.xdp.nic_channels:
    interface: eth0
    combined: 4

- name: A virtual Ethernet pair has separate queues
  lbops.xdp.nic_channels:
    interface: veth0
    rx: 2
    tx: 2
"""

RETURN = r"""
before:
  description: Numbers of channels as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"combined": 8}
after:
  description: Numbers of channels as they are now, or would be.
  returned: success
  type: dict
link_bounced:
  description: Whether something was written, or would be, that makes most drivers take the link down for a moment.
  returned: always
  type: bool
rss_table_reset:
  description: Whether the indirection table named queues that go away, and is the driver's own again.
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
from ansible_collections.lbops.xdp.plugins.module_utils.nic.channels import Channels


def main():
    tune({"combined": {"type": "int"}, "rx": {"type": "int"}, "tx": {"type": "int"}}, Channels)


if __name__ == "__main__":
    main()
