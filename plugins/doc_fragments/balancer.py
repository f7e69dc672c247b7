# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  balancer:
    description: Name of the balancer, of letters, digits, C(_) and C(-).
    type: str
    default: main
requirements:
  - Linux 5.15 or later, root
  - a BPF file system at C(/sys/fs/bpf)
  - pyroute2, from the target's distribution
author:
  - The lbops.xdp authors (@lbops)
"""
