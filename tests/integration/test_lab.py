# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab of two hosts, beside the one the other tests use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DIRECTORY = CHECKOUT / "build/lab/pair"


def playbook(inventory: Path, name: str) -> int:
    """Run a playbook; return how many tasks changed something."""
    program = Path(sys.executable).with_name("ansible-playbook")
    result = subprocess.run(
        [program, "-i", inventory, CHECKOUT / "playbooks" / name],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return int(re.search(r"changed=(\d+)", result.stdout)[1])


def ssh(host: str, command: str) -> str:
    result = subprocess.run(
        ["ssh", "-F", DIRECTORY / "ssh_config", host, command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, f"{host}: {command}"
    return result.stdout.strip()


def processes(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_bytes().replace(b"\0", b" ").decode():
                found.append(int(path.parent.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


def traces(lab_id: str) -> list[str]:
    """Whatever of a lab the machine still has."""
    commands = [["ip", "link"], ["nft", "list", "tables"], ["mount"]]
    found = [
        line
        for command in commands
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        if lab_id in line or str(DIRECTORY) in line
    ]
    found += [str(path) for path in (DIRECTORY, Path(f"/run/lbops-{lab_id}")) if path.exists()]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/lbops-{lab_id}")]
    return found + [f"process {pid}" for pid in processes(str(DIRECTORY))]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    connection = (CHECKOUT / "inventory/lab/group_vars/lab/lab.yml").read_text()
    path = tmp_path_factory.mktemp("pair")
    (path / "group_vars").mkdir()
    (path / "group_vars/lab.yml").write_text(connection)
    description = {
        "client": {"lab_data_addresses": ["10.77.1.10/24"], "lab_tx_checksum": False},
        "server": {"lab_data_addresses": ["10.77.1.1/24"], "lab_echo": True, "lab_xdp_pass_peer": True},
    }
    hosts = {name: {**variables, "lab_directory": str(DIRECTORY)} for name, variables in description.items()}
    (path / "hosts.yml").write_text(json.dumps({"lab": {"hosts": hosts}}))
    playbook(path, "lab_up.yml")
    yield path
    playbook(path, "lab_down.yml")


def test_hosts_run(inventory: Path) -> None:
    for host in ("client", "server"):
        assert ssh(host, "hostname; systemctl is-system-running") == f"{host}\nrunning"


def test_second_run_changes_nothing(inventory: Path) -> None:
    assert playbook(inventory, "lab_up.yml") == 0


@pytest.mark.parametrize("option", ["", "-u"])
def test_echo_names_both_ends(inventory: Path, option: str) -> None:
    assert re.fullmatch(
        r"server 10\.77\.1\.10:\d+ hello", ssh("client", f"echo hello | nc -w1 {option} 10.77.1.1 8080")
    )


def test_reboot_keeps_files_only(inventory: Path) -> None:
    def boot() -> str:
        return ssh("server", "cat /proc/sys/kernel/random/boot_id")

    before = boot()
    ssh("server", "touch /root/kept; mkdir /sys/fs/bpf/pins")
    program = Path(sys.executable).with_name("ansible")
    reboot = [program, "-i", inventory, "server", "-m", "ansible.builtin.reboot"]
    subprocess.run(reboot, cwd=CHECKOUT, check=True, capture_output=True)
    assert boot() != before
    assert ssh("server", "ls /root; ls /sys/fs/bpf").splitlines()[0] == "kept"
    assert "pins" not in ssh("server", "ls /sys/fs/bpf")


def test_dead_host_comes_back(inventory: Path) -> None:
    lab = json.loads((DIRECTORY / "lab.json").read_text())
    for pid in processes(f"--machine={lab['id']}-server"):
        os.kill(pid, signal.SIGKILL)
    assert playbook(inventory, "lab_up.yml") == 1
    assert ssh("client", "ping -c1 -W2 10.77.1.1 >/dev/null; echo $?") == "0"


def test_down_leaves_nothing(inventory: Path) -> None:
    lab = json.loads((DIRECTORY / "lab.json").read_text())
    assert traces(lab["id"])
    assert playbook(inventory, "lab_down.yml") > 0
    assert traces(lab["id"]) == []
    assert playbook(inventory, "lab_down.yml") == 0
