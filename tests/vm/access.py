# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to log in to the guests: keys made for this run, and the file that ssh -F takes."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

from tests.vm import network
from tests.vm.common import CHECKOUT, RUN, run, write

ADDRESS = "10.0.2.15"
KEY = RUN / "id_ed25519"
KNOWN_HOSTS = RUN / "known_hosts"
CONFIG = RUN / "ssh_config"
# Not in the checkout: a socket's path may have 107 characters, a checkout's path may be longer.
SOCKETS = Path("/run") / f"lbops-vm-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]}"


def make_key(path: Path) -> None:
    """A key pair; ssh-keygen makes the private one readable to its owner only."""
    if not path.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lbops-vm", "-f", path)


def host_key(directory: Path) -> Path:
    return directory / "ssh_host_ed25519_key"


def public(key: Path) -> str:
    return key.with_name(key.name + ".pub").read_text(encoding="ascii")


def write_config(guests: dict[str, Path]) -> None:
    """Let ssh find these guests by name, and each with its own key."""
    SOCKETS.mkdir(mode=0o700, exist_ok=True)
    lines, known = [], []
    for name, directory in guests.items():
        inside = shlex.join(network.inside(directory / "net", network.FABRIC))
        lines += [f"Host {name}", f"  HostKeyAlias {name}", f"  ProxyCommand {inside} nc {ADDRESS} 22"]
        known.append(f"{name} {public(host_key(directory))}")
    lines += [
        "Host *",
        "  User root",
        f'  IdentityFile "{KEY}"',
        "  IdentitiesOnly yes",
        f'  UserKnownHostsFile "{KNOWN_HOSTS}"',
        "  StrictHostKeyChecking yes",
        # Emulated machines on a busy one take their time for the handshake.
        "  ConnectTimeout 30",
        "  ServerAliveInterval 10",
        # A new connection to an emulated machine costs seconds.
        "  ControlMaster auto",
        "  ControlPersist 600",
        f"  ControlPath {SOCKETS}/%n",
    ]
    write(KNOWN_HOSTS, "".join(known))
    write(CONFIG, "\n".join(lines) + "\n")


def close(name: str) -> None:
    """End the connection that further ones share."""
    if (SOCKETS / name).exists():
        run("ssh", "-F", CONFIG, "-O", "exit", name, check=False)


def forget() -> None:
    shutil.rmtree(SOCKETS, ignore_errors=True)
