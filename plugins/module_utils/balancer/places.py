# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a balancer lies on a host: pins in the BPF file system, files of its state.

/sys/fs/bpf/lbops/<balancer>/maps/<map> and programs/<interface>, directories with mode 0700. What a change has made but
not yet put in place lies in maps_new and programs_new.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ..errors import EngineError
from ..kernel import bpf
from .document import check_name
from .state import Paths


class Places:
    """The paths of one balancer. Raises EngineError for a name that is none."""

    def __init__(self, name: str, paths: Paths) -> None:
        self.name, self.paths = check_name(name), paths
        self.pins = paths.pins / name
        self.maps = self.pins / "maps"
        self.new_maps = self.pins / "maps_new"
        self.programs = self.pins / "programs"
        self.new_programs = self.pins / "programs_new"
        self.state_directory = paths.directory(name)
        self.state_file = paths.state_file(name)
        self.health_file = paths.health_file(name)
        self.history = paths.history(name)
        self.compiled = paths.compiled(name)

    def program(self, interface: str) -> Path:
        """The pin of the program that is on this interface."""
        return self.programs / pin_name(interface)

    def new_program(self, interface: str) -> Path:
        return self.new_programs / pin_name(interface)

    def preparing_file(self, interface: str) -> Path:
        return self.paths.preparing_file(self.name, interface)

    def pinned_interfaces(self) -> list[str]:
        """The interfaces that have a pinned program."""
        found = sorted(self.programs.iterdir()) if self.programs.exists() else []
        return [path.name.replace("%", ".") for path in found]

    def make(self) -> None:
        """Make the directories of the pins."""
        for directory in (self.paths.pins, self.pins, self.programs, self.new_programs):
            directory.mkdir(mode=0o700, exist_ok=True)

    def check_host(self) -> None:
        """Raises EngineError without root or a BPF file system."""
        if os.geteuid() != 0:
            raise EngineError("BPF programs and maps need root; use become: true")
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        if not any(line.split()[2] == "bpf" and self.paths.pins.is_relative_to(line.split()[1]) for line in mounts):
            raise EngineError(
                f"no BPF file system is mounted for {self.paths.pins}; run mount -t bpf bpf /sys/fs/bpf, or apply the "
                "role lbops.xdp.balancer, which mounts it at boot"
            )


def pin_name(interface: str) -> str:
    """The BPF file system refuses dots; the kernel allows no "%" in the name of an interface."""
    return interface.replace(".", "%")


def pinned_id(pin: Path) -> int | None:
    """The kernel's id of a pinned program, None if there is none, or if the device that it was in is gone."""
    try:
        descriptor = bpf.object_get(str(pin), read_only=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return bpf.program_info(descriptor).id
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    finally:
        os.close(descriptor)


def remove_tree(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory, unless others have something there."""
    try:
        directory.rmdir()
    except OSError:
        pass
