#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_rss
short_description: Set the receive-side scaling of a network device
version_added: 0.2.0
description:
  - A device hashes header fields of each packet with a key, and the hash picks an entry of the indirection table, which
    names the receive queue.
  - Make the queues first, with M(lbops.xdp.nic_channels).
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
  queues:
    description:
      - Spread packets evenly over the first so many queues.
      - In check mode, more than there are is a warning, as long as the device can have so many.
    type: int
  weights:
    description:
      - Spread packets over the queues in proportion to these, the first one for queue 0. Queues without a weight get
        none.
    type: list
    elements: int
  table:
    description:
      - The whole table, the queue of each entry.
      - One that spreads evenly over all queues is the kernel's default, and is made that, so that it follows when the
        number of channels changes.
    type: list
    elements: int
  key:
    description:
      - Hexadecimal bytes, with or without colons, as many as the device takes.
      - V(symmetric) repeats C(6d:5a), so that both directions of a flow get the same hash.
      - V(default) is the key that drivers start with, C(net.core.netdev_rss_key). It is another one after a reboot.
    type: str
  hash_function:
    description: How the fields are hashed.
    type: str
    choices: [toeplitz, xor, crc32]
  hash_fields:
    description:
      - Which fields are hashed, by type of flow.
      - Many drivers leave out the ports of UDP by default, so that all packets between two hosts go to one queue.
    type: dict
    suboptions:
      tcp4:
        description: TCP over IPv4.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      udp4:
        description: UDP over IPv4.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      sctp4:
        description: SCTP over IPv4.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      tcp6:
        description: TCP over IPv6.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      udp6:
        description: UDP over IPv6.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      sctp6:
        description: SCTP over IPv6.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      ip4:
        description: Other IPv4.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
      ip6:
        description: Other IPv6.
        type: list
        elements: str
        choices: [l2_dst, vlan, l3_proto, ip_src, ip_dst, port_src, port_dst]
seealso:
  - module: lbops.xdp.nic_channels
"""

EXAMPLES = r"""
- name: Spread over four queues, UDP by its ports
  lbops.xdp.nic_rss:
    interface: eth0
    queues: 4
    key: symmetric
    hash_fields:
      udp4: [ip_src, ip_dst, port_src, port_dst]
      udp6: [ip_src, ip_dst, port_src, port_dst]

- name: Leave queue 0 for the host itself
  lbops.xdp.nic_rss:
    interface: eth0
    weights: [0, 1, 1, 1]
"""

RETURN = r"""
before:
  description: Table, key, hash function and hash fields as they were; of a bond, a dictionary of these by member.
  returned: success
  type: dict
  sample: {"key": "6d:5a:6d:5a", "table": [0, 1, 0, 1]}
after:
  description: Table, key, hash function and hash fields as they are now, or would be.
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
from ansible_collections.lbops.xdp.plugins.module_utils.nic.rss import Rss

FLOW_TYPES = ["tcp4", "udp4", "sctp4", "tcp6", "udp6", "sctp6", "ip4", "ip6"]
HASH_FIELDS = ["l2_dst", "vlan", "l3_proto", "ip_src", "ip_dst", "port_src", "port_dst"]


def main():
    fields = {"type": "list", "elements": "str", "choices": HASH_FIELDS}
    tune(
        {
            "queues": {"type": "int"},
            "weights": {"type": "list", "elements": "int"},
            "table": {"type": "list", "elements": "int"},
            "key": {"type": "str", "no_log": False},
            "hash_function": {"type": "str", "choices": ["toeplitz", "xor", "crc32"]},
            "hash_fields": {"type": "dict", "options": {flow_type: fields for flow_type in FLOW_TYPES}},
        },
        Rss,
        mutually_exclusive=[("queues", "weights", "table")],
    )


if __name__ == "__main__":
    main()
