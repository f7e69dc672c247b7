# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lbops-top computes and writes, with numbers worked out by hand; no terminal and no kernel."""

from __future__ import annotations

import os
import signal
import time
from copy import deepcopy
from typing import Any

import pytest
from lbops_top import __main__ as top
from lbops_top import terminal as top_terminal
from lbops_top import view as top_view
from lbops_top.rates import Snapshot, report
from lbops_top.sort import SORTS, sort_services
from lbops_top.table import Line, table
from lbops_top.terminal import Terminal, parse_keys
from lbops_top.text import address_of, percent, quantity, state_of
from lbops_top.view import View, plain

PER_SECOND = ("packets", "bits", "reply_packets", "reply_bits")


def counters(packets: int = 0, size: int = 0, reply_packets: int = 0, reply_bytes: int = 0) -> dict[str, int]:
    return {"packets": packets, "bytes": size, "reply_packets": reply_packets, "reply_bytes": reply_bytes}


def service(name: str, forwarding: str = "dnat", **counted: int) -> dict[str, Any]:
    return {
        "name": name,
        "address": "192.0.2.10",
        "protocol": "udp",
        "port": 53,
        "scheduler": "maglev",
        "forwarding": forwarding,
        **counters(),
        **counted,
    }


def backend(of: str, number: int, **given: Any) -> dict[str, Any]:
    return {
        "service": of,
        "name": f"be{number}",
        "address": f"198.51.100.{number}",
        "port": 5353,
        "weight": 1,
        "state": "enabled",
        **counters(),
        **given,
    }


def interface(name: str = "eth0", **given: Any) -> dict[str, Any]:
    return {"interface": name, "present": True, "up": True, "attached": True, "hook": "native", **given}


def program(*interfaces: dict[str, Any], problems: tuple[str, ...] = ()) -> dict[str, Any]:
    found = list(interfaces or [interface()])
    return {"interfaces": found, "problems": list(problems), "program_id": 42}


def info(services: list, backends: list, **reasons: int) -> dict[str, Any]:
    return {
        "program": program(),
        "services": services,
        "backends": backends,
        "filters": [],
        "reasons": [
            {"reason": "no_route", "verdict": "drop", "packets": reasons.get("no_route", 0)},
            {"reason": "not_ours", "verdict": "pass", "packets": reasons.get("not_ours", 0)},
            {"reason": "not_ip", "verdict": "pass", "packets": reasons.get("not_ip", 0)},
            {"reason": "echo", "verdict": "tx", "packets": reasons.get("echo", 0)},
        ],
    }


def between(before: dict, after: dict, seconds: float = 2.0) -> dict[str, Any]:
    return report("main", Snapshot(1000.5, before), Snapshot(1000.5 + seconds, after))


def rates(entry: dict[str, Any]) -> list[float | None]:
    return [entry[f"{name}_per_second"] for name in PER_SECOND]


# Between these two, 2 seconds: 300 and 100 packets to two backends, 400 replies from the first; 7 dropped, 5 passed.
BEFORE = info(
    [service("dns", **counters(1000, 100000, 50, 7000))],
    [backend("dns", 1, **counters(600, 60000, 50, 7000)), backend("dns", 2, **counters(400, 40000))],
    no_route=3,
    not_ours=90,
)
AFTER = info(
    [service("dns", **counters(1400, 150000, 450, 47000))],
    [backend("dns", 1, **counters(900, 90000, 450, 47000)), backend("dns", 2, **counters(500, 60000))],
    no_route=10,
    not_ours=95,
)


class TestRates:
    def test_are_differences_by_time_and_bits_of_bytes(self):
        found = between(BEFORE, AFTER)
        [dns] = found["services"]
        assert found["seconds"] == 2.0
        assert rates(dns) == rates(found["total"]) == [200, 200000, 200, 160000]
        assert [rates(entry) for entry in dns["backends"]] == [[150, 120000, 200, 160000], [50, 80000, 0, 0]]
        assert [entry["share"] for entry in dns["backends"]] == [0.75, 0.25]
        assert [row["packets_per_second"] for row in found["reasons"]] == [3.5, 2.5, 0, 0]

    def test_of_a_first_read_are_not_known(self):
        found = report("main", None, Snapshot(5, AFTER))
        [dns] = found["services"]
        assert found["seconds"] is None
        for entry in (found["total"], dns, *dns["backends"]):
            assert rates(entry) == [None] * 4
        assert [entry["share"] for entry in dns["backends"]] == [None, None]
        assert {row["packets_per_second"] for row in found["reasons"]} == {None}

    def test_of_counters_that_began_anew_are_not_known(self):
        after = deepcopy(AFTER)
        # More bytes than before, so one counter alone tells.
        after["backends"][0].update(counters(10, 70000))
        first, second = between(BEFORE, after)["services"][0]["backends"]
        assert rates(first) == [None] * 4 and first["share"] is None
        assert rates(second) == [50, 80000, 0, 0] and second["share"] == 1

    def test_of_a_new_backend_are_not_known(self):
        after = deepcopy(AFTER)
        after["backends"].append(backend("dns", 3, **counters(10**12, 10**15)))
        assert [rates(entry)[0] for entry in between(BEFORE, after)["services"][0]["backends"]] == [150, 50, None]

    def test_follow_a_backend_wherever_it_is_listed_and_whatever_else_changes(self):
        after = deepcopy(AFTER)
        after["backends"].reverse()
        after["backends"][0].update(weight=7, state="drained", name="other")
        assert [rates(entry)[0] for entry in between(BEFORE, after)["services"][0]["backends"]] == [50, 150]

    def test_of_the_same_address_in_another_service_or_on_another_port_are_apart(self):
        before = info([service("a"), service("b")], [backend("a", 1), backend("b", 1), backend("b", 1, port=80)])
        after = deepcopy(before)
        for packets, entry in zip((2, 4, 6), after["backends"]):
            entry["packets"] = packets
        a, b = between(before, after)["services"]
        assert [rates(entry)[0] for entry in (*a["backends"], *b["backends"])] == [1, 2, 3]

    def test_a_backend_may_have_an_interface_instead_of_an_address(self):
        port = {"service": "dns", "interface": "eth1", "weight": 1, "state": "enabled", **counters()}
        before = info([service("dns", "redirect")], [port])
        after = info([service("dns", "redirect")], [{**port, "packets": 8}])
        assert rates(between(before, after)["services"][0]["backends"][0])[0] == 4

    @pytest.mark.parametrize("forwarding", ["dsr", "ipip", "redirect"])
    def test_of_replies_are_not_known_where_they_go_past(self, forwarding):
        before = info([service("dns", forwarding)], [backend("dns", 1)])
        [dns] = between(before, before)["services"]
        assert rates(dns) == rates(dns["backends"][0]) == [0, 0, None, None]

    def test_what_was_read_stays_in(self):
        after = deepcopy(AFTER)
        after["backends"][0]["healthy"] = False
        [dns] = between(BEFORE, after)["services"]
        assert dns["backends"][0]["healthy"] is False and dns["backends"][0]["packets"] == 900
        assert dns["scheduler"] == "maglev"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.04, "0.0"),
        (0.5, "0.5"),
        (9.94, "9.9"),
        (9.96, "10"),
        (999.4, "999"),
        (999.5, "1.00k"),
        (1234, "1.23k"),
        (9994, "9.99k"),
        (9996, "10.0k"),
        (99960, "100k"),
        (999499, "999k"),
        (999500, "1.00M"),
        (38046848592, "38.0G"),
        (2.5e12, "2.50T"),
        (1e16, "10000T"),
    ],
)
def test_quantities_are_short(value, text):
    assert quantity(value) == text


def test_shares_are_percents():
    assert [percent(share) for share in (None, 0, 0.333, 1)] == ["-", "0%", "33%", "100%"]


def test_addresses_have_their_port():
    assert address_of({"address": "192.0.2.1", "port": 80}) == "192.0.2.1:80"
    assert address_of({"address": "2001:db8::1", "port": "80-90"}) == "[2001:db8::1]:80-90"
    assert address_of({"address": "2001:db8::1"}) == "2001:db8::1"
    assert address_of({"interface": "eth1"}) == "eth1"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"state": "enabled"}, "enabled"),
        ({"state": "enabled", "healthy": None}, "enabled"),
        ({"state": "enabled", "healthy": True}, "healthy"),
        ({"state": "enabled", "healthy": False}, "unhealthy"),
        ({"state": "drained", "healthy": False}, "drained"),
        ({"state": "backup"}, "backup"),
        ({"state": "backup", "healthy": True}, "backup"),
        ({"state": "backup", "healthy": False}, "unhealthy"),
    ],
)
def test_states_say_what_keeps_new_packets_away(given, text):
    assert state_of(given) == text


class TestSorting:
    def services(self) -> list[dict[str, Any]]:
        """In no order at all: web10 is busy, web9 has an unhealthy backend, dns a drained one."""

        def of(name: str, *backends: dict[str, Any], packets: float = 0) -> dict[str, Any]:
            zero = {f"{rate}_per_second": 0 for rate in PER_SECOND}
            return {
                **service(name),
                **zero,
                "packets_per_second": packets,
                "backends": [{**backend(name, 0), **zero, **entry} for entry in backends],
            }

        return [
            of("web10", {"name": "be10", "packets_per_second": 5}, {"name": "be9", "packets_per_second": 4}, packets=9),
            of("dns", {"name": "be1"}, {"name": "be2", "state": "drained"}, packets=1),
            of("web9", {"name": "be3", "healthy": True}, {"name": "be4", "healthy": False}, packets=2),
        ]

    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("service", "dns: be1 be2, web9: be3 be4, web10: be10 be9"),
            ("backend", "web10: be9 be10, dns: be1 be2, web9: be3 be4"),
            ("state", "web9: be4 be3, dns: be2 be1, web10: be10 be9"),
            ("packets", "web10: be10 be9, web9: be3 be4, dns: be1 be2"),
            ("bits", "web10: be10 be9, dns: be1 be2, web9: be3 be4"),
        ],
    )
    def test_by_each_column(self, sort, names):
        assert self.names(sort_services(self.services(), sort)) == names

    def test_the_other_way_round(self):
        assert self.names(sort_services(self.services(), "packets", True)) == (
            "dns: be1 be2, web9: be3 be4, web10: be9 be10"
        )

    def names(self, services: list[dict[str, Any]]) -> str:
        return ", ".join(f"{entry['name']}: {' '.join(row['name'] for row in entry['backends'])}" for entry in services)

    @pytest.mark.parametrize("sort", SORTS)
    def test_what_is_not_known_sorts_too(self, sort):
        after = deepcopy(AFTER)
        after["backends"].append(backend("dns", 3))
        assert len(sort_services(between(BEFORE, after)["services"], sort)[0]["backends"]) == 3


class TestTable:
    FULL = """\
main: eth0 native; rates over 2.0 s
  drop      3.5 packets/s  no_route 3.5
  pass      2.5 packets/s  not_ours 2.5

                                                   TO BACKENDS     TO CLIENTS
NAME   ADDRESS            WEIGHT  STATE    PKTS/S BITS/S SHARE  PKTS/S BITS/S
total                                         200   200k           200   160k
dns  192.0.2.10:53/udp  dnat maglev           200   200k           200   160k
  be1  198.51.100.1:5353       1  enabled     150   120k   75%     200   160k
  be2  198.51.100.2:5353       1  enabled      50  80.0k   25%       0      0
"""

    def text(self, width: int, after: dict | None = None) -> str:
        head, rows = table(between(BEFORE, after or AFTER), width, "service")
        return "".join(f"{line.text.rstrip()}\n" for line in head + rows)

    @pytest.mark.parametrize("width", [78, 80, 140, 1000])
    def test_is_as_wide_as_it_has_to_be(self, width):
        assert self.text(width) == self.FULL

    @pytest.mark.parametrize("width", range(1, 150))
    def test_fits_any_terminal(self, width):
        assert max(map(len, self.text(width).splitlines())) <= width

    def test_what_matters_most_goes_last(self):
        headings = ["ADDRESS", "TO CLIENTS", "SHARE", "WEIGHT", "STATE"]
        gone = [[heading for heading in headings if heading not in self.text(width)] for width in range(90, 20, -1)]
        for missing in gone:
            assert missing == headings[: len(missing)]
        assert gone[-1] == headings
        assert [line.split() for line in self.text(24).splitlines()[-3:]] == [
            ["dns", "200", "200k"],
            ["be1", "150", "120k"],
            ["be2", "50", "80.0k"],
        ]

    def test_80_columns_have_everything_but_addresses_beside_long_names(self):
        after = deepcopy(AFTER)
        after["services"][0]["name"] = "a-service-with-a-name-that-is-much-too-long-for-it"
        for entry in after["backends"]:
            entry.update(service=after["services"][0]["name"], name=f"{entry['name']}.somewhere.example.net")
        text = self.text(80, after)
        for word in ("WEIGHT", "STATE", "SHARE", "TO CLIENTS", "a-service-with-a-name-"):
            assert word in text
        assert "ADDRESS" not in text and "be2.somewhere." in text

    def test_a_backend_without_a_name_goes_by_its_address(self):
        after = deepcopy(AFTER)
        del after["backends"][1]["name"]
        assert "\n  198.51.100.2:5353 " in self.text(80, after)

    def test_what_is_wrong_stands_out(self):
        after = deepcopy(AFTER)
        after["backends"][0]["healthy"] = False
        after["backends"][1]["state"] = "drained"
        head, rows = table(between(BEFORE, after), 80, "service")
        assert [line.style for line in rows] == ["service", "bad", "drained"]
        assert head[1].style == "bad"
        assert table(between(BEFORE, BEFORE), 80, "service").head[1].style == ""

    def test_answers_are_told_of_when_there_are_any(self):
        assert "tx" not in self.text(80)
        assert "\n  tx         50 packets/s  echo 50\n" in self.text(80, {**AFTER, "reasons": self.echoes(100)})

    def echoes(self, packets: int) -> list[dict[str, Any]]:
        return info([], [], echo=packets)["reasons"][3:]

    def test_the_most_frequent_reason_comes_first(self):
        reasons = info([], [], not_ours=92, not_ip=20, no_route=3)["reasons"]
        assert "\n  pass       11 packets/s  not_ip 10  not_ours 1.0\n" in self.text(80, {**AFTER, "reasons": reasons})

    def test_each_interface_is_named_with_its_hook(self):
        found = program(interface(), interface("eth1", hook="tc"))
        assert self.text(140, {**AFTER, "program": found}).startswith("main: eth0 native, eth1 tc; rates over 2.0 s\n")

    def test_an_interface_that_does_not_forward_is_told_of(self):
        found = program(
            interface("eth0", up=False),
            interface("eth1", attached=False, hook=""),
            interface("eth2", attached=False, hook="", present=False, up=False),
            problems=("interface eth0 is down", "interface eth1: the program is not attached"),
        )
        head = table(between(BEFORE, {**AFTER, "program": found}), 140, "service").head
        assert [(line.text, line.style) for line in head[:3]] == [
            ("main: eth0 native (down), eth1 not attached, eth2 does not exist; rates over 2.0 s", ""),
            ("  interface eth0 is down", "bad"),
            ("  interface eth1: the program is not attached", "bad"),
        ]

    def test_a_balancer_that_cannot_be_read_is_told_of(self):
        assert table({"balancer": "main", "error": "gone"}, 80, "service").head == [("main: gone", "bad")]

    def test_no_services_are_a_table_too(self):
        empty = info([], [])
        head, rows = table(between(empty, empty), 80, "service")
        assert not rows and head[-1].text.split() == ["total", "-", "-", "-", "-"]


class TestView:
    def report(self, backends: int) -> dict[str, Any]:
        entries = info([service("dns")], [backend("dns", number) for number in range(backends)])
        return {"host": "lb1", "time": "2026-11-21T12:15:03+01:00", "balancers": [between(entries, entries)]}

    def names(self, view: View, backends: int = 40, height: int = 24) -> list[str]:
        """What is shown, by its first words."""
        lines = view.frame(self.report(backends), 80, height)
        assert len(lines) <= height
        return [line.text.split()[0] if line.text else "" for line in lines]

    def test_the_head_stays_while_backends_scroll(self):
        view = View("service")
        head = ["lb1", "main:", "drop", "pass", "", "TO", "NAME", "total"]
        assert self.names(view) == [*head, "dns", *(f"be{number}" for number in range(15))]
        view.press("down")
        assert self.names(view) == [*head, *(f"be{number}" for number in range(16))]
        view.press("page down")
        assert self.names(view) == [*head, *(f"be{number}" for number in range(16, 32))]
        view.press("end")
        assert self.names(view) == [*head, *(f"be{number}" for number in range(24, 40))]
        view.press("page up")
        view.press("up")
        assert self.names(view)[8] == "be7"
        view.press("home")
        assert self.names(view)[8] == "dns"
        view.press("up")
        assert self.names(view)[8] == "dns"

    def test_what_fits_does_not_scroll(self):
        view = View("service")
        view.press("page down")
        assert self.names(view, backends=3)[8:] == ["dns", "be0", "be1", "be2"]

    def test_in_a_low_terminal_everything_scrolls(self):
        view = View("service")
        assert self.names(view, height=6) == ["lb1", "main:", "drop", "pass", "", "TO"]
        view.press("end")
        assert self.names(view, height=6) == ["lb1", *(f"be{number}" for number in range(35, 40))]
        assert self.names(view, height=1) == ["lb1"]

    def test_keys_change_the_order(self):
        view = View("service")
        found = []
        for key in ("s", "right", "s", "left", "left", "left", "left"):
            view.press(key)
            found.append(view.sort)
        assert found == ["backend", "state", "packets", "state", "backend", "service", "reply_bits"]
        view.press("r")
        assert view.reverse and "sorted by reply_bits, reversed" in view.frame(self.report(1), 120, 24)[0].text

    def test_keys_hold_help_and_quit(self):
        view = View("service")
        view.press(" ")
        assert view.paused and "held" in view.frame(self.report(1), 120, 24)[0].text
        view.press("?")
        text = "\n".join(line.text for line in view.frame(self.report(1), 80, 24))
        assert "q            quit" in text and "24 bytes" in text and "be0" not in text
        assert max(map(len, top_view.HELP.splitlines())) <= 80
        view.press("r")
        assert not view.helping and not view.reverse
        view.press("q")
        assert view.done

    def test_several_balancers_are_below_each_other(self):
        both = {**self.report(1), "balancers": self.report(1)["balancers"] * 2}
        lines = plain(both, 80, "packets").splitlines()
        assert lines[0] == "lb1  2026-11-21 12:15:03  sorted by packets"
        assert [line.split()[0] for line in lines if line].count("main:") == 2
        assert all(line == line.rstrip() for line in lines)
        assert View("service").frame(both, 80, 100)[1].text.startswith("main:")


def test_keys_are_understood_in_both_modes_of_a_terminal():
    assert parse_keys("q\x1b[A\x1bOB?\x1b[5~\x1b[1;5C \x1b") == ["q", "up", "down", "?", "page up", " "]


@pytest.mark.parametrize(("no_color", "drawn"), [("", "\x1b[31mdown\x1b[0m"), ("1", "down")])
def test_colours_can_be_refused(no_color, drawn, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("LINES", "24")
    Terminal().draw([Line("down", "bad"), Line("as it is")])
    # Lines 1 and 2, each erased before it is written, and nothing below.
    assert capsys.readouterr().out == f"\x1b[1;1H\x1b[2K{drawn}\x1b[2;1H\x1b[2Kas it is\x1b[3;1H\x1b[J"


def test_a_stop_waits_for_what_is_being_written(monkeypatch):
    master, slave = os.openpty()
    with open(slave, closefd=False) as stdin, open(os.devnull, "w") as stdout:
        monkeypatch.setattr(top_terminal.sys, "stdin", stdin)
        monkeypatch.setattr(top_terminal.sys, "stdout", stdout)
        stopped = []
        monkeypatch.setattr(top_terminal.os, "kill", lambda _process, number: stopped.append(number))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTSTP, signal.SIGTERM, signal.SIGWINCH)}
        write = stdout.write

        def interrupted(text: str) -> int:
            stdout.write = write
            signal.raise_signal(signal.SIGTSTP)
            assert stopped == []
            return write(text)

        try:
            with top_terminal.Terminal() as terminal:
                stdout.write = interrupted
                terminal.draw([])
                assert terminal.keys(time.monotonic() + 10) == []
                assert stopped == [signal.SIGSTOP]
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(master)
            os.close(slave)


class TestArguments:
    def test_defaults(self):
        options = vars(top.parse_arguments([]))
        assert options == {"balancer": [], "interval": 1.0, "sort": "service", "once": False, "json": False}

    @pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "1s"])
    def test_an_interval_is_a_time(self, interval, capsys):
        with pytest.raises(SystemExit) as ended:
            top.parse_arguments(["--interval", interval])
        assert ended.value.code == 2 and "--interval" in capsys.readouterr().err

    def test_help_says_what_bits_are(self, capsys):
        with pytest.raises(SystemExit):
            top.parse_arguments(["--help"])
        assert "Ethernet header included" in " ".join(capsys.readouterr().out.split())
