# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the backends of a balancer: python3 -m health <balancer> [--forget].

Killed at any time it leaves the data plane as it is, and goes on from what it wrote down last.
"""

from __future__ import annotations

import asyncio
import sys

from engine.balancer.balancer import Balancer
from engine.balancer.observed import Observed
from engine.config.model import BackendKey
from engine.errors import EngineError
from engine.kernel.notify import notify

from .applier import Applier
from .check_errors import CheckErrors
from .common import Target
from .config import Targets, read_checks
from .healthy_counts import HealthyCounts
from .log import Log
from .rounds import Rounds
from .states import Status

# Seconds between two looks at the balancer's state.
LOOK_INTERVAL = 0.5


class Service:
    """The backends, what is known of them, and what comes of it."""

    def __init__(self, balancer: str) -> None:
        self._log = Log(balancer)
        self._checks = read_checks(balancer)
        self._balancer = Balancer(balancer)
        self._targets = Targets(self._balancer, self._checks)
        self._statuses: dict[BackendKey, Status] = {}
        self._healthy_counts = HealthyCounts()
        self._check_errors = CheckErrors(self._log)
        self._remembered = self._balancer.observed().healthy

    def seen(self) -> Observed:
        healthy = {key: status.healthy for key, status in self._statuses.items() if status.healthy is not None}
        return Observed(healthy, frozenset(name for name, check in self._checks.items() if check.all_down == "drop"))

    async def run(self) -> None:
        self._applier = Applier(self._balancer, self.seen, self._log)
        self._rounds = Rounds(self._note, self._cannot)
        self._take(self._targets.read())
        # A killed run may have written down more than it had brought to the data plane.
        self._applier.now()
        applying = asyncio.ensure_future(self._applier.run())
        down = sum(status.healthy is False for status in self._statuses.values())
        self._log("started", services=len(self._checks), backends=len(self._statuses), down=down)
        notify("READY=1")
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if applying.done():
                await applying
            for failure in self._rounds.failures():
                raise failure
            notify("WATCHDOG=1")
            if self._balancer.forgotten():
                # Whoever writes rings would take every backend for well, or has done so.
                self._applier.now()
            if self._targets.changed():
                # A large state takes its time to read, in which checks go on.
                self._take(await asyncio.get_running_loop().run_in_executor(None, self._targets.read))

    def _take(self, targets: dict[BackendKey, Target]) -> None:
        gone = self._statuses.keys() - targets.keys()
        for key in gone:
            del self._statuses[key]
        for key, target in targets.items():
            if key not in self._statuses:
                self._statuses[key] = Status(target.health.rise, target.health.fall, self._remembered.pop(key, None))
        self._healthy_counts.set(targets, self._statuses)
        self._check_errors.keep(targets.keys())
        self._rounds.set(targets)
        if gone:
            self._applier.at_leisure()

    def _cannot(self, target: Target, reason: str) -> None:
        """What is known of the backend stays as it is."""
        self._check_errors.note(target.backend.key, reason)

    def _note(self, target: Target, problem: str) -> None:
        key = target.backend.key
        self._check_errors.note(key, "")
        status = self._statuses[key]
        before = status.healthy
        if not status.note(not problem):
            if problem and before is not False and status.against == 1:
                self._tell("failing", target, reason=problem)
            return
        if before is None and status.healthy:
            self._applier.at_leisure()
            return
        self._applier.now()
        self._tell("up" if status.healthy else "down", target, reason=problem or None)
        if self._healthy_counts.note(target, before, status.healthy):
            self._log("all_down", service=target.service.name, choice=target.health.all_down)

    def _tell(self, event: str, target: Target, **fields: str | None) -> None:
        port = target.backend.port
        backend = target.address if port is None else f"{target.address}:{port}"
        self._log(
            event,
            service=target.service.name,
            backend=backend,
            name=target.backend.name,
            check=target.health.check,
            **fields,
        )


def main() -> int:
    balancer, *options = sys.argv[1:]
    try:
        if options == ["--forget"]:
            Balancer(balancer).forget_health()
        else:
            asyncio.run(Service(balancer).run())
    except (EngineError, OSError) as error:
        Log(balancer)("failed", reason=error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
