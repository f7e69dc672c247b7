# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of the lab's playbooks: check, base, network, start, wait, down.

Each prints `changed` if it changed anything.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import re
import shutil
import sys
from pathlib import Path

import base_tree
import hosts
import network
from common import Lab, LabError, machine_lock, run, write_if_changed

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "eatmydata": "eatmydata",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ethtool": "ethtool",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sysctl": "procps",
}
FIRST_HOST = 10


def check() -> bool:
    if os.geteuid() != 0:
        raise LabError("the lab starts containers and makes network interfaces: run the playbook as root")
    packages = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if not Path(base_tree.KEYRING).exists():
        packages.add("debian-archive-keyring")
    if packages:
        raise LabError(f"the lab needs tools this machine lacks: apt-get install {' '.join(sorted(packages))}")
    return False


def assign_addresses(names: list[str], remembered: dict, subnet: str) -> dict[str, str]:
    """Management addresses: a host keeps the one it has."""
    pool = ipaddress.ip_network(subnet)
    taken = {
        name: host["management_address"]
        for name, host in remembered.items()
        if name in names and ipaddress.ip_address(host["management_address"]) in pool
    }
    free = (str(pool[number]) for number in range(FIRST_HOST, 255))
    free = (address for address in free if address not in taken.values())
    return {name: taken.get(name) or next(free) for name in names}


def ensure_key(path: Path) -> bool:
    if path.exists() and path.with_name(f"{path.name}.pub").exists():
        return False
    path.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lbops lab", "-f", path)
    return True


def ssh_config(lab: Lab, state: dict) -> str:
    entries = "".join(
        f"Host {name}\n  HostName {host['management_address']}\n  HostKeyAlias {name}\n"
        for name, host in state["hosts"].items()
    )
    return f"""{entries}Host *
  User root
  IdentityFile "{lab.directory}/id_ed25519"
  IdentitiesOnly yes
  UserKnownHostsFile "{lab.directory}/known_hosts"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  LogLevel ERROR
  ConnectTimeout 5
  ServerAliveInterval 5
  ControlMaster auto
  ControlPersist 60s
  ControlPath {lab.ssh_sockets}/%n
"""


def describe(lab: Lab, description: dict) -> bool:
    """Complete the inventory's description with what this machine decides, and write it down with the SSH files."""
    remembered = lab.read_state()
    subnet = network.choose_subnet(lab, remembered.get("subnet"))
    addresses = assign_addresses(list(description["hosts"]), remembered.get("hosts", {}), subnet)
    state = {
        "id": lab.id,
        "subnet": subnet,
        "forwarding_before": network.forwarding_before(remembered.get("forwarding_before", {})),
        "management_bridge": lab.management_bridge,
        "data_network": str(lab.data_network),
        "hosts": {
            name: {
                **settings,
                "base": description["base"],
                "management_address": addresses[name],
                "mac": lab.mac(name),
                "data_interface": lab.veth("data", name),
            }
            for name, settings in description["hosts"].items()
        },
    }
    lab.directory.mkdir(parents=True, exist_ok=True)
    lab.ssh_sockets.mkdir(mode=0o700, exist_ok=True)
    changed = [
        write_if_changed(lab.state_file, json.dumps(state, indent=2) + "\n"),
        ensure_key(lab.directory / "id_ed25519"),
    ]
    known_hosts = ""
    for name in state["hosts"]:
        directory = lab.host_directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        key = directory / "ssh_host_ed25519_key"
        changed.append(ensure_key(key))
        known_hosts += f"{name} {Path(f'{key}.pub').read_text()}"
    changed += [
        write_if_changed(lab.directory / "known_hosts", known_hosts),
        write_if_changed(lab.ssh_config, ssh_config(lab, state)),
    ]
    return any(changed)


def network_up(lab: Lab, description: dict) -> bool:
    with machine_lock():
        described = describe(lab, description)
        return network.up(lab, lab.read_state()) or described


def close_connections(lab: Lab) -> None:
    for path in lab.ssh_sockets.glob("*"):
        run("ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "lab", check=False)
    shutil.rmtree(lab.ssh_sockets, ignore_errors=True)


def unmount_below(directory: Path) -> None:
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        # The kernel writes blanks and the like as octal numbers.
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[1])
        if Path(path).is_relative_to(directory):
            run("umount", "--lazy", path)


def down(lab: Lab) -> bool:
    existed = lab.directory.exists() or lab.ssh_sockets.exists()
    close_connections(lab)
    hosts.kill(lab.cgroup)
    with machine_lock():
        networked = network.down(lab)
    unmount_below(lab.directory)
    if lab.directory.exists():
        shutil.rmtree(lab.directory)
        with contextlib.suppress(OSError):
            lab.directory.parent.rmdir()
    return existed or networked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["check", "base", "network", "start", "wait", "down"])
    parser.add_argument("--directory", help="where the running lab lives")
    parser.add_argument("--cache", type=Path, help="where base trees are kept")
    parser.add_argument("--release", help="Debian release of the hosts")
    parser.add_argument("--mirror")
    parser.add_argument("--security-mirror")
    arguments = parser.parse_args()
    # Users of the hosts read what is written here, whatever the caller's umask is.
    os.umask(0o022)
    lab = Lab(arguments.directory) if arguments.directory else None
    if arguments.command == "check":
        changed = check()
    elif arguments.command == "base":
        tree, changed = base_tree.ensure(
            arguments.cache, arguments.release, arguments.mirror, arguments.security_mirror
        )
        print(tree)
    elif arguments.command == "network":
        changed = network_up(lab, json.load(sys.stdin))
    elif arguments.command == "start":
        changed = hosts.up(lab)
    elif arguments.command == "wait":
        changed = hosts.wait(lab)
    else:
        changed = down(lab)
    if changed:
        print("changed")


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
