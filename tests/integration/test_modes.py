# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every mode of forwarding, IPv6, flow table, filters and the hook of tc, through the modules and with real sockets."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import DIRECTORY, INTERFACE, Lab
from tests.support.batch import Task, run
from tests.support.client import Client

VIP, VIP6 = "10.77.0.20", "fd77::20"
# Backends hold these themselves.
OWN_VIP, OWN_VIP6 = "10.77.0.130", "fd77::130"
BACKENDS = {"be1": "10.77.2.11", "be2": "10.77.2.12", "be3": "10.77.2.13"}
BACKENDS6 = {name: f"fd77:0:0:2::{number}" for number, name in enumerate(BACKENDS, start=11)}
BALANCER, BALANCER6 = "10.77.2.1", "fd77:0:0:2::1"
CLIENT, CLIENT6 = "10.77.1.10", "fd77:0:0:1::10"
ON = {"interfaces": [INTERFACE]}
BCC = "/usr/lib/python3/dist-packages/bcc"
# The client's kernel gives away none below 32768, so that no flow here is one of earlier.
UNUSED_PORTS = itertools.count(10000, 60)


@pytest.fixture(scope="module", autouse=True)
def both_protocols(lab: Lab, site: dict) -> Iterator[None]:
    """The lab speaks IPv4; IPv6 goes beside it, with the same roads. Afterwards the inventory holds again."""
    commands = {
        "client": f"ip addr replace {CLIENT6}/64 dev data0 nodad; ip -6 route replace fd77::/16 via fd77:0:0:1::1",
        "lb1": f"ip addr replace fd77:0:0:1::1/64 dev data0 nodad; ip addr replace {BALANCER6}/64 dev data0 nodad; "
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
    }
    for name, address in BACKENDS6.items():
        commands[name] = (
            f"ip addr replace {address}/64 dev data0 nodad; ip addr replace {OWN_VIP6}/128 dev lo; "
            f"ip -6 route replace fd77:0:0:1::/64 via {BALANCER6}"
        )
    for host, command in commands.items():
        lab.ssh(host, command)
    yield
    lab.playbook("site.yml")


@pytest.fixture
def configure(lab: Lab, site: dict) -> Iterator[Callable[..., None]]:
    """Make these services and backends the whole document; the second time nothing changes."""

    def apply(services: list[dict], backends: list[dict], filters: list[dict] | None = None, **program) -> None:
        document = {**ON, "services": services, "backends": backends, "filters": filters or [], **program}
        results = run(lab, [Task("xdp_balancer", document), Task("xdp_balancer", document)])
        assert not any(result.get("failed") for result in results), results
        assert results[1]["changed"] is False, results[1]

    yield apply
    run(lab, [Task("xdp_balancer", ON)])


def ask(lab: Lab, vip: str, port: int, kind: str, count: int = 60, size: int = 20) -> list[list[str]]:
    script = Path(__file__).with_name("asker.py").read_text()
    first = next(UNUSED_PORTS)
    return json.loads(lab.ssh("client", f"python3 -c {shlex.quote(script)} {vip} {port} {kind} {count} {size} {first}"))


def names(answers: list[list[str]]) -> Counter[str]:
    return Counter(answer[0] for answer in answers)


def peers(answers: list[list[str]]) -> set[str]:
    return {answer[1].rpartition(":")[0].strip("[]") for answer in answers}


def both(service: dict, addresses: dict[str, str], **backend) -> tuple[list[dict], list[dict]]:
    """The service over UDP and TCP, on all backends."""
    services = [{**service, "name": kind, "protocol": kind} for kind in ("udp", "tcp")]
    members = [
        {"service": kind, "address": address, **backend} for kind in ("udp", "tcp") for address in addresses.values()
    ]
    return services, members


def info(lab: Lab) -> dict:
    return lab.module("xdp_info")


def reasons(lab: Lab) -> Counter[str]:
    return Counter({f"{row['verdict']} {row['reason']}": row["packets"] for row in info(lab)["reasons"]})


MODES = {
    "dnat over IPv6": (VIP6, 7, {}, BACKENDS6, {"port": 8080}, CLIENT6),
    "full_nat": (VIP, 7, {"forwarding": "full_nat", "source": BALANCER}, BACKENDS, {"port": 8080}, BALANCER),
    "full_nat over IPv6": (
        VIP6,
        7,
        {"forwarding": "full_nat", "source": BALANCER6},
        BACKENDS6,
        {"port": 8080},
        BALANCER6,
    ),
    "dsr over IPv6": (OWN_VIP6, 8080, {"forwarding": "dsr"}, BACKENDS6, {}, CLIENT6),
    "any port": (OWN_VIP, "any", {"forwarding": "dsr"}, BACKENDS, {}, CLIENT),
    "flow table in turn": (VIP, 7, {"flow_table": True, "scheduler": "round_robin"}, BACKENDS, {"port": 8080}, CLIENT),
    "hash": (VIP, 7, {"scheduler": "hash"}, BACKENDS, {"port": 8080}, CLIENT),
}
TUNNELS = {
    "IPv4 in IPv4": (OWN_VIP, BALANCER, BACKENDS, CLIENT),
    "IPv4 in IPv4, a source for each flow": (OWN_VIP, "10.77.2.128/25", BACKENDS, CLIENT),
    "IPv4 in IPv6": (OWN_VIP, BALANCER6, BACKENDS6, CLIENT),
    "IPv6 in IPv6": (OWN_VIP6, "fd77:0:0:99::/64", BACKENDS6, CLIENT6),
}


@pytest.mark.parametrize("hook", ["native", "tc"])
@pytest.mark.parametrize("name", MODES)
def test_answers_come_from_every_backend(lab, configure, name, hook):
    vip, port, service, addresses, backend, seen = MODES[name]
    configure(*both({"address": vip, "port": port, **service}, addresses, **backend), mode=hook)
    assert [entry["hook"] for entry in info(lab)["program"]["interfaces"]] == [hook]
    # A service keeps its counters over changes.
    before = {row["name"]: row["new_flows"] for row in info(lab)["services"]}
    for kind in ("udp", "tcp"):
        answers = ask(lab, vip, 8080 if port == "any" else port, kind)
        assert set(names(answers)) == set(BACKENDS), answers
        assert peers(answers) == {seen}
    rows = info(lab)["services"]
    assert all(row["packets"] for row in rows)
    if "flow_table" in service or service.get("forwarding") == "full_nat":
        assert {row["name"]: row["new_flows"] - before[row["name"]] for row in rows} == {"udp": 60, "tcp": 60}


@pytest.mark.parametrize("hook", ["native", "tc"])
@pytest.mark.parametrize("name", TUNNELS)
def test_tunnel(lab, configure, decapsulating, name, hook):
    vip, source, addresses, seen = TUNNELS[name]
    service = {"address": vip, "port": 8080, "forwarding": "ipip", "source": source}
    configure(*both(service, addresses), mode=hook)
    for kind in ("udp", "tcp"):
        answers = ask(lab, vip, 8080, kind)
        assert set(names(answers)) == set(BACKENDS), answers
        assert peers(answers) == {seen}


def test_a_client_learns_what_fits_into_the_tunnel(lab, configure, decapsulating):
    """20 bytes less than the link carries; with "don't fragment" the sender's kernel hears of it."""
    configure(*both({"address": OWN_VIP, "port": 8080, "forwarding": "ipip", "source": BALANCER}, BACKENDS))
    before = reasons(lab)["tx too_big"]
    script = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)\n"
        f"s.setsockopt(socket.IPPROTO_IP, 10, 2); s.connect(('{OWN_VIP}', 8080)); s.send(bytes(1472))\n"
        "time.sleep(0.3); print(s.getsockopt(socket.IPPROTO_IP, 14))\n"
        "try: s.recv(1)\nexcept OSError as error: print(type(error).__name__)\n"
        "s.send(bytes(1452)); print(len(s.recv(9999)) > 1452)"
    )
    try:
        assert lab.ssh("client", f"python3 -c {shlex.quote(script)}").split()[0::2] == ["1480", "True"]
        assert reasons(lab)["tx too_big"] > before
    finally:
        lab.ssh("client", "ip route flush cache")


def test_big_datagrams_in_pieces_arrive_whole_and_so_do_their_answers(lab, configure):
    configure(*both({"address": VIP, "port": 7}, BACKENDS, port=8080))
    answers = ask(lab, VIP, 7, "udp", 20, 5000)
    assert set(names(answers)) == set(BACKENDS)
    assert all(int(answer[2]) > 5000 for answer in answers)


def test_redirect_follows_the_links(lab, configure):
    """Frames go to both interfaces, to one while the other's link is down, and to nobody while both are."""
    up = "; ".join(
        f"ip link add {name} type veth peer name {name}p; ip link set {name} up; ip link set {name}p up"
        for name in ("out1", "out2")
    )
    lab.ssh("lb1", up)

    def received() -> list[int]:
        read = "cat /sys/class/net/out1p/statistics/rx_packets /sys/class/net/out2p/statistics/rx_packets"
        return [int(number) for number in lab.ssh("lb1", read).split()]

    def sent(count: int) -> list[int]:
        before = received()
        # Datagrams to nobody: what counts is where the frames go.
        script = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for port in range({count}): s.sendto(b'x', ('{VIP}', 7))"
        )
        lab.ssh("client", f"python3 -c {shlex.quote(script)}")
        return [new - old for old, new in zip(before, received())]

    try:
        for name in ("out1p", "out2p"):
            lab.engine(
                "from engine.kernel import bpf, link\n"
                f"link.attach('{name}', bpf.program_load('pass', bpf.PASS_PROGRAM), 'native', None)"
            )
        service = {"name": "all", "address": VIP, "protocol": "udp", "port": "any", "forwarding": "redirect"}
        members = [{"service": "all", "interface": name} for name in ("out1", "out2")]
        configure([{**service, "scheduler": "round_robin"}], members)
        assert sent(100) == [50, 50]
        lab.ssh("lb1", "ip link set out1p down")
        time.sleep(0.5)
        assert sent(100) == [0, 100]
        lab.ssh("lb1", "ip link set out2p down")
        time.sleep(0.5)
        before = reasons(lab)["drop link_down"]
        sent(10)
        assert reasons(lab)["drop link_down"] == before + 10
        lab.ssh("lb1", "ip link set out1p up; ip link set out2p up")
        time.sleep(1.5)
        assert sent(100) == [50, 50]
    finally:
        configure([], [])
        lab.ssh("lb1", "ip link del out1; ip link del out2")


def test_no_change_of_backends_moves_a_remembered_flow(lab, configure):
    """The same flows before, with a backend more, with one drained, and with the first one gone."""
    service = {"name": "udp", "address": VIP, "protocol": "udp", "port": 7, "flow_table": True}

    def members(*hosts: str, **options: dict) -> list[dict]:
        return [{"service": "udp", "address": BACKENDS[name], "port": 8080, **options.get(name, {})} for name in hosts]

    configure([service], members("be1", "be2"))
    client = Client(DIRECTORY / "ssh_config")
    try:
        client("open_flows", 200, VIP, 7)
        first = client("ask_flows")
        assert set(first) == {"be1", "be2"}
        configure([service], members("be1", "be2", "be3"))
        assert client("ask_flows") == first
        configure([service], members("be1", "be2", "be3", be2={"state": "drained"}))
        assert client("ask_flows") == first
        configure([service], members("be2", "be3", be2={"weight": 0}))
        after = client("ask_flows")
        assert [new for old, new in zip(first, after) if old == "be2"] == ["be2"] * first.count("be2")
        assert "be1" not in after
    finally:
        client.close()


def test_filters_drop_limit_and_exempt(lab, configure):
    services = both({"address": VIP, "port": 7}, BACKENDS, port=8080)
    configure(*services, filters=[{"prefix": "10.77.1.0/24", "action": "drop", "protocol": "udp"}])
    assert names(ask(lab, VIP, 7, "udp", 3)) == {"": 3}
    assert set(names(ask(lab, VIP, 7, "tcp", 30))) == set(BACKENDS)
    row = info(lab)["filters"][0]
    assert (row["packets"], row["dropped"]) == (3, 3)
    # Backends' replies are packets as well.
    exempt = [{"prefix": "0.0.0.0/0", "action": "drop", "protocol": "udp"}]
    exempt += [{"prefix": prefix, "action": "pass"} for prefix in (CLIENT, "10.77.2.0/24")]
    configure(*services, filters=exempt)
    assert "" not in names(ask(lab, VIP, 7, "udp", 30))
    # 5 at once, one a second after that.
    configure(*services, filters=[{"prefix": CLIENT, "action": "limit", "protocol": "udp", "rate": 1, "burst": 5}])
    client = Client(DIRECTORY / "ssh_config")
    try:
        client("open_flows", 100, VIP, 7)
        answered = sum(1 for answer in client("ask_flows") if answer)
    finally:
        client.close()
    assert 5 <= answered <= 12


def test_filters_are_created_changed_and_purged(lab, configure):
    configure([], [])
    one = {"prefix": "203.0.113.0/24", "action": "drop"}
    two = {"prefix": "2001:db8:bad::/48", "action": "limit", "rate": 100}
    created = lab.four_runs("xdp_filters", filters=[one, two])
    assert created["created"] == ["203.0.113.0/24", "2001:db8:bad::/48"]
    changed = lab.four_runs("xdp_filters", filters=[{**one, "action": "pass"}], purge=False)
    assert changed["modified"] == ["203.0.113.0/24"] and len(changed["after"]) == 2
    purged = lab.four_runs("xdp_filters", filters=[])
    assert purged["removed"] == ["203.0.113.0/24", "2001:db8:bad::/48"]


def test_a_new_program_and_a_restore_keep_filters_and_sources(lab, configure):
    service = {"address": VIP, "port": 7, "forwarding": "full_nat", "source": BALANCER}
    configure(*both(service, BACKENDS, port=8080), filters=[{"prefix": "203.0.113.0/24", "action": "drop"}])
    assert run(lab, [Task("xdp_program", {**ON, "max_services": 2048})])[0]["new_maps"]
    assert set(names(ask(lab, VIP, 7, "tcp", 30))) == set(BACKENDS)
    # As a boot does: nobody knows the neighbours. What was compiled is still there, so that nobody needs the compiler.
    watch = "lbops-watch@main"
    forget = f"systemctl stop {watch}; ip link set {INTERFACE} xdp off; rm -r /sys/fs/bpf/lbops"
    forget += f"; ip neigh flush dev {INTERFACE}; mv {BCC} /root/"
    lab.ssh("lb1", f"{forget}; systemctl restart lbops-restore@main; mv /root/bcc {BCC}")
    assert set(names(ask(lab, VIP, 7, "udp", 30))) == set(BACKENDS)
    lab.ssh("lb1", f"systemctl start {watch}")
    assert [row["prefix"] for row in info(lab)["filters"]] == ["203.0.113.0/24"]
