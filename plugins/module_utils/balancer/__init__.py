# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One balancer: its state on disk, the plan of a change, the maps, the program, and what runs on the host at boot.

Imports every other package of the engine; nothing of the engine imports it. Start reading with balancer.py.
"""
