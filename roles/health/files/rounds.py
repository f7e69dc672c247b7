# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When which backend is checked. Each has its own rhythm, so that checks never come in bursts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from .checks import problem_of
from .common import Target

# A pause is up to this share shorter than it could be; never longer, for a failure must be noticed in time.
JITTER = 0.1

Outcome = Callable[[Target, str], None]


async def watch(target: Target, outcome: Outcome, problem: Callable[[Target], Awaitable[str]] = problem_of) -> None:
    """Check a backend for ever."""
    loop = asyncio.get_running_loop()
    gap = target.health.gap
    await asyncio.sleep(random.random() * gap)
    while True:
        started = loop.time()
        outcome(target, await problem(target))
        due = started + gap * (1 - JITTER * random.random())
        await asyncio.sleep(max(0.0, due - loop.time()))


class Rounds:
    """The checks that are going on, by backend."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._running: dict[object, tuple[Target, asyncio.Task[None]]] = {}

    def set(self, targets: dict) -> None:
        """Check these and no others; those that stay as they are keep their rhythm."""
        for key, (target, task) in list(self._running.items()):
            if targets.get(key) != target:
                task.cancel()
                del self._running[key]
        for key, target in targets.items():
            if key not in self._running:
                task = asyncio.ensure_future(watch(target, self._outcome))
                self._running[key] = target, task

    def failures(self) -> list[BaseException]:
        """Of tasks that ended, which none of them should."""
        ended = [task for _target, task in self._running.values() if task.done()]
        return [task.exception() or RuntimeError("a check ended") for task in ended]
