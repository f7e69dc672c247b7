# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of neighbours."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import map_set
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, neighbours
from ansible_collections.lbops.xdp.plugins.module_utils.tables import layout

from tests.packet.network import ip, write_setting
from tests.packet.watching import make, watching
from tests.support import balancer as support
from tests.support import namespace
from tests.support.balancer import declared, settings
from tests.support.program import SIZES

ARM = "arm0"
VIP, BACKEND, ON_LINK_CLIENT, OTHER = "203.0.113.10", "10.0.0.1", "10.0.9.9", "10.0.0.3"
SERVICE = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}
FIRST, SECOND = "02:00:00:00:00:01", "02:00:00:00:00:02"


def neighbour(address: str, lladdr: str) -> str:
    return f"neighbour replace {address} lladdr {lladdr} dev {ARM} nud permanent"


@pytest.fixture
def balancer(root) -> Iterator[Balancer]:
    with namespace.private("net"):
        # Addresses of links are checked for a second, and come with routes.
        write_setting("ipv6/conf/default/addr_gen_mode", 1)
        write_setting("ipv6/conf/default/router_solicitations", 0)
        make(ARM)
        for family in ("ipv4", "ipv6"):
            write_setting(f"{family}/neigh/{ARM}/retrans_time_ms", 20)
            write_setting(f"{family}/neigh/{ARM}/mcast_solicit", 1)
        ip(
            f"address add 10.0.0.254/16 dev {ARM}",
            f"address add 2001:db8::fe/64 dev {ARM} nodad",
            *(neighbour(address, FIRST) for address in (BACKEND, ON_LINK_CLIENT, OTHER)),
        )
        with support.balancer() as made:
            made.apply(declared(settings(ARM), [SERVICE], [{"service": "web", "address": BACKEND}]), check=False)
            yield made


def generation(balancer: Balancer) -> int:
    """How often the program was made to forget, and once more."""
    with map_set.open_pinned(balancer.places.maps, SIZES) as live_maps:
        control = bpf.map_lookup(live_maps["control"], layout.index(0), layout.CONTROL.size)
    found: int = layout.CONTROL.unpack(control)[1]
    return found


def states() -> list[int]:
    """Of the neighbours of all links."""
    return [neighbours.NDMSG.unpack_from(payload)[2] for payload in neighbours.dump()]


# --- verification


def test_a_permanent_neighbour_stays_permanent(balancer, tmp_path):
    """NTF_USE makes the kernel ask for one as if it had no address."""
    with watching(balancer, tmp_path / "log"):
        before = generation(balancer)
        ip(f"neighbour add 10.0.0.4 lladdr {FIRST} dev {ARM} nud permanent")
        time.sleep(1)
        assert states().count(neighbours.NUD_PERMANENT) == 4 and neighbours.NUD_FAILED not in states()
        assert generation(balancer) <= before + 1
