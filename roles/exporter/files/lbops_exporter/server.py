# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP: the live page, /metrics and /api/v1/*, nothing that changes anything."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import page
from .exporter import DOCUMENTS, Exporter
from .exposition import CONTENT_TYPE
from .log import log
from .web_config import WebConfig

API = "/api/v1/"
JSON = "application/json"
# Who says nothing for so long is no longer waited for.
TIMEOUT = 10.0  # seconds without a word
LONGEST = 30.0  # seconds that a connection may take in all
PATIENCE = 1.0  # seconds that the oldest one has while others wait for a place
AT_ONCE = 32
INDEX = "".join(f"{path}\n" for path in ("/", "/metrics", *(API + name for name in DOCUMENTS)))


def accepts_gzip(header: str) -> bool:
    """RFC 9110, section 12.5.3."""
    for coding in header.lower().split(","):
        name, _semicolon, weight = coding.replace(" ", "").partition(";")
        if name == "gzip":
            return not re.fullmatch(r"q=0(\.0*)?", weight)
    return False


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "lbops"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        if not self._allowed():
            return
        # The absolute form, RFC 9112, section 3.2.2, names this host, too.
        path = re.sub("^http://[^/?]*", "", self.path).partition("?")[0]
        packed = accepts_gzip(self.headers.get("Accept-Encoding", ""))
        if path == "/metrics":
            self._answer(self.server.exporter.metrics(packed), CONTENT_TYPE, packed)
        elif path.startswith(API) and path[len(API) :] in DOCUMENTS:
            content, complete = self.server.exporter.document(path[len(API) :], packed)
            self._answer(content, JSON, packed, HTTPStatus.OK if complete else HTTPStatus.SERVICE_UNAVAILABLE)
        elif path in self.server.page:
            content, kind = self.server.page[path]
            self._answer(content, kind, headers=page.HEADERS)
        else:
            self._answer(f"there is no {path}; there are\n{INDEX}".encode(), "text/plain", status=HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _allowed(self) -> bool:
        users = self.server.web.users
        if users is None:
            return True
        kind, _space, encoded = self.headers.get("Authorization", "").partition(" ")
        try:
            name, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        except ValueError:
            name, colon, password = b"", b"", b""
        if kind.lower() == "basic" and colon and users.accept(name.decode(errors="replace"), password):
            return True
        self._answer(
            b"name and password please\n",
            "text/plain",
            status=HTTPStatus.UNAUTHORIZED,
            headers={"WWW-Authenticate": 'Basic realm="lbops"'},
        )
        return False

    def _answer(
        self,
        content: bytes,
        kind: str,
        packed: bool = False,
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # The base class says 501 to a method that it does not know.
        if code == HTTPStatus.NOT_IMPLEMENTED:
            text = b"nothing can be changed here; the inventory does that\n"
            self._answer(text, "text/plain", status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
            return
        super().send_error(code, message, explain)

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no event."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, exporter: Exporter, web: WebConfig) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.exporter, self.web = exporter, web
        self.page = page.files()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        # By thread, its connection and when that began, by the monotonic clock; the oldest first.
        self._open: dict[int, tuple[socket.socket, float]] = {}
        super().__init__((address, port), Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask the name service for the name of this host.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        # Those beyond wait in the queue of the socket.
        while not self._slots.acquire(timeout=0.05):
            self._hang_up(self._oldest())
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hangs up on those who take too long, about once a second: a word now and then keeps no place."""
        now = time.monotonic()
        self._hang_up(connection for connection, begun in list(self._open.values()) if begun + LONGEST < now)

    def _oldest(self) -> list[socket.socket]:
        """That which has had its time, if any."""
        found = list(self._open.values())[:1]
        return [connection for connection, begun in found if begun + PATIENCE < time.monotonic()]

    @staticmethod
    def _hang_up(connections: Iterable[socket.socket]) -> None:
        for connection in connections:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        thread, begun = threading.get_ident(), time.monotonic()
        self._open[thread] = request, begun
        try:
            if self.web.tls:
                request.settimeout(TIMEOUT)
                # Here and not where connections are accepted, so that nobody keeps the others waiting.
                context = self.web.tls.context()
                request = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                self._open[thread] = request, begun
                request.do_handshake()
            super().process_request_thread(request, client_address)
        except OSError as error:
            log("refused", client=client_address[0], error=error)
            self.shutdown_request(request)
        finally:
            del self._open[thread]
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # Whoever hangs up early is no event.
        if not isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
            log("failed", client=client_address[0], error=f"{type(error).__name__}: {error}")
