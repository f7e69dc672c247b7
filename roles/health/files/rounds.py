# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When which backend is checked. Each has its own rhythm, so that checks never come in bursts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

from engine.config.model import BackendKey

from .checks import problem_of
from .common import CannotCheck, Target

# A pause is up to this share shorter than it could be; never longer, for a failure must be noticed in time.
JITTER = 0.1

Problem = Callable[[Target], Awaitable[str]]
Tell = Callable[[Target, str], None]


async def watch(
    target: Target, outcome: Callable[[str], None], cannot: Callable[[str], None], problem: Problem = problem_of
) -> None:
    """Check a backend for ever."""
    loop = asyncio.get_running_loop()
    gap = target.health.gap
    await asyncio.sleep(random.random() * gap)
    while True:
        started = loop.time()
        try:
            outcome(await problem(target))
        except CannotCheck as error:
            cannot(str(error))
        due = started + gap * (1 - JITTER * random.random())
        await asyncio.sleep(max(0.0, due - loop.time()))


class Rounds:
    """The checks that are going on, by backend: `outcome` is told what is wrong with it, `cannot` with this host."""

    def __init__(self, outcome: Tell, cannot: Tell, problem: Problem = problem_of) -> None:
        self._outcome, self._cannot, self._problem = outcome, cannot, problem
        self._targets: dict[BackendKey, Target] = {}
        self._tasks: dict[BackendKey, asyncio.Task[None]] = {}

    def set(self, targets: dict[BackendKey, Target]) -> None:
        """Check these and no others; those whose check stays as it is keep their rhythm."""
        for key, task in list(self._tasks.items()):
            if key not in targets or targets[key].checked != self._targets[key].checked:
                task.cancel()
                del self._tasks[key]
        self._targets = dict(targets)
        for key, target in targets.items():
            if key not in self._tasks:
                outcome, cannot = (partial(self._take, key, tell) for tell in (self._outcome, self._cannot))
                self._tasks[key] = asyncio.ensure_future(watch(target, outcome, cannot, self._problem))

    def _take(self, key: BackendKey, tell: Tell, words: str) -> None:
        if self._tasks.get(key) is not asyncio.current_task():
            # Up to Python 3.11, wait_for() swallows a cancellation that comes as the check ends.
            raise asyncio.CancelledError
        tell(self._targets[key], words)

    def failures(self) -> list[BaseException]:
        """Of tasks that ended, which none of them should."""
        ended = [task for task in self._tasks.values() if task.done()]
        return [not task.cancelled() and task.exception() or RuntimeError("a check ended") for task in ended]
