# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of real servers on loopback, which answer well and badly, over IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins import module_utils
from ansible_collections.lbops.xdp.plugins.module_utils.config import health
from scapy.layers.dns import DNS, DNSRR

# The program finds the engine by the name it has on a host; modules of their own, apart from the collection's.
engine = types.ModuleType("engine")
engine.__path__ = list(module_utils.__path__)
sys.modules.setdefault("engine", engine)

from engine.config.model import Backend  # noqa: E402
from engine.config.parsing import parse_services  # noqa: E402

from roles.health.files import web  # noqa: E402
from roles.health.files.checks import CHECKS, problem_of  # noqa: E402
from roles.health.files.common import CannotCheck, Target, open_socket  # noqa: E402

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
TIMEOUT = 0.4


def target(version: int, port: int, protocol: str = "tcp", **options: object) -> Target:
    vip = {4: "192.0.2.10", 6: "2001:db8::10"}[version]
    services = parse_services([{"name": "web", "address": vip, "protocol": protocol, "port": 1}])
    # Loopback is no backend's address, except for these tests.
    backend = Backend("web", LOOPBACK[version], port, 1, "enabled", None, None)
    # Nor a source.
    source = options.pop("source", None)
    parsed = health.parse_one("web", {"timeout": TIMEOUT, **options})
    return Target(replace(parsed, source=source), services["web"], backend, ("lo",))


def problem(version: int, port: int, protocol: str = "tcp", **options: object) -> str:
    return asyncio.run(problem_of(target(version, port, protocol, **options)))


def listening(version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, kind)
    made.bind((LOOPBACK[version], 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@contextmanager
def server(
    handle: Callable[[socket.socket], None], version: int = 4, context: ssl.SSLContext | None = None
) -> Iterator[int]:
    """The port of one that handles a connection after the other."""

    def serve() -> None:
        while True:
            try:
                connection, _peer = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) if context else connection as wrapped:
                    handle(wrapped)
            except OSError:
                pass  # The check has hung up.

    with listening(version) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return handle


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


# --- what nobody thought of


@pytest.mark.parametrize("error", [UnicodeError("secret"), struct.error("secret"), KeyError("secret"), EOFError()])
def test_what_a_check_did_not_expect_is_that_backends_failure(monkeypatch, error):
    async def broken(_target: Target) -> None:
        raise error

    monkeypatch.setitem(CHECKS, "tcp", broken)
    assert problem(4, 9, check="tcp") == f"unexpected {type(error).__name__}"


def test_a_check_that_is_called_off_is_no_failure(monkeypatch):
    async def cancelled(_target: Target) -> None:
        raise asyncio.CancelledError

    monkeypatch.setitem(CHECKS, "tcp", cancelled)
    with pytest.raises(asyncio.CancelledError):
        problem(4, 9, check="tcp")


# --- TCP, UDP, ICMP


def test_a_connection(version):
    with server(lambda _connection: None, version) as port:
        assert problem(version, port, check="tcp") == ""
    assert problem(version, port, check="tcp") == "Connection refused"


def test_a_source_that_this_host_does_not_have(version):
    source = {4: "192.0.2.99", 6: "2001:db8::99"}[version]
    with pytest.raises(CannotCheck) as caught:
        problem(version, 9, check="tcp", source=source)
    assert str(caught.value) == f"source {source}: Cannot assign requested address"


def test_a_source_binds_no_port_before_there_is_a_backend_to_it(version):
    """So connections to different backends may share one, and ports do not run out."""
    checked = target(version, 9, check="tcp", source=LOOPBACK[version])
    with open_socket(checked, socket.SOCK_STREAM) as made:
        assert made.getsockname()[:2] == (LOOPBACK[version], 0)
    with server(lambda _connection: None, version) as port:
        assert problem(version, port, check="tcp", source=LOOPBACK[version]) == ""


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE, errno.EPERM])
def test_what_this_host_lacks_is_no_failure(monkeypatch, number):
    async def without(_target: Target) -> None:
        raise OSError(number, "secret")

    monkeypatch.setitem(CHECKS, "tcp", without)
    with pytest.raises(CannotCheck) as caught:
        problem(4, 9, check="tcp")
    assert str(caught.value) == os.strerror(number)


def test_tls_has_numbers_of_its_own(monkeypatch):
    async def refused(_target: Target) -> None:
        raise ssl.SSLError(errno.EPERM, "no")

    monkeypatch.setitem(CHECKS, "tcp", refused)
    assert problem(4, 9, check="tcp").startswith("TLS: ")


def test_a_datagram(version):
    with listening(version, socket.SOCK_DGRAM) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            request, peer = listener.recvfrom(100)
            listener.sendto(b"re: " + request, peer)

        for response, expected in (("re: hello", ""), ("other", "the answer does not hold the response")):
            thread = threading.Thread(target=serve)
            thread.start()
            options = {"check": "udp", "request": "hello", "response": response}
            assert problem(version, port, "udp", **options) == expected
            thread.join()
        begin = time.monotonic()
        assert problem(version, port, "udp", check="udp", request="hello") == "timed out"
        assert TIMEOUT <= time.monotonic() - begin < 2 * TIMEOUT
    assert problem(version, port, "udp", check="udp", request="hello") == "Connection refused"


# --- DNS


@pytest.mark.parametrize(
    "code, expected",
    [(0, ""), (2, "the answer is SERVFAIL"), (3, "the answer is NXDOMAIN"), (9, "the answer is error 9")],
)
def test_dns_over_tcp(version, code, expected):
    asked = []

    def handle(connection: socket.socket) -> None:
        (length,) = struct.unpack(">H", connection.recv(2))
        question = DNS(connection.recv(length))
        asked.append(question.qd[0].qname)
        found = DNSRR(rrname="www.example.net", rdata="192.0.2.1")
        answer = bytes(DNS(id=question.id, qr=1, rcode=code, qd=question.qd, an=[] if code else [found]))
        whole = struct.pack(">H", len(answer)) + answer
        # In pieces, as TCP may.
        connection.sendall(whole[:5])
        time.sleep(0.05)
        connection.sendall(whole[5:])

    with server(handle, version) as port:
        assert problem(version, port, check="dns", name="www.example.net") == expected
    assert asked == [b"www.example.net."]


def test_dns_over_tcp_that_ends_too_early():
    with server(saying(b"\0\x20only this")) as port:
        assert problem(4, port, check="dns", name=".") == "the connection was closed before an answer"


# --- HTTP


@pytest.mark.parametrize(
    "answer, options, expected",
    [
        (b"HTTP/1.0 204 No Content\r\n\r\n", {}, ""),
        (b"HTTP/1.1 302\r\n\r\n", {}, ""),
        (b"HTTP/1.1 503 Not now\r\n\r\n", {}, "status 503"),
        (b"HTTP/1.1 503 Not now\r\n\r\n", {"status": [200, "500-599"]}, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine, but later", {"body": "fine"}, ""),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine, but later",
            {"body": "later"},
            "the body does not hold the text",
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nup to the end", {"body": "the end"}, ""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nfi\r\n2\r\nne\r\n0\r\n\r\n",
            {"body": "fine"},
            "",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n?\r\n", {"body": "x"}, "the answer is no HTTP message"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", {}, ""),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 2
            + b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nfine",
            {"body": "fine"},
            "status 503",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nfine", {"body": "fine"}, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n", {}, "the answer is no HTTP message"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n\r\n", {}, "the answer is no HTTP message"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {}, "the answer is no HTTP message"),
        (b"", {}, "the answer is no HTTP message"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000, {"body": "x"}, "the headers are too long"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100000, {"body": "x"}, "the answer is no HTTP message"),
    ],
)
def test_http(answer, options, expected):
    with server(saying(answer)) as port:
        assert problem(4, port, check="http", **options) == expected


def test_a_body_of_many_chunks_lets_other_checks_have_their_turn():
    async def run() -> int:
        reader = asyncio.StreamReader(limit=web.HEADERS_LIMIT)
        reader.feed_data(b"1\r\nx\r\n" * 20000 + b"0\r\n\r\n")
        reading, turns = asyncio.ensure_future(web._chunks(reader)), 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        assert reading.result() == b"x" * 20000
        return turns

    assert asyncio.run(run()) >= 200


def test_what_http_asks_for(version):
    asked = []

    def handle(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).decode().split("\r\n"))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with server(handle, version) as port:
        assert problem(version, port, check="http", path="/health?deep=1") == ""
        assert problem(version, port, check="http", host="www.example.net") == ""
    address = {4: "127.0.0.1", 6: "[::1]"}[version]
    assert asked[0][:2] == ["GET /health?deep=1 HTTP/1.1", f"Host: {address}:{port}"]
    assert asked[1][:2] == ["GET / HTTP/1.1", "Host: www.example.net"]


def test_a_server_that_accepts_and_says_nothing():
    with server(lambda connection: connection.recv(65536) and time.sleep(2 * TIMEOUT)) as port:
        begin = time.monotonic()
        assert problem(4, port, check="http") == "timed out"
        assert time.monotonic() - begin < 2 * TIMEOUT


# --- HTTPS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of www.example.net and loopback's addresses, signed by itself."""
    directory = tmp_path_factory.mktemp("certificate")
    names = "subjectAltName=DNS:www.example.net,IP:127.0.0.1,IP:::1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lbops -addext {names}".split()
    subprocess.run(
        [*command, "-keyout", directory / "key", "-out", directory / "chain"], check=True, capture_output=True
    )
    (directory / "both").write_bytes((directory / "key").read_bytes() + (directory / "chain").read_bytes())
    return directory / "both"


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were among the host's authorities."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("chain")))


@pytest.fixture
def secure(certificate: Path, version: int) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with server(saying(b"HTTP/1.1 200 OK\r\n\r\nfine"), version, context) as port:
        yield port


def test_a_valid_certificate(version, secure, trusted):
    assert problem(version, secure, check="https", body="fine") == ""
    assert problem(version, secure, check="https", host="www.example.net:8443") == ""


def test_somebody_elses_certificate(version, secure, trusted):
    found = problem(version, secure, check="https", host="www.example.com")
    assert found.startswith("certificate: Hostname mismatch")
    assert problem(version, secure, check="https", host="www.example.com", verify=False) == ""


def test_a_certificate_of_nobody_known(version, secure):
    assert problem(version, secure, check="https") == "certificate: self-signed certificate"
    assert problem(version, secure, check="https", verify=False) == ""


def test_an_authority_that_comes_later_and_goes_again(secure, version, certificate, tmp_path, monkeypatch):
    """As the host's own are replaced: the service goes on with those that there are."""
    authorities, chain = tmp_path / "authorities", certificate.with_name("chain").read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities))
    another = tmp_path / "another"
    for content, expected in ((b"", "certificate: self-signed certificate"), (chain, "")) * 2:
        another.write_bytes(content)
        another.replace(authorities)
        assert problem(version, secure, check="https") == expected
    made = web.tls_context(True)
    assert web.tls_context(True) is made and web.tls_context(False) is not made


def test_no_tls_at_all():
    with server(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert problem(4, port, check="https").startswith("TLS: ")
