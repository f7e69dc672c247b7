# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a lab: what is in their file systems, starting and stopping them."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import HERE, Lab, LabError, cgroup_hierarchies, cgroup_processes, remove_cgroup, run

BOOT_SECONDS = 60
POLICY_TABLE = 100

# A veth hands over unfinished checksums, which native XDP on its peer would take for the frame's contents.
CHECKSUM_UNIT = """\
[Unit]
Description=Complete checksums before frames leave data0
Before=network-pre.target
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ethtool -K data0 tx off
TimeoutStartSec=30s

[Install]
WantedBy=multi-user.target
"""

ECHO_UNIT = """\
[Unit]
Description=UDP and TCP echo service that tells who answered
After=network.target

[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/lab/echo.py
Restart=always
DynamicUser=yes

[Install]
WantedBy=multi-user.target
"""

SSHD = """\
PasswordAuthentication no
MaxStartups 100
MaxSessions 100
"""


def data_network(mac: str, settings: dict) -> str:
    lines = ["[Match]", "Name=data0", "", "[Link]", f"MACAddress={mac}", "", "[Network]", "IPv6AcceptRA=no"]
    lines += [f"Address={address}" for address in settings["addresses"]]
    for route in settings["routes"]:
        lines += ["", "[Route]", f"Destination={route['to']}"]
        lines += [f"Gateway={route['via']}"] if "via" in route else ["Scope=link"]
        if "from" in route:
            lines += [
                f"Table={POLICY_TABLE}",
                "",
                "[RoutingPolicyRule]",
                f"From={route['from']}",
                f"To={route['to']}",
                f"Table={POLICY_TABLE}",
            ]
    return "\n".join(lines) + "\n"


def management_network(address: str, gateway: str) -> str:
    return (
        f"[Match]\nName=mgmt0\n\n[Network]\nAddress={address}\nGateway={gateway}\nIPv6AcceptRA=no\n"
        "LinkLocalAddressing=no\n"
    )


def resolvers() -> str:
    """The machine's name servers, without a local stub that its guests could not reach."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with contextlib.suppress(FileNotFoundError):
            lines = Path(path).read_text().splitlines()
            if any(line.startswith("nameserver") and not line.split()[1].startswith("127.") for line in lines):
                return "\n".join(line for line in lines if line.startswith(("nameserver", "search", "options"))) + "\n"
    raise LabError("/etc/resolv.conf names no server the hosts could reach")


def files(lab: Lab, state: dict, host: str) -> dict[str, str]:
    """Every file a host has beyond the base tree."""
    settings = state["hosts"][host]
    subnet = ipaddress.ip_network(state["subnet"])
    host_key = lab.host_directory(host) / "ssh_host_ed25519_key"
    content = {
        "etc/hostname": f"{host}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {host}\n::1 localhost\n",
        "etc/resolv.conf": resolvers(),
        "etc/machine-id": hashlib.md5(f"{lab.digest} {host}".encode()).hexdigest() + "\n",
        "etc/ssh/ssh_host_ed25519_key": host_key.read_text(),
        "etc/ssh/ssh_host_ed25519_key.pub": Path(f"{host_key}.pub").read_text(),
        "etc/ssh/sshd_config.d/lab.conf": SSHD,
        "root/.ssh/authorized_keys": (lab.directory / "id_ed25519.pub").read_text(),
        "etc/systemd/network/mgmt0.network": management_network(f"{settings['management_address']}/24", str(subnet[1])),
        "etc/systemd/network/data0.network": data_network(settings["mac"], settings),
    }
    if settings["sysctls"]:
        content["etc/sysctl.d/50-lab.conf"] = "".join(
            f"{name} = {value}\n" for name, value in settings["sysctls"].items()
        )
    if settings["dsr_vips"]:
        content["etc/systemd/network/lo.network"] = "[Match]\nName=lo\n\n[Network]\n" + "".join(
            f"Address={ipaddress.ip_interface(vip)}\n" for vip in settings["dsr_vips"]
        )
    if not settings["tx_checksum"]:
        content["etc/systemd/system/lab-checksum.service"] = CHECKSUM_UNIT
    if settings["echo"]:
        content["etc/systemd/system/lab-echo.service"] = ECHO_UNIT
        content["usr/local/lib/lab/echo.py"] = (HERE / "echo.py").read_text()
    return content


def write_files(upper: Path, base: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        for parent in reversed(Path(name).parents[:-1]):
            if not (upper / parent).exists():
                (upper / parent).mkdir(parents=True)
                if (base / parent).exists():
                    shutil.copystat(base / parent, upper / parent)
        path = upper / name
        path.write_text(text)
        path.chmod(0o600 if name.endswith(("_key", "authorized_keys")) else 0o644)
    for name in content:
        unit = Path(name)
        if unit.parent == Path("etc/systemd/system"):
            target = content[name].rsplit("WantedBy=", 1)[1].strip()
            wants = upper / unit.parent / f"{target}.wants"
            wants.mkdir(exist_ok=True)
            (wants / unit.name).symlink_to(f"/{unit}")


def kill(cgroup: str) -> None:
    """End every process of a cgroup and those below it."""
    processes = cgroup_processes(cgroup)
    for hierarchy in cgroup_hierarchies():
        switch = hierarchy / cgroup / "cgroup.kill"
        if switch.exists():
            switch.write_text("1")
    # Ended ones leave their cgroup, but stay in the process table until the machine's PID 1 has taken note.
    deadline = time.monotonic() + 20
    while any(Path("/proc", str(pid)).exists() for pid in processes):
        if time.monotonic() > deadline:
            raise LabError(f"processes of cgroup {cgroup} do not end: {sorted(processes)}")
        time.sleep(0.02)
    remove_cgroup(cgroup)


def start(lab: Lab, state: dict, host: str) -> bool:
    """Bring a host to the described state; make it anew when its description changed."""
    directory = lab.host_directory(host)
    cgroup = f"{lab.cgroup}/{host}"
    settings = state["hosts"][host]
    content = files(lab, state, host)
    programs = [(HERE / name).read_text() for name in ("supervise.py", "xdp_pass.py")]
    # A host cannot be moved to a new data network while it runs.
    data_network = lab.data_network.stat().st_ino
    digest = hashlib.sha256(
        json.dumps([content, settings, programs, data_network], sort_keys=True).encode()
    ).hexdigest()
    digest_file = directory / "digest"
    same = digest_file.exists() and digest_file.read_text() == digest
    if same and cgroup_processes(cgroup) and Path("/sys/class/net", lab.veth("mgmt", host), "master").exists():
        return False
    kill(cgroup)
    if not same:
        digest_file.unlink(missing_ok=True)
        shutil.rmtree(directory / "upper", ignore_errors=True)
        write_files(directory / "upper", Path(settings["base"]), content)
        digest_file.write_text(digest)
    with (directory / "console.log").open("a") as log:
        supervisor = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                HERE / "supervise.py",
                lab.directory,
                host,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    # From then on the cgroup tells whether the host lives.
    while not cgroup_processes(cgroup) and supervisor.poll() is None:
        time.sleep(0.005)
    return True


def stop_missing(lab: Lab, state: dict) -> bool:
    """Remove hosts the inventory no longer has."""
    changed = False
    for directory in (lab.directory / "hosts").iterdir():
        if directory.name not in state["hosts"]:
            kill(f"{lab.cgroup}/{directory.name}")
            shutil.rmtree(directory)
            changed = True
    return changed


def up(lab: Lab) -> bool:
    state = lab.read_state()
    stopped = stop_missing(lab, state)
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(lambda host: start(lab, state, host), state["hosts"]))
    return stopped or any(started)


def wait_for(lab: Lab, host: str) -> str | None:
    """Return what is wrong with a host, or None once it has booted.

    A failed unit is no fault of the lab: people break their hosts on purpose.
    """
    # A shared connection would go to the background and hold the pipes open.
    ssh = ("ssh", "-F", lab.ssh_config, "-o", "ControlPath=none", host)
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        result = run(*ssh, "systemctl is-system-running --wait", check=False)
        if result.stdout.strip() in ("running", "degraded"):
            return None
        if time.monotonic() > deadline or not cgroup_processes(f"{lab.cgroup}/{host}"):
            console = (lab.host_directory(host) / "console.log").read_text()
            return f"{host} did not come up: {result.stderr or result.stdout}\nIts console says:\n{console[-1500:]}"
        time.sleep(0.1)


def wait(lab: Lab) -> None:
    names = list(lab.read_state()["hosts"])
    with ThreadPoolExecutor(len(names)) as pool:
        problems = [problem for problem in pool.map(lambda host: wait_for(lab, host), names) if problem]
    if problems:
        raise LabError("\n".join(problems))
