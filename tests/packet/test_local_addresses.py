# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses are this host's."""

from __future__ import annotations

from ansible_collections.lbops.xdp.plugins.module_utils.kernel import neighbours

from tests.packet.network import ip
from tests.support import namespace


def test_addresses_of_all_interfaces(root):
    with namespace.private("net"):
        ip(
            "link add one type veth peer name two",
            "address add 192.0.2.1/24 dev one",
            "address add 198.51.100.1 peer 198.51.100.2 dev two",
            "address add 2001:db8::1/64 dev one nodad",
            "address add 127.0.0.1/8 dev lo",
            *(f"address add 203.0.113.{host}/32 dev lo" for host in range(200)),
        )
        many = {f"203.0.113.{host}" for host in range(200)}
        assert neighbours.local_addresses() == many | {"192.0.2.1", "198.51.100.1", "2001:db8::1", "127.0.0.1"}
