# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine on a host: one directory for each version, and one symbolic link to the version in use.

/usr/lib/lbops/<digest>/ holds everything that runs on the host; /usr/lib/lbops/current points to it. A version is
written completely and synced to the disk before the link is renamed, so a crash leaves the old version or the new one,
never a mix. Unit files and commands, which have to lie elsewhere, are replaced one by one afterwards: they name only
the link.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from ..kernel import files

LINK = "current"
# Where the collection's first releases had it.
FLAT = ("engine", "bpf", "lbops_top", "lbops_exporter", "health")
COMMANDS = "usr/sbin/"

# SHA-256 by path.
Manifest = dict[str, str]


def digest_of(engine: Manifest) -> str:
    """The name of the version's directory."""
    lines = "".join(f"{path} {checksum}\n" for path, checksum in sorted(engine.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Version:
    """What is to be installed: paths below the version's directory, and paths below the root of the host."""

    engine: Manifest
    system: Manifest

    @property
    def digest(self) -> str:
        return digest_of(self.engine)


@dataclass
class Installation:
    """`root` is the host's; tests have one of their own."""

    root: Path = Path("/")
    base: Path = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.root / "usr/lib/lbops"

    @property
    def link(self) -> Path:
        return self.base / LINK

    def current(self) -> str:
        """The digest of the version in use, empty without one."""
        try:
            return os.readlink(self.link)
        except OSError:
            return ""

    def found(self, wanted: Version) -> Version:
        """What is in use now, and what lies in the places of the files elsewhere."""
        current = self.current()
        engine = _checksums(self.base / current) if current else {}
        system = {path: sum_ for path in wanted.system if (sum_ := _checksum(self.root / path, _mode(path)))}
        return Version(engine, system)

    def leftovers(self, used: set[str]) -> list[Path]:
        """Versions and interrupted installations that neither the link nor a process uses.

        `used` has digests, and FLAT's first name if a process still runs from the flat layout.
        """
        keep = {LINK, self.current(), *used}
        flat_in_use = FLAT[0] in used
        try:
            found = sorted(self.base.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if path.name not in keep and not (flat_in_use and path.name in FLAT)]

    def sweep(self, used: set[str]) -> None:
        for path in self.leftovers(used):
            _remove(path)

    def install(self, wanted: Version, archive: bytes) -> None:
        """Complete an interrupted installation, too. Nothing that is in use is removed."""
        contents = _read(archive)
        self._install_version(wanted, contents)
        self._switch(wanted.digest)
        for path, checksum in wanted.system.items():
            if _checksum(self.root / path, _mode(path)) != checksum:
                target = self.root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                files.write(target, contents[path], _mode(path))

    def remove(self, system: list[str]) -> None:
        """Unit files and commands first: what they start has to be there as long as they are."""
        for path in system:
            files.remove(self.root / path)
        if self.base.exists():
            # The link first, so that a removal that was interrupted is no installation.
            files.remove(self.link)
            shutil.rmtree(self.base)

    def _install_version(self, wanted: Version, contents: dict[str, bytes]) -> None:
        directory = self.base / wanted.digest
        if self.current() == wanted.digest:
            self._repair(directory, wanted.engine, contents)
            return
        if _checksums(directory) == wanted.engine:
            return
        unfinished = self.base / f".{wanted.digest}.new"
        for left in (unfinished, directory):
            _remove(left)
        for path in sorted(wanted.engine):
            target = unfinished / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, contents[path])
        for made in sorted((found for found in unfinished.rglob("*") if found.is_dir()), reverse=True):
            _sync(made)
        _sync(unfinished)
        unfinished.rename(directory)
        _sync(self.base)

    def _repair(self, directory: Path, wanted: Manifest, contents: dict[str, bytes]) -> None:
        """Somebody changed the version in use: put it right file by file."""
        found = _checksums(directory)
        for path in wanted.keys() - {path for path in found if found[path] == wanted.get(path)}:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            files.write(directory / path, contents[path], 0o644)
        for path in found.keys() - wanted.keys():
            _remove(directory / path)

    def _switch(self, digest: str) -> None:
        if self.current() == digest:
            return
        new = self.base / f".{LINK}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(digest)
        new.replace(self.link)
        _sync(self.base)


def _mode(path: str) -> int:
    return 0o755 if path.startswith(COMMANDS) else 0o644


def _checksum(path: Path, mode: int = 0o644) -> str:
    """Empty for anything but a regular file that only root may change."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) != mode or found.st_uid != os.geteuid():
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _checksums(directory: Path) -> Manifest:
    """Of all files but compiled Python, which what people start by hand may leave."""
    return {
        os.path.join(os.path.relpath(parent, directory), name).removeprefix("./"): _checksum(Path(parent, name))
        for parent, _directories, names in os.walk(directory)
        if os.path.basename(parent) != "__pycache__"
        for name in names
    }


def _read(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: content.read() for entry in tar if (content := tar.extractfile(entry))}


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o644)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
