# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the engine on a host, or remove it once nothing uses it."""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EngineError
from ..kernel import files
from ..outcome import Outcome
from . import units
from .installation import Installation, Manifest, Version

BPF_MOUNT = "sys-fs-bpf.mount"
# What the modules and programs import that does not come with Python.
IMPORTED = ("bcc", "pyroute2", "prometheus_client")
# Directories that go with the engine if nothing is in them.
DIRECTORIES = ("var/lib/lbops", "etc/lbops")


@dataclass(frozen=True)
class Setup:
    wanted: Version
    # Have to exist before anything is installed.
    interfaces: list[str] = field(default_factory=list)
    bpf_filesystem: bool = False
    installation: Installation = field(default_factory=Installation)

    def present(self, check: bool, archive: bytes | None, mount_unit: str) -> Outcome:
        """Without an archive nothing is installed: the result says whether one is needed."""
        self._check_interfaces()
        found = self.installation.found(self.wanted)
        installed = found != self.wanted or self.installation.current() != self.wanted.digest
        mounted = not self.bpf_filesystem or os.path.ismount("/sys/fs/bpf")
        details = {
            "digest": self.wanted.digest,
            "first": not self.installation.current(),
            "missing": [name for name in IMPORTED if importlib.util.find_spec(name) is None],
            "archive_needed": installed and archive is None and not check,
        }
        if not check and not details["archive_needed"]:
            if not mounted:
                _mount(mount_unit)
            if archive is not None:
                self._install(archive, found)
        before = _lines(found) + ([] if mounted else ["/sys/fs/bpf is not mounted"])
        after = _lines(self.wanted) + ([] if mounted else ["/sys/fs/bpf is mounted, now and at boot"])
        return Outcome(installed or not mounted, before, after, details, [])

    def absent(self, check: bool) -> Outcome:
        """Removes nothing as long as a unit of the collection is enabled or runs."""
        used = sorted({*units.enabled(), *units.running()})
        root = self.installation.root
        there = [path for path in self.wanted.system if (root / path).exists()]
        found = [f"/{path}" for path in there]
        if self.installation.base.exists():
            found.append(str(self.installation.base))
        if used:
            return Outcome(False, [], [], {"used_by": used}, [])
        if not check and found:
            targets = [Path(path).name for path in there if path.endswith(".target")]
            if targets:
                units.systemctl("stop", "--", *targets)
            self.installation.remove(there)
            units.reload()
        empty = [path for name in DIRECTORIES if (path := root / name).is_dir() and not any(path.iterdir())]
        if not check:
            for path in empty:
                path.rmdir()
        return Outcome(bool(found or empty), found + [str(path) for path in empty], [], {"used_by": []}, [])

    def _install(self, archive: bytes, found: Version) -> None:
        self.installation.install(self.wanted, archive)
        if found.system != self.wanted.system:
            units.reload()

    def _check_interfaces(self) -> None:
        for name in self.interfaces:
            try:
                socket.if_nametoindex(name)
            except OSError:
                there = ", ".join(sorted(entry for _index, entry in socket.if_nameindex()))
                raise EngineError(
                    f"interface {name} does not exist on this host; it has {there}; correct the inventory"
                ) from None


def _lines(version: Version) -> list[str]:
    entries: Manifest = {**version.engine, **{f"/{path}": checksum for path, checksum in version.system.items()}}
    return [f"{path} {checksum[:16]}" for path, checksum in sorted(entries.items())]


def _mount(unit: str) -> None:
    """systemd mounts it by itself, except in containers and where something else unmounted it."""
    path = Path("/etc/systemd/system") / BPF_MOUNT
    files.write(path, unit, 0o644)
    units.reload()
    units.systemctl("enable", "--now", "--", BPF_MOUNT)
    if not os.path.ismount("/sys/fs/bpf"):
        raise EngineError(f"/sys/fs/bpf: cannot mount the BPF file system; see systemctl status {BPF_MOUNT}")
