#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_profile
short_description: Tune a network device by a profile, with a way back
version_added: 0.2.0
description:
  - Computes channels, features, rings, coalescing, receive-side scaling and CPUs of queues from what the device and the
    host are, and sets them in one go. The difference says why each value is what it is.
  - A timer of systemd takes the change back unless a second task, with O(state=confirmed), reaches the host in time.
    So a change that cuts the host off undoes itself.
  - What was there before the first change is kept in C(/var/lib/lbops/nic-<interface>.json).
  - Overrides beyond a device's maximum fail, with the maximum; computed values are never beyond it. What a device does
    not have is left alone; a warning says so.
  - The role P(lbops.xdp.nic_tuning#role) does all the steps.
extends_documentation_fragment:
  - lbops.xdp.nic
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns each value with its reason; lines that differ are changed, or would be.
    support: full
options:
  state:
    description:
      - V(applied) arms the timer and makes the change.
      - V(confirmed) stops the timer, has the values applied at boot, and writes a file for systemd-udevd with what it
        can hold of them. It fails if the change was taken back meanwhile, if the host was booted, if the timer is gone,
        or if a link is down that was up before.
      - V(restored) puts back what was there before the first change, and forgets it. A device that was renamed is found
        by its own address; for one that is gone the module fails, until the file in C(/var/lib/lbops) is removed.
    type: str
    choices: [applied, confirmed, restored]
    default: applied
  profile:
    description:
      - V(throughput) serves many packets with each interrupt.
      - V(latency) has shorter rings and interrupts without delay.
      - V(custom) is O(overrides) and nothing else.
    type: str
    choices: [throughput, latency, custom]
    default: throughput
  overrides:
    description:
      - Values that take the place of computed ones, or are set besides, by module and option, such as C(rings) with
        C(rx).
      - The keys are C(channels), C(features), C(rings), C(coalesce), C(rss) and C(irq_affinity), the options those of
        the modules C(nic_channels) and so on.
    type: dict
    default: {}
  revert_after:
    description:
      - Seconds after which a change that nobody confirmed is taken back; 0 for never.
      - It needs systemd and the engine, which the role installs.
    type: int
    default: 0
seealso:
  - module: lbops.xdp.nic_info
"""

EXAMPLES = r"""
- name: Tune for throughput, with short rings
  lbops.xdp.nic_profile:
    interface: eth0
    profile: throughput
    overrides:
      rings: {rx: 512, tx: 512}
    revert_after: 120
  register: nic

- name: Keep it, since the host still answers
  lbops.xdp.nic_profile:
    interface: eth0
    state: confirmed
  when: nic.pending

- name: Everything as it was before
  lbops.xdp.nic_profile:
    interface: eth0
    state: restored
"""

RETURN = r"""
before:
  description: Values as they were, by device and option.
  returned: success
  type: dict
  sample: {"eth0": {"channels.combined": 1, "rings.rx": 256}}
after:
  description: Values as they are now, or would be.
  returned: success
  type: dict
plan:
  description: Of each device, all options with C(before), C(after), C(changes) and C(why).
  returned: when O(state=applied)
  type: dict
interface:
  description: The name that the state is kept under.
  returned: when O(state=restored)
  type: str
pending:
  description: Whether there is something to confirm.
  returned: when O(state=applied)
  type: bool
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import INTERFACE_ARGUMENT, run
from ansible_collections.lbops.xdp.plugins.module_utils.nic import profile, way_back
from ansible_collections.lbops.xdp.plugins.module_utils.nic.profiles import PROFILES


def operate(params, check):
    interface = params["interface"]
    if params["state"] == "confirmed":
        return profile.confirm(interface, check)
    if params["state"] == "restored":
        return way_back.restore(interface, check)
    return profile.apply(interface, params["profile"], params["overrides"], params["revert_after"], check)


def main():
    run(
        {
            "interface": INTERFACE_ARGUMENT,
            "state": {"type": "str", "choices": ["applied", "confirmed", "restored"], "default": "applied"},
            "profile": {"type": "str", "choices": list(PROFILES), "default": "throughput"},
            "overrides": {"type": "dict", "default": {}},
            "revert_after": {"type": "int", "default": 0},
        },
        operate,
    )


if __name__ == "__main__":
    main()
