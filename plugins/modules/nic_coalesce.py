#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_coalesce
short_description: Set the interrupt coalescing of a network device
version_added: 0.2.0
description:
  - How long a device waits, and for how many packets, before it interrupts a CPU. Less is a shorter delay, more is less
    work for each packet.
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
  rx_usecs:
    description: Microseconds from the first received packet to the interrupt.
    type: int
  rx_frames:
    description: Received packets after which there is an interrupt at once.
    type: int
  tx_usecs:
    description: Microseconds from the first sent packet to the interrupt.
    type: int
  tx_frames:
    description: Sent packets after which there is an interrupt at once.
    type: int
  adaptive_rx:
    description: Let the driver change the delay of received packets with the load. It must be off for O(rx_usecs).
    type: bool
  adaptive_tx:
    description: Let the driver change the delay of sent packets with the load. It must be off for O(tx_usecs).
    type: bool
notes:
  - Devices tell no maximum for these, so O(on_exceed) makes no difference.
seealso:
  - module: lbops.xdp.nic_info
"""

EXAMPLES = r"""
- name: At most 20 microseconds, whatever the load
  lbops.xdp.nic_coalesce:
    interface: eth0
    adaptive_rx: false
    rx_usecs: 20
"""

RETURN = r"""
before:
  description: Delays and numbers of packets as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"adaptive_rx": true, "rx_usecs": 3}
after:
  description: Delays and numbers of packets as they are now, or would be.
  returned: success
  type: dict
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
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuners import Coalesce

AMOUNTS = ["rx_usecs", "rx_frames", "tx_usecs", "tx_frames"]
SWITCHES = ["adaptive_rx", "adaptive_tx"]


def main():
    options = {name: {"type": "int"} for name in AMOUNTS}
    options.update({name: {"type": "bool"} for name in SWITCHES})
    tune(options, Coalesce)


if __name__ == "__main__":
    main()
