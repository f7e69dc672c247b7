# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus itself scrapes the lab's balancer: what each alert is about is done to it, and every query of the
dashboard is asked."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import CHECKOUT, DIRECTORY, INTERFACE, Lab, wait_for
from tests.prometheus.test_rules import PROGRAMS, RULES, queries, rules

STATE_FILE = "/var/lib/lbops/main/state.json"
SPARE = "t0"
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
# The backends hold the other one themselves.
VIP, OWN_VIP = "10.77.0.10", "10.77.0.130"
HEALTH = {"check": "udp", "request": "?", "interval": 0.5, "timeout": 0.2, "rise": 1, "fall": 2}
CHECKED = {
    "name": "checked",
    "address": VIP,
    "protocol": "udp",
    "port": 7,
    "backends": "backends",
    "backend_port": 8080,
}
SERVICES = [
    {**CHECKED, "health": HEALTH},
    {
        **{key: value for key, value in CHECKED.items() if key != "backend_port"},
        **{"name": "remembered", "address": OWN_VIP, "port": 8080, "forwarding": "dsr", "flow_table": True},
    },
    {**CHECKED, "name": "nobody", "port": 9, "backends": "nobody"},
]
# Sends so many datagrams a second for so long from one port: one flow.
ONE_FLOW = (
    "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "end = time.monotonic() + {seconds}\nwhile time.monotonic() < end:\n"
    " s.sendto(b'x\\n', ('{address}', {port}))\n time.sleep(1 / {rate})\n"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def _ask(self, path: str, **parameters: str) -> dict:
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def is_there(self) -> bool:
        try:
            return bool(self._ask("query", query="1"))
        except OSError:
            return False

    def query(self, text: str) -> list[dict]:
        return self._ask("query", query=text)["result"]

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of each."""
        found = self._ask("alerts")["alerts"]
        return [one["labels"] for one in found if one["state"] == "firing" and one["labels"]["alertname"] == alert]


@contextmanager
def running(*command: str | Path) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def prometheus(lab: Lab, site: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Its rules look back for seconds instead of minutes; otherwise they are those of the collection."""
    directory = tmp_path_factory.mktemp("prometheus")
    text = RULES.read_text(encoding="utf-8").replace("[5m]", "[10s]")
    (directory / "rules.yml").write_text(re.sub(r"for: \d+m", "for: 2s", text))
    scrape = {"job_name": "lbops", "file_sd_configs": [{"files": [f"{directory}/targets/lbops-*.json"]}]}
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    forwarded, port = free_port(), free_port()
    variables = {
        "exporter_prometheus_host": "localhost",
        "exporter_prometheus_directory": f"{directory}/targets",
        "exporter_prometheus_target": f"127.0.0.1:{forwarded}",
    }
    forward = ("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{forwarded}:127.0.0.1:9477")
    command = (
        PROGRAMS / "prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    group = lab.inventory / "nobody.yml"
    group.write_text(json.dumps({"nobody": {"hosts": {}}}))
    measured = STATS.read_text()
    lab.services(SERVICES, "--extra-vars", json.dumps(variables))
    asked = Prometheus(port)
    try:
        STATS.write_text("1")
        with running("ssh", "-F", DIRECTORY / "ssh_config", *forward, "lb1"), running(*command):
            wait_for(asked.is_there)
            yield asked
    finally:
        STATS.write_text(measured)
    lab.playbook(
        "site.yml", "--tags", "exporter", "--extra-vars", json.dumps({**variables, "exporter_state": "absent"})
    )
    assert not list((directory / "targets").iterdir())
    # What the health checks go by is theirs.
    lab.ssh("lb1", "test -s /etc/lbops/health-main.json; test ! -e /etc/lbops/exporter-web.yml")
    lab.playbook("site.yml")


@pytest.fixture
def busy(lab: Lab) -> Iterator[None]:
    """Traffic of many flows to all services."""
    asker = (CHECKOUT / "tests/integration/asker.py").read_text()
    lab.ssh("client", f"cat >/run/asker.py <<'END'\n{asker}\nEND")
    ask = "python3 /run/asker.py {} {} udp 20 20 0"
    loop = f"while :; do {ask.format(VIP, 7)}; {ask.format(OWN_VIP, 8080)}; done"
    lab.ssh("client", f"systemd-run --quiet --collect --unit=busy bash -c '{loop}'")
    yield
    lab.ssh("client", "systemctl stop busy")


def one_flow(lab: Lab, port: int, seconds: float, rate: int) -> None:
    code = ONE_FLOW.format(address=VIP, port=port, seconds=seconds, rate=rate)
    lab.ssh("client", f"python3 - <<'END'\n{code}\nEND")


def test_the_role_tells_prometheus_where_the_balancer_is(prometheus: Prometheus):
    wait_for(lambda: [one["value"][1] for one in prometheus.query('up{job="lbops",instance="lb1"}')] == ["1"])
    wait_for(lambda: prometheus.query("lbops_service_packets_total"))


def test_nothing_fires_while_all_is_well_but_for_the_service_without_backends(prometheus: Prometheus, busy: None):
    time.sleep(15)
    fired = {alert for rule in rules() if (alert := rule.get("alert")) and prometheus.firing(alert)}
    assert fired == {"LbopsNoBackends"}
    assert [one["service"] for one in prometheus.firing("LbopsNoBackends")] == ["nobody"]


def test_every_query_of_the_dashboard_has_an_answer(lab: Lab, prometheus: Prometheus, busy: None):
    tuning = {"profile": "custom", "overrides": {"features": {"tx_checksum": False}}}
    lab.ssh("lb1", f"ip link add {SPARE} type veth peer name t1; ip link set {SPARE} up; ip link set t1 up")
    try:
        lab.module("nic_profile", interface=SPARE, revert_after=0, **tuning)
        lab.module("nic_profile", interface=SPARE, state="confirmed")
        time.sleep(12)
        unanswered = []
        for text in queries():
            labels = re.fullmatch(r"label_values\((\w+)(?:\{(.*)\})?, (\w+)\)", text)
            query = f"{labels[1]}{{{labels[2] or ''}}}" if labels else text
            for variable in ("instance", "balancer", "interface", "service"):
                query = query.replace(f'"${variable}"', '".+"')
            found = prometheus.query(query.replace("$__rate_interval", "10s"))
            if not found or (labels and not all(labels[3] in one["metric"] for one in found)):
                unanswered.append(text)
        # Nothing is changed meanwhile.
        assert [text for text in unanswered if not text.startswith("changes(")] == []
    finally:
        lab.module("nic_profile", interface=SPARE, state="restored")
        lab.ssh("lb1", f"ip link del {SPARE}")


def test_settings_that_drift(lab: Lab, prometheus: Prometheus):
    tuning = {"profile": "custom", "overrides": {"features": {"tx_checksum": False}}}
    lab.ssh("lb1", f"ip link add {SPARE} type veth peer name t1; ip link set {SPARE} up; ip link set t1 up")
    try:
        lab.module("nic_profile", interface=SPARE, revert_after=0, **tuning)
        lab.module("nic_profile", interface=SPARE, state="confirmed")
        lab.ssh("lb1", f"ethtool -K {SPARE} tx on")
        wait_for(lambda: [one["option"] for one in prometheus.firing("LbopsSettingsDrift")] == ["tx_checksum"])
    finally:
        lab.module("nic_profile", interface=SPARE, state="restored")
        lab.ssh("lb1", f"ip link del {SPARE}")
    wait_for(lambda: not prometheus.firing("LbopsSettingsDrift"))


def test_a_backend_that_is_down(lab: Lab, prometheus: Prometheus):
    lab.ssh("be1", "systemctl stop lab-echo")
    try:
        wait_for(lambda: prometheus.firing("LbopsBackendDown"))
        (found,) = prometheus.firing("LbopsBackendDown")
        assert (found["backend"], found["service"], found["instance"]) == ("be1", "checked", "lb1")
    finally:
        lab.ssh("be1", "systemctl start lab-echo")
    wait_for(lambda: not prometheus.firing("LbopsBackendDown"))


def test_packets_that_are_dropped(lab: Lab, prometheus: Prometheus):
    one_flow(lab, 9, seconds=15, rate=50)
    wait_for(lambda: [one["reason"] for one in prometheus.firing("LbopsDrops")] == ["no_backend"], 5)


def test_a_flow_too_heavy_for_its_backends_weight(lab: Lab, prometheus: Prometheus):
    one_flow(lab, 7, seconds=15, rate=300)
    wait_for(lambda: len({one["backend"] for one in prometheus.firing("LbopsImbalance")}) == 3, 5)


def test_a_program_that_somebody_took_off(lab: Lab, prometheus: Prometheus):
    lab.ssh("lb1", f"ip link set {INTERFACE} xdp off")
    try:
        wait_for(lambda: [one["interface"] for one in prometheus.firing("LbopsProgramDetached")] == [INTERFACE])
    finally:
        lab.ssh("lb1", "systemctl restart lbops-restore@main")
    wait_for(lambda: not prometheus.firing("LbopsProgramDetached"))


def test_maps_without_room(lab: Lab, prometheus: Prometheus):
    arguments = {"interfaces": [INTERFACE]}
    try:
        result = lab.module("xdp_program", **arguments, max_services=len(SERVICES))
        assert not result.get("failed"), result
        wait_for(lambda: [one["map"] for one in prometheus.firing("LbopsMapFull")] == ["services"])
    finally:
        lab.module("xdp_program", **arguments)


def test_an_exporter_that_cannot_read(lab: Lab, prometheus: Prometheus):
    lab.ssh("lb1", f"cp {STATE_FILE} /root/saved; truncate --size=-100 {STATE_FILE}")
    try:
        wait_for(lambda: "balancer" in {one["collector"] for one in prometheus.firing("LbopsExporterBlind")})
    finally:
        lab.ssh("lb1", f"mv /root/saved {STATE_FILE}")
    wait_for(lambda: not prometheus.firing("LbopsExporterBlind"))


def test_an_exporter_that_is_gone(lab: Lab, prometheus: Prometheus):
    lab.ssh("lb1", "systemctl stop lbops-exporter")
    try:
        wait_for(lambda: [one["instance"] for one in prometheus.firing("LbopsExporterDown")] == ["lb1"])
    finally:
        lab.ssh("lb1", "systemctl start lbops-exporter")
    wait_for(lambda: not prometheus.firing("LbopsExporterDown"))
