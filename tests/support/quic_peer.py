# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A QUIC server whose connection ids have its server id, and a client that changes its address.

`server SERVER_ID PORT...` answers every stream with its id. `client` reads a line of JSON for each thing to do, and
writes one with the answer, null for none.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
import sys
from types import SimpleNamespace
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

ALPN = ["test"]
# One byte, four of the server's id, and a nonce; nothing else that aioquic draws has this length.
ID_LENGTH = 11
CONNECTED = 10.0  # seconds


def _certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()), key


class Answering(QuicConnectionProtocol):
    """Says on every stream who it is."""

    server_id = ""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived) and event.end_stream:
            self._quic.send_stream_data(event.stream_id, self.server_id.encode(), end_stream=True)
            self.transmit()


def _draw_ids_of(server_id: str) -> None:
    """Let aioquic, which draws its connection ids at random, put the server's id into them."""

    def urandom(size: int) -> bytes:
        drawn = os.urandom(size)
        # Config id 0.
        return bytes((drawn[0] & 0x1F,)) + bytes.fromhex(server_id) + drawn[5:] if size == ID_LENGTH else drawn

    connection.os = SimpleNamespace(urandom=urandom)  # type: ignore[attr-defined]


async def run_server(server_id: str, ports: list[int]) -> None:
    _draw_ids_of(server_id)
    Answering.server_id = server_id
    configuration = QuicConfiguration(is_client=False, alpn_protocols=ALPN, connection_id_length=ID_LENGTH)
    configuration.certificate, configuration.private_key = _certificate()
    for port in ports:
        await serve("0.0.0.0", port, configuration=configuration, create_protocol=Answering)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


class Arrivals(asyncio.DatagramProtocol):
    """What arrives at one of the client's sockets is the connection's, whichever socket it was begun with."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._client.protocol:
            self._client.protocol.datagram_received(data, addr)


class Client:
    """One connection at a time."""

    def __init__(self) -> None:
        self.protocol: QuicConnectionProtocol | None = None

    async def _socket(self, address: str, port: int) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        transport, _arrivals = await loop.create_datagram_endpoint(lambda: Arrivals(self), local_addr=(address, port))
        return transport

    async def connect(self, vip: str, service_port: int, address: str, port: int) -> str | None:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=ALPN, verify_mode=ssl.CERT_NONE)
        transport = await self._socket(address, port)
        self.protocol = QuicConnectionProtocol(connection.QuicConnection(configuration=configuration))
        self.protocol.connection_made(transport)
        self.protocol.connect((vip, service_port))
        await asyncio.wait_for(self.protocol.wait_connected(), CONNECTED)
        return await self.ask(CONNECTED)

    async def move(self, address: str, port: int, is_known: bool, patience: float) -> str | None:
        """Go on from another address and port; `is_known`: the client knows of it, so it changes its connection id."""
        assert self.protocol
        self.protocol.connection_made(await self._socket(address, port))
        if is_known:
            self.protocol.change_connection_id()
        return await self.ask(patience)

    async def ask(self, patience: float) -> str | None:
        """The id of the server that has the connection; None if nobody answers in so many seconds."""
        assert self.protocol
        reader, writer = await self.protocol.create_stream()
        writer.write_eof()
        try:
            return (await asyncio.wait_for(reader.read(), patience)).decode()
        except TimeoutError:
            return None


async def run_client() -> None:
    client, loop = Client(), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *arguments = json.loads(line)
        print(json.dumps(await getattr(client, what)(*arguments)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(run_server(sys.argv[2], [int(port) for port in sys.argv[3:]]))
    else:
        asyncio.run(run_client())
