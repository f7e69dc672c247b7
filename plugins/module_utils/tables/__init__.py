# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes in the maps: layouts shared with files/bpf/layout.h, lookup tables, endpoint tables and filter tables.

Pure functions from a parsed configuration to bytes. Imports config only. Start reading with layout.py.
"""
