# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection keeps on a host besides the balancer: the installed engine, and the units of systemd.

installation.py installs the engine into a directory of its own and switches to it by one symbolic link.
units.py enables, starts, restarts and removes the units, and decides whether a process is older than its program.
Imports kernel only.
"""
