# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets which place in a map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeVar

from ..errors import EngineError

T = TypeVar("T")


class FreePlaces:
    """Free places of one map, in their order from `begin` on, then those before."""

    def __init__(
        self, what: str, option: str, first: int, limit: int, taken: Iterable[int], begin: int | None = None
    ) -> None:
        self.what, self.option, self.limit = what, option, limit
        self.next = first if begin is None else begin
        taken = set(taken)
        places = chain(range(self.next, limit), range(first, min(self.next, limit)))
        self._free = (place for place in places if place not in taken)

    def take(self) -> int:
        place = next(self._free, None)
        if place is None:
            raise EngineError(
                f"{self.what} do not fit: {self.option} of the balancer is {self.limit}, and those that change need a "
                f"second place while both are in use; raise {self.option}"
            )
        self.next = place + 1
        return place


def assign(keys: Iterable[T], keep: Callable[[T], int | None], places: FreePlaces) -> dict[T, int]:
    """Every key has the place that it keeps, or else the next free one."""
    assigned = {}
    for key in keys:
        place = keep(key)
        assigned[key] = places.take() if place is None else place
    return assigned
