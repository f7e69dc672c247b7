# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings of all balancers of a host, on a copy of /proc/sys; tests/packet has them on the kernel's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import host_settings
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.host_settings import Paths
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError

# As an operator may have left them: not what the kernel begins with.
FOUND = {"forwarding": "0", "send_redirects": "1", "accept_ra": "0"}
OTHERS = {"eth1": {"send_redirects": "0"}, "eth0.100": {"accept_ra": "1"}}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for family, names in (("ipv4", ("forwarding", "send_redirects")), ("ipv6", ("forwarding", "accept_ra"))):
        for interface in ("all", "eth0", "eth1", "eth0.100"):
            directory = tmp_path / "proc/net" / family / "conf" / interface
            directory.mkdir(parents=True)
            for name in names:
                (directory / name).write_text(OTHERS.get(interface, {}).get(name, FOUND[name]) + "\n")
    (tmp_path / "sysctl.d").mkdir()
    return Paths(tmp_path / "proc", tmp_path / "sysctl.d", tmp_path / "lbops/sysctl.json")


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def value(paths: Paths, key: str) -> str:
    return (paths.proc / "net" / key).read_text().strip()


MAIN = {"main": (["eth0"], False)}
BOTH = {**MAIN, "edge": (["eth1", "eth0.100"], True)}


def test_a_balancer_forwards_and_sends_no_redirects(paths: Paths):
    host_settings.apply(MAIN, paths=paths)
    assert value(paths, "ipv4/conf/eth0/forwarding") == "1"
    assert value(paths, "ipv4/conf/eth0/send_redirects") == value(paths, "ipv4/conf/all/send_redirects") == "0"
    assert value(paths, "ipv6/conf/eth0/forwarding") == "0" and value(paths, "ipv4/conf/eth1/forwarding") == "0"


def test_the_file_for_the_boot_says_the_same(paths: Paths):
    host_settings.apply(BOTH, paths=paths)
    [first, second] = sorted(paths.configuration.iterdir())
    assert [first.name, second.name] == ["90-lbops-edge.conf", "90-lbops-main.conf"]
    lines = {line for line in first.read_text().splitlines() if not line.startswith("#")}
    assert lines == {
        "net/ipv4/conf/all/send_redirects = 0",
        "net/ipv4/conf/eth1/send_redirects = 0",
        "net/ipv4/conf/eth0.100/send_redirects = 0",
        "net/ipv4/conf/eth1/forwarding = 1",
        "net/ipv4/conf/eth0.100/forwarding = 1",
        "net/ipv6/conf/eth1/forwarding = 1",
        "net/ipv6/conf/eth0.100/forwarding = 1",
        "net/ipv6/conf/eth1/accept_ra = 2",
        "net/ipv6/conf/eth0.100/accept_ra = 2",
    }
    assert "ipv6" not in second.read_text()


def test_the_second_time_changes_nothing(paths: Paths, tmp_path: Path):
    assert host_settings.apply(BOTH, paths=paths)
    before = tree(tmp_path)
    assert host_settings.apply(BOTH, paths=paths) == []
    assert host_settings.restore(BOTH, paths) == []
    assert tree(tmp_path) == before


def test_check_mode_says_the_same_and_changes_nothing(paths: Paths, tmp_path: Path):
    before = tree(tmp_path)
    would = host_settings.apply(BOTH, check=True, paths=paths)
    assert tree(tmp_path) == before
    assert host_settings.apply(BOTH, paths=paths) == would
    before = tree(tmp_path)
    would = host_settings.apply(MAIN, check=True, paths=paths)
    assert tree(tmp_path) == before
    assert host_settings.apply(MAIN, paths=paths) == would != []


@pytest.mark.parametrize("order", [("main", "edge"), ("edge", "main")])
def test_the_last_one_to_go_leaves_what_the_first_one_found(paths: Paths, tmp_path: Path, order: tuple[str, str]):
    before = tree(tmp_path)
    came: dict = {}
    for name in ("main", "edge"):
        came[name] = BOTH[name]
        host_settings.apply(dict(came), paths=paths)
    del came[order[0]]
    host_settings.apply(dict(came), paths=paths)
    assert value(paths, "ipv4/conf/all/send_redirects") == "0"
    [left] = BOTH[order[1]][0][:1]
    assert value(paths, f"ipv4/conf/{left}/forwarding") == "1"
    for gone in BOTH[order[0]][0]:
        assert value(paths, f"ipv4/conf/{gone}/forwarding") == "0"
    host_settings.apply({}, paths=paths)
    assert tree(tmp_path) == before


def test_an_interface_that_leaves_a_balancer_gets_its_own_back(paths: Paths):
    host_settings.apply({"main": (["eth0", "eth1"], False)}, paths=paths)
    host_settings.apply(MAIN, paths=paths)
    assert value(paths, "ipv4/conf/eth1/forwarding") == "0" and value(paths, "ipv4/conf/eth1/send_redirects") == "0"
    assert value(paths, "ipv4/conf/eth0/forwarding") == "1"


def test_the_last_ipv6_service_takes_the_settings_of_ipv6_along(paths: Paths):
    host_settings.apply({"main": (["eth0"], True)}, paths=paths)
    assert value(paths, "ipv6/conf/eth0/accept_ra") == "2" and value(paths, "ipv6/conf/eth0/forwarding") == "1"
    host_settings.apply(MAIN, paths=paths)
    assert value(paths, "ipv6/conf/eth0/accept_ra") == "0" and value(paths, "ipv6/conf/eth0/forwarding") == "0"


def test_what_was_before_is_what_the_first_run_found_although_somebody_changed_it_since(paths: Paths, tmp_path: Path):
    before = tree(tmp_path)
    host_settings.apply(MAIN, paths=paths)
    (paths.proc / "net/ipv4/conf/eth0/send_redirects").write_text("1\n")
    assert host_settings.apply(MAIN, paths=paths) == ["net/ipv4/conf/eth0/send_redirects: 1 -> 0"]
    host_settings.apply({}, paths=paths)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("balancers", "message"),
    [
        ({"main": (["eth0", "eth9"], False)}, "balancer main: interface eth9 does not exist"),
        ({"main": (["eth9"], True)}, "balancer main: interface eth9 does not exist"),
    ],
)
def test_an_interface_that_does_not_exist_is_refused_with_nothing_changed(paths, tmp_path, balancers, message):
    before = tree(tmp_path)
    for check in (True, False):
        with pytest.raises(EngineError, match=message):
            host_settings.apply(balancers, check, paths)
    assert tree(tmp_path) == before


def test_an_interface_without_ipv6_is_refused_for_that(paths: Paths, tmp_path: Path):
    for path in (paths.proc / "net/ipv6/conf/eth0").iterdir():
        path.unlink()
    before = tree(tmp_path)
    with pytest.raises(EngineError, match="balancer main: interface eth0 has no IPv6"):
        host_settings.apply({"main": (["eth0"], True)}, paths=paths)
    assert tree(tmp_path) == before


def test_an_interface_that_is_gone_does_not_keep_its_balancer_from_going(paths: Paths, tmp_path: Path):
    host_settings.apply(BOTH, paths=paths)
    for path in (*(paths.proc / "net/ipv4/conf/eth1").iterdir(), *(paths.proc / "net/ipv6/conf/eth1").iterdir()):
        path.unlink()
    host_settings.apply({}, paths=paths)
    assert not paths.record.exists() and not list(paths.configuration.iterdir())


def test_after_a_boot_only_the_kernel_is_set(paths: Paths, tmp_path: Path):
    found = tree(paths.proc)
    host_settings.apply(BOTH, paths=paths)
    running = tree(paths.proc)
    for name, content in found.items():
        (paths.proc / name).write_bytes(content)
    files = tree(paths.configuration), paths.record.read_bytes()
    assert host_settings.restore(BOTH, paths)
    assert tree(paths.proc) == running and (tree(paths.configuration), paths.record.read_bytes()) == files


LEGACY = """\
# Ansible managed
net/ipv4/conf/eth0/forwarding = 1
net/ipv6/conf/eth0/forwarding = 1
net/ipv6/conf/eth0/accept_ra = 2
net/ipv4/conf/all/send_redirects = 0
net/ipv4/conf/eth0/send_redirects = 0
"""


def test_the_file_of_an_earlier_release_is_replaced_and_the_kernels_defaults_count_as_before(paths: Paths):
    (paths.configuration / "90-lbops.conf").write_text(LEGACY)
    for line in LEGACY.splitlines()[1:]:
        key, _separator, number = line.partition(" = ")
        (paths.proc / key).write_text(f"{number}\n")
    host_settings.apply({"main": (["eth0"], True)}, paths=paths)
    assert [path.name for path in paths.configuration.iterdir()] == ["90-lbops-main.conf"]
    host_settings.apply({}, paths=paths)
    for key, number in (("forwarding", "0"), ("send_redirects", "1")):
        assert value(paths, f"ipv4/conf/eth0/{key}") == number
    assert value(paths, "ipv4/conf/all/send_redirects") == "1"
    assert value(paths, "ipv6/conf/eth0/accept_ra") == "1" and value(paths, "ipv6/conf/eth0/forwarding") == "0"


def test_what_the_earlier_release_set_and_nobody_needs_is_put_back(paths: Paths):
    (paths.configuration / "90-lbops.conf").write_text(LEGACY)
    (paths.proc / "net/ipv6/conf/eth0/forwarding").write_text("1\n")
    host_settings.apply(MAIN, paths=paths)
    assert value(paths, "ipv6/conf/eth0/forwarding") == "0" and value(paths, "ipv4/conf/eth0/forwarding") == "1"


def test_a_damaged_record_is_told_with_a_remedy(paths: Paths):
    paths.record.parent.mkdir()
    paths.record.write_text("{")
    with pytest.raises(EngineError, match=r"sysctl.json is damaged .*: remove it"):
        host_settings.apply(MAIN, paths=paths)


def test_forwarding_of_ipv6_begins_after_and_ends_before_routes_could_be_lost(paths: Paths, monkeypatch):
    written: list[str] = []
    write = host_settings.sysctl.write

    def record(key: str, value: str, root: Path) -> None:
        written.append(key.rpartition("/")[2] if "ipv6" in key else "")
        write(key, value, root)

    monkeypatch.setattr(host_settings.sysctl, "write", record)
    host_settings.apply({"main": (["eth0"], True)}, paths=paths)
    assert [name for name in written if name] == ["accept_ra", "forwarding"]
    written.clear()
    host_settings.apply({}, paths=paths)
    assert [name for name in written if name] == ["forwarding", "accept_ra"]


@pytest.mark.parametrize("step", range(1, 30))
def test_a_run_that_ends_anywhere_can_be_repeated_and_forgets_nothing(paths: Paths, tmp_path: Path, monkeypatch, step):
    """Adding and removing, ended before each operation on files or settings."""
    before = tree(tmp_path)

    class End(BaseException):
        pass

    def interrupted(balancers: dict) -> None:
        with monkeypatch.context() as patch:
            seen = 0
            for module, name in (
                (host_settings.sysctl, "write"),
                (host_settings.files, "write"),
                (host_settings.files, "remove"),
            ):
                real = getattr(module, name)

                def count(*arguments, real=real):
                    nonlocal seen
                    seen += 1
                    if seen == step:
                        raise End
                    return real(*arguments)

                patch.setattr(module, name, count)
            try:
                host_settings.apply(balancers, paths=paths)
            except End:
                pass

    interrupted(BOTH)
    host_settings.apply(BOTH, paths=paths)
    interrupted({})
    host_settings.apply({}, paths=paths)
    assert tree(tmp_path) == before


def test_what_another_balancer_lacks_keeps_nobody_from_working(paths: Paths):
    """Its interface may have gone, and may come back."""
    host_settings.apply(BOTH, paths=paths)
    kept = {path: path.read_text() for path in (paths.proc / "net/ipv4/conf/eth1").iterdir()}
    for path in kept:
        path.unlink()
    assert host_settings.apply(BOTH, paths=paths, lenient=["edge"]) == []
    assert host_settings.restore(BOTH, paths) == []
    for path, content in kept.items():
        path.write_text(content)
    host_settings.apply({}, paths=paths)
    assert value(paths, "ipv4/conf/eth1/forwarding") == "0" and value(paths, "ipv4/conf/eth1/send_redirects") == "0"
