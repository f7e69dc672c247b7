# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From single checks to whether a backend is up: rise and fall. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Status:
    """Of one backend. Until its first checks say otherwise it is neither up nor down, and gets its share."""

    rise: int
    fall: int
    healthy: bool | None = None
    # Checks in a row that say the opposite of `healthy`.
    against: int = 0

    def note(self, success: bool) -> bool:
        """Take in a check; whether it made a difference."""
        if self.healthy is success:
            self.against = 0
            return False
        if self.healthy is None and success:
            self.healthy, self.against = True, 0
            return True
        self.against += 1
        if self.against < (self.rise if success else self.fall):
            return False
        self.healthy, self.against = success, 0
        return True
