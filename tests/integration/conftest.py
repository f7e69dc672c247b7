# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab of its own, set up by site.yml, and the means to run modules, traffic and the kernel's own tools in it."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.batch import Task, run, shell
from tests.support.client import Client

CHECKOUT = Path(__file__).resolve().parents[2]
# Each of pytest's workers has a lab of its own.
LAB = os.environ.get("INTEGRATION_LAB", "integration") + os.environ.get("PYTEST_XDIST_WORKER", "")
DIRECTORY = CHECKOUT / "build/lab" / LAB
INTERFACE = "data0"
# A balancer beside the one of site.yml, which is called main.
SPARE = "spare"
SERVERS = ("be1", "be2", "be3")
FINGERPRINT = (
    "find /var/lib/lbops -type f | sort | xargs sha256sum; find /var/lib/lbops; find /sys/fs/bpf/lbops | sort; "
    "ip -d link show | grep -E 'xdp|^[0-9]'; true"
)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Lab:
    """What tests do to the lab."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.scratch = inventory.parent

    def ansible(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name(program), "-i", self.inventory, *arguments]
        return subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    def playbook(self, name: str, *arguments: str) -> tuple[int, str]:
        """How many tasks changed something, and the output."""
        result = self.ansible("ansible-playbook", CHECKOUT / "playbooks" / name, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return sum(map(int, re.findall(r"changed=(\d+)", result.stdout))), result.stdout

    def services(self, services: list[dict[str, Any]], *arguments: str) -> tuple[int, str]:
        """site.yml, with these as the balancer's services."""
        extra = self.inventory.with_suffix(".services")
        extra.write_text(json.dumps({"balancer_services": services}))
        return self.playbook("site.yml", "--extra-vars", f"@{extra}", *arguments)

    def module(self, name: str, check: bool = False, host: str = "lb1", **arguments: Any) -> dict[str, Any]:
        """The result of one module, failures included."""
        results = self.inventory / "results"
        results.mkdir(exist_ok=True)
        (results / host).unlink(missing_ok=True)
        name = name if "." in name else f"lbops.xdp.{name}"
        result = self.ansible(
            "ansible",
            # Ansible takes "{}" for a command.
            *(host, "-m", name, "-a", json.dumps(arguments) if arguments else "", "--diff"),
            *(["--check"] if check else []),
            ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
            ANSIBLE_CALLBACK_PLUGINS=str(CHECKOUT / "tests/support/callback"),
            ANSIBLE_CALLBACKS_ENABLED="results",
            RESULTS_DIRECTORY=str(results),
        )
        assert (results / host).exists(), result.stdout + result.stderr
        return json.loads((results / host).read_text())

    def ssh(self, host: str, command: str, check: bool = True) -> str:
        result = subprocess.run(
            ["ssh", "-F", DIRECTORY / "ssh_config", host, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or result.returncode == 0, f"{host}: {command}: {result.stderr}"
        return result.stdout.strip()

    def engine(self, code: str, check: bool = True) -> str:
        """Python on the balancer, with the engine that the role installed."""
        script = f"import sys; sys.path.insert(0, '/usr/lib/lbops/current')\n{code}"
        return self.ssh("lb1", f"python3 - <<'END'\n{script}\nEND", check)

    def fingerprint(self) -> str:
        """Everything that a module could touch."""
        return self.ssh("lb1", FINGERPRINT)

    def program_id(self, interface: str = INTERFACE) -> int | None:
        """What the kernel says is attached."""
        link = json.loads(self.ssh("lb1", f"ip -d -j link show dev {interface}"))[0]
        return link.get("xdp", {}).get("prog", {}).get("id")

    def metrics(self) -> dict[str, float]:
        """The exporter's samples, by name and labels as they are written."""
        lines = self.ssh("lb1", "curl -sf http://127.0.0.1:9477/metrics").splitlines()
        return {sample.rpartition(" ")[0]: float(sample.rpartition(" ")[2]) for sample in lines if sample[0] != "#"}

    def ask(self, vip: str, port: int, count: int = 60) -> Counter[str]:
        """Who answers on this many new UDP flows; an empty name stands for nobody."""
        client = Client(DIRECTORY / "ssh_config")
        try:
            client("open_flows", count, vip, port)
            return Counter(answer or "" for answer in client("ask_flows"))
        finally:
            client.close()

    def connect(self, vip: str, port: int, count: int = 30) -> Counter[str]:
        """Who answers on this many TCP connections."""
        client = Client(DIRECTORY / "ssh_config")
        try:
            return Counter(client("connect", count, vip, port))
        finally:
            client.close()

    def four_runs(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Check, real, again, again in check; the result of the real run.

        Check mode says the same as the real run: before, after, changes and difference.
        """
        checked, applied = Task(name, arguments, check=True), Task(name, arguments)
        look = shell(FINGERPRINT)
        results = run(self, [look, checked, look, applied, look, applied, checked, look])
        untouched, check, still_untouched, real, settled, again, again_check, still_settled = results
        assert check.get("changed"), check
        assert still_untouched["stdout"] == untouched["stdout"]
        assert real.get("changed"), real
        for result in (again, again_check):
            assert result.get("changed") is False, result
            assert result["diff"]["before"] == result["diff"]["after"]
        assert still_settled["stdout"] == settled["stdout"]
        for what in ("before", "after", "changes", "created", "modified", "removed", "diff"):
            assert check.get(what) == real.get(what), what
        return real


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    inventory = tmp_path_factory.mktemp("integration")
    shutil.copytree(CHECKOUT / "inventory/lab/group_vars", inventory / "group_vars")
    hosts = yaml.safe_load((CHECKOUT / "inventory/lab/hosts.yml").read_text())
    groups = hosts["lab"]["children"]
    del groups["balancers"]["hosts"]["lb2"], groups["servers"]["children"]["spare"]
    hosts["lab"]["vars"] = {"lab_directory": str(DIRECTORY)}
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    # Variables beside the inventory win over those in it.
    connection = inventory / "group_vars/lab/lab.yml"
    connection.write_text(re.sub(r"(?m)^lab_directory: .*$", f"lab_directory: {DIRECTORY}", connection.read_text()))
    lab = Lab(inventory)
    # What an interrupted run left is not a fresh host.
    lab.playbook("lab_down.yml")
    lab.playbook("lab_up.yml")
    yield lab
    lab.playbook("lab_down.yml")


@pytest.fixture(scope="session")
def site(lab: Lab) -> dict[str, tuple[int, str]]:
    """The output of site.yml: in check mode on fresh hosts, for real, again, again in check mode."""
    return {
        "check": lab.playbook("site.yml", "--check", "--diff"),
        "real": lab.playbook("site.yml"),
        "again": lab.playbook("site.yml"),
        "again_check": lab.playbook("site.yml", "--check", "--diff"),
    }


@pytest.fixture(scope="module")
def decapsulating(lab: Lab, site: dict) -> Iterator[None]:
    """Backends that take tunnel packets: this kernel has no tunnel device, so a program takes the header off."""
    from bcc import BPF

    program = BPF(text=Path(__file__).with_name("decapsulate.c").read_bytes())
    code = base64.b64encode(program.dump_func(b"decapsulate")).decode()
    program.cleanup()
    attach = (CHECKOUT / "playbooks/lab/xdp_pass.py").read_text().partition('if __name__ == "__main__"')[0]
    script = f"{attach}\nimport base64\nattach('data0', base64.b64decode('{code}'))\n"
    for name in SERVERS:
        lab.ssh(name, f"python3 -c {shlex.quote(script)}; sysctl -qw net.ipv4.conf.data0.rp_filter=0")
    yield
    for name in SERVERS:
        lab.ssh(name, "ip link set data0 xdp off")


@pytest.fixture
def spare_interface(lab: Lab, site: dict) -> Iterator[str]:
    """An interface of the balancer without traffic, gone with everything on it afterwards."""
    lab.ssh("lb1", "ip link add t0 type veth peer name t1; ip link set t0 up; ip link set t1 up")
    yield "t0"
    lab.module("xdp_program", balancer=SPARE, state="absent", force=True)
    lab.ssh("lb1", f"ip link del t0; rm -rf /var/lib/lbops/{SPARE}", check=False)
