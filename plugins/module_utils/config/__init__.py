# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory may say: services, backends, filters and health checks, parsed and checked before use.

Pure: no I/O and no libc, so the controller's filter plugins load it alone. Imports no other package of the engine.
Start reading with vocabulary.py and model.py, then parsing.py (one entry) and cross_check.py (all of them together).
"""
