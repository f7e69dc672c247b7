# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP and HTTPS: a GET is answered with a status, and a text in the body if one is asked for."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from functools import lru_cache

from engine.config.health import LONGEST_BODY

from . import tcp
from .common import Failed, Target

STATUS_PATTERN = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?\r?\n")
HEADERS_LIMIT = 65536
# Heads of an answer, interim ones included.
HEADS_LIMIT = 10
# Chunks that are read before other checks have their turn.
CHUNKS_AT_ONCE = 100

# Path, inode and time of the last change of each file of certificate authorities.
Version = tuple[tuple[str, int, int], ...]


def tls_context(verify: bool) -> ssl.SSLContext:
    return _tls_context(verify, _authorities() if verify else ())


def _authorities() -> Version:
    """Other ones when the host's were changed: update-ca-certificates and its like replace files."""
    found = ssl.get_default_verify_paths()
    paths = [path for path in (found.cafile, found.capath) if path]
    return tuple((path, status.st_ino, status.st_mtime_ns) for path in paths for status in (os.stat(path),))


# The last ones only: of those that verify, and of those that do not.
@lru_cache(maxsize=2)
def _tls_context(verify: bool, _version: Version) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_name(target: Target) -> str:
    """Whose certificate is expected."""
    if target.health.host is None:
        return target.address
    return re.sub(r"(?<=[^:]):[0-9]+$", "", target.health.host).strip("[]")


def request(target: Target) -> bytes:
    host = target.health.host
    if host is None:
        host = f"[{target.address}]" if ":" in target.address else target.address
        host += f":{target.port}"
    lines = [
        f"GET {target.health.path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: lbops-health",
        "Accept: */*",
        "Connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def check(target: Target) -> None:
    health = target.health
    tls = health.check == "https"
    context, name = (tls_context(health.verify), server_name(target)) if tls else (None, None)
    connection = await tcp.connect(target)
    try:
        reader, writer = await asyncio.open_connection(
            sock=connection, limit=HEADERS_LIMIT, ssl=context, server_hostname=name
        )
    except BaseException:
        connection.close()
        raise
    try:
        writer.write(request(target))
        await _verify(target, reader)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        raise Failed("the answer is no HTTP message") from None
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int:
    """Of the answer itself; what comes before it, from 100 to 199, is passed over."""
    for _head in range(HEADS_LIMIT):
        found = STATUS_PATTERN.fullmatch(await reader.readline())
        if not found:
            break
        status = int(found.group(1))
        if status >= 200:
            return status
        await _headers(reader)
    raise Failed("the answer is no HTTP message")


async def _verify(target: Target, reader: asyncio.StreamReader) -> None:
    status = await _status(reader)
    if not any(first <= status <= last for first, last in target.health.status):
        raise Failed(f"status {status}")
    if target.health.body is None:
        return
    headers = await _headers(reader)
    if target.health.body.encode() not in await _body(reader, headers):
        raise Failed("the body does not hold the text")


async def _headers(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    length = 0
    while True:
        line = await reader.readline()
        length += len(line)
        if length > HEADERS_LIMIT:
            raise Failed("the headers are too long")
        if line in (b"\r\n", b"\n", b""):
            return headers
        name, _colon, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    """As far as LONGEST_BODY."""
    if headers.get(b"transfer-encoding") == b"chunked":
        return await _chunks(reader)
    wanted = min(int(headers.get(b"content-length", LONGEST_BODY)), LONGEST_BODY)
    try:
        return await reader.readexactly(wanted)
    except asyncio.IncompleteReadError as error:
        return error.partial


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body, chunks = bytearray(), 0
    while len(body) < LONGEST_BODY:
        chunks += 1
        if not chunks % CHUNKS_AT_ONCE:
            # What has come in already is read without waiting, so other checks would.
            await asyncio.sleep(0)
        size = int((await reader.readline()).partition(b";")[0], 16)
        if not size:
            break
        body += await reader.readexactly(min(size, LONGEST_BODY))
        await reader.readline()
    return bytes(body)
