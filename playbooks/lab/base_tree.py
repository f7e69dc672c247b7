# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root file system all hosts of a lab start from, built once and kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from common import LabError, run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-apt",
    "ca-certificates",
    "curl",
    "ethtool",
    "iproute2",
    "iputils-ping",
    "kmod",
    "netcat-openbsd",
    "procps",
    "tcpdump",
)
# Timers would take apt's lock while a role installs packages; a getty has no terminal to serve.
MASKED_UNITS = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "console-getty.service")


def sources(release: str, mirror: str, security_mirror: str) -> str:
    return "".join(
        f"deb [signed-by={KEYRING}] {uri} {suite} main\n"
        for uri, suite in ((mirror, release), (mirror, f"{release}-updates"), (security_mirror, f"{release}-security"))
    )


def build_command(release: str) -> list[str]:
    masks = " ".join(MASKED_UNITS)
    return [
        "eatmydata",
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io",
        "--skip=cleanup/apt/lists",
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/etc/hostname "$1"/etc/resolv.conf',
        '--customize-hook=systemctl --root="$1" enable systemd-networkd.service',
        f'--customize-hook=systemctl --root="$1" mask {masks}',
        release,
    ]


def ensure(cache: Path, release: str, mirror: str, security_mirror: str) -> tuple[Path, bool]:
    """Return the tree's directory, and whether it had to be built."""
    command = build_command(release)
    source_lines = sources(release, mirror, security_mirror)
    digest = hashlib.sha256("\n".join([*command, source_lines]).encode()).hexdigest()[:12]
    tree = cache / f"base-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    lock = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tree.exists():
            return tree, False
        partial = cache / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        # Without the dash it takes mirrors of its own and leaves the input alone.
        result = run(*command, partial, "-", input=source_lines, check=False)
        if result.returncode:
            raise LabError(f"mmdebstrap could not build the base tree:\n{result.stderr[-3000:]}")
        partial.rename(tree)
        return tree, True
    finally:
        os.close(lock)
