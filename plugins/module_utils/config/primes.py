# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prime numbers, which sizes of Maglev tables have to be."""

from __future__ import annotations

from math import isqrt


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def next_prime(number: int) -> int:
    """The least prime number that is not less than `number`."""
    while not _is_prime(number):
        number += 1
    return number
