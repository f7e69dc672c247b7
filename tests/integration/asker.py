# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a lab's client: asks a VIP over either protocol, prints as JSON who answers and whom they saw."""

from __future__ import annotations

import json
import socket
import sys

TIMEOUT = 1.0  # seconds


def ask(vip: str, port: int, kind: str, size: int) -> list[str]:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        try:
            client.connect((vip, port))
            client.sendall(b"x" * (size - 1) + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                part = client.recv(65535)
                if not part:
                    break
                answer += part
        except OSError as error:
            return ["", type(error).__name__]
    return answer.decode().split()[:2] + [str(len(answer))]


def main() -> None:
    vip, port, kind, count, size = sys.argv[1:]
    print(json.dumps([ask(vip, int(port), kind, int(size)) for _flow in range(int(count))]))


if __name__ == "__main__":
    main()
