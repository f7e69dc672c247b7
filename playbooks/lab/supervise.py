# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's life: `supervise.py <lab directory> <host>` boots it, plugs its links, and boots it again on `reboot`.

Runs in a mount namespace of its own, so that no way of dying leaves a mount behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import xdp_pass
from common import Lab, cgroup_hierarchies, remove_cgroup, run
from network import DATA_BRIDGE

BPFFS = "/sys/fs/bpf"
EXIT_REBOOT = 133


def enter_cgroup(name: str) -> None:
    """Each host's systemd needs a cgroup tree of its own: in a shared one it would stop its neighbours' services."""
    for hierarchy in cgroup_hierarchies():
        directory = hierarchy / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text(str(os.getpid()))


def mount_root(directory: Path, base: str) -> None:
    work = directory / "work"
    # `volatile` leaves out syncing; such an overlay refuses a second mount until its work directory is new.
    shutil.rmtree(work, ignore_errors=True)
    for path in (work, directory / "upper", directory / "root"):
        path.mkdir(parents=True, exist_ok=True)
    # Relative, because a comma or colon in the checkout's path would end an option.
    layers = f"lowerdir={os.path.relpath(base, directory)},upperdir=upper,workdir=work"
    run("mount", "-t", "overlay", "-o", f"{layers},volatile", "overlay", "root", cwd=directory)


def exists(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def plug(lab: Lab, host: str, xdp_peer: bool) -> None:
    management, data = lab.veth("mgmt", host), lab.veth("data", host)
    for interface in (management, data):
        run("ip", "link", "set", interface, "addrgenmode", "none")
    run("ip", "link", "set", management, "master", lab.management_bridge, "up")
    if xdp_peer:
        xdp_pass.attach(data)
        # XDP turns GRO on, and merged frames are not what the balancer sent.
        run("ethtool", "-K", data, "gro", "off")
        # XDP on this side limits the other side's transmit queues to this side's receive queues.
        run("ethtool", "-L", data, "rx", os.cpu_count())
    run("ip", "link", "set", data, "netns", lab.data_network)
    run("nsenter", f"--net={lab.data_network}", "ip", "link", "set", data, "master", DATA_BRIDGE, "up")


def boot(lab: Lab, host: str, settings: dict) -> int:
    interfaces = {link: lab.veth(link, host) for link in ("mgmt", "data")}
    # systemd mounts this on a real host; nspawn's /sys has no place for it. Each boot has its own, so pins end with it.
    run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", BPFFS)
    container = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--boot",
            f"--directory={lab.host_directory(host) / 'root'}",
            f"--bind={BPFFS}",
            f"--machine={lab.id}-{host}",
            f"--hostname={host}",
            *(f"--network-veth-extra={outer}:{link}0" for link, outer in interfaces.items()),
            "--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON,CAP_SYS_ADMIN,CAP_SYS_RESOURCE",
            "--system-call-filter=bpf perf_event_open",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=read-only",
        ],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
    )
    try:
        while container.poll() is None and not all(map(exists, interfaces.values())):
            time.sleep(0.005)
        if container.poll() is None:
            plug(lab, host, settings["xdp_pass_peer"])
        return container.wait()
    finally:
        container.kill()
        container.wait()
        run("umount", BPFFS)
        # They would go by themselves, but later than the next boot wants their names.
        run("ip", "link", "delete", interfaces["mgmt"], check=False)
        run("nsenter", f"--net={lab.data_network}", "ip", "link", "delete", interfaces["data"], check=False)


def main(directory: str, host: str) -> int:
    lab = Lab(directory)
    state = lab.read_state()
    settings = state["hosts"][host]
    cgroup = f"{lab.cgroup}/{host}"
    enter_cgroup(cgroup)
    mount_root(lab.host_directory(host), settings["base"])
    # nspawn's own traces stay in this namespace, too.
    runtime = Path("/run/systemd/nspawn")
    runtime.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", runtime)
    while (status := boot(lab, host, settings)) == EXIT_REBOOT:
        pass
    print(f"{host} ended with status {status}", flush=True)
    for hierarchy in cgroup_hierarchies():
        with contextlib.suppress(OSError):
            (hierarchy / "cgroup.procs").write_text(str(os.getpid()))
    remove_cgroup(cgroup)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
