# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network devices: what drivers can do, what keeps a driver from taking XDP, and tuning with a way back.

Imports kernel only. Start reading with tuner.py (one setting), then profile.py (a whole device) and way_back.py (what
undoes it).
"""
