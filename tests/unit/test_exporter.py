# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter's pure parts, and its server on a port of this process."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import host_packages as host

from lbops_exporter import server as exporter_server  # isort: skip
from lbops_exporter import balancer, driver, nic, page, program, softnet, source  # isort: skip
from lbops_exporter.collector import Collector, Guard, Subject  # isort: skip
from lbops_exporter.devices import Devices  # isort: skip
from lbops_exporter.exporter import Exporter, collectors  # isort: skip
from lbops_exporter.exposition import Family, Page  # isort: skip
from lbops_exporter.passwords import Bcrypt, Users  # isort: skip
from lbops_exporter.server import Server  # isort: skip
from lbops_exporter.source import Floors, Sources  # isort: skip
from lbops_exporter.web_config import Tls, WebConfig, load  # isort: skip
from engine.balancer import state  # isort: skip
from engine.nic import tuned  # isort: skip
from engine.errors import EngineError  # isort: skip
from engine.balancer.live import Reading  # isort: skip

DOCUMENT = (host.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
FAMILIES = [family for part in (*collectors(Sources(), Devices(Sources())), Guard()) for family in part.families]


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


# --- names


def test_what_is_documented_is_exported_and_nothing_else():
    rows = re.findall(
        r"^\| `(lbops_\w+)` \| (counter|gauge|histogram|untyped) \| (.*?) \| (.*?) \|$", DOCUMENT, re.MULTILINE
    )
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    # By prometheus-client.
    assert documented.pop("lbops_exporter_scrapes_total")[0] == "counter"
    assert documented.pop("lbops_exporter_scrape_seconds")[0] == "histogram"
    assert len(documented) == len(FAMILIES)
    assert documented == {family.name: (family.kind, family.labels, family.help) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_conventions(family):
    assert re.fullmatch(r"lbops_[a-z0-9_]+", family.name)
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert list(family.labels) == sorted(family.labels)
    assert family.help.endswith(".")
    assert not re.search(r"_(ms|ns|us|usecs|milliseconds|kbytes|bits)(_|$)", family.name)


def test_every_metric_of_the_reference_has_a_counterpart():
    names = """xdp_packet_processed_rate xdp_packet_processed xdp_packet_latency_ns interfaces_stat interfaces_spec
    xdp_mode xdp_prog_id_total xdp_prog_id_created interface_qdisk /api/v1/configs""".split()
    table = DOCUMENT.partition("## From xdp_lb.py")[2]
    for name in names:
        assert f"| `{name}" in table, name
    for name in re.findall(r"lbops_\w+", table):
        assert re.sub("_bucket$|_$", "", name) in DOCUMENT.partition("## From xdp_lb.py")[0], name


# --- text


def test_labels_are_escaped_as_prometheus_reads_them():
    page = Page()
    name = 'a "b" \\ c\nd'
    page.add(Family("lbops_x_total", "counter", "X.", ("value",)), 7, value=name)
    [family] = text_string_to_metric_families(page.content().decode())
    [sample] = family.samples
    assert (sample.labels, sample.value, family.type) == ({"value": name}, 7, "counter")


def test_latencies_are_a_histogram():
    row = (7000, *range(1, 15))
    lines = balancer._histogram("lbops_program_latency_seconds", 'balancer="main"', row)
    page = Page()
    page.add_lines(balancer.LATENCY, lines)
    [family] = text_string_to_metric_families(page.content().decode())
    assert family.type == "histogram"
    found = {(one.name.rpartition("_")[2], one.labels.get("le")): one.value for one in family.samples}
    # 2^5 to 2^17 ns, and all.
    assert len(found) == 16
    assert (found["bucket", "0.000000032"], found["bucket", "0.000000064"], found["bucket", "0.000131072"]) == (
        1,
        3,
        91,
    )
    assert found["bucket", "+Inf"] == found["count", None] == 105
    assert found["sum", None] == 7e-6


def test_an_empty_page_is_empty():
    assert Page().content() == b""


# --- guard


class Stub(Collector):
    name = "stub"
    families = (Family("lbops_stub", "gauge", "Stub.", ("balancer", "interface")),)
    failing: set = set()

    def subjects(self):
        return [Subject("main", "eth0"), Subject("main", "eth1"), Subject("other")]

    def collect(self, page, subject):
        page.add(self.families[0], 1, **subject._asdict())
        if subject.interface in self.failing:
            raise EngineError("broken\nin two")


def test_a_collector_that_fails_is_a_metric_and_told_of_once(capsys):
    guard, stub = Guard(), Stub()
    stub.failing = {"eth1"}
    for _scrape in range(2):
        found = samples(guard.run([stub]).content().decode())
        assert found['lbops_collector_success{balancer="main",collector="stub",interface="eth0"}'] == 1
        assert found['lbops_collector_success{balancer="main",collector="stub",interface="eth1"}'] == 0
        assert found['lbops_collector_success{balancer="other",collector="stub",interface=""}'] == 1
        assert 'lbops_stub{balancer="main",interface="eth0"}' in found
        assert 'lbops_stub{balancer="main",interface="eth1"}' not in found
    stub.failing = set()
    guard.run([stub])
    assert capsys.readouterr().out.splitlines() == [
        'exporter event=failed collector=stub balancer=main interface=eth1 error="broken\\nin two"',
        "exporter event=recovered collector=stub balancer=main interface=eth1",
    ]


def test_a_collector_that_does_not_know_its_interfaces_is_a_metric(monkeypatch):
    monkeypatch.setattr(Stub, "subjects", lambda self: 1 / 0)
    assert samples(Guard().run([Stub()]).content().decode()) == {
        'lbops_collector_success{balancer="",collector="stub",interface=""}': 0
    }


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    paths = state.Paths(state=tmp_path)
    for name in ("nic-eth1.json", "main/state.json", "main/health.json", "other/state.json", "left/health.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert source.balancers(paths) == ["main", "other"]
    assert source.tuned_interfaces(paths) == ["eth1"]
    assert source.balancers(state.Paths(state=tmp_path / "missing")) == []

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source.os, "listdir", refuse)
    with pytest.raises(PermissionError):
        source.balancers(paths)


# --- counters


def reading(packets: int, maps: int, since: float = 1.0, filters: bool = False) -> Reading:
    config = SimpleNamespace(services={"web": None}, backends={"one": None})
    current = SimpleNamespace(config=config, filters={"all": None} if filters else {}, counting_since=since)
    row, filtered = (packets, packets, 0, 0, 0), [(packets, 0)] if filters else []
    return Reading({}, current, [row], [row], filtered, [packets], maps=maps, latency=(packets, packets, 0))


def test_new_maps_wait_until_they_have_caught_up():
    floors = Floors()
    assert floors.raised(reading(100, 1)).services[0][0] == 100
    behind = floors.raised(reading(97, 2))
    assert (behind.services[0][0], behind.backends[0][0], behind.reasons) == (100, 100, [100])
    assert behind.latency == (100, 100, 0)
    assert floors.raised(reading(99, 2)).services[0][0] == 100
    assert floors.raised(reading(103, 2)).services[0][0] == 103
    assert floors.raised(reading(102, 3)).services[0][0] == 103


def test_a_filter_that_comes_again_begins_anew():
    floors = Floors()
    floors.raised(reading(100, 1, filters=True))
    assert floors.raised(reading(97, 2, filters=True)).filters == [(100, 0)]
    assert floors.raised(reading(98, 2)).filters == []
    assert floors.raised(reading(5, 2, filters=True)).filters == [(5, 0)]


def test_counters_that_began_anew_begin_anew():
    floors = Floors()
    floors.raised(reading(100, 1))
    assert floors.raised(reading(3, 2, since=2.0)).services[0][0] == 3


def test_runs_add_up_over_programs():
    runs = program.Runs()
    assert runs.add({7: (10, 1000)}) == (10, 1000)
    assert runs.add({7: (15, 1500)}) == (15, 1500)
    assert runs.add({8: (1, 100)}) == (16, 1600)
    # One interface of two has another kind of hook, and gets a new program.
    assert runs.add({8: (2, 200), 9: (5, 500)}) == (22, 2200)
    assert runs.add({8: (3, 300), 10: (1, 100)}) == (24, 2400)
    assert runs.add({}) == (24, 2400)


def test_hits_never_shrink():
    hits = balancer.Hits()
    assert hits.of({"web": (10, 0, 0, 0, 3), "other": (0, 0, 0, 0, 2)}) == [7, 0]
    assert hits.of({"web": (10, 0, 0, 0, 4)}) == [7]
    assert hits.of({"web": (12, 0, 0, 0, 4)}) == [9]
    # New flows without a way to their backend; then packets of old ones again.
    assert hits.of({"web": (12, 0, 0, 0, 1000)}) == [9]
    assert hits.of({"web": (15, 0, 0, 0, 1000)}) == [12]
    # Set up anew.
    assert hits.of({"web": (0, 0, 0, 0, 0)}) == [12]
    assert hits.of({"web": (4, 0, 0, 0, 1)}) == [15]
    assert hits.of({}) == []
    assert hits.of({"web": (4, 0, 0, 0, 1)}) == [3]


def test_32_bits_are_unwrapped():
    unwrapped = softnet.Unwrapped()
    assert [unwrapped.add((1, 0), value) for value in (5, 0xFFFFFFFF, 3, 4)] == [
        5,
        0xFFFFFFFF,
        (1 << 32) + 3,
        (1 << 32) + 4,
    ]


def test_a_cpu_that_goes_offline_takes_nothing_from_the_sums(tmp_path, monkeypatch):
    """The kernel has no line for it."""
    lines = [" ".join([processed, *["00000001"] * 11, cpu]) for processed, cpu in (("0a", "00"), ("14", "01"))]
    monkeypatch.setattr(softnet, "STATISTICS", tmp_path / "softnet_stat")
    collector = softnet.SoftnetCollector(per_cpu=False)
    for shown in (lines, lines[:1], lines):
        softnet.STATISTICS.write_text("\n".join(shown))
        page = Page()
        collector.collect(page, Subject())
        assert samples(page.content().decode())["lbops_softnet_processed_total"] == 30


def test_what_filters_pass_never_shrinks():
    """A packet may be counted between the reading of all and that of the dropped ones."""
    passed = balancer.Passed()
    assert passed.of({"all": (10, 4), "none": (5, 6)}) == [6, 0]
    assert passed.of({"all": (12, 7), "none": (9, 9)}) == [6, 0]
    assert passed.of({"all": (20, 7)}) == [13]
    # Set up anew.
    assert passed.of({"all": (3, 1), "none": (0, 0)}) == [2, 0]


# --- what drivers and devices say


def test_statistics_of_drivers_are_sorted_out():
    packets, xdp, others = driver.sort_out(
        {
            "rx_queue_0_packets": 1,
            "rx-1.packets": 2,
            "tx2_packets": 3,
            "queue_3_rx_cnt": 4,
            "[4]: tx_ucast_packets": 5,
            "rx_queue_0_xdp_drops": 6,
            "rx_queue_1_xdp_drops": 7,
            "rx_xdp_drop": 8,
            "rx_crc_errors_phy": 9,
            "rx0_bytes": 10,
            "rx1_bytes": 11,
            "tx0_bytes": 12,
            "tx_bytes": 112,
            "ch0_poll": 13,
            "ch1_poll": 14,
        }
    )
    assert packets == {
        ("receive", 0): 1,
        ("receive", 1): 2,
        ("transmit", 2): 3,
        ("receive", 3): 4,
        ("transmit", 4): 5,
    }
    assert xdp == {"rx_xdp_drops": 13, "rx_xdp_drop": 8}
    # The device's own sum knows of queues that are no more.
    assert others == {"rx_crc_errors_phy": 9, "rx_bytes": 21, "tx_bytes": 112, "ch_poll": 27}


def test_the_hash_key_stays_here():
    image = {"rss": {"key": "6d:5a", "queues": 2}, "rings": {"rx": 256}, "irq_affinity": {"vectors": {"0": "1"}}}
    assert list(nic.settings(image)) == [
        ("rss", "queues", 2),
        ("rings", "rx", 256),
        ("irq_affinity", "vectors.0", "1"),
    ]


def test_drift_is_what_a_profile_would_change():
    entry = tuned.Tuned({}, saved={"rings": {"rx": 512, "tx": 512}, "features": {"lro": False}})
    entry.saved["irq_affinity"] = {"irqbalance_ban": True}
    entry.settled = {"rings.tx": [512, 256]}
    facts = {"rings": {"rx": 256, "tx": 256}, "features": {"lro": False}}
    assert list(nic.drifted(facts, entry)) == [
        ("rings", "rx", True),
        ("rings", "tx", False),
        ("features", "lro", False),
    ]


def test_one_damaged_tuning_blinds_its_own_interface_only(tmp_path, monkeypatch):
    paths = state.Paths(tmp_path / "pins", tmp_path)
    monkeypatch.setattr(tuned, "STATE", tmp_path)
    for name, content in (("eth0", "{"), ("eth1", json.dumps({"schema": tuned.SCHEMA, "devices": {}, "reverted": 0}))):
        tuned.path_of(name).write_text(content)
    collector = nic.NicCollector(Devices(Sources(paths)))
    collector._declared(Page(), Subject("", "eth1"), {})
    with pytest.raises(EngineError, match="nic-eth0.json is damaged"):
        collector._declared(Page(), Subject("", "eth0"), {})


# --- TLS and users


def digest_of(password: bytes) -> str:
    made = Bcrypt()
    return made._crypt(password, b"$2b$05$abcdefghijklmnopqrstuu").decode()


def make_certificate(directory: Path, name: str) -> None:
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name}".split()
    files = ("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.crt")
    subprocess.run([*command, *files], check=True, capture_output=True)


def test_a_renewed_certificate_is_used_once_its_key_is_there(tmp_path):
    for name in ("old", "new"):
        make_certificate(tmp_path, name)
    certificate, key = tmp_path / "used.crt", tmp_path / "used.key"
    shutil.copy(tmp_path / "old.crt", certificate)
    shutil.copy(tmp_path / "old.key", key)
    tls = Tls(str(certificate), str(key))
    first = tls.context()
    assert tls.context() is first
    (tmp_path / "new.crt").rename(certificate)
    assert tls.context() is first
    (tmp_path / "new.key").rename(key)
    assert tls.context() is not first
    shutil.copy(tmp_path / "old.crt", certificate)
    with pytest.raises(ssl.SSLError):
        Tls(str(certificate), str(key))


def test_users():
    users = Users({"prometheus": digest_of(b"let me in")})
    for _twice in range(2):
        assert users.accept("prometheus", b"let me in")
        assert not users.accept("prometheus", b"let me out")
        assert not users.accept("nobody", b"let me in")
        assert not users.accept("prometheus", b"let me in\0")


@pytest.mark.parametrize(
    ("content", "problem"),
    (
        ({"tls": {}}, "has no 'tls'; there are tls_server_config, basic_auth_users"),
        ([], "is not a mapping"),
        ({"tls_server_config": {"cert_file": "/missing"}}, "tls_server_config has no key_file"),
        ({"tls_server_config": {"cert_file": "/missing", "key_file": "/missing"}}, "cert_file /missing and key_file"),
        ({"tls_server_config": {"cert_file": 5, "key_file": 6}}, "cert_file 5 is not a path such as /etc/lb1.pem"),
        ({"tls_server_config": {"cert_file": "a", "key_file": "b"}}, "cert_file 'a' is not a path"),
        ({"tls_server_config": {"ciphers": []}}, "tls_server_config has no 'ciphers'; there are cert_file, key_file"),
        ({"basic_auth_users": {"me": "secret"}}, "that of me is not a bcrypt digest; make one with htpasswd -nB me"),
        ({"basic_auth_users": ["me"]}, "basic_auth_users is not a mapping"),
    ),
)
def test_a_web_configuration_that_makes_no_sense(tmp_path, content, problem):
    path = tmp_path / "web.yml"
    path.write_text(json.dumps(content))
    with pytest.raises(EngineError) as raised:
        load(path)
    assert str(path) in str(raised.value) and problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_no_web_configuration_is_none(tmp_path):
    (tmp_path / "web.yml").write_text("{}\n")
    assert load(tmp_path / "web.yml") == load(None) == WebConfig()


# --- HTTP


@pytest.fixture
def serve(tmp_path) -> Iterator:
    servers = []

    def start(web: WebConfig | None = None) -> int:
        paths = state.Paths(tmp_path / "pins", tmp_path / "state")
        server = Server("127.0.0.1", 0, Exporter(paths), web or WebConfig())
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers


def test_a_host_without_balancers_answers(serve):
    port = serve()
    status, content, headers = ask(port, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert {family.name for family in text_string_to_metric_families(content.decode())} >= {
        "lbops_softnet_processed",
        "lbops_collector_success",
        "process_resident_memory_bytes",
    }
    assert json.loads(ask(port, "/api/v1/config")[1]) == {"balancers": {}}
    assert json.loads(ask(port, "/api/v1/services")[1]) == json.loads(ask(port, "/api/v1/backends")[1]) == []


def test_compression(serve):
    _status, content, headers = ask(serve(), "/metrics", **{"Accept-Encoding": "gzip, deflate"})
    assert headers["Content-Encoding"] == "gzip" and b"lbops_softnet" in gzip.decompress(content)


def test_what_is_not_there_and_what_is_not_done(serve):
    port = serve()
    assert ask(port, "/")[0] == 200
    assert ask(port, "/api/v1/configs")[0] == 404
    assert ask(port, "/metrics", "HEAD")[:2] == (200, b"")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        status, _content, headers = ask(port, "/api/v1/config", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_the_live_page_is_whole_and_fetches_nothing_from_elsewhere(serve):
    port = serve()
    waiting, seen = ["/"], {}
    while waiting:
        path = waiting.pop()
        status, content, headers = ask(port, path)
        assert status == 200, path
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        seen[path] = headers["Content-Type"].partition(";")[0]
        text = content.decode()
        assert not re.search(r"(?:src|href|url\()\W*(?:https?:)?//", text), path
        found = re.findall(r'(?:src|href)="(page/[^"]+)"', text) + [
            f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)
        ]
        waiting += [f"/{name}" for name in found if f"/{name}" not in seen]
    assert set(seen.values()) == {"text/html", "text/css", "text/javascript"}
    assert seen.keys() == page.files().keys()
    assert ask(port, "/page/../server.py")[0] == ask(port, "/page/")[0] == 404


def test_queues_and_cpus_without_a_balancer(serve):
    before = time.time()
    status, content, _headers = ask(serve(), "/api/v1/queues")
    found = json.loads(content)
    assert status == 200 and found["interfaces"] == {} and before <= found["timestamp"] <= time.time()
    lines = (softnet.STATISTICS).read_text(encoding="ascii").splitlines()
    assert len(found["cpus"]) == len(lines) and sum(found["cpus"].values()) > 0


def test_a_page_is_made_once_for_all_who_wait(serve, tmp_path):
    made = Exporter(state.Paths(tmp_path / "pins", tmp_path / "state"))
    pages = []
    with made._metrics._lock:
        threads = [threading.Thread(target=lambda: pages.append(made.metrics(False))) for _number in range(10)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 10
    assert samples(made.metrics(False).decode())["lbops_exporter_scrapes_total"] < 10


def test_what_could_not_be_made_is_no_answer(serve, tmp_path, monkeypatch):
    made = Exporter(state.Paths(tmp_path / "pins", tmp_path / "state"))
    assert made.metrics(False)
    monkeypatch.setattr(Guard, "run", lambda *_arguments: 1 / 0)
    begun = made._metrics._begun
    with pytest.raises(ZeroDivisionError):
        made.metrics(False)
    # Nobody who waited meanwhile takes it for one.
    assert made._metrics._begun == begun


def test_the_oldest_connections_make_room(serve):
    """As soon as others wait, not when their time is over."""
    port = serve()
    silent = [socket.create_connection(("127.0.0.1", port)) for _number in range(3 * exporter_server.AT_ONCE)]
    started = time.monotonic()
    assert ask(port, "/metrics")[0] == 200
    assert time.monotonic() - started < exporter_server.TIMEOUT
    for connection in silent:
        connection.close()


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0, identity", False),
        ("gzip; q=0.000", False),
        ("xgzip", False),
        ("", False),
    ],
)
def test_who_takes_gzip(header, accepted):
    assert exporter_server.accepts_gzip(header) is accepted


def test_the_absolute_form_of_a_question(serve):
    port = serve()
    assert ask(port, f"http://127.0.0.1:{port}/metrics?x")[0] == 200
    assert ask(port, "http://127.0.0.1")[0] == 404


def test_the_silent_and_the_slow_keep_nobody_waiting_for_long(serve, monkeypatch):
    monkeypatch.setattr(exporter_server, "LONGEST", 1.0)
    port = serve()
    slow = [socket.create_connection(("127.0.0.1", port)) for _number in range(2 * exporter_server.AT_ONCE)]
    over = threading.Event()

    def dawdle() -> None:
        while not over.wait(0.2):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"G")

    thread = threading.Thread(target=dawdle)
    thread.start()
    try:
        assert ask(port, "/metrics")[0] == 200
    finally:
        over.set()
        thread.join()
        for connection in slow:
            connection.close()


def test_what_is_asked_for_compressed_comes_compressed(serve):
    port = serve()
    _status, content, headers = ask(port, "/api/v1/config", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip" and json.loads(gzip.decompress(content)) == {"balancers": {}}


def test_a_state_directory_that_cannot_be_read_is_told_of_everywhere(serve, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    port = serve()
    monkeypatch.setattr(source.os, "listdir", refuse)
    for name in ("config", "services", "queues"):
        status, content, _headers = ask(port, f"/api/v1/{name}")
        found = json.loads(content)
        assert status == 503 and "Permission denied" in found["errors"][""]
        assert name == "services" or found["balancers" if name == "config" else "interfaces"] == {}


def test_a_fault_of_our_own_is_told_of(serve, monkeypatch, capsys):
    monkeypatch.setattr(Exporter, "metrics", lambda self, packed: 1 / 0)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(serve(), "/metrics")
    assert 'event=failed client=127.0.0.1 error="ZeroDivisionError: ' in capsys.readouterr().out


def test_names_and_passwords(serve):
    port = serve(WebConfig(users=Users({"me": digest_of(b"a:b")})))

    def status(text: bytes | None) -> int:
        headers = {"Authorization": "Basic " + base64.b64encode(text).decode()} if text is not None else {}
        return ask(port, "/metrics", **headers)[0]

    assert [status(text) for text in (b"me:a:b", None, b"me", b"me:", b"you:a:b", b"\xff:a")] == [200, *[401] * 5]
    assert ask(port, "/metrics", Authorization="Basic !!")[0] == 401
    assert ask(port, "/metrics", Authorization="Bearer x")[2]["WWW-Authenticate"] == 'Basic realm="lbops"'
    assert ask(port, "/metrics", "POST")[0] in (401, 405)
