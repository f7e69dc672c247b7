# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real requests from the lab's client, commanded line by line in JSON over standard input and output.

Every request is sent once. A flow is a connected UDP socket, so the kernel delivers answers from VIP:port only.
Commands: ["open_flows", count, vip, port], ["ask_flows"], ["connect", count, vip, port], ["hold", count, vip, port] for
connections that stay open, ["ask_held"], ["release"], ["start_load", vip, port] as fast as it goes or ["start_load",
vip, port, UDP requests per second, TCP connections per second], ["stop_load"]; each is answered by one line.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter

ADDRESS = "10.77.1.10"
# How long an answer may take before the request counts as unanswered.
TIMEOUT = 2.0  # seconds
# Requests under way at once: the sockets' buffers of this lab hold them.
WINDOW = 100
LOAD_FLOWS = 500
POLL_INTERVAL = 0.0005  # seconds
# Offsets in struct tcp_info of linux/tcp.h.
TOTAL_RETRANS, DSACK_DUPS = 100, 216
DSACK_WAIT = 0.05  # seconds


def backend_of(reply: bytes, port: int, request: bytes) -> str:
    """The backend that answered; it must have seen this client's own address, and the whole request."""
    name, peer, content = reply.rstrip(b"\n").split(b" ", 2)
    if peer.decode() != f"{ADDRESS}:{port}" or content != request:
        raise ValueError(f"wrong answer {reply!r} to {request!r} from port {port}")
    return name.decode()


class Flow:
    """One UDP flow: the same source port for its whole life."""

    def __init__(self, vip: str, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((ADDRESS, 0))
        self.socket.connect((vip, port))
        self.port = self.socket.getsockname()[1]
        self.requests = 0

    def ask(self) -> bytes:
        self.requests += 1
        request = f"flow {self.port} request {self.requests}".encode()
        self.socket.send(request)
        return request

    def answer(self) -> bytes | None:
        try:
            return self.socket.recv(2048)
        except BlockingIOError:
            return None


def ask_all(flows: list[Flow]) -> list[str | None]:
    """One request for each flow: who answered, None where nobody did."""
    answers: list[str | None] = []
    for start in range(0, len(flows), WINDOW):
        batch = flows[start : start + WINDOW]
        requests = {flow.socket.fileno(): (flow, flow.ask()) for flow in batch}
        found: dict[int, str] = {}
        poll = select.epoll()
        for descriptor in requests:
            poll.register(descriptor, select.EPOLLIN)
        deadline = time.monotonic() + TIMEOUT
        while len(found) < len(requests) and time.monotonic() < deadline:
            for descriptor, _event in poll.poll(0.1):
                flow, request = requests[descriptor]
                reply = flow.answer()
                if reply is not None:
                    found[descriptor] = backend_of(reply, flow.port, request)
        poll.close()
        answers += [found.get(flow.socket.fileno()) for flow in batch]
    return answers


class Connection:
    """One TCP connection. All methods raise OSError."""

    def __init__(self, vip: str, port: int) -> None:
        self.socket = socket.create_connection((vip, port), TIMEOUT)
        if self.socket.getpeername() != (vip, port):
            raise ValueError(f"connected to {self.socket.getpeername()}")
        self.port = self.socket.getsockname()[1]
        self.requests = 0

    def ask(self) -> str:
        """Who answered."""
        self.requests += 1
        request = f"connection {self.port} request {self.requests}".encode()
        self.socket.sendall(request + b"\n")
        reply = b""
        while not reply.endswith(b"\n"):
            piece = self.socket.recv(2048)
            if not piece:
                raise OSError("the connection ended without an answer")
            reply += piece
        return backend_of(reply, self.port, request)

    def lost(self) -> int:
        """How many segments, SYNs included, the kernel sent again and the backend had not received before.

        A probe that the kernel sends since the backend is slow to answer is told from that by the duplicate SACK.
        """
        lost = self._sent_again()
        if lost:
            # The answer may overtake the duplicate SACK.
            time.sleep(DSACK_WAIT)
            lost = self._sent_again()
        return lost

    def _sent_again(self) -> int:
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DSACK_DUPS + 4)
        return struct.unpack_from("=I", info, TOTAL_RETRANS)[0] - struct.unpack_from("=I", info, DSACK_DUPS)[0]


def ask_once(connection: Connection) -> str | None:
    """As Connection.ask(), None if nobody answered."""
    try:
        return connection.ask()
    except OSError:
        return None


def connect(vip: str, port: int) -> tuple[str, int]:
    """One TCP connection with one request: who answered, and how many segments were lost. Raises OSError."""
    connection = Connection(vip, port)
    with connection.socket:
        return connection.ask(), connection.lost()


def connect_once(vip: str, port: int) -> str | None:
    """Who answered on a new TCP connection, None if nobody did."""
    try:
        return connect(vip, port)[0]
    except OSError:
        return None


class Load:
    """Requests without a pause, UDP on flows of its own and TCP on a new connection each, until stopped."""

    def __init__(self, vip: str, port: int, udp_rate: float = 0, tcp_rate: float = 0) -> None:
        self.target = vip, port
        self.udp_interval = 1 / udp_rate if udp_rate else 0
        self.tcp_interval = 1 / tcp_rate if tcp_rate else 0
        self.flows = [Flow(vip, port) for _number in range(LOAD_FLOWS)]
        self.udp_sent = 0
        self.udp_latencies: list[float] = []
        self.tcp_sent = 0
        self.tcp_answered = 0
        self.tcp_reconnects = 0
        self.tcp_segments_lost = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._udp), threading.Thread(target=self._tcp)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> dict[str, float]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return {
            "udp_sent": self.udp_sent,
            "udp_replies": len(self.udp_latencies),
            "udp_slowest_ms": round(1000 * max(self.udp_latencies, default=0.0), 2),
            "tcp_requests": self.tcp_sent,
            "tcp_replies": self.tcp_answered,
            "tcp_reconnects": self.tcp_reconnects,
            "tcp_segments_lost": self.tcp_segments_lost,
        }

    def _udp(self) -> None:
        poll = select.epoll()
        by_descriptor = {flow.socket.fileno(): flow for flow in self.flows}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        asked: dict[int, tuple[bytes, float]] = {}

        def collect(wait: float) -> None:
            for descriptor, _event in poll.poll(wait):
                reply = by_descriptor[descriptor].answer()
                if reply is None or descriptor not in asked:
                    continue
                request, sent_at = asked.pop(descriptor)
                backend_of(reply, by_descriptor[descriptor].port, request)
                self.udp_latencies.append(time.monotonic() - sent_at)

        due = time.monotonic()
        while not self._stop.is_set():
            for descriptor, flow in by_descriptor.items():
                if self._stop.is_set():
                    break
                waiting = asked.get(descriptor)
                if waiting and time.monotonic() - waiting[1] < TIMEOUT:
                    # Its answer may still come; asking again could hide a loss.
                    collect(POLL_INTERVAL)
                    continue
                asked[descriptor] = (flow.ask(), time.monotonic())
                self.udp_sent += 1
                collect(0 if self.udp_interval else POLL_INTERVAL)
                # Requests that are late go out at once, as those of many clients would.
                due += self.udp_interval
                while (left := due - time.monotonic()) > 0:
                    collect(left)
        deadline = time.monotonic() + TIMEOUT
        while asked and time.monotonic() < deadline:
            collect(0.1)

    def _tcp(self) -> None:
        """Without a flow table, a connection open in the very moment its flow moves is reset; clients connect again."""
        while not self._stop.wait(self.tcp_interval):
            self.tcp_sent += 1
            answer: str | None = None
            try:
                answer, lost = connect(*self.target)
                self.tcp_segments_lost += lost
            except ConnectionResetError:
                self.tcp_reconnects += 1
                answer = connect_once(*self.target)
            except OSError:
                # A loss, whatever a second attempt would say.
                pass
            self.tcp_answered += answer is not None


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    flows: list[Flow] = []
    held: list[Connection] = []
    load: Load | None = None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        result: object = None
        if command == "open_flows":
            count, vip, port = arguments
            flows = [Flow(vip, port) for _number in range(count)]
        elif command == "ask_flows":
            result = ask_all(flows)
        elif command == "connect":
            count, vip, port = arguments
            result = Counter(connect_once(vip, port) or "" for _number in range(count))
        elif command == "hold":
            count, vip, port = arguments
            held += [Connection(vip, port) for _number in range(count)]
        elif command == "ask_held":
            result = [ask_once(connection) for connection in held]
        elif command == "release":
            for connection in held:
                connection.socket.close()
            held = []
        elif command == "start_load":
            load = Load(*arguments)
            load.start()
        elif command == "stop_load" and load is not None:
            result = load.stop()
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
