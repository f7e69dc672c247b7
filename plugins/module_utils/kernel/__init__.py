# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of the kernel: BPF objects, XDP and tc hooks, links, neighbours, ethtool, CPUs and interrupts.

Each module is a thin layer over one kernel interface and knows nothing of balancers. Imports no other package of the
engine. Start reading with bpf.py (programs and maps) and link.py (the XDP hook of an interface).
"""
