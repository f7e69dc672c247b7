#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_features
short_description: Switch offloads of a network device on or off
version_added: 0.2.0
description:
  - What a device does for the kernel. Native XDP sees packets before, so some offloads are in its way; LRO, which makes
    one packet of several, must be off.
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
  lro:
    description: Large receive offload (C(rx-lro)).
    type: bool
  gro_hw:
    description: Generic receive offload in hardware (C(rx-gro-hw)).
    type: bool
  rx_checksum:
    description: Verification of checksums (C(rx-checksum)).
    type: bool
  tx_checksum:
    description:
      - Computation of checksums (C(tx-checksum-ip-generic), C(tx-checksum-ipv4), C(tx-checksum-ipv6)).
      - Before and after are null while only some of them are on.
    type: bool
  rx_vlan_offload:
    description: Taking VLAN tags off received frames (C(rx-vlan-hw-parse)). XDP programs then see no tags.
    type: bool
  tx_vlan_offload:
    description: Putting VLAN tags into sent frames (C(tx-vlan-hw-insert)).
    type: bool
  rx_vlan_filter:
    description: Dropping frames of VLANs that the host is not part of (C(rx-vlan-filter)).
    type: bool
  ntuple:
    description: Filters that direct flows to queues (C(rx-ntuple-filter)).
    type: bool
notes:
  - A driver may switch another feature along with one of these. Check mode cannot know that; RV(after) and RV(rollback)
    of a real run have it.
  - These have no maximum, so O(on_exceed) makes no difference.
seealso:
  - module: lbops.xdp.nic_info
"""

EXAMPLES = r"""
- name: No merging of packets, VLAN tags left to the program
  lbops.xdp.nic_features:
    interface: eth0
    lro: false
    gro_hw: false
    rx_vlan_offload: false
    on_unsupported: skip
"""

RETURN = r"""
before:
  description: Features as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"lro": true, "tx_checksum": true}
after:
  description: Features as they are now, or would be.
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
from ansible_collections.lbops.xdp.plugins.module_utils.nic.tuners import Features

FEATURES = [
    "lro",
    "gro_hw",
    "rx_checksum",
    "tx_checksum",
    "rx_vlan_offload",
    "tx_vlan_offload",
    "rx_vlan_filter",
    "ntuple",
]


def main():
    tune({name: {"type": "bool"} for name in FEATURES}, Features)


if __name__ == "__main__":
    main()
