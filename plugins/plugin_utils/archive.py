# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection installs on a host: checksums, and one compressed archive that holds all of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

COLLECTION = Path(__file__).resolve().parents[2]
# Directory in the collection, directory below the version's on the host, which files.
ENGINE = (
    ("plugins/module_utils", "engine", "**/*.py"),
    ("files/bpf", "bpf", "*.[ch]"),
    ("roles/balancer/files/lbops_top", "lbops_top", "*.py"),
    ("roles/exporter/files/lbops_exporter", "lbops_exporter", "*.py"),
    ("roles/exporter/files/lbops_exporter/page", "lbops_exporter/page", "*.*"),
    ("roles/health/files", "health", "*.py"),
)
# Directory in the collection, directory below the root of the host, which files.
SYSTEM = (
    ("roles/balancer/files", "etc/systemd/system", "lbops-*.service"),
    ("roles/balancer/files", "etc/systemd/system", "lbops-*.target"),
    ("roles/exporter/files", "etc/systemd/system", "lbops-*.service"),
    ("roles/health/files", "etc/systemd/system", "lbops-*.service"),
    ("roles/nic_tuning/files", "etc/systemd/system", "lbops-*.service"),
    ("roles/balancer/files", "usr/sbin", "lbops-top"),
)
# What needs Ansible, and so is of use to modules only.
LEFT_OUT = {"adapter.py"}


def _files(content: tuple[tuple[str, str, str], ...], collection: Path) -> Iterator[tuple[str, Path]]:
    for source, target, pattern in content:
        for path in sorted((collection / source).glob(pattern)):
            if path.name not in LEFT_OUT:
                yield f"{target}/{path.relative_to(collection / source)}", path


def manifests(collection: Path = COLLECTION) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 by path: below the version's directory, and below the root of the host."""
    engine, system = (
        {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(content, collection)}
        for content in (ENGINE, SYSTEM)
    )
    return engine, system


def pack(collection: Path = COLLECTION) -> bytes:
    """A tar archive compressed by xz. The same files give the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:xz", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in _files(ENGINE + SYSTEM, collection):
            content = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()
