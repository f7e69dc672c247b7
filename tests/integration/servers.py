# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a lab's backend: a server of one kind for health checks to look at, `servers.py http|https|dns`."""

from __future__ import annotations

import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = socket.gethostname()
PORTS = {"http": 8081, "https": 8443, "dns": 5353}
CERTIFICATE = "/run/health-certificate.pem"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{NAME} is fine for {self.headers['Host']}\n".encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def log_message(self, *_arguments: object) -> None:
        pass


def serve_http(port: int, certificate: str | None = None) -> None:
    server = ThreadingHTTPServer(("", port), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def serve_dns(port: int) -> None:
    """Every name that is asked for is there, and has no address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        while True:
            request, peer = server.recvfrom(512)
            server.sendto(request[:2] + b"\x85\x80" + request[4:], peer)


def main() -> None:
    kind = sys.argv[1]
    if kind == "dns":
        serve_dns(PORTS[kind])
    else:
        serve_http(PORTS[kind], CERTIFICATE if kind == "https" else None)


if __name__ == "__main__":
    main()
