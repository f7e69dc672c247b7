# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all parts of the lab share: names derived from the lab's directory, files, commands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class LabError(Exception):
    """Something the person who runs the lab can act on."""


class Lab:
    """Names of one lab. All are derived from its directory, so a lab without state can still be taken down."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).resolve()
        self.digest = hashlib.sha256(str(self.directory).encode()).hexdigest()
        self.id = "l" + self.digest[:5]
        self.management_bridge = f"{self.id}-mgmt"
        self.data_network = self.directory / "data_network"
        self.nft_table = f"lbops_{self.id}"
        self.cgroup = f"lbops-{self.id}"
        self.state_file = self.directory / "lab.json"
        self.ssh_config = self.directory / "ssh_config"
        # Not in the lab's directory: a socket's path may have 107 characters, a checkout's path may be longer.
        self.ssh_sockets = Path("/run") / f"lbops-{self.id}"

    def host_directory(self, host: str) -> Path:
        return self.directory / "hosts" / host

    def veth(self, link: str, host: str) -> str:
        """The outer end of a host's link; interface names have at most 15 characters."""
        short = host if len(host) <= 6 else hashlib.sha256(host.encode()).hexdigest()[:6]
        return f"{self.id}-{link[0]}-{short}"

    def mac(self, host: str) -> str:
        digest = hashlib.sha256(f"{self.id} {host}".encode()).digest()
        return ":".join(f"{byte:02x}" for byte in b"\x02" + digest[:5])

    def read_state(self) -> dict:
        try:
            return json.loads(self.state_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def run(*command: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if check and result.returncode:
        raise LabError(f"{' '.join(map(str, command))}: {result.stderr.strip() or result.stdout.strip()}")
    return result


def write_if_changed(path: Path, text: str, mode: int = 0o644) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return False
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.rename(path)
    return True


@contextlib.contextmanager
def machine_lock():
    """Labs of all checkouts choose subnets and switch forwarding one after the other.

    An abstract socket serves as the lock because it leaves no file behind.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        deadline = time.monotonic() + 60
        while True:
            try:
                lock.bind("\0lbops-lab")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError("another lab on this machine has held its lock for a minute") from error
                time.sleep(0.05)
        yield


def cgroup_hierarchies() -> list[Path]:
    """Where processes can be grouped: the unified hierarchy, or its parts on a machine in hybrid mode."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.procs").exists():
        return [root]
    return [path for path in (root / "unified", root / "systemd") if path.exists()]


def cgroup_processes(cgroup: str) -> set[int]:
    found = set()
    for hierarchy in cgroup_hierarchies():
        for directory, _subdirectories, _files in os.walk(hierarchy / cgroup):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in Path(directory, "cgroup.procs").read_text().split())
    return found


def remove_cgroup(cgroup: str) -> None:
    for hierarchy in cgroup_hierarchies():
        for directory, _subdirectories, _files in os.walk(hierarchy / cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
