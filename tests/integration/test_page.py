# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live page in a browser, while the lab's client sends packets: what it shows is what was sent."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.integration.conftest import CHECKOUT, DIRECTORY, Lab, wait_for
from tests.integration.test_prometheus import free_port

VIP = "10.77.0.10"
SCREENSHOTS = CHECKOUT / "build" / "page"
NUMBER = re.compile(r"([\d,]+) packets$")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # Root has no sandbox, and containers a small /dev/shm.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(lab: Lab, site: dict, browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    port = free_port()
    forward = ("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:127.0.0.1:9477")
    tunnel = subprocess.Popen(["ssh", "-F", DIRECTORY / "ssh_config", *forward, "lb1"])
    try:
        wait_for(lambda: subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}/"], check=False).returncode == 0, 10)
        browser.set_window_size(1280, 1400)
        browser.get(f"http://127.0.0.1:{port}/")
        wait_for(lambda: browser.find_elements(By.CLASS_NAME, "service"), 10)
        yield browser
    finally:
        tunnel.terminate()
        tunnel.wait()


def service(page: webdriver.Chrome, name: str):
    for found in page.find_elements(By.CLASS_NAME, "service"):
        if found.find_element(By.TAG_NAME, "b").text == name:
            return found
    raise AssertionError(name)


def packets(page: webdriver.Chrome, name: str) -> int:
    """All that the service ever got."""
    text = service(page, name).find_element(By.CLASS_NAME, "numbers").text
    return int(NUMBER.search(text)[1].replace(",", ""))


def rows(page: webdriver.Chrome, name: str) -> list[list[str]]:
    found = service(page, name).find_elements(By.CSS_SELECTOR, "tbody tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in found]


def udp_service(lab: Lab) -> str:
    found = lab.module("xdp_info")["services"]
    return next(one["name"] for one in found if one["protocol"] == "udp" and one["address"] == VIP and one["port"] == 7)


def ask(lab: Lab, count: int) -> None:
    script = (Path(__file__).with_name("asker.py")).read_text()
    lab.ssh("client", f"python3 -c {shlex.quote(script)} {VIP} 7 udp {count} 20 0")


def test_the_packets_that_were_sent_are_shown(lab: Lab, page: webdriver.Chrome):
    name = udp_service(lab)
    before, members = packets(page, name), {row[0]: int(row[7].replace(",", "")) for row in rows(page, name)}
    ask(lab, 200)
    wait_for(lambda: packets(page, name) == before + 200, 10)
    grown = {row[0]: int(row[7].replace(",", "")) - members[row[0]] for row in rows(page, name)}
    assert sum(grown.values()) == 200 and min(grown.values()) > 0


def test_rates_are_those_of_the_traffic(lab: Lab, page: webdriver.Chrome):
    """One flow of 100 packets a second: one backend has them, and all of the service's share."""
    name = udp_service(lab)
    unit = "systemd-run --quiet --collect --unit=steady python3 -c"
    code = (
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nn = time.monotonic()\n"
        f"while True:\n s.sendto(b'x', ('{VIP}', 7)); n += 0.01; time.sleep(max(0, n - time.monotonic()))"
    )
    lab.ssh("client", f"{unit} {shlex.quote(code)}")
    try:
        time.sleep(8)

        def is_steady() -> bool:
            text = service(page, name).find_element(By.CLASS_NAME, "numbers").text
            rate = float(re.match(r"[\d.]+", text)[0])
            shares = sorted(row[4] for row in rows(page, name))
            return abs(rate - 100) <= 5 and shares == ["0 %", "0 %", "100 %"]

        wait_for(is_steady, 15)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(SCREENSHOTS / "page.png"))
    finally:
        lab.ssh("client", "systemctl stop steady")


def test_what_is_dropped_is_named(lab: Lab, page: webdriver.Chrome):
    text = page.find_element(By.ID, "balancer-main").text
    assert "on the native hook" in text and "instructions verified" in text
    reasons = [row.text for row in page.find_elements(By.CSS_SELECTOR, ".reasons tbody tr")]
    assert any(row.startswith("pass not_ip") for row in reasons), reasons


def test_queues_and_cpus_have_a_cell_each(lab: Lab, page: webdriver.Chrome):
    headings = [found.text for found in page.find_elements(By.CSS_SELECTOR, ".strip h4")]
    assert "Packets/s by receive queue" in headings
    cpus = int(lab.ssh("lb1", "wc -l </proc/net/softnet_stat"))
    assert len(page.find_elements(By.CSS_SELECTOR, "main > section:last-child .cell")) == cpus


def test_services_are_found(page: webdriver.Chrome):
    field = page.find_element(By.ID, "find")
    field.send_keys("no such thing")
    assert not any(found.is_displayed() for found in page.find_elements(By.CLASS_NAME, "service"))
    field.clear()
    field.send_keys(" ")
    assert all(found.is_displayed() for found in page.find_elements(By.CLASS_NAME, "service"))
    field.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_needs_no_sideways_scrolling(page: webdriver.Chrome, scheme: str):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        width = page.execute_script("return document.documentElement.scrollWidth")
        assert width <= 375
        # Nor do the tables, whose columns are fewer.
        wide = page.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)"
            ".map((one) => `${one.scrollWidth} of ${one.clientWidth}: ${one.innerText}`)"
        )
        assert wide == []
        shown = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, ".backends th") if cell.is_displayed()]
        assert shown[:4] == ["Backend", "State", "Share", "Packets/s"]
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        assert brightness > 200 if scheme == "light" else brightness < 60
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(SCREENSHOTS / f"telephone-{scheme}.png"))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_an_exporter_that_stops_is_told_of_and_found_again(lab: Lab, page: webdriver.Chrome):
    lab.ssh("lb1", "systemctl stop lbops-exporter")
    try:
        wait_for(lambda: "No answer from the exporter" in page.find_element(By.ID, "state").text, 10)
    finally:
        lab.ssh("lb1", "systemctl start lbops-exporter")
    wait_for(lambda: "as of" in page.find_element(By.ID, "state").text, 15)


def test_nothing_came_from_elsewhere_and_nothing_went_wrong(page: webdriver.Chrome):
    # Besides what the exporter's absence made the browser say.
    complaints = [line for line in page.get_log("browser") if "api/v1/" not in line["message"]]
    assert complaints == []
    asked = set(
        re.findall(r'"url":"(https?://[^/"]+)', "".join(line["message"] for line in page.get_log("performance")))
    )
    assert len(asked) == 1 and next(iter(asked)).startswith("http://127.0.0.1:")
