# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter on a balancer: what it serves, to whom, with which powers, and what it does when something is amiss."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import CHECKOUT, INTERFACE, Lab, wait_for

UNIT = "lbops-exporter.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d/test.conf"
URL = "http://127.0.0.1:9477"
VIP, PORT = "10.77.0.10", 7
STATE_FILE = "/var/lib/lbops/main/state.json"
COUNTERS = ("packets", "bytes", "reply_packets", "reply_bytes", "new_flows")
HOST_COLLECTORS = {"bpf_stats", "softnet"}
BALANCER_COLLECTORS = {"program", "balancer", "maps"}
DEVICE_COLLECTORS = {"interface", "driver", "nic"}


def success(lab: Lab) -> dict[tuple[str, str, str], bool]:
    """By collector, balancer and interface."""
    pattern = re.compile(r'lbops_collector_success\{balancer="(.*)",collector="(.*)",interface="(.*)"\}')
    matches = ((pattern.fullmatch(name), value) for name, value in lab.metrics().items())
    return {(found[2], found[1], found[3]): bool(value) for found, value in matches if found}


def failing(lab: Lab) -> set[str]:
    return {collector for (collector, _balancer, _interface), works in success(lab).items() if not works}


def answers(lab: Lab) -> bool:
    return lab.ssh("lb1", f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 5 {URL}/metrics", check=False) == "200"


def restart(lab: Lab) -> None:
    """Once it is started it answers."""
    output = lab.ssh("lb1", f"systemctl daemon-reload; systemctl restart {UNIT}; curl -sf {URL}/metrics", check=False)
    assert "lbops_exporter_scrapes_total" in output, lab.ssh("lb1", f"journalctl -u {UNIT} -n 30 --no-pager")


def plain(entry: dict) -> dict:
    """As the inventory declares it."""
    return {key: value for key, value in entry.items() if key not in (*COUNTERS, "healthy")}


@pytest.fixture
def drop_in(lab, site) -> Iterator:
    """Runs the unit with further settings."""

    def write(*lines: str) -> None:
        content = "\\n".join(("[Service]", *lines))
        lab.ssh("lb1", f"mkdir -p {Path(DROP_IN).parent}; printf '{content}\\n' >{DROP_IN}")
        restart(lab)

    yield write
    lab.ssh("lb1", f"rm -rf {Path(DROP_IN).parent}")
    restart(lab)


def test_every_collector_works(lab, site):
    found = success(lab)
    assert all(found.values()), found
    assert {name for name, *subject in found if subject == ["main", ""]} == BALANCER_COLLECTORS
    assert {name for name, *subject in found if subject == ["main", INTERFACE]} == DEVICE_COLLECTORS
    assert {name for name, *subject in found if subject == ["", ""]} == HOST_COLLECTORS
    assert len(found) == len(BALANCER_COLLECTORS | DEVICE_COLLECTORS | HOST_COLLECTORS)


def test_it_runs_as_its_own_user_with_two_capabilities(lab, site):
    process = lab.ssh("lb1", f"systemctl show --property=MainPID --value {UNIT}")
    status = dict(line.split(":\t", 1) for line in lab.ssh("lb1", f"cat /proc/{process}/status").splitlines())
    user = lab.ssh("lb1", "id -u lbops-exporter")
    assert user != "0" and set(status["Uid"].split()) == {user}
    # CAP_DAC_READ_SEARCH and CAP_BPF
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {1 << 2 | 1 << 39}
    assert status["NoNewPrivs"] == "1"


def test_its_unit_is_hardened(lab, site):
    output = lab.ssh("lb1", f"systemd-analyze security --no-pager {UNIT}")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", output)[1]) <= 2.5, output


def test_without_the_capability_to_reach_them_pins_and_state_stay_hidden(lab, drop_in):
    drop_in("AmbientCapabilities=", "AmbientCapabilities=CAP_BPF")
    assert BALANCER_COLLECTORS <= failing(lab)
    assert not failing(lab) & HOST_COLLECTORS


def test_without_cap_bpf_the_kernel_tells_less(lab, drop_in):
    """Before Linux 6.5 nothing at all, unless kernel.unprivileged_bpf_disabled is 0."""
    drop_in("AmbientCapabilities=", "AmbientCapabilities=CAP_DAC_READ_SEARCH")
    found = failing(lab) & BALANCER_COLLECTORS
    jited_bytes = f'lbops_program_jited_bytes{{balancer="main",interface="{INTERFACE}"}}'
    assert found == BALANCER_COLLECTORS or lab.metrics()[jited_bytes] == 0


def test_without_bpf_it_answers_and_says_so(lab, drop_in):
    drop_in("SystemCallFilter=~bpf", "SystemCallErrorNumber=ENOSYS")
    assert failing(lab) == BALANCER_COLLECTORS
    status = lab.ssh("lb1", f"curl -s -o /dev/null -w '%{{http_code}}' {URL}/api/v1/services")
    assert status == "503"


def test_a_state_that_cannot_be_read_is_a_metric_and_one_line_in_the_journal(lab, site):
    lab.ssh("lb1", f"cp {STATE_FILE} /root/saved; truncate --size=-100 {STATE_FILE}")
    try:
        marker = lab.ssh("lb1", "date +%s.%N")
        for _scrape in range(3):
            assert failing(lab) == BALANCER_COLLECTORS
        config = json.loads(lab.ssh("lb1", f"curl -s {URL}/api/v1/config"))
        assert f"{STATE_FILE} is damaged" in config["errors"]["main"]
    finally:
        lab.ssh("lb1", f"mv /root/saved {STATE_FILE}")
    assert not failing(lab)
    lines = lab.ssh("lb1", f"journalctl -u {UNIT} --since=@{marker} -o cat --no-pager").splitlines()
    for collector in BALANCER_COLLECTORS:
        told = [line for line in lines if f"collector={collector} balancer=main" in line]
        assert [line.split()[1] for line in told] == ["event=failed", "event=recovered"], lines


def test_an_interface_that_goes_away_leaves_the_others_alone(lab, spare_interface):
    made = lab.module("xdp_program", balancer="spare", interfaces=[spare_interface])
    assert not made.get("failed"), made
    assert all(success(lab).values())
    lab.ssh("lb1", f"ip link del {spare_interface}")
    found = success(lab)
    assert {name for (name, balancer, _interface), works in found.items() if not works and balancer == "spare"}
    assert all(works for (_name, balancer, _interface), works in found.items() if balancer != "spare")
    lab.ssh("lb1", f"ip link add {spare_interface} type veth peer name t1")


def test_many_may_ask_at_once_and_nobody_waits_for_the_silent(lab, site):
    output = lab.ssh(
        "lb1",
        # Some say nothing at all, one says a little.
        "for n in 1 2 3 4 5 6; do sleep 8 | nc 127.0.0.1 9477 >/dev/null & done; "
        "(echo GET; sleep 8) | nc 127.0.0.1 9477 >/dev/null & "
        f"seq 40 | xargs -P 20 -I N curl -s -o /dev/null --max-time 5 -w '%{{http_code}}\\n' '{URL}/metrics?N'",
    )
    assert output.splitlines().count("200") == 40, output


def test_nothing_can_be_written(lab, site):
    before = lab.fingerprint()
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        command = f"curl -s -o /dev/null -w '%{{http_code}}' -X {method} -d '{{}}' {URL}/api/v1/config"
        assert lab.ssh("lb1", command) == "405"
    assert lab.fingerprint() == before


def test_a_page_is_compressed_for_those_who_ask(lab, site):
    command = f"curl -s {{}} -o /dev/null -w '%{{{{size_download}}}}' {URL}/metrics"
    packed, whole = (int(lab.ssh("lb1", command.format(option))) for option in ("-H 'Accept-Encoding: gzip'", ""))
    assert packed < whole / 4
    assert "lbops_up" in lab.ssh("lb1", f"curl -s --compressed {URL}/metrics")


def test_the_api_has_the_objects_of_xdp_info(lab, site):
    def api(name: str):
        return json.loads(lab.ssh("lb1", f"curl -sf {URL}/api/v1/{name}"))

    info = lab.module("xdp_info")
    config = api("config")["balancers"]
    assert list(config) == ["main"]
    for kind in ("services", "backends"):
        expected = [plain(entry) for entry in info[kind]]
        assert [plain(entry) for entry in config["main"][kind]] == expected
        assert [plain(entry) for entry in api(kind)] == [{**entry, "balancer": "main"} for entry in expected]
    assert config["main"]["program"] == info["program"]


SENDER = f"""
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _packet in range(20):
        sender.sendto(b"x", ("{VIP}", {PORT}))
    time.sleep(0.01)
"""
SCRAPER = f"""
import json, os, time, urllib.request
highest, fallen, pages = dict(), dict(), 0
while True:
    for line in urllib.request.urlopen("{URL}/metrics").read().decode().splitlines():
        name, _space, value = line.rpartition(" ")
        if line.startswith("lbops_") and name.partition("{{")[0].endswith(("_total", "_bucket", "_sum", "_count")):
            if float(value) < highest.get(name, 0):
                fallen[name] = highest[name], float(value)
            highest[name] = float(value)
    pages += 1
    with open("/run/scraped.new", "w") as file:
        json.dump(dict(fallen=fallen, pages=pages, highest=highest), file)
    os.replace("/run/scraped.new", "/run/scraped")
    time.sleep(0.02)
"""


@pytest.fixture
def scraped(lab, site) -> Iterator[Callable[[], dict]]:
    """What somebody has seen who asks all the time, while packets arrive all the time."""
    for host, name, program in (("lb1", "scraper", SCRAPER), ("client", "sender", SENDER)):
        lab.ssh(host, f"cat >/run/{name}.py <<'END'\n{program}\nEND\nsystemd-run --unit={name} python3 /run/{name}.py")
    yield lambda: json.loads(lab.ssh("lb1", "cat /run/scraped"))
    for host, name in (("lb1", "scraper"), ("client", "sender")):
        lab.ssh(host, f"systemctl stop {name}; rm -f /run/{name}.py /run/scraped*", check=False)


def test_counters_never_go_backwards(lab, scraped):
    info = lab.module("xdp_info")
    udp = [plain(entry) for entry in info["backends"] if entry["service"] == "echo-udp"]
    services = [plain(entry) for entry in info["services"]]
    remembered = [{**service, "flow_table": service["name"] == "echo-udp"} for service in services]
    program = {"interfaces": [INTERFACE]}
    assert len(udp) > 2
    of_first = (
        f'lbops_backend_packets_total{{address="{udp[0]["address"]}",backend="{udp[0]["name"]}",balancer="main",'
        f'direction="to_backend",port="{udp[0]["port"]}",service="echo-udp"}}'
    )
    lab.ask(VIP, PORT, 60)
    wait_for(lambda: scraped()["highest"].get(of_first, 0) > 0)
    seen = scraped()
    for name, arguments in (
        ("xdp_backends", {"service": "echo-udp", "backends": udp[1:]}),
        ("xdp_backends", {"service": "echo-udp", "backends": udp}),
        ("xdp_program", {**program, "latency": True}),
        ("xdp_services", {"services": remembered}),
        ("xdp_services", {"services": services}),
        ("xdp_program", {**program, "latency": True, "max_backends": 20000}),
        ("xdp_program", {**program, "latency": True}),
    ):
        before, pages = scraped()["highest"], scraped()["pages"]
        result = lab.module(name, **arguments)
        assert result.get("changed"), result
        time.sleep(1)
        now = scraped()
        assert now["pages"] > pages + 10
        service = 'lbops_service_packets_total{balancer="main",direction="to_backend",service="echo-udp"}'
        assert now["highest"][service] > before[service] + 500
        assert not now["fallen"]
    now = scraped()["highest"]
    assert now[of_first] >= seen["highest"][of_first]
    assert now['lbops_program_latency_seconds_count{balancer="main"}'] > 5
    assert of_first in lab.metrics()
    lab.module("xdp_program", **program)


def test_a_change_is_one_generation(lab, site):
    def seen() -> tuple[float, float]:
        found = lab.metrics()
        names = ("lbops_generation", "lbops_applied_timestamp_seconds")
        return tuple(found[f'{name}{{balancer="main"}}'] for name in names)

    info = lab.module("xdp_info")
    tcp = [plain(entry) for entry in info["backends"] if entry["service"] == "echo-tcp"]
    generation, applied = seen()
    now = float(lab.ssh("lb1", "date +%s"))
    lab.module("xdp_backends", service="echo-tcp", backends=[{**tcp[0], "weight": 2}, *tcp[1:]])
    assert seen()[0] == generation + 1 and seen()[1] >= now >= applied
    weight = [value for name, value in lab.metrics().items() if name.startswith("lbops_backend_weight")]
    assert 2 in weight
    drained = [{**tcp[0], "state": "drained"}, *tcp[1:]]
    lab.module("xdp_backends", service="echo-tcp", backends=drained)
    found = lab.metrics()
    for name in ("lbops_backend_enabled", "lbops_backend_weight"):
        values = [v for n, v in found.items() if n.startswith(name + "{") and tcp[0]["address"] in n and "-tcp" in n]
        assert values == [0]
    lab.module("xdp_backends", service="echo-tcp", backends=tcp)
    assert seen()[0] == generation + 3


def test_what_the_kernel_says_of_the_program(lab, site):
    found = {name.partition("{")[0]: value for name, value in lab.metrics().items()}
    assert found["lbops_up"] == 1
    assert found["lbops_program_id"] == lab.program_id()
    assert found["lbops_program_verified_instructions"] > 1000
    assert found["lbops_program_jited_bytes"] > 1000
    assert abs(found["lbops_program_attached_timestamp_seconds"] - time.time()) < 3600


def test_drift_of_a_tuned_device_is_seen(lab, spare_interface):
    tuning = {"profile": "custom", "overrides": {"features": {"tx_checksum": False}}}
    name = (
        f'lbops_nic_setting_drifted{{balancer="",group="features",interface="{spare_interface}",option="tx_checksum"}}'
    )
    lab.module("nic_profile", interface=spare_interface, revert_after=0, **tuning)
    confirmed = lab.module("nic_profile", interface=spare_interface, state="confirmed")
    assert not confirmed.get("failed"), confirmed
    assert lab.metrics()[name] == 0
    restart(lab)  # what was read of devices is used for some seconds
    lab.ssh("lb1", f"ethtool -K {spare_interface} tx on")
    time.sleep(16)
    assert lab.metrics()[name] == 1
    lab.module("nic_profile", interface=spare_interface, state="restored")
    assert name not in lab.metrics()


def test_tls_and_users(lab, site):
    lab.ssh(
        "lb1",
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lb1 -addext subjectAltName=IP:127.0.0.1 "
        "-keyout /etc/lb1.key -out /etc/lb1.crt 2>/dev/null; chown lbops-exporter /etc/lb1.key",
    )
    digest = lab.ssh("lb1", "perl -e 'print crypt(\"let me in\", q($2b$05$abcdefghijklmnopqrstuu))'")
    assert digest.startswith("$2b$05$")
    web = {
        "tls_server_config": {"cert_file": "/etc/lb1.crt", "key_file": "/etc/lb1.key"},
        "basic_auth_users": {"prometheus": digest},
    }
    variables = json.dumps({"exporter_web_config": web})
    changed, output = lab.playbook("site.yml", "--tags", "exporter", "--diff", "-e", variables)
    try:
        assert changed > 0 and digest not in output
        assert lab.playbook("site.yml", "--tags", "exporter", "-e", variables)[0] == 0
        assert lab.ssh("lb1", "stat -c '%a %U %G' /etc/lbops/exporter-web.yml") == "640 root lbops-exporter"
        secure = URL.replace("http", "https") + "/metrics"
        curl = "curl -s -o /dev/null -w '%{http_code}' --cacert /etc/lb1.crt"
        assert lab.ssh("lb1", f"{curl} -u 'prometheus:let me in' {secure}") == "200"
        for refused in ("", "-u 'prometheus:let me out'", "-u 'nobody:let me in'", "-u prometheus:"):
            assert lab.ssh("lb1", f"{curl} {refused} {secure}") == "401", refused
        assert lab.ssh("lb1", f"curl -s -o /dev/null -w '%{{http_code}}' {URL}/metrics", check=False) == "000"
        journal = lab.ssh("lb1", f"journalctl -u {UNIT} -o cat --no-pager")
        assert "let me" not in journal and digest not in journal
    finally:
        lab.playbook("site.yml", "--tags", "exporter")
    assert answers(lab)


def test_an_exporter_that_cannot_listen_fails_the_run(lab, site):
    """It has not this address; systemd goes on trying, since addresses may come late."""
    site_yml = CHECKOUT / "playbooks/site.yml"
    try:
        # The second run has nothing to change any more.
        for _run in range(2):
            other = ("-e", "exporter_address=192.0.2.99")
            result = lab.ansible("ansible-playbook", site_yml, "--tags", "exporter", *other)
            assert result.returncode and "lbops-exporter.service" in result.stdout, result.stdout
        journal = lab.ssh("lb1", f"journalctl -u {UNIT} -o cat --no-pager -n 20")
        assert "event=failed address=192.0.2.99 port=9477" in journal
    finally:
        lab.playbook("site.yml", "--tags", "exporter")
    assert answers(lab)


def test_a_web_configuration_that_makes_no_sense_is_told_of(lab, drop_in):
    lab.ssh("lb1", "echo '{\"tls_config\": {}}' >/run/web.yml")
    command = "/usr/bin/python3 -m lbops_exporter --web-config /run/web.yml"
    output = lab.ssh("lb1", f"PYTHONPATH=/usr/lib/lbops/current {command}", check=False)
    assert "/run/web.yml has no 'tls_config'; there are tls_server_config, basic_auth_users" in output


def test_counters_by_cpu_on_request(lab, drop_in):
    assert not [name for name in lab.metrics() if 'cpu="' in name]
    drop_in("ExecStart=", "ExecStart=/usr/bin/python3 -m lbops_exporter --per-cpu")
    assert 'lbops_softnet_processed_total{cpu="0"}' in lab.metrics()
