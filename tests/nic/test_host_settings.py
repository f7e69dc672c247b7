# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel settings that balancers need, on the kernel's own /proc/sys, and back byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import host_settings
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.host_settings import Paths

from tests.nic.conftest import run


@pytest.fixture
def vlan(veth: str) -> str:
    """An interface whose name has a dot, as those of VLANs have."""
    run("ip", "link", "add", "v0.7", "type", "veth", "peer", "name", "v1.7")
    return "v0.7"


def settings() -> dict[str, bytes]:
    found = {}
    for family, names in (("ipv4", ("forwarding", "send_redirects")), ("ipv6", ("forwarding", "accept_ra"))):
        for directory in sorted(Path("/proc/sys/net", family, "conf").iterdir()):
            found.update(
                {
                    f"{family}/{directory.name}/{name}": (directory / name).read_bytes()
                    for name in names
                    if (directory / name).exists()
                }
            )
    return found


def test_two_balancers_come_and_go(veth: str, vlan: str, tmp_path: Path):
    paths = Paths(configuration=tmp_path / "sysctl.d", record=tmp_path / "sysctl.json")
    before = settings()
    both = {"main": ([veth], False), "edge": ([vlan, "v1"], True)}
    assert host_settings.apply(both, paths=paths)
    changed = {key: value for key, value in settings().items() if value != before[key]}
    assert changed["ipv4/v0.7/forwarding"] == changed["ipv6/v0.7/forwarding"] == b"1\n"
    assert changed["ipv6/v1/accept_ra"] == b"2\n" and changed["ipv4/all/send_redirects"] == b"0\n"
    assert "ipv6/v0/forwarding" not in changed
    # As systemd-sysctl reads the files at boot.
    run("sysctl", "--quiet", "--load", *map(str, sorted(paths.configuration.iterdir())))
    assert host_settings.apply(both, paths=paths) == host_settings.restore(both, paths) == []
    host_settings.apply({"edge": both["edge"]}, paths=paths)
    assert settings()["ipv4/v0/forwarding"] == before["ipv4/v0/forwarding"]
    assert settings()["ipv4/all/send_redirects"] == b"0\n"
    host_settings.apply({}, paths=paths)
    assert settings() == before and not paths.record.exists()
