# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a lab's client: asks a VIP over either protocol, prints as JSON who answers and whom they saw."""

from __future__ import annotations

import json
import socket
import sys

TIMEOUT = 1.0  # seconds


def ask(vip: str, port: int, kind: str, source_port: int, size: int) -> list[str]:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        try:
            client.bind(("", source_port))
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
    vip, port, kind = sys.argv[1:4]
    count, size, first_source_port = map(int, sys.argv[4:])
    # 0 leaves the choice to the kernel, which takes any.
    source_ports = range(first_source_port, first_source_port + count) if first_source_port else [0] * count
    print(json.dumps([ask(vip, int(port), kind, source_port, size) for source_port in source_ports]))


if __name__ == "__main__":
    main()
