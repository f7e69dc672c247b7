#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_services
short_description: Declare the services of an XDP load balancer
version_added: 0.1.0
description:
  - A service is a virtual IP address (VIP), a protocol and a port or a range of ports.
  - The whole list is checked before anything is touched. New and changed services are written first, what went away is
    removed last; a packet meets the old configuration or the new one, never a mix.
  - A service keeps its counters for as long as its name stays.
  - A change that does not fit the service's backends, by their port or address, is refused and names them; change both
    at once with M(lbops.xdp.xdp_balancer).
  - A service without backends drops its packets and counts them. A VIP of any service answers ICMP echo.
extends_documentation_fragment:
  - lbops.xdp.balancer
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Returns what has changed, or would have changed.
    support: full
options:
  services:
    description: The services.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - A name of letters, digits and C(_), C(.), C(:), C(-), by which backends, metrics and logs know the service.
        type: str
        required: true
      address:
        description: The VIP, an IPv4 or IPv6 address.
        type: str
        required: true
      protocol:
        description: V(tcp) or V(udp).
        type: str
        choices: [tcp, udp]
        required: true
      port:
        description:
          - A port from 1 to 65535, a range such as V(8000-8010), or V(any) for what no other service of the VIP takes.
        type: str
        required: true
      scheduler:
        description:
          - How a backend is chosen.
          - V(maglev) by a hash of client address and ports over a ring of 65537 slots; a change of one backend moves
            few flows of the others, and balancers with the same configuration choose alike.
          - V(hash) by the same hash over 512 slots dealt out in turn, for those who come from such a balancer; a change
            of one backend moves most flows.
          - V(round_robin) one packet after the other, for UDP and C(redirect); or one flow after the other, with
            O(services[].flow_table) or C(full_nat).
        type: str
        choices: [maglev, hash, round_robin]
        default: maglev
      forwarding:
        description:
          - How a packet reaches its backend.
          - V(dnat) rewrites destination address and port. The backend sees the client's address; it must route its
            replies through the balancer, which puts the VIP back.
          - V(full_nat) rewrites the source as well, to O(services[].source) and a port of O(services[].source_ports).
            The backend sees the balancer, and needs no routes.
          - V(dsr) rewrites the Ethernet address only. The backend holds the VIP itself, on its loopback interface say,
            and answers the client directly; it must be in the same Ethernet segment as the balancer.
          - V(ipip) puts an IPv4 or IPv6 header in front. The backend takes it off with a tunnel device, holds the VIP
            itself and answers the client directly; it can be anywhere. Backends need not be of the VIP's family.
          - V(gue) does the same with a UDP header and one of Generic UDP Encapsulation behind the outer IP header, to
            O(services[].tunnel_port). The UDP source port, 49152 to 65535, comes from the flow, so that routers and
            network cards spread flows as they do other UDP. The UDP checksum is 0.
          - V(redirect) moves the frame as it is to one of several interfaces.
        type: str
        choices: [dnat, full_nat, dsr, ipip, gue, redirect]
        default: dnat
      flow_table:
        description:
          - Remember on each CPU which backend a flow was given, so that it stays there as long as that backend is in
            the service, unchanged and healthy.
          - Without it nothing is remembered, and a change moves the flows whose slot changes.
        type: bool
        default: false
      idle_timeout:
        description:
          - Seconds without a packet, 1 to 3600, after which a flow is forgotten; with O(services[].flow_table) or
            C(full_nat).
          - 900 for TCP and 300 for UDP if it is left out.
        type: int
      handover_seconds:
        description:
          - For so many seconds after the backends of the service change, 0 to 3600, a TCP packet other than a SYN whose
            flow is in no flow table goes to the backend that the lookup table gave before the change, if that is still
            in the service, drained or not, and healthy. 0 turns this off.
          - So a connection that is older than the change stays with its backend when another balancer of the fleet
            takes over, or after a boot.
          - A connection that is younger than the change goes to the wrong backend, and is reset, if its slot has moved
            and it comes to a balancer that does not know it. With short connections, a lower value resets fewer.
          - For TCP services with O(services[].flow_table) and scheduler C(maglev) or C(hash).
            O(services[].idle_timeout) if it is left out.
        type: int
      source:
        description:
          - For C(full_nat) the balancer's address that packets come from; replies must reach the balancer there.
          - For C(ipip) and C(gue) the outer header's source, of the backends' family. From a prefix, such as
            V(10.99.0.0/16), each flow gets an address of its own, so that the backends' network cards spread flows over
            their queues.
        type: str
      source_ports:
        description:
          - For C(full_nat), a range; V(10000-32767) if it is left out. Services with the same source share it.
          - Keep it apart from C(net.ipv4.ip_local_port_range).
        type: str
      table_size:
        description:
          - Slots of the lookup table of C(maglev), a prime number from 251 to 131071; 65537 if it is left out.
          - With few slots a service takes less memory of the kernel; with 100 slots or more for each backend, shares
            follow the weights to 1 percent. A service has no more backends than slots.
          - Another size moves most flows of the service, but for those in the flow table. All balancers need the same.
          - A size other than the default compiles the program again, once.
        type: int
      affinity:
        description:
          - V(client) chooses the backend by the client's address alone, whatever its ports and the service's, so that
            all connections of a client go to one backend. V(none) chooses it by the flow.
          - A change of the backends moves the clients whose slot changes. With O(services[].flow_table), C(maglev) and
            C(hash) keep open connections where they are, and choose for a new connection by the client's address again.
          - C(round_robin) gives each client that it does not know a turn. It needs O(services[].flow_table), which
            then remembers clients instead of flows, until one is idle for O(services[].idle_timeout); a drained backend
            keeps the clients that it has. Balancers and CPUs that meet a client for the first time at once may give it
            two turns.
          - All clients behind one address, such as that of a NAT or a proxy, go to one backend.
          - V(quic), for UDP, chooses it by the server id that the backend puts in clear into the connection ids that it
            issues (draft-ietf-quic-load-balancers, unencrypted). So a connection stays with its backend when the
            client's address or port changes, when backends are added, and while its backend is drained. Packets whose
            connection id the client may have chosen (Initial, 0-RTT), or whose server id no backend has, go by the
            flow. Each backend needs a C(server_id), see M(lbops.xdp.xdp_backends). Not for C(full_nat) and
            C(redirect); C(round_robin) needs O(services[].flow_table).
          - A client that knows a server id can choose that backend with it.
          - The first service with V(client) or V(quic) compiles the program again, once.
        type: str
        choices: [none, client, quic]
        default: none
      affinity_prefix:
        description:
          - How many bits of the client's address count, 1 to 32 for IPv4, 1 to 128 for IPv6; the whole address if it is
            left out. Clients of one prefix, such as V(64) for an IPv6 site, go to one backend.
        type: int
      affinity_group:
        description:
          - A name. Services with the same name send a client to the same backend, as long as that is healthy for all of
            them; whatever their ports, protocols and forwarding.
          - They need the same scheduler, C(maglev) or C(hash), O(services[].affinity_prefix),
            O(services[].table_size) and family, and backends with equal addresses and weights, each declared once. What
            differs is refused; change the backends of all of them at once.
        type: str
      source_ranges:
        description:
          - Prefixes such as V(192.0.2.0/24), and addresses, of the clients that may use the service. Packets of others
            are dropped as C(source_not_allowed), whatever filters say. All may use it if this is left out.
          - A change counts for open connections, too. All services together have 65536 at the most.
          - The first service with any compiles the program again, once.
        type: list
        elements: str
      quic_server_id_length:
        description:
          - For V(quic), how many bytes of a connection id, behind its first byte, are the server id; 1 to 8. Required
            there.
          - Another length, or another O(services[].quic_config_id), makes connection ids unknown that were issued
            before.
        type: int
      quic_config_id:
        description:
          - For V(quic), the three highest bits of a connection id's first byte, 0 to 6; 0 if it is left out.
        type: int
      tunnel_port:
        description:
          - For C(gue), the UDP port on which the backends take packets; 6080 if it is left out.
        type: int
  purge:
    description: Remove services that are not in the list, together with their backends.
    type: bool
    default: true
seealso:
  - module: lbops.xdp.xdp_backends
  - module: lbops.xdp.xdp_program
"""

EXAMPLES = r"""
- name: Serve DNS and a web site
  lbops.xdp.xdp_services:
    services:
      - name: dns
        address: 192.0.2.10
        protocol: udp
        port: 53
      - name: web
        address: 192.0.2.10
        protocol: tcp
        port: 443
"""

RETURN = r"""
before:
  description: The services as they were.
  returned: success
  type: list
  elements: dict
after:
  description: The services as they are now, or would be.
  returned: success
  type: list
  elements: dict
created:
  description: Names of the services that are new.
  returned: success
  type: list
  elements: str
modified:
  description: Names of the services that changed.
  returned: success
  type: list
  elements: str
removed:
  description: Names of the services that went away.
  returned: success
  type: list
  elements: str
generation:
  description: How often the balancer was changed.
  returned: success
  type: int
repaired:
  description: Whether the maps held something else than what was written last.
  returned: success
  type: bool
write_seconds:
  description: Time spent in writing maps.
  returned: when something was changed
  type: float
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import BALANCER_ARGUMENT, run
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.slices import part_outcome

SCHEDULERS = ["maglev", "hash", "round_robin"]
FORWARDINGS = ["dnat", "full_nat", "dsr", "ipip", "gue", "redirect"]
AFFINITIES = ["none", "client", "quic"]


def apply(params, check):
    balancer = Balancer(params["balancer"])
    return part_outcome(balancer.apply_services(params["services"], params["purge"], check), "services")


def main():
    run(
        {
            "balancer": BALANCER_ARGUMENT,
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "protocol": {"type": "str", "choices": ["tcp", "udp"], "required": True},
                    "port": {"type": "str", "required": True},
                    "scheduler": {"type": "str", "choices": SCHEDULERS, "default": "maglev"},
                    "forwarding": {"type": "str", "choices": FORWARDINGS, "default": "dnat"},
                    "flow_table": {"type": "bool", "default": False},
                    "idle_timeout": {"type": "int"},
                    "handover_seconds": {"type": "int"},
                    "source": {"type": "str"},
                    "source_ports": {"type": "str"},
                    "table_size": {"type": "int"},
                    "affinity": {"type": "str", "choices": AFFINITIES, "default": "none"},
                    "affinity_prefix": {"type": "int"},
                    "affinity_group": {"type": "str"},
                    "tunnel_port": {"type": "int"},
                    "source_ranges": {"type": "list", "elements": "str"},
                    "quic_server_id_length": {"type": "int"},
                    "quic_config_id": {"type": "int"},
                },
            },
            "purge": {"type": "bool", "default": True},
        },
        apply,
    )


if __name__ == "__main__":
    main()
