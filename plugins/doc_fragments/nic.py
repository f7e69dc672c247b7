# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  interface:
    description:
      - Name, or alternative name, of the network device.
      - Of a bond, its members are meant, one after the other. The next one is touched when the link of the one before
        is up again.
    type: str
    required: true
requirements:
  - Linux 5.15 or later, root
author:
  - The lbops.xdp authors (@lbops)
"""

    RULES = r"""
options:
  on_exceed:
    description:
      - What to do about a value beyond the device's maximum.
      - V(fail) says what the maximum is, before anything is touched.
      - V(clamp) takes the maximum instead, and the result says so.
    type: str
    choices: [fail, clamp]
    default: fail
  on_unsupported:
    description:
      - What to do about something that the device does not have or does not let be changed.
      - V(fail) names it, before anything is touched, or when the driver refuses it.
      - V(skip) leaves it alone, and the result says so. Virtual devices, which have little of it, are then no error.
    type: str
    choices: [fail, skip]
    default: fail
"""
