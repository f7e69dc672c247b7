# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lbops-top: what the balancers of this host do, each second."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from datetime import datetime
from typing import Any

from engine.balancer.balancer import Balancer
from engine.balancer.state import HOST_PATHS, balancers
from engine.errors import EngineError

from .rates import Snapshot, report
from .sort import SORTS
from .terminal import Terminal
from .view import BITS, View, plain

SETUP = "apply the role lbops.xdp.balancer to this host, as playbooks/site.yml does"


class Reader:
    """Reads balancers again and again; rates are those since the last time."""

    def __init__(self, chosen: list[str]) -> None:
        self._chosen = chosen
        self._before: dict[str, Snapshot] = {}

    def read(self) -> dict[str, Any]:
        """Raises EngineError if there is no balancer at all."""
        return {
            "host": socket.gethostname(),
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "balancers": [self._read(name) for name in self._names()],
        }

    def _names(self) -> list[str]:
        found = balancers(HOST_PATHS)
        if not found:
            raise EngineError(f"this host has no balancer; {SETUP}")
        for name in self._chosen:
            if name not in found:
                raise EngineError(f"this host has no balancer {name}, but {', '.join(found)}; {SETUP}")
        return self._chosen or found

    def _read(self, name: str) -> dict[str, Any]:
        before = self._before.pop(name, None)
        try:
            info = Balancer(name).info()
        except (EngineError, OSError) as error:
            return {"balancer": name, "error": str(error)}
        if "program_id" not in info["program"]:
            remedy = f"systemctl restart lbops-restore@{name} puts it back"
            return {"balancer": name, "error": f"the balancer's program is not loaded; {remedy}"}
        after = self._before[name] = Snapshot(time.monotonic(), info)
        return report(name, before, after)


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 3600 seconds")
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lbops-top",
        description="Show packets and bits per second of the balancers' services and backends.",
        epilog=BITS,
    )
    parser.add_argument("--balancer", action="append", default=[], help="only this one; may be given again")
    parser.add_argument("--interval", type=seconds, default=1.0, help="seconds between two reads (default 1)")
    parser.add_argument("--sort", choices=SORTS, default="service", help="by what (default service)")
    parser.add_argument("--once", action="store_true", help="one table over one interval, as plain text")
    parser.add_argument("--json", action="store_true", help="a JSON document each interval, a line each; see --once")
    return parser.parse_args(arguments)


def watch(reader: Reader, interval: float, view: View) -> None:
    shown = reader.read()
    due = time.monotonic() + interval
    with Terminal() as terminal:
        while not view.done:
            terminal.draw(view.frame(shown, *terminal.size()))
            for key in terminal.keys(due):
                view.press(key)
            if time.monotonic() >= due:
                fresh = reader.read()
                shown = shown if view.paused else fresh
                due = time.monotonic() + interval


def write(reader: Reader, options: argparse.Namespace) -> int:
    """Tables or documents, one or one after the other; 1 if a balancer could not be read."""
    # As other programs end whose output nobody reads any more.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    reader.read()
    while True:
        time.sleep(options.interval)
        found = reader.read()
        if options.json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            # A file or a mail is as wide as it has to be.
            sys.stdout.write(plain(found, shutil.get_terminal_size((1000, 24)).columns, options.sort))
        sys.stdout.flush()
        if options.once:
            return int(any("error" in balancer for balancer in found["balancers"]))


def run(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise EngineError("only root may read the maps of BPF programs; run sudo lbops-top")
    reader = Reader(options.balancer)
    if options.once or options.json:
        return write(reader, options)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise EngineError("this is not a terminal to draw on; --once writes one table, --json is for scripts")
    watch(reader, options.interval, View(options.sort))
    return 0


def main() -> int:
    options = parse_arguments()
    try:
        return run(options)
    except EngineError as error:
        sys.stderr.write(f"lbops-top: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
