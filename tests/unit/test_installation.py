# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installing the engine: one version or the other, whatever happens in between."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.host.installation import Installation, Version

UNIT, COMMAND = "etc/systemd/system/lbops-one@.service", "usr/sbin/lbops-top"

Content = dict[str, str]


def release(number: int, **more: str) -> tuple[Content, Content]:
    engine = {
        "engine/state.py": f"state {number}",
        "engine/kernel/bpf.py": "the same in all",
        f"engine/kernel/only_{number}.py": "",
        "bpf/balancer.c": f"source {number}",
        **more,
    }
    return engine, {UNIT: f"unit {number}", COMMAND: f"command {number}"}


def version(engine: Content, system: Content) -> Version:
    checksums = (
        {path: hashlib.sha256(text.encode()).hexdigest() for path, text in part.items()} for part in (engine, system)
    )
    return Version(*checksums)


def archive(engine: Content, system: Content) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:xz") as tar:
        for path, text in {**engine, **system}.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()


def read(directory: Path) -> Content:
    directory = directory.resolve()
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def install(root: Path, contents: tuple[Content, Content]) -> Installation:
    installation = Installation(root)
    installation.install(version(*contents), archive(*contents))
    installation.sweep(set())
    return installation


def test_what_is_in_use_is_what_was_installed(tmp_path: Path):
    contents = release(1)
    installation = install(tmp_path, contents)
    wanted = version(*contents)
    assert read(tmp_path / "usr/lib/lbops/current") == contents[0]
    assert (tmp_path / UNIT).read_text() == "unit 1" and (tmp_path / COMMAND).stat().st_mode & 0o777 == 0o755
    assert installation.found(wanted) == wanted and installation.current() == wanted.digest
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "usr/lib/lbops").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_one_version_takes_the_place_of_another(tmp_path: Path):
    install(tmp_path, release(1))
    install(tmp_path, release(2))
    base = tmp_path / "usr/lib/lbops"
    assert read(base / "current") == release(2)[0]
    assert sorted(path.name for path in base.iterdir()) == sorted([version(*release(2)).digest, "current"])


def test_a_version_that_a_process_uses_stays_until_it_does_not(tmp_path: Path):
    first = install(tmp_path, release(1)).current()
    installation = Installation(tmp_path)
    installation.install(version(*release(2)), archive(*release(2)))
    installation.sweep({first})
    assert read(tmp_path / "usr/lib/lbops" / first) == release(1)[0]
    assert installation.leftovers({first}) == []
    # Back to it: it is whole, so only the link changes.
    before = (tmp_path / "usr/lib/lbops" / first).stat().st_ino
    installation.install(version(*release(1)), archive(*release(1)))
    assert installation.current() == first and (tmp_path / "usr/lib/lbops" / first).stat().st_ino == before


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "mode"])
def test_a_version_that_somebody_changed_is_found_and_put_right(tmp_path: Path, damage: str):
    installation = install(tmp_path, release(1))
    path = installation.link / "engine/state.py"
    if damage == "changed":
        path.write_text("something else")
    elif damage == "removed":
        path.unlink()
    elif damage == "added":
        (installation.link / "engine/more.py").touch()
    else:
        path.chmod(0o666)
    wanted = version(*release(1))
    assert installation.found(wanted) != wanted
    install(tmp_path, release(1))
    assert installation.found(wanted) == wanted and read(installation.link) == release(1)[0]


def test_compiled_python_is_no_change(tmp_path: Path):
    """Whoever starts Python by hand in the version's directory leaves it."""
    installation = install(tmp_path, release(1))
    for directory in ("engine", "engine/kernel"):
        compiled = installation.link / directory / "__pycache__/state.cpython-311.pyc"
        compiled.parent.mkdir()
        compiled.touch()
    wanted = version(*release(1))
    assert installation.found(wanted) == wanted


@pytest.mark.parametrize("path", [UNIT, COMMAND])
def test_a_unit_or_command_that_somebody_changed_is_found_and_put_right(tmp_path: Path, path: str):
    installation = install(tmp_path, release(1))
    (tmp_path / path).write_text("something else")
    wanted = version(*release(1))
    assert installation.found(wanted) != wanted
    assert installation.found(install(tmp_path, release(1)) and wanted) == wanted


def flat(root: Path) -> list[Path]:
    """What releases before left."""
    paths = [root / "usr/lib/lbops" / name for name in ("engine/restore.py", "bpf/balancer.c", "health/__main__.py")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_the_layout_without_versions_goes_once_no_process_runs_from_it(tmp_path: Path):
    paths = flat(tmp_path)
    installation = Installation(tmp_path)
    installation.install(version(*release(1)), archive(*release(1)))
    installation.sweep({"engine"})
    assert all(path.exists() for path in paths)
    installation.sweep(set())
    assert sorted(path.name for path in installation.base.iterdir()) == sorted([installation.current(), "current"])


def test_removal_leaves_nothing(tmp_path: Path):
    flat(tmp_path)
    installation = install(tmp_path, release(1))
    installation.remove([UNIT, COMMAND])
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert not installation.base.exists()
    installation.remove([UNIT, COMMAND])


def test_everything_is_on_the_disk_before_the_link_changes(tmp_path: Path, monkeypatch):
    install(tmp_path, release(1))
    base = tmp_path / "usr/lib/lbops"
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        events.append(f"replace {target}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    install(tmp_path, release(2))
    switched = events.index(f"replace {base / 'current'}")
    unfinished = base / f".{version(*release(2)).digest}.new"
    names = {
        str(path.relative_to(unfinished.with_name(version(*release(2)).digest)))
        for path in (base / "current").resolve().rglob("*")
    }
    assert {str(unfinished / name) for name in names} | {str(unfinished), str(base)} <= set(events[:switched])
    assert events[switched + 1] == str(base)


OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "shutil.rmtree"}


def killed(point: int, root: Path, contents: tuple[Content, Content]) -> bool:
    """A process that installs, and gets SIGKILL just before its operation number `point` on files."""
    wanted, packed = version(*contents), archive(*contents)
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status != 0
    seen = 0

    def count(event: str, _arguments: object) -> None:
        nonlocal seen
        if event not in OPERATIONS:
            return
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        installation = Installation(root)
        installation.install(wanted, packed)
        installation.sweep(set())
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("before", ["nothing", "flat", "version"])
def test_killed_at_any_step_the_old_version_or_the_new_one_is_whole(tmp_path: Path, before: str):
    new, steps = release(2), 0
    while True:
        root = tmp_path / str(steps)
        root.mkdir()
        if before == "flat":
            flat(root)
        elif before == "version":
            install(root, release(1))
        steps += 1
        was_killed = killed(steps, root, new)
        link = root / "usr/lib/lbops/current"
        if link.is_symlink():
            assert read(link) in ([new[0]] if before != "version" else [release(1)[0], new[0]]), steps
        else:
            assert before != "version" and not (root / UNIT).exists(), steps
        units = {(root / path).read_text() for path in (UNIT, COMMAND) if (root / path).exists()}
        if "unit 2" in units:
            assert read(link) == new[0], steps
        # The next run completes it.
        installation = install(root, new)
        assert installation.found(version(*new)) == version(*new)
        assert sorted(path.name for path in installation.base.iterdir()) == sorted([installation.current(), "current"])
        assert {path.name for path in (root / "etc/systemd/system").iterdir()} == {Path(UNIT).name}
        if not was_killed:
            break
    assert steps > 20
