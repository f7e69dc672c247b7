# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lbops-watch@ in a process of its own, and interfaces for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import watch
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import link

from tests.packet.network import FRONT_MAC, write_setting


def make(arm: str) -> None:
    for command in (
        f"ip link add {arm} address {FRONT_MAC} type veth peer name {arm}-peer",
        f"ip link set {arm}-peer up",
        f"ip link set {arm} up",
    ):
        subprocess.run(command.split(), check=True)
    until(lambda: link.find(arm).link().up)
    write_setting(f"ipv4/conf/{arm}/forwarding", 1)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(frozen=True)
class Service:
    process: int
    log: Path

    def events(self, event: str) -> list[str]:
        """What it wrote about an event."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [line for line in lines if f" event={event}" in line]


@contextmanager
def watching(balancer: Balancer, log: Path) -> Iterator[Service]:
    child = os.fork()
    if not child:
        try:
            with log.open("w", encoding="utf-8") as sys.stdout:
                watch.run(balancer)
        except BaseException:
            traceback.print_exc()
        finally:
            # The rest of the test is the parent's.
            os._exit(1)
    service = Service(child, log)
    try:
        until(lambda: service.events("started"))
        yield service
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
