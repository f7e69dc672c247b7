# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual machines of tests/vm, which molecule's scenario vm starts: everything is done on all of them at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import batch
from tests.support.batch import Task
from tests.vm import access, image, logs, network
from tests.vm.common import CHECKOUT, RUN
from tests.vm.guest import wait_for

GUESTS = os.environ.get("VM_GUESTS", ",".join(image.SUITES)).split(",")
INVENTORY = CHECKOUT / "extensions" / "molecule" / "vm" / "inventory"
COMMAND_SECONDS = 600


def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    # ssh would make the common standard input non-blocking, which Ansible refuses.
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)


class Guests:
    """What tests do to the guests."""

    scratch = RUN

    def ansible(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name(program), "-i", INVENTORY, "--limit", ",".join(GUESTS), *arguments]
        # Ansible wraps warnings to the terminal's width.
        environment = {
            **os.environ,
            "MOLECULE_PROJECT_DIRECTORY": str(CHECKOUT),
            "ANSIBLE_TIMEOUT": "60",
            "COLUMNS": "1000",
        }
        return run(command, cwd=CHECKOUT, env=environment)

    def run(self, *tasks: Task) -> dict[str, list[dict]]:
        """The results of modules, by guest."""
        return batch.run_on(self, GUESTS, list(tasks))

    def try_playbook(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = ("-e", f"balancers_at_once={len(GUESTS)}", *arguments)
        return self.ansible("ansible-playbook", str(CHECKOUT / "playbooks" / name), *options)

    def playbook(self, name: str, *arguments: str) -> tuple[dict[str, int], str]:
        """How many tasks changed something on each guest, and the output."""
        result = self.try_playbook(name, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        recap = re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", result.stdout, re.MULTILINE)
        return {guest: int(changed) for guest, changed in recap}, result.stdout + result.stderr

    def ssh(self, guest: str, command: str, check: bool = True) -> str:
        result = run(["ssh", "-F", access.CONFIG, guest, command], timeout=COMMAND_SECONDS)
        assert not check or result.returncode == 0, f"{guest}: {command}: {result.stderr}"
        return result.stdout.strip()

    def each(self, command: str) -> dict[str, str]:
        """What a command prints on each guest."""
        return {guest: self.ssh(guest, command) for guest in GUESTS}

    def beside(self, guest: str, namespace: str, command: str) -> str:
        """What a shell prints in one of the network namespaces beside the guest."""
        inside = network.inside(RUN / guest / "net", namespace)
        result = run([*inside, "sh", "-c", command], timeout=COMMAND_SECONDS)
        assert result.returncode == 0, f"{namespace} of {guest}: {command}: {result.stderr}"
        return result.stdout.strip()

    def client(self, guest: str, *command: str) -> str:
        """What a program prints on the client beside the guest."""
        inside = network.inside(RUN / guest / "net", "client")
        return run([*inside, *command], timeout=COMMAND_SECONDS).stdout

    def reboot(self, command: str = "systemctl reboot", names: Sequence[str] = tuple(GUESTS)) -> None:
        boot_id = "cat /proc/sys/kernel/random/boot_id"
        booted = {guest: self.ssh(guest, boot_id) for guest in names}
        for guest in names:
            # The guest may close the connection before it says that it obeys.
            self.ssh(guest, command, check=False)
            access.close(guest)

        def problem(guest: str) -> str:
            found = run(["ssh", "-F", access.CONFIG, guest, boot_id])
            if found.stdout.strip() == booted[guest]:
                return "it has not gone down"
            return "" if found.stdout else found.stderr.strip() or "ssh fails"

        for guest in names:
            wait_for(guest, partial(problem, guest))
            # "degraded" is the business of the tests.
            self.ssh(guest, "systemctl is-system-running --wait", check=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    """Save the guests' journals when a test fails: molecule removes the guests."""
    report = yield
    if report.failed:
        for guest in GUESTS:
            logs.keep_journal(guest, item.name)
    return report


@pytest.fixture(scope="session")
def guests() -> Guests:
    if not access.CONFIG.exists():
        pytest.exit("tests/guests needs guests: python3 -m tests.vm.guest start", returncode=1)
    return Guests()


@pytest.fixture(params=GUESTS)
def guest(request: pytest.FixtureRequest) -> str:
    return request.param
