# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from engine.config.exporter_options import check_listening
from engine.errors import EngineError
from engine.kernel.notify import notify

from .exporter import Exporter
from .log import log
from .server import Server
from .web_config import load

DESCRIPTION = "Prometheus metrics and a read-only JSON API of the balancers of this host."


def main() -> int:
    parser = argparse.ArgumentParser(prog="lbops_exporter", description=DESCRIPTION)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9477)
    parser.add_argument("--web-config", type=Path, help="TLS and users, see docs/metrics.md")
    parser.add_argument("--per-cpu", action="store_true", help="what the kernel counts by CPU with a label cpu")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with these options")
    arguments = parser.parse_args()
    try:
        check_listening(arguments.address, arguments.port)
        web = load(arguments.web_config)
        if arguments.check:
            return 0
        server = Server(arguments.address, arguments.port, Exporter(per_cpu=arguments.per_cpu), web)
    except (EngineError, OSError) as error:
        log("failed", address=arguments.address, port=arguments.port, error=error)
        return 1
    # shutdown() waits for serve_forever(), which the handler of a signal would interrupt.
    signal.signal(signal.SIGTERM, lambda *_arguments: threading.Thread(target=server.shutdown).start())
    log("started", address=arguments.address, port=arguments.port, tls=bool(web.tls), users=bool(web.users))
    notify("READY=1")
    server.serve_forever()
    log("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
