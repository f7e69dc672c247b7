# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring what the checks saw to the data plane, off the thread that checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from engine.balancer.balancer import Balancer
from engine.balancer.observed import Observed
from engine.config.model import BackendKey
from engine.errors import EngineError

from .log import Log

# Seconds until a failed attempt is repeated.
RETRY = 1.0
# Seconds that may pass until news are written that change no ring.
LEISURE = 1.0


class Applier:
    """One attempt at a time; what comes in meanwhile is taken up between rings."""

    def __init__(self, balancer: Balancer, seen: Callable[[], Observed], log: Log) -> None:
        self._balancer, self._seen, self._log = balancer, seen, log
        self._wanted = asyncio.Event()
        self._out: frozenset[BackendKey] | None = None
        # What is wrong, by the event that told of it.
        self._troubles: dict[str, str] = {}

    def now(self) -> None:
        self._wanted.set()

    def at_leisure(self) -> None:
        asyncio.get_running_loop().call_later(LEISURE, self._wanted.set)

    async def _look(self) -> Observed:
        self._wanted.clear()
        return self._seen()

    def _news(self, loop: asyncio.AbstractEventLoop) -> Observed | None:
        """On the thread that writes rings; what was seen is looked at on that which checks."""
        if not self._wanted.is_set():
            return None
        return asyncio.run_coroutine_threadsafe(self._look(), loop).result()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        news = partial(self._news, loop)
        while True:
            await self._wanted.wait()
            seen = await self._look()
            started = time.monotonic()
            try:
                followed = await loop.run_in_executor(None, self._balancer.observe, seen, news)
            except (EngineError, OSError) as error:
                self._tell("not_applied", str(error))
                self._wanted.set()
                await asyncio.sleep(RETRY)
                continue
            trouble = self._troubles.pop("not_applied", "")
            if trouble or followed.out != self._out:
                self._log("applied", out=len(followed.out), milliseconds=round((time.monotonic() - started) * 1000))
            self._out = followed.out
            self._note_refusal(followed.refusal)

    def _note_refusal(self, refusal: str) -> None:
        """By the disk: rings are right, but a restart would not know it."""
        if refusal:
            self._tell("not_saved", refusal)
            asyncio.get_running_loop().call_later(RETRY, self._wanted.set)
        elif self._troubles.pop("not_saved", ""):
            self._log("saved")

    def _tell(self, event: str, reason: str) -> None:
        """Once, however often it is tried again."""
        if self._troubles.get(event) != reason:
            self._log(event, reason=reason)
        self._troubles[event] = reason
