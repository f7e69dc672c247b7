# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role health, with real servers that stop, and the kernel's own word on who is in a lookup table."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import DIRECTORY, INTERFACE, Lab, wait_for
from tests.support.client import Client

UNIT = "lbops-health@main.service"
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}
VIP = "10.77.0.10"
# Held by the backends for these tests only.
WAY = {"address": "10.77.0.131"}
TUNNEL = {"forwarding": "ipip", "source": "10.77.2.1"}
DSR = {"address": "10.77.0.130", "forwarding": "dsr"}
RHYTHM = {"interval": 1, "timeout": 0.3, "rise": 2, "fall": 2}
# Interval times fall, and what it may take to write a lookup table.
BOUND = 2.5
SERVERS = Path(__file__).with_name("servers.py")


def service(name: str, port: int, protocol: str, backend_port: int | None, health: dict, **keys) -> dict:
    made = {"name": name, "address": VIP, "protocol": protocol, "port": port, "backends": "backends", **keys}
    if backend_port:
        made["backend_port"] = backend_port
    return {**made, "health": {**RHYTHM, **health}}


SERVICES = [
    service("tcp", 7, "tcp", 8080, {"check": "tcp", "source": "10.77.2.1"}),
    service("udp", 7, "udp", 8080, {"check": "udp", "request": "how are you", "response": "how are you"}),
    service(
        "http", 80, "tcp", 8081, {"check": "http", "path": "/health", "host": "www.example.net", "body": "fine for www"}
    ),
    service("https", 443, "tcp", 8443, {"check": "https", "path": "/health", "verify": False, "status": 200}),
    service("dns", 53, "udp", 5353, {"check": "dns", "name": "www.example.net"}),
    service("icmp", 8081, "udp", None, {"check": "icmp"}, **DSR),
    # Dropping, for lack of any server.
    service("nobody", 99, "udp", 9999, {"check": "udp", "request": "?", "all_down": "drop"}),
    service("kept", 8080, "udp", None, {"check": "tcp", "port": 9998}, **DSR),
    service(
        "way-udp", 8080, "udp", None, {"check": "udp", "request": "?", "end_to_end": True}, **WAY, forwarding="dsr"
    ),
    service("way-icmp", 9, "udp", None, {"check": "icmp", "end_to_end": True}, **WAY, forwarding="dsr"),
    service("tunnel", 8080, "tcp", None, {"check": "tcp", "end_to_end": True}, **WAY, **TUNNEL),
    {**service("unchecked", 8082, "udp", None, {}, **DSR), "health": None},
]
SERVER_OF = {"tcp": "lab-echo", "udp": "lab-echo", "http": "health-http", "https": "health-https", "dns": "health-dns"}


@pytest.fixture(scope="module")
def servers(lab: Lab, decapsulating: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {directory}/key -out {directory}/certificate -days 2 "
        "-subj /CN=www.example.net",
        shell=True,
        check=True,
        capture_output=True,
    )
    certificate = (directory / "key").read_text() + (directory / "certificate").read_text()
    for host in BACKENDS:
        lab.ssh(host, f"cat >/run/health-servers.py <<'END'\n{SERVERS.read_text()}\nEND")
        lab.ssh(host, f"cat >/run/health-certificate.pem <<'END'\n{certificate}\nEND")
        for kind in ("http", "https", "dns"):
            unit = f"[Service]\nExecStart=/usr/bin/python3 /run/health-servers.py {kind}\n"
            lab.ssh(host, f"printf '{unit}' >/run/systemd/system/health-{kind}.service")
        lab.ssh(host, "systemctl daemon-reload; systemctl start health-http health-https health-dns")
        lab.ssh(host, f"ip addr replace {WAY['address']}/32 dev lo")


@pytest.fixture(scope="module")
def checked(lab: Lab, servers: None) -> Iterator[dict[str, tuple[int, str]]]:
    """The output of site.yml: in check mode, for real, again, again in check mode."""
    yield {
        "check": lab.services(SERVICES, "--check", "--diff"),
        "real": lab.services(SERVICES),
        "again": lab.services(SERVICES),
        "again_check": lab.services(SERVICES, "--check", "--diff"),
    }
    # The inventory of the other tests checks nothing.
    lab.playbook("site.yml")
    for host in BACKENDS:
        lab.ssh(host, f"ip addr del {WAY['address']}/32 dev lo")


def healthy(lab: Lab, name: str) -> dict[str, bool | None]:
    """By the backend's host."""
    rows = lab.module("xdp_info")["backends"]
    return {row["name"]: row["healthy"] for row in rows if row["service"] == name}


def in_table(lab: Lab, name: str) -> set[str]:
    """The hosts in the live lookup table, as the kernel has it."""
    code = (
        "from engine.balancer import map_set, state; from engine.balancer.balancer import Balancer\n"
        "from engine.kernel import bpf; from engine.tables import layout\n"
        "b = Balancer('main'); s = state.load(b.state_file)\n"
        "with map_set.open_pinned(b.places.maps, s.program.sizes) as live:\n"
        f"    number = live.ring_ids().get(s.allocation.rings['{name}'])\n"
        "    ids = set()\n"
        "    if number:\n"
        "        descriptor = bpf.map_fd(number)\n"
        "        table = bpf.map_lookup(descriptor, layout.index(0), bpf.map_info(descriptor).value_size)\n"
        "        length, slots = int.from_bytes(table[4:8], 'little'), table[layout.LOOKUP_TABLE.size:]\n"
        "        ids = {int.from_bytes(slots[4 * n:4 * n + 4], 'little') for n in range(length)}\n"
        "print(*[s.config.backends[key].name for key, place in s.allocation.backends.items() if place in ids])"
    )
    return set(lab.engine(code).split())


class Watcher:
    """When the live lookup table of a service is replaced, by the clock that all containers share."""

    def __init__(self, lab: Lab, name: str) -> None:
        code = (
            "import time\nfrom engine.balancer import map_set, state\nfrom engine.balancer.balancer import Balancer\n"
            f"b = Balancer('main'); s = state.load(b.state_file); place = s.allocation.rings['{name}']\n"
            "with map_set.open_pinned(b.places.maps, s.program.sizes) as live:\n"
            "    first = live.ring_ids().get(place); end = time.time() + 20; now = begun = time.time()\n"
            "    while live.ring_ids().get(place) == first and now < end: time.sleep(0.01); now = time.time()\n"
            "print(begun, now)"
        )
        self._pool = ThreadPoolExecutor()
        self._found: Future[str] = self._pool.submit(lab.engine, code)
        # Until it looks.
        time.sleep(1.5)

    def moment(self) -> float:
        begun, moment = map(float, self._found.result().split())
        assert moment - begun < 19, "the lookup table stayed"
        return moment


def stop(lab: Lab, host: str, unit: str) -> float:
    """When."""
    return float(lab.ssh(host, f"python3 -c 'import time; print(time.time())'; systemctl stop {unit}"))


def settle(lab: Lab, name: str) -> None:
    wait_for(lambda: in_table(lab, name) == set(BACKENDS) and set(healthy(lab, name).values()) == {True})


def test_a_second_run_changes_nothing(checked):
    assert checked["check"][0] > 0 and checked["real"][0] > 0
    assert checked["again"][0] == checked["again_check"][0] == 0


def test_every_kind_of_check_finds_real_servers_well(lab, checked):
    for name in ("tcp", "udp", "http", "https", "dns", "icmp", "way-udp", "way-icmp", "tunnel"):
        wait_for(lambda name=name: set(healthy(lab, name).values()) == {True})
        assert in_table(lab, name) == set(BACKENDS)
    assert set(healthy(lab, "unchecked").values()) == {None}


@pytest.mark.parametrize("name", list(SERVER_OF))
def test_a_backend_whose_server_stops_leaves_in_time_and_comes_back(lab, checked, name):
    settle(lab, name)
    watcher = Watcher(lab, name)
    stopped = stop(lab, "be1", SERVER_OF[name])
    try:
        took = watcher.moment() - stopped
        print(f"\n{name}: out {took:.2f} s after its server was stopped")
        assert took <= BOUND
        assert in_table(lab, name) == {"be2", "be3"}
        assert healthy(lab, name) == {"be1": False, "be2": True, "be3": True}
        if name == "udp":
            assert re.search(r"be1 +10\.77\.2\.11:8080 +[0-9]+ +unhealthy ", lab.playbook("status.yml")[1])
    finally:
        lab.ssh("be1", f"systemctl start {SERVER_OF[name]}")
    settle(lab, name)


def test_a_backend_that_answers_nothing_any_more_leaves_in_time(lab, checked):
    """Each check takes its whole timeout."""
    settle(lab, "tcp")
    watcher = Watcher(lab, "tcp")
    now = lab.ssh("be1", "python3 -c 'import time; print(time.time())'; ip route add blackhole 10.77.2.1/32")
    try:
        took = watcher.moment() - float(now)
        print(f"\ntcp, timed out: out after {took:.2f} s")
        assert took <= BOUND
        reasons = lab.ssh("lb1", f"journalctl -u {UNIT} -o cat --since -10s")
        assert re.search(
            r"event=down service=tcp backend=10.77.2.11:8080 name=be1 check=tcp reason=\"timed out\"", reasons
        )
    finally:
        lab.ssh("be1", "ip route del blackhole 10.77.2.1/32")
    settle(lab, "tcp")


def test_icmp(lab, checked):
    settle(lab, "icmp")
    watcher = Watcher(lab, "icmp")
    now = lab.ssh("be3", "python3 -c 'import time; print(time.time())'; sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
    took = watcher.moment() - float(now)
    lab.ssh("be3", "sysctl -qw net.ipv4.icmp_echo_ignore_all=0")
    assert took <= BOUND
    settle(lab, "icmp")


@pytest.mark.parametrize("name", ["way-udp", "way-icmp", "tunnel"])
def test_a_backend_that_lost_the_vip_leaves_only_where_the_way_is_checked(lab, checked, name):
    """Its own address answers as before."""
    settle(lab, name)
    watcher = Watcher(lab, name)
    now = lab.ssh("be2", f"python3 -c 'import time; print(time.time())'; ip addr del {WAY['address']}/32 dev lo")
    took = watcher.moment() - float(now)
    print(f"\n{name}: out {took:.2f} s after the VIP was gone")
    assert took <= BOUND and in_table(lab, name) == {"be1", "be3"}
    assert in_table(lab, "icmp") == in_table(lab, "tcp") == set(BACKENDS)
    lab.ssh("be2", f"ip addr add {WAY['address']}/32 dev lo")
    settle(lab, name)


@pytest.fixture
def over_ipv6(lab: Lab, servers: None) -> Iterator[dict[str, str]]:
    """The address and the VIP of a backend that has both protocols, as the balancer has."""
    found = {"address": "fd77:0:0:2::11", "vip": "fd77::130"}
    lab.ssh("lb1", f"ip addr replace fd77:0:0:2::1/64 dev {INTERFACE} nodad")
    lab.ssh(
        "be1", f"ip addr replace {found['address']}/64 dev {INTERFACE} nodad; ip addr replace {found['vip']}/128 dev lo"
    )
    lab.ssh("lb1", f"ping -6 -c 3 -i 0.2 {found['address']}")
    yield found
    lab.ssh("lb1", f"ip addr del fd77:0:0:2::1/64 dev {INTERFACE}")
    lab.ssh(
        "be1", f"ip addr del {found['address']}/64 dev {INTERFACE}; ip addr del {found['vip']}/128 dev lo", check=False
    )


@pytest.mark.parametrize("check", ["udp", "tcp", "icmp"])
def test_the_way_over_ipv6(lab, checked, over_ipv6, check):
    """As `lbops-health` does a check, but once."""
    protocol = "tcp" if check == "tcp" else "udp"
    options = {"check": check, "end_to_end": True, "timeout": 0.5, **({"request": "?"} if check == "udp" else {})}
    code = (
        "import asyncio\nfrom engine.config.health import parse_one\n"
        "from engine.config.parsing import parse_backends, parse_services\n"
        "from health.checks import problem_of\nfrom health.common import Target\n"
        f"services = parse_services([{{'name': 'six', 'address': '{over_ipv6['vip']}', 'protocol': '{protocol}', "
        "'port': 8080, 'forwarding': 'dsr'}])\n"
        f"[backend] = parse_backends([{{'service': 'six', 'address': '{over_ipv6['address']}'}}]).values()\n"
        f"target = Target(parse_one('six', {options!r}), services['six'], backend, ('{INTERFACE}',))\n"
        "print(asyncio.run(problem_of(target)))"
    )
    assert lab.engine(code) == ""
    lab.ssh("be1", f"ip addr del {over_ipv6['vip']}/128 dev lo")
    assert lab.engine(code) != ""


def test_a_tunnel_that_ends_nowhere_is_noticed(lab, checked):
    settle(lab, "tunnel")
    lab.ssh("be3", f"ip link set {INTERFACE} xdp off")
    wait_for(lambda: in_table(lab, "tunnel") == {"be1", "be2"})
    assert in_table(lab, "way-udp") == set(BACKENDS)


def test_traffic_goes_to_the_others_and_their_flows_stay(lab, checked):
    settle(lab, "udp")
    client = Client(DIRECTORY / "ssh_config")
    try:
        client("open_flows", 2000, VIP, 7)
        before = client("ask_flows")
        assert set(before) == set(BACKENDS)
        stop(lab, "be1", "lab-echo")
        wait_for(lambda: in_table(lab, "udp") == {"be2", "be3"})
        after = client("ask_flows")
        assert set(after) == {"be2", "be3"}
        others = [(old, new) for old, new in zip(before, after) if old != "be1"]
        moved = sum(old != new for old, new in others)
        print(f"\n{moved} of {len(others)} flows of the others moved, {len(before) - len(others)} had to")
        assert moved / len(others) < 0.02
    finally:
        lab.ssh("be1", "systemctl start lab-echo")
        settle(lab, "udp")
        again = client("ask_flows")
        client.close()
    assert again == before


def test_an_outage_is_no_change_and_site_yml_revives_nobody(lab, checked):
    settle(lab, "tcp")
    stop(lab, "be1", "lab-echo")
    try:
        wait_for(lambda: in_table(lab, "tcp") == in_table(lab, "udp") == {"be2", "be3"})
        for arguments in ((), ("--check", "--diff")):
            changed, output = lab.services(SERVICES, *arguments)
            assert changed == 0, output
            assert in_table(lab, "tcp") == {"be2", "be3"}
    finally:
        lab.ssh("be1", "systemctl start lab-echo")
    settle(lab, "tcp")


def test_killed_it_leaves_the_data_plane_as_it_is_and_goes_on(lab, checked):
    settle(lab, "tcp")
    stop(lab, "be1", "lab-echo")
    wait_for(lambda: in_table(lab, "tcp") == {"be2", "be3"})
    killed = lab.ssh("lb1", f"systemctl show -P MainPID {UNIT}; systemctl kill -s KILL {UNIT}")
    for _look in range(5):
        assert in_table(lab, "tcp") == {"be2", "be3"}
    wait_for(lambda: lab.ssh("lb1", f"systemctl show -P MainPID {UNIT}") not in ("0", killed))
    assert lab.ssh("lb1", f"systemctl show -P NRestarts {UNIT}") == "1"
    wait_for(lambda: "event=started" in lab.ssh("lb1", f"journalctl -u {UNIT} -o cat --since -5s"))
    assert in_table(lab, "tcp") == {"be2", "be3"} and healthy(lab, "tcp")["be1"] is False
    lab.ssh("be1", "systemctl start lab-echo")
    settle(lab, "tcp")


def test_stopped_it_leaves_the_data_plane_as_it_is_too(lab, checked):
    settle(lab, "tcp")
    lab.ssh("lb1", f"systemctl stop {UNIT}")
    stop(lab, "be1", "lab-echo")
    time.sleep(3)
    assert in_table(lab, "tcp") == set(BACKENDS)
    lab.ssh("lb1", f"systemctl start {UNIT}")
    wait_for(lambda: in_table(lab, "tcp") == {"be2", "be3"})
    lab.ssh("be1", "systemctl start lab-echo")
    settle(lab, "tcp")


def test_all_down_keeps_all_or_drops(lab, checked):
    wait_for(lambda: set(healthy(lab, "kept").values()) == set(healthy(lab, "nobody").values()) == {False})
    assert in_table(lab, "kept") == set(BACKENDS)
    assert set(lab.ask(DSR["address"], 8080, 60)) == set(BACKENDS)
    assert in_table(lab, "nobody") == set()
    assert lab.ask(VIP, 99, 2) == {"": 2}
    lines = lab.ssh("lb1", f"journalctl -u {UNIT} -o cat")
    assert "event=all_down service=nobody choice=drop" in lines and "event=all_down service=kept choice=keep" in lines


def test_the_journal_holds_no_secrets_and_one_line_an_event(lab, checked):
    # Whatever the unit's processes say, a traceback say.
    lines = lab.ssh("lb1", f"journalctl -o cat _SYSTEMD_UNIT={UNIT}").splitlines()
    event = re.compile(r'health balancer=main event=\w+( \w+=([^\s"=]+|"([^"\\]|\\.)*"))*')
    assert lines and not [line for line in lines if not event.fullmatch(line)]
    assert not [line for line in lines if "how are you" in line or "/health" in line]
    assert lab.ssh("lb1", "stat -c %a /etc/lbops/health-main.json") == "600"


def test_the_service_has_few_powers(lab, checked):
    found = dict(line.split("=", 1) for line in lab.ssh("lb1", f"systemctl show {UNIT}").splitlines())
    assert set(found["CapabilityBoundingSet"].split()) == {"cap_net_raw", "cap_bpf"}
    for name in ("NoNewPrivileges", "PrivateDevices", "ProtectClock", "ProtectHostname", "ProtectKernelTunables"):
        assert found[name] == "yes"
    assert "bpf" in found["SystemCallFilter"].split() and "mount" not in found["SystemCallFilter"].split()
    # Neither that nor anything else ended it.
    assert found["NRestarts"] == "0" and found["ActiveState"] == "active"


def test_what_is_wrong_is_told_before_anything_is_touched(lab, checked):
    untouched = lab.ssh("lb1", "sha256sum /etc/lbops/* /var/lib/lbops/main/state.json")
    extra = lab.inventory.with_suffix(".wrong")
    wrong = [service("tcp", 7, "tcp", 8080, {"check": "tcp", "interval": "soon"})]
    extra.write_text(json.dumps({"balancer_services": wrong}))
    result = lab.ansible("ansible-playbook", "playbooks/site.yml", "-e", f"@{extra}")
    assert result.returncode != 0
    assert "service tcp: health: interval 'soon' is not a number of seconds" in result.stdout
    assert lab.ssh("lb1", "sha256sum /etc/lbops/* /var/lib/lbops/main/state.json") == untouched


def test_a_new_inventory_checks_others_and_forgets_those_that_went(lab, checked):
    settle(lab, "tcp")
    stop(lab, "be1", "lab-echo")
    wait_for(lambda: in_table(lab, "tcp") == {"be2", "be3"})
    unchecked = [{**SERVICES[0], "health": None}, *SERVICES[1:]]
    changed, output = lab.services(unchecked, "--diff")
    assert changed > 0 and "how are you" not in output
    wait_for(lambda: in_table(lab, "tcp") == set(BACKENDS))
    assert set(healthy(lab, "tcp").values()) == {None} and in_table(lab, "udp") == {"be2", "be3"}
    lab.ssh("be1", "systemctl start lab-echo")
    assert lab.services(SERVICES)[0] > 0
    settle(lab, "tcp")


def test_a_restart_that_a_failed_run_left_out_is_made_up_for(lab, checked):
    """Their processes run another version of the engine than the one that is installed."""
    units = (UNIT, "lbops-exporter.service", "lbops-watch@main.service")

    def processes() -> list[str]:
        return [lab.ssh("lb1", f"systemctl show -P MainPID {unit}") for unit in units]

    other = "cd /usr/lib/lbops; installed=$(readlink current); cp -a $installed other; ln -sfn other current"
    lab.ssh("lb1", f"{other}; systemctl restart {' '.join(units)}; ln -sfn $installed current")
    before = processes()
    assert lab.services(SERVICES)[0] == 3
    assert "other" not in lab.ssh("lb1", "ls /usr/lib/lbops").split()
    assert not set(before) & set(processes())
    assert lab.services(SERVICES)[0] == 0


def test_a_balancer_without_checks_has_nothing_to_remove(lab, checked):
    other = ("--tags", "health", "-e", "health_state=absent", "-e", "health_balancer=other")
    assert lab.services(SERVICES, *other)[0] == lab.services(SERVICES, *other, "--check")[0] == 0
    assert lab.ssh("lb1", f"systemctl is-active {UNIT}") == "active"


def test_absent_it_leaves_no_trace_and_gives_every_backend_its_share(lab, checked):
    settle(lab, "tcp")
    stop(lab, "be1", "lab-echo")
    wait_for(lambda: in_table(lab, "tcp") == {"be2", "be3"})
    absent = ("--tags", "health", "-e", "health_state=absent")
    assert lab.services(SERVICES, *absent, "--check")[0] > 0
    assert in_table(lab, "tcp") == {"be2", "be3"}
    assert lab.services(SERVICES, *absent)[0] > 0
    lab.ssh("be1", "systemctl start lab-echo")
    assert in_table(lab, "tcp") == in_table(lab, "nobody") == set(BACKENDS)
    traces = (
        "ls -d /etc/lbops/health* /var/lib/lbops/main/health.json; systemctl list-units --all 'lbops-health*' -q; "
        "ls -d /etc/systemd/system/*.wants/lbops-health*; true"
    )
    assert lab.ssh("lb1", traces, check=False) == ""
    # The directory stays for as long as somebody has settings in it.
    assert lab.ssh("lb1", "ls -A /etc/lbops").split() == ["exporter-web.yml", "exporter.env"]
    assert lab.services(SERVICES, *absent)[0] == 0
    assert lab.services(SERVICES, "--tags", "balancer")[0] == 0
