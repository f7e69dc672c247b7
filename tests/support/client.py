# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""traffic.py, running on a lab's client."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any


class Client:
    """Call it with a command of traffic.py and its arguments; it returns the answer."""

    def __init__(self, ssh_config: Path) -> None:
        script = Path(__file__).with_name("traffic.py").read_text(encoding="utf-8")
        self.process = subprocess.Popen(
            ["ssh", "-F", str(ssh_config), "client", f"python3 -c {shlex.quote(script)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *command: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ConnectionError(f"the traffic script on the client ended during {command[0]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
