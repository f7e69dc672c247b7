# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lbops-top on the balancer: against a known number of packets of a known size, from cron, and at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.integration.conftest import DIRECTORY, INTERFACE, Lab
from tests.support.client import Client

pytestmark = pytest.mark.usefixtures("site")

FLOWS = 200
# Ethernet, IPv4, UDP; "flow 40000 request 1" there, "be1 10.77.1.10:40000 " before it on the way back.
REQUEST = 14 + 20 + 8 + 20
REPLY = REQUEST + 21
INTERVAL = 6  # seconds
# Of that, until the first read has certainly been.
START = 3  # seconds


@pytest.fixture(scope="module")
def measured(lab: Lab) -> tuple[dict, Counter[str]]:
    """The document of an interval in which each flow sent a request, and who answered."""
    # The kernel sends the replies to a client whose Ethernet address it has yet to find out.
    lab.ask("10.77.0.10", 7, 5)
    client = Client(DIRECTORY / "ssh_config")
    try:
        client("open_flows", FLOWS, "10.77.0.10", 7)
        top = subprocess.Popen(
            ["ssh", "-F", DIRECTORY / "ssh_config", "lb1", f"lbops-top --once --json --interval {INTERVAL}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(START)
        answers = Counter(client("ask_flows"))
        output = top.communicate(timeout=30)[0]
    finally:
        client.close()
    assert top.returncode == 0 and output.count("\n") == 1
    return json.loads(output), answers


def test_rates_are_those_of_the_traffic(measured):
    document, answers = measured
    [balancer] = document["balancers"]
    seconds = balancer["seconds"]
    assert INTERVAL <= seconds < INTERVAL + 1
    assert sum(answers.values()) == FLOWS and None not in answers
    assert balancer["balancer"] == "main"
    assert [(entry["interface"], entry["hook"]) for entry in balancer["program"]["interfaces"]] == [
        (INTERFACE, "native")
    ]
    expected = {service["name"]: 0 for service in balancer["services"]} | {"echo-udp": FLOWS}
    assert sorted(expected) == ["echo-dsr", "echo-tcp", "echo-udp"]
    for service in balancer["services"]:
        of_backends = answers if service["name"] == "echo-udp" else Counter()
        check(service, expected[service["name"]], seconds)
        assert {backend["name"] for backend in service["backends"]} == {"be1", "be2", "be3"}
        for backend in service["backends"]:
            check(backend, of_backends[backend["name"]], seconds)
            share = of_backends[backend["name"]] / FLOWS
            assert backend["share"] == (pytest.approx(share, abs=0.001) if of_backends else None)
    check(balancer["total"], FLOWS, seconds)


def check(entry: dict, packets: int, seconds: float) -> None:
    """The rates are rounded, the time to a millisecond."""
    replies = entry["reply_packets_per_second"], entry["reply_bits_per_second"]
    assert entry["packets_per_second"] * seconds == pytest.approx(packets, rel=0.001, abs=0.01)
    assert entry["bits_per_second"] * seconds == pytest.approx(8 * packets * REQUEST, rel=0.001, abs=0.01)
    if entry.get("service", entry.get("name")) == "echo-dsr":
        assert replies == (None, None)
    else:
        assert replies[0] * seconds == pytest.approx(packets, rel=0.001, abs=0.01)
        assert replies[1] * seconds == pytest.approx(8 * packets * REPLY, rel=0.001, abs=0.01)


def test_from_cron_it_is_plain_text(lab):
    output = lab.ssh("lb1", "cd /; env -i /usr/sbin/lbops-top --once --interval 0.5 2>&1")
    assert "\x1b" not in output and output.isascii()
    lines = output.splitlines()
    assert re.fullmatch(r"lb1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  sorted by service", lines[0])
    assert re.fullmatch(rf"main: {INTERFACE} native; rates over 0\.\d s", lines[1])
    assert [line.split()[0] for line in lines[2:] if line] == [
        *("drop", "pass", "TO", "NAME", "total"),
        *("echo-dsr", "be1", "be2", "be3", "echo-tcp", "be1", "be2", "be3", "echo-udp", "be1", "be2", "be3"),
    ]
    assert re.search(r"(?m)^  be1 +10\.77\.2\.11:8080 +1  enabled  ", output)


def test_json_goes_on_until_it_is_stopped(lab):
    output = lab.ssh("lb1", "timeout --signal INT 4 lbops-top --json --interval 0.5 2>&1", check=False)
    documents = [json.loads(line) for line in output.splitlines()]
    assert len(documents) >= 3
    assert all(0.5 <= document["balancers"][0]["seconds"] < 2 for document in documents)


def test_nobody_reading_is_no_error(lab):
    output = lab.ssh("lb1", "timeout 10 lbops-top --json --interval 0.1 2>&1 | head -c 1")
    assert output == "{"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("runuser -u nobody -- lbops-top --once", "only root may read the maps of BPF programs; run sudo lbops-top"),
        (
            "lbops-top --once --balancer web",
            "this host has no balancer web, but main; apply the role lbops.xdp.balancer",
        ),
        ("lbops-top </dev/null", "this is not a terminal to draw on; --once writes one table"),
        (
            "unshare -m sh -c 'mount -t tmpfs none /var/lib/lbops; lbops-top --once'",
            "this host has no balancer; apply the role lbops.xdp.balancer",
        ),
    ],
)
def test_what_cannot_be_is_told_with_a_remedy(lab, command, words):
    *output, status = lab.ssh("lb1", f"{command} 2>&1; echo $?").splitlines()
    assert status == "1" and len(output) == 1
    assert output[0].startswith(f"lbops-top: {words}")


def test_a_program_that_is_gone_is_told_of(lab, spare_interface):
    made = lab.module("xdp_program", balancer="spare", interfaces=[spare_interface], mode="generic")
    assert not made.get("failed"), made
    lab.ssh("lb1", f"rm /sys/fs/bpf/lbops/spare/programs/{spare_interface}")
    *output, status = lab.ssh("lb1", "lbops-top --once --interval 0.1; echo $?").splitlines()
    assert status == "1"
    remedy = "systemctl restart lbops-restore@spare puts it back"
    assert f"spare: the balancer's program is not loaded; {remedy}" in output
    assert any(line.startswith(f"main: {INTERFACE} native; ") for line in output)
    # A balancer that is well is not bothered by another.
    assert lab.ssh("lb1", "lbops-top --once --interval 0.1 --balancer main >/dev/null; echo $?") == "0"


class Session:
    """Somebody's terminal, logged in over SSH."""

    def __init__(self, command: str) -> None:
        self.output = ""
        self.process, self.terminal = pty.fork()
        if not self.process:
            os.execvp("ssh", ["ssh", "-tt", "-F", str(DIRECTORY / "ssh_config"), "lb1", command])
        self.resize(80)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def press(self, keys: str) -> None:
        """What is shown from here on is new."""
        self.output = ""
        os.write(self.terminal, keys.encode())

    def wait(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 20
        while not (found := re.search(pattern, self.output)):
            assert select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))[0], self.output[-2000:]
            try:
                self.output += os.read(self.terminal, 65536).decode()
            except OSError:
                # The other side is closed.
                raise AssertionError(f"it ended without {pattern!r}: {self.output!r}") from None
        return found

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.process, 0)


@pytest.fixture
def session() -> Iterator[Session]:
    # Somebody's shell: it notes the terminal's settings before and after.
    session = Session("trap : INT; stty -g; TERM=xterm lbops-top --interval 0.3; echo ended $?; stty -g")
    yield session
    session.close()


def settings_after(session: Session) -> str:
    """Where the other screen was left, the cursor is back and the command ended."""
    return session.wait(r"\x1b\[\?25h\x1b\[\?1049l(?s:.*)ended (\d+)\r\n(\S+)\r\n")[2]


def test_a_person_looks_on(lab, session):
    before = session.wait(r"(\S+)\r\n\x1b\[\?1049h\x1b\[\?25l")[1]
    session.wait(r"rates over \d")
    for name in (
        "TO CLIENTS",
        "echo-udp  10.77.0.10:7/udp  dnat maglev",
        r"  be3 +10\.77\.2\.13:8080",
        "sorted by service",
    ):
        session.wait(name)
    session.press("s")
    session.wait("sorted by backend")
    session.press("\x1b[C")
    session.wait("sorted by state")
    session.press("?")
    session.wait("q            quit")
    session.press("x")
    session.wait("TO CLIENTS")
    session.output = ""
    session.resize(50)
    session.wait(r"TO BACKENDS\x1b")
    session.press("q")
    assert settings_after(session) == before
    assert "ended 0" in session.output


def test_control_c_leaves_the_terminal_as_it_was(session):
    before = session.wait(r"(\S+)\r\n\x1b\[\?1049h\x1b\[\?25l")[1]
    session.wait("rates over")
    session.press("\x03")
    assert settings_after(session) == before
    assert "ended 130" in session.output and "Traceback" not in session.output


def test_suspended_it_gives_the_terminal_back(lab, session):
    before = session.wait(r"(\S+)\r\n\x1b\[\?1049h\x1b\[\?25l")[1]
    session.wait("rates over")
    session.press("\x1a")
    session.wait(r"\x1b\[\?25h\x1b\[\?1049l")
    session.output = ""
    lab.ssh("lb1", "pkill -CONT -f lbops_top")
    session.wait(r"\x1b\[\?1049h\x1b\[\?25l(?s:.*)sorted by service")
    session.press("q")
    assert settings_after(session) == before
