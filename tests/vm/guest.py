# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start or stop the guests: python -m tests.vm.guest start bookworm trixie; stop.

Both work whatever the state: start leaves alone what runs, stop removes all that is there of any guest. Each prints
`changed` if it changed anything.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm import access, image, logs, network, qemu
from tests.vm.common import CHECKOUT, RUN, VmError, run, write

CPUS, MEMORY = 4, "1536M"
# As in the guests' /etc/systemd/network/*.link; all guests have the same, they never meet.
MAC = "52:54:00:00:00:0{}"
BOOT_SECONDS = 900
# Without a line on the console.
SILENT_SECONDS = 300
STOP_SECONDS = 10
ECHO = CHECKOUT / "playbooks" / "lab" / "echo.py"


def _directory(name: str) -> Path:
    return RUN / name


def _names() -> list[str]:
    return sorted(path.name for path in RUN.iterdir() if path.is_dir()) if RUN.exists() else []


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    RUN.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(RUN, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# --- processes, by their pidfiles


def _process(pidfile: Path) -> int:
    """The process a pidfile names, 0 if it is gone: a number may belong to another process by now."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pidfile.read_text(encoding="ascii"))
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"LBOPS_VM_PIDFILE={pidfile}".encode() in environment:
            return pid
    return 0


def _environment(pidfile: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "LBOPS_VM_PIDFILE": str(pidfile), **more}


def _end(pidfile: Path) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    kind = signal.SIGTERM
    while pid := _process(pidfile):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)
        if time.monotonic() > deadline:
            kind = signal.SIGKILL
        time.sleep(0.1)
    pidfile.unlink(missing_ok=True)


# --- one guest


def _write_identity(name: str, directory: Path, boot: Path) -> Path:
    """The image's initrd and what tells this guest from others, in one file."""
    key = access.host_key(directory)
    access.make_key(key)
    tree = directory / "identity.tree"
    content = {
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n",
        "etc/machine-id": hashlib.md5(str(directory).encode(), usedforsecurity=False).hexdigest() + "\n",
        "etc/ssh/ssh_host_ed25519_key": key.read_text(encoding="ascii"),
        "etc/ssh/ssh_host_ed25519_key.pub": access.public(key),
        "root/.ssh/authorized_keys": access.public(access.KEY),
    }
    for file, text in content.items():
        path = tree / "identity" / file
        # As on the disk, whose directories get these modes.
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        secret = file.endswith(("_key", "authorized_keys"))
        write(path, text, 0o600 if secret else 0o644)
    for private in ("root", "root/.ssh"):
        (tree / "identity" / private).chmod(0o700)
    archive = directory / "identity"
    image.pack(tree, archive)
    initrd = directory / "initrd"
    # The guest's private host key is in it.
    initrd.touch(mode=0o600)
    initrd.write_bytes((boot / "initrd").read_bytes() + archive.read_bytes())
    archive.unlink()
    shutil.rmtree(tree)
    return initrd


def _devices() -> list[str]:
    """The NICs, and what each emulated model needs to have all of its features."""
    tap = "tap,id={0},ifname={0},script=no,downscript=no,vhost=off"
    models = {
        "mgmt0": "virtio-net-pci",
        "data0": "virtio-net-pci,mq=on,vectors=18,rss=on,hash=on,rx_queue_size=1024",
        "igb0": "igb,bus=port1",
        "vmx0": "vmxnet3",
        "igb1": "igb,bus=port2",
    }
    options = []
    for port in (1, 2):
        options += ["-device", f"pcie-root-port,id=port{port},chassis={port},slot={port}"]
    for number, (name, model) in enumerate(models.items(), start=1):
        queues = f",queues={network.DATA_QUEUES}" if name == network.DATA_TAP else ""
        options += ["-netdev", tap.format(name) + queues]
        options += ["-device", f"{model},netdev={name},mac={MAC.format(number)},romfile="]
    return options


def _boot(directory: Path, boot: Path, initrd: Path, accelerator: tuple[str, ...]) -> None:
    pidfile = directory / "qemu.pid"
    command = [*network.inside(directory / "net", network.FABRIC), *qemu.command(), *accelerator]
    command += ["-name", directory.name, "-machine", "q35", "-smp", str(CPUS), "-m", MEMORY]
    command += ["-nodefaults", "-display", "none", "-serial", f"file:{logs.console(directory.name)}"]
    command += ["-kernel", str(boot / "vmlinuz"), "-initrd", str(initrd)]
    # A one-shot timer that an emulated processor on a busy machine misses never comes again; a periodic one does.
    timers = "nohz=off highres=off"
    command += ["-append", f"console=ttyS0 root=/dev/vda rw mitigations=off panic=-1 {timers}"]
    # Its changes go to a file that is already unlinked.
    command += ["-drive", f"file={boot / 'disk'},format=raw,if=virtio,snapshot=on"]
    command += [*_devices(), "-daemonize", "-pidfile", str(pidfile)]
    run(*command, env=_environment(pidfile, TMPDIR=str(directory), **qemu.environment()))


def _start_echo(directory: Path, peer: network.Peer) -> None:
    pidfile = directory / f"{peer.name}.pid"
    # The name it answers with is its host's.
    named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', peer.name)
    process = subprocess.Popen(
        [*network.inside(directory / "net", peer.name), *named, sys.executable, str(ECHO)],
        env=_environment(pidfile),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    write(pidfile, f"{process.pid}\n")


def _start(name: str, accelerator: tuple[str, ...]) -> None:
    directory = _directory(name)
    directory.mkdir(mode=0o700)
    logs.clear(name)
    boot = image.ensure(name)
    network.up(directory / "net")
    for peer in network.PEERS:
        if peer.backend:
            _start_echo(directory, peer)
    _boot(directory, boot, _write_identity(name, directory, boot), accelerator)


def _remove(name: str) -> None:
    directory = _directory(name)
    access.close(name)
    for pidfile in directory.glob("*.pid"):
        _end(pidfile)
    network.down(directory / "net")
    logs.keep_console(name)
    shutil.rmtree(directory)


def runs(name: str) -> bool:
    """Whether the guest's QEMU is there."""
    return bool(_process(_directory(name) / "qemu.pid"))


def wait_for(name: str, problem: Callable[[], str]) -> None:
    """Wait until there is no problem any more: an emulated guest on a busy machine is slow, but goes on printing."""
    started = heard = time.monotonic()
    printed = 0
    while found := problem():
        now = time.monotonic()
        if printed != (printed := logs.console(name).stat().st_size):
            heard = now
        if not runs(name):
            raise VmError(f"{name}: QEMU has ended; {logs.last_lines(name)}")
        if now - heard > SILENT_SECONDS or now - started > BOOT_SECONDS:
            raise VmError(f"{name} has not come up in {now - started:.0f} s ({found}); {logs.last_lines(name)}")
        time.sleep(1)


def _wait(name: str) -> None:
    def problem() -> str:
        answer = run("ssh", "-F", access.CONFIG, name, "true", check=False)
        return answer.stderr.strip() or "ssh fails" if answer.returncode else ""

    wait_for(name, problem)


def start(names: list[str]) -> bool:
    if os.geteuid() != 0:
        raise VmError("the guests' networks are namespaces and taps: run this as root")
    # Mitogen ties what it starts to one CPU, and what that starts stays there.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    # Users of the guests read what is written here, whatever the caller's umask is.
    os.umask(0o022)
    with _locked():
        missing = [name for name in names if not runs(name)]
        if missing:
            access.make_key(access.KEY)
            accelerator = qemu.accelerator(image.ensure(missing[0]))
            print(f"{', '.join(missing)}: {' '.join(accelerator)}")
            for name in missing:
                if _directory(name).exists():
                    _remove(name)
                _start(name, accelerator)
            access.write_config({name: _directory(name) for name in _names()})
        for name in names:
            _wait(name)
    return bool(missing)


def stop() -> bool:
    if not RUN.exists():
        return False
    with _locked():
        for name in _names():
            _remove(name)
        access.forget()
        shutil.rmtree(RUN)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("start").add_argument("guests", nargs="+", choices=image.SUITES)
    actions.add_parser("stop")
    arguments = parser.parse_args()
    try:
        changed = start(arguments.guests) if arguments.action == "start" else stop()
    except VmError as error:
        print(error, file=sys.stderr)
        return 1
    if changed:
        print("changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
