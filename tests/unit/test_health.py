# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the health checks go by: options, rise and fall, the frames and messages they make, the lines they log."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins import module_utils
from ansible_collections.lbops.xdp.plugins.filter import inventory
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import observed
from ansible_collections.lbops.xdp.plugins.module_utils.config import health
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

# The program finds the engine by the name it has on a host; modules of their own, apart from the collection's.
engine = types.ModuleType("engine")
engine.__path__ = list(module_utils.__path__)
sys.modules.setdefault("engine", engine)

from roles.health.files import applier, dns, frames, icmp, log, rounds, web  # noqa: E402
from roles.health.files.check_errors import CheckErrors  # noqa: E402
from roles.health.files.checks import problem_of  # noqa: E402
from roles.health.files.common import CannotCheck, Failed, Target  # noqa: E402
from roles.health.files.healthy_counts import HealthyCounts  # noqa: E402
from roles.health.files.states import Status  # noqa: E402

SERVICE = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80, "backends": "servers"}
GROUPS = {"servers": ["one", "two"]}
HOSTVARS = {"one": {"ansible_host": "198.51.100.1"}, "two": {"ansible_host": "198.51.100.2"}}


# --- rise and fall


@pytest.mark.parametrize(
    "rise, fall, checks, states",
    [
        # One letter a check, good or bad; then what the backend is after each: up, down, or ? for neither.
        (2, 3, "ggg", "uuu"),
        (2, 3, "bbbb", "??dd"),
        (2, 3, "bbgbbb", "??uuud"),
        (2, 3, "gbbgbbb", "uuuuuud"),
        (2, 3, "gbbbgg", "uuuddu"),
        (2, 3, "gbbbgbgg", "uuuddddu"),
        (1, 1, "gbgb", "udud"),
        (3, 1, "bggbggg", "ddddddu"),
        (1, 2, "bbgbb", "?duud"),
        (1, 2, "bgbb", "?uud"),
    ],
)
def test_rise_and_fall(rise, fall, checks, states):
    status = Status(rise, fall)
    found = ""
    for letter in checks:
        before = status.healthy
        changed = status.note(letter == "g")
        assert changed == (status.healthy is not before)
        found += {True: "u", False: "d", None: "?"}[status.healthy]
    assert found == states


def test_what_was_known_before_a_restart_goes_on():
    status = Status(2, 2, False)
    assert [status.note(True), status.note(True), status.healthy] == [False, True, True]


def test_who_is_left():
    from engine.config.model import BackendKey

    def made(host: int, **backend: Any) -> Target:
        found = target(host=host)
        return replace(found, backend=found.backend._replace(**backend))

    targets = by_key(made(1), made(2), made(3, state="drained"), made(4, weight=0))
    statuses = {key: Status(1, 1) for key in targets}
    one, two, drained, idle = targets.values()
    counts = HealthyCounts()
    counts.set(targets, statuses)
    # Before, after, and whether nobody is left by that.
    for each, before, healthy, nobody in (
        (one, None, False, False),
        (drained, None, False, False),
        (two, None, True, False),
        (two, True, False, True),
        (idle, None, False, False),
        (one, False, True, False),
        (one, True, False, True),
    ):
        assert counts.note(each, before, healthy) == nobody
    statuses[BackendKey("web", "198.51.100.1", None)].healthy = False
    counts.set(targets, statuses)
    assert counts.note(two, True, False)


# --- options


def check(**options: Any) -> health.Health:
    return health.parse_one("web", options)


def test_defaults():
    found = check(check="tcp")
    assert (found.interval, found.timeout, found.rise, found.fall, found.all_down) == (2, 1, 2, 3, "keep")
    assert not found.end_to_end


@pytest.mark.parametrize("interval, fall", [(0.1, 1), (1, 1), (1, 3), (2, 3), (10, 5)])
def test_checks_that_end_by_their_timeout_keep_to_interval_times_fall(interval, fall):
    """The backend dies right after a check; from then on each takes its whole timeout."""
    for timeout in (0.01, interval / 4, interval / 2):
        found = check(check="tcp", interval=interval, fall=fall, timeout=timeout)
        clock = 0.0
        for _check in range(fall):
            start = clock + max(found.gap, 0.0)
            ended = start + timeout
            clock = max(start, ended - found.gap)
        assert ended <= interval * fall + 1e-9


def test_a_short_interval_has_a_short_timeout():
    assert check(check="tcp", interval=0.5).timeout == 0.25


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "service web: health: check is missing"),
        ({"check": "ping"}, "service web: health: check 'ping' is not one of tcp, http, https, udp, dns, icmp"),
        ({"check": "tcp", "intervall": 3}, "service web: health: unknown key 'intervall'; known are all_down, body"),
        ({"check": "tcp", "interval": "2s"}, "service web: health: interval '2s' is not a number of seconds"),
        ({"check": "tcp", "interval": 0}, "interval 0 is not between 0.1 and 3600 seconds"),
        ({"check": "tcp", "interval": True}, "interval True is not a number of seconds"),
        ({"check": "tcp", "interval": 1, "timeout": 0.8}, "lower it to 0.5, or raise interval to 1.6"),
        ({"check": "tcp", "rise": 0}, "rise 0 is not between 1 and 100"),
        ({"check": "tcp", "fall": "two"}, "fall 'two' is not a whole number"),
        ({"check": "tcp", "path": "/"}, "path is for http and https, not for tcp; leave it out"),
        ({"check": "icmp", "port": 80}, "port is for tcp and http and https and udp and dns, not for icmp"),
        ({"check": "tcp", "port": 65536}, "port 65536 is not between 1 and 65535"),
        ({"check": "tcp", "source": "lb1"}, "source 'lb1' is not an IPv4"),
        ({"check": "tcp", "all_down": "none"}, "all_down 'none' is not one of keep, drop"),
        ({"check": "tcp", "end_to_end": "yes"}, "end_to_end 'yes' is neither true nor false"),
        ({"check": "udp"}, "service web: health: request is missing"),
        ({"check": "dns"}, "service web: health: name is missing"),
        ({"check": "dns", "name": "a..b"}, "name 'a..b' is not one such as www.example.net"),
        ({"check": "http", "path": "health"}, "path 'health' is not one such as /health"),
        ({"check": "http", "path": "/a b"}, "path '/a b' is not one such as"),
        ({"check": "http", "host": "a\r\nX: y"}, "is not one such as www.example.net"),
        ({"check": "http", "host": "www..example.net"}, "host 'www..example.net' is not one such as www.example.net"),
        ({"check": "http", "host": ".example.net"}, "is not one such as www.example.net"),
        ({"check": "http", "host": "www.example.net."}, "is not one such as www.example.net"),
        ({"check": "http", "host": "a" * 64}, "is not one such as www.example.net"),
        ({"check": "http", "host": "a." * 127}, "is not one such as www.example.net"),
        ({"check": "http", "host": ".".join(["a" * 62] * 5)}, "is not one such as www.example.net"),
        ({"check": "http", "host": "fd00::1"}, "is not one such as www.example.net, 192.0.2.1:8080 or [2001:db8::1]"),
        ({"check": "http", "host": "[fd00::1"}, "is not one such as www.example.net"),
        ({"check": "http", "host": "[fd00::1::2]"}, "is not one such as www.example.net"),
        ({"check": "http", "host": "[192.0.2.1]"}, "is not one such as www.example.net"),
        ({"check": "http", "host": "www.example.net:"}, "is not one such as www.example.net"),
        ({"check": "udp", "request": "x" * 65456}, "request is longer than 65455 bytes"),
        ({"check": "udp", "request": "ä" * 32728}, "request is longer than 65455 bytes"),
        ({"check": "udp", "request": "a\ud800"}, "request 'a\\ud800' holds half a character"),
        ({"check": "udp", "request": "x", "response": "x" * 65508}, "response is longer than 65507 bytes"),
        ({"check": "http", "body": "x" * 1048577}, "body is longer than 1048576 bytes, the most that is read"),
        ({"check": "http", "body": "\udfff"}, "body '\\udfff' holds half a character"),
        ({"check": "http", "host": "a:99999"}, "host 'a:99999' is not one such as"),
        ({"check": "http", "host": "[::1]:0"}, "host '[::1]:0' is not one such as"),
        ({"check": "dns", "name": ".".join(["a"] * 128)}, "name is longer than 253 characters"),
        ({"check": "http", "status": 700}, "status 700 is neither a status such as 200 nor a range"),
        ({"check": "http", "status": "300-200"}, "status '300-200' is neither"),
        ({"check": "http", "status": "100-299"}, "status '100-299' is neither"),
        ({"check": "http", "status": []}, "status is an empty list"),
        ({"check": "http", "body": 5}, "body 5 is not a text; put it in quotes"),
        ({"check": "http", "verify": True}, "verify is for https, not for http; leave it out"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(EngineError) as caught:
        check(**options)
    assert words in str(caught.value) and str(caught.value).startswith("service web: health: ")


def test_the_longest_name():
    assert check(check="dns", name=".".join(["a"] * 127) + ".").name


@pytest.mark.parametrize(
    "host", ["www.example.net", "a", "a_b.example.net:8443", "192.0.2.1:80", "[2001:db8::1]", "[2001:db8::1]:8080"]
)
def test_hosts(host):
    assert check(check="https", host=host).host == host


@pytest.mark.parametrize("version", [4, 6])
def test_the_longest_request_fits_into_a_packet_behind_a_tunnels_header(version):
    from engine.config.addresses import Address

    packet = frames.udp(flow(version), check(check="udp", request="x" * 65455).request.encode())
    frames.ip_packet(Address("10.0.0.1"), Address("10.0.0.2"), 4, packet)


@pytest.mark.parametrize(
    "status, ranges", [(200, [[200, 200]]), ("200-299", [[200, 299]]), ([200, "301-302"], [[200, 200], [301, 302]])]
)
def test_status(status, ranges):
    assert check(check="http", status=status).status == ranges


def problems(**service: Any) -> list[str]:
    return inventory.inventory_problems([{**SERVICE, **service}], GROUPS, HOSTVARS)


def test_a_good_check_is_no_problem():
    assert problems(health={"check": "tcp"}) == []


@pytest.mark.parametrize(
    "service, words",
    [
        ({"health": "tcp"}, "service web: health is 'tcp', not a mapping such as {check: tcp}"),
        ({"health": {"check": "no"}}, "check 'no' is not one of"),
        ({"port": "any", "health": {"check": "tcp"}}, "port is missing: the service is on any port"),
        ({"health": {"check": "tcp", "end_to_end": True}}, "end_to_end is for dsr, ipip, gue"),
        (
            {"forwarding": "dsr", "health": {"check": "http", "end_to_end": True}},
            "end_to_end cannot check http here, which needs a whole connection; take one of tcp, udp, dns, icmp",
        ),
        (
            {"health": {"check": "tcp", "source": "fd00::1"}},
            "source 'fd00::1' is IPv6, which cannot reach 198.51.100.1",
        ),
    ],
)
def test_what_does_not_fit_the_service_is_told_before_any_host_is_touched(service, words):
    [problem] = problems(**service)
    assert words in problem and problem.startswith("service web: health")


MIXED = {"forwarding": "ipip", "source": "2001:db8::/64", "address": "192.0.2.10"}


def test_a_tunnel_of_the_other_family_needs_a_source():
    hosts = {name: {"ansible_host": f"2001:db8::{number}"} for number, name in enumerate(GROUPS["servers"], 1)}

    def found(**options: Any) -> list[str]:
        service = {**SERVICE, **MIXED, "health": {"check": "tcp", **options}}
        return inventory.inventory_problems([service], GROUPS, hosts)

    [problem] = found(end_to_end=True)
    assert problem.startswith("service web: health: source is missing: the VIP answers to IPv4, and the way to")
    assert problem.endswith("give an IPv4 address of the balancer")
    assert found(end_to_end=True, source="192.0.2.1") == found() == []


def test_redirect_has_nothing_to_check():
    service = {**SERVICE, "forwarding": "redirect", "interfaces": ["eth1"], "health": {"check": "icmp"}}
    assert "leave health out" in inventory.inventory_problems([service], GROUPS, HOSTVARS)[0]


def test_the_data_plane_is_told_nothing_of_it():
    declared = {**SERVICE, "health": {"check": "tcp"}}
    assert inventory.services([declared]) == inventory.services([SERVICE])


def test_what_the_role_writes_is_what_the_program_reads():
    declared = [{**SERVICE, "health": {"check": "http", "status": 204}}, {**SERVICE, "name": "unchecked"}]
    rows = json.loads(json.dumps(inventory.health_checks(declared)))
    assert health.load(rows) == {"web": health.parse_one("web", {"check": "http", "status": 204})}


# --- messages


def test_an_echo_request_has_the_checksum_of_the_internet():
    packet = icmp.request(4, b"0123456789abcdef")
    assert icmp.checksum(packet) == 0 and packet[0] == 8


def test_only_the_reply_to_this_request_counts():
    token = b"0123456789abcdef"
    header = bytes([0x45]) + bytes(19)
    reply = header + bytes([0]) + icmp.request(4, token)[1:]
    assert icmp.is_reply(4, reply, token)
    assert not icmp.is_reply(4, header + icmp.request(4, token), token)
    assert not icmp.is_reply(4, reply, token[::-1])


def test_dns():
    request = dns.query("www.example.net.")
    assert request[12:] == b"\x03www\x07example\x03net\0\0\x01\0\x01"
    answer = request[:2] + b"\x81\x80" + request[4:]
    dns.verify(request, answer)
    for wrong, words in (
        (b"", "no DNS message"),
        (request, "another question"),
        (bytes(2) + answer[2:] if request[:2] != bytes(2) else b"\1\1" + answer[2:], "another question"),
        (answer[:3] + b"\x83" + answer[4:], "NXDOMAIN"),
        (answer[:3] + b"\x82" + answer[4:], "SERVFAIL"),
    ):
        with pytest.raises(Failed, match=words):
            dns.verify(request, wrong)


def test_a_check_without_the_source_it_needs_says_nothing_of_the_backend():
    found = target(address="2001:db8::10", forwarding="ipip", source="198.51.100.9")
    options = {"check": "udp", "request": "?", "end_to_end": True, "source": "2001:db8::1"}
    parsed = replace(health.parse_one("web", options), source=None)
    with pytest.raises(CannotCheck, match="source is missing"):
        asyncio.run(problem_of(replace(found, health=parsed)))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 0}'])
def test_a_damaged_health_file_is_as_good_as_none(tmp_path, content):
    path = tmp_path / "health-main.json"
    path.write_text(content)
    assert observed.load(path) == observed.Observed()


@pytest.mark.parametrize(
    "host, name",
    [("www.example.net", "www.example.net"), ("www.example.net:8443", "www.example.net"), ("[fd00::1]:80", "fd00::1")],
)
def test_the_name_of_a_certificate(host, name):
    from engine.config.parsing import parse_backends, parse_services

    services = parse_services([{key: value for key, value in SERVICE.items() if key != "backends"}])
    [backend] = parse_backends([{"service": "web", "address": "fd00::2"}]).values()
    for given, expected in ((host, name), (None, "fd00::2")):
        options = {"check": "https", **({"host": given} if given else {})}
        target = Target(health.parse_one("web", options), services["web"], backend, ("eth0",))
        assert web.server_name(target) == expected


# --- frames of end_to_end, by scapy's account


def flow(version: int, ports: bool = True) -> frames.Flow:
    from engine.config.addresses import Address

    addresses = ("10.77.2.1", "10.77.0.130") if version == 4 else ("fd00::1", "fd00::130")
    return frames.Flow(*map(Address, addresses), *((40000, 8080) if ports else ()))


def sound(packet: bytes, version: int) -> Packet:
    """As scapy reads it; checksums that it computes anew are the same."""
    kind = IP if version == 4 else IPv6
    read = kind(packet)
    again = kind(packet)
    for layer in (IP, TCP, UDP, ICMP, ICMPv6EchoRequest, ICMPv6EchoReply):
        if again.haslayer(layer):
            for field in ("chksum", "cksum", "len", "plen"):
                if field in again[layer].fields:
                    delattr(again[layer], field)
    assert bytes(again) == packet
    return read


def swapped(request: Packet) -> Packet:
    """What goes back, without the layers above."""
    kind = type(request)
    return kind(src=request.dst, dst=request.src)


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_and_its_answer(version):
    request = sound(frames.udp(flow(version), b"odd"), version)
    assert (request[UDP].sport, request[UDP].dport, bytes(request[UDP].payload)) == (40000, 8080, b"odd")
    answer = bytes(swapped(request) / UDP(sport=8080, dport=40000) / b"yes")
    mark = frames.mark_of(flow(version), 17)
    for whole in (answer, answer + bytes(9)):
        found, datagram = frames.answer_in(version, whole)
        assert (found, datagram[8:]) == (mark, b"yes")
    for other in (
        request,
        swapped(request) / UDP(sport=8081, dport=40000),
        swapped(request) / UDP(sport=8080, dport=40001),
        swapped(request) / TCP(sport=8080, dport=40000),
    ):
        assert frames.answer_in(version, bytes(other))[0] != mark
    for length in range(len(answer)):
        assert length > 40 or frames.answer_in(version, answer[:length]) != (mark, b"")
    assert frames.answer_in(10 - version, answer) is frames.answer_in(version, b"") is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "flags, acknowledged, accepted",
    [("SA", 1, True), ("R", 1, False), ("RA", 1, False), ("A", 1, None), ("SA", 2, None), ("RA", 0, None)],
)
def test_a_handshake(version, flags, acknowledged, accepted):
    sequence = 0xFFFFFFFF
    request = sound(frames.tcp(flow(version), sequence, frames.SYN), version)
    assert (request[TCP].seq, str(request[TCP].flags)) == (sequence, "S")
    number = (sequence + acknowledged) % 2**32
    answer = swapped(request) / TCP(sport=8080, dport=40000, flags=flags, ack=number)
    mark, segment = frames.answer_in(version, bytes(answer))
    assert mark == frames.mark_of(flow(version), 6)
    assert frames.syn_answer(segment, sequence) is accepted


@pytest.mark.parametrize("version", [4, 6])
def test_an_echo_to_the_vip(version):
    token, here = b"0123456789abcdef", flow(version, ports=False)
    request = sound(frames.echo(here, token), version)
    kind = ICMP(type=0) if version == 4 else ICMPv6EchoReply()
    answer = swapped(request) / kind / token
    protocol = frames.ICMP_OF[version]
    assert frames.answer_in(version, bytes(answer))[0] == frames.mark_of(here, protocol, token)
    assert frames.answer_in(version, bytes(request)) is None


# --- the log


def test_a_line_of_the_log():
    fields = {"service": "web", "reason": 'connection "refused"', "name": None}
    assert log.line("main", "down", fields) == (
        'health balancer=main event=down service=web reason="connection \\"refused\\""'
    )


def test_a_hindrance_is_told_when_it_begins_and_when_it_ends():
    from engine.config.model import BackendKey

    told = []
    one, two = (BackendKey("web", address, None) for address in ("one", "two"))
    noted = CheckErrors(lambda event, **fields: told.append((event, fields["service"], fields["reason"])))
    for key, reason in ((one, "a"), (two, "a"), (one, "a"), (one, "b"), (one, ""), (one, "")):
        noted.note(key, reason)
    assert told == [("cannot_check", "web", "a"), ("cannot_check", "web", "b"), ("can_check", "web", "b")]
    told.clear()
    noted.keep([one])
    noted.keep([])
    assert told == [("can_check", "web", "a")]


# --- rhythm


def test_checks_keep_their_rhythm_and_never_pause_too_long(monkeypatch):
    """Time is made: a sleep moves the clock."""
    moments: list[float] = []
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        if len(moments) == 50:
            raise asyncio.CancelledError

    class Loop:
        time = staticmethod(lambda: now[0])

    class Checked:
        health = health.parse_one("web", {"check": "tcp", "interval": 2, "timeout": 0.9, "fall": 3})

    async def problem(_target: object) -> str:
        moments.append(now[0])
        now[0] += 0.5
        return ""

    monkeypatch.setattr(rounds.asyncio, "sleep", sleep)
    monkeypatch.setattr(rounds.asyncio, "get_running_loop", Loop)
    coroutine = rounds.watch(Checked, lambda _problem: None, lambda _reason: None, problem)
    with pytest.raises(asyncio.CancelledError):
        coroutine.send(None)
    pauses = [later - earlier for earlier, later in zip(moments, moments[1:])]
    assert moments[0] <= 1.7 and max(pauses) <= 1.7 + 1e-9 and min(pauses) >= 1.53 - 1e-9
    assert len({round(pause, 6) for pause in pauses}) > 10


def target(weight: int = 1, host: int = 1, **service: Any) -> Target:
    from engine.config.parsing import parse_backends, parse_services

    declared = {key: value for key, value in SERVICE.items() if key != "backends"}
    [parsed] = parse_services([{**declared, **service}]).values()
    backend = {"service": "web", "address": f"198.51.100.{host}", "weight": weight}
    [member] = parse_backends([backend]).values()
    # The first check comes at once, or nearly so.
    return Target(check(check="tcp", interval=0.1, fall=1), parsed, member, ("eth0",))


def by_key(*targets: Target) -> dict:
    return {each.backend.key: each for each in targets}


class Checks:
    """Each waits until it is let go; a cancellation is swallowed, as wait_for() may."""

    def __init__(self) -> None:
        self.begun: list[Target] = []
        self.go = asyncio.Event()

    async def problem(self, target: Target) -> str:
        self.begun.append(target)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            pass
        return str(target.service.first_port)

    async def begin(self, count: int) -> None:
        while len(self.begun) < count:
            await asyncio.sleep(0.01)


def unhindered(_target: Target, reason: str) -> None:
    raise AssertionError(reason)


@pytest.mark.parametrize("after", [[target(port=81)], [], [target(host=2)]], ids=["changed", "gone", "another"])
def test_a_check_that_outlives_its_cancellation_says_nothing_and_ends(after):
    async def run() -> None:
        checks, found = Checks(), []
        running = rounds.Rounds(lambda *told: found.append(told), unhindered, checks.problem)
        running.set(by_key(target()))
        [zombie] = running._tasks.values()
        await checks.begin(1)
        running.set(by_key(*after))
        await asyncio.wait([zombie], timeout=1)
        assert zombie.done() and not found and not running.failures()
        await checks.begin(1 + len(after))
        checks.go.set()
        await asyncio.sleep(0.2)
        assert [each for each, _problem in found][: len(after)] == after
        running.set({})

    asyncio.run(run())


def test_what_a_check_does_not_use_neither_cancels_nor_delays_it():
    async def run() -> None:
        checks, found = Checks(), []
        running = rounds.Rounds(lambda target, _problem: found.append(target), unhindered, checks.problem)
        running.set(by_key(target()))
        [task] = running._tasks.values()
        await checks.begin(1)
        heavier = target(weight=5, scheduler="hash")
        running.set(by_key(heavier))
        assert list(running._tasks.values()) == [task]
        checks.go.set()
        while not found:
            await asyncio.sleep(0)
        # What it found is told of the backend as it is now.
        assert found == [heavier] and len(checks.begun) == 1
        running.set({})

    asyncio.run(run())


def test_what_lies_on_this_host_is_told_apart():
    async def run() -> None:
        found = asyncio.get_running_loop().create_future()
        reasons = ["no port to be had"]

        async def problem(_target: Target) -> str:
            if reasons:
                raise CannotCheck(reasons.pop())
            return "refused"

        told = []
        running = rounds.Rounds(
            lambda _target, problem: found.done() or found.set_result(problem),
            lambda _target, reason: told.append(reason),
            problem,
        )
        running.set(by_key(target()))
        assert await asyncio.wait_for(found, 1) == "refused" and told == ["no port to be had"]
        running.set({})

    asyncio.run(run())


# --- bringing it to the data plane


class Engine:
    """What the balancer answers, one call after the other, and what it was told."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.seen = list(answers), []

    def observe(self, seen: object, news: Any) -> object:
        from engine.balancer.health_view import Followed

        self.seen.append(seen)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer(self, news)
        return Followed(frozenset(), answer if isinstance(answer, str) else "")


def applied(monkeypatch: pytest.MonkeyPatch, engine: Engine, until: int) -> list[tuple[str, str]]:
    """What is logged until that many calls were made."""
    monkeypatch.setattr(applier, "RETRY", 0.01)
    told: list[tuple[str, str]] = []

    async def run() -> None:
        made = applier.Applier(engine, lambda: len(engine.seen), lambda event, **fields: told.append((event, fields)))
        engine.applier = made
        made.now()
        running = asyncio.ensure_future(made.run())
        while len(engine.seen) < until or made._wanted.is_set():
            await asyncio.sleep(0.005)
            if running.done():
                running.result()
        await asyncio.sleep(0.05)
        running.cancel()

    asyncio.run(run())
    return [(event, str(fields.get("reason", ""))) for event, fields in told]


def test_trouble_is_told_when_it_begins_and_when_it_ends(monkeypatch):
    from engine.errors import EngineError

    engine = Engine(EngineError("one"), EngineError("one"), EngineError("two"), "full", "full", "")
    assert applied(monkeypatch, engine, 6) == [
        ("not_applied", "one"),
        ("not_applied", "two"),
        ("applied", ""),
        ("not_saved", "full"),
        ("saved", ""),
    ]


def test_what_comes_in_while_rings_are_written_is_taken_up_between_them(monkeypatch):
    found = []

    def write(engine: Engine, news: Any) -> None:
        found.append(news())
        engine.applier._wanted.set()
        found.append(news())
        found.append(news())

    engine = Engine(write)
    assert applied(monkeypatch, engine, 1) == [("applied", "")]
    assert found == [None, 1, None] and engine.seen == [0]
