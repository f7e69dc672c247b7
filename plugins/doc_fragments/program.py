# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What a balancer's program is attached to, and what is compiled in."""

    DOCUMENTATION = r"""
options:
  interfaces:
    description:
      - The network interfaces whose packets are balanced, 16 at the most. They share services, backends, filters, flow
        table and sessions, so a reply may arrive on another one than the request.
      - An interface belongs to one balancer. The members of a bond, or the bond, can be named, but not both; the same
        holds for a VLAN and the interface below it.
    type: list
    elements: str
  mode:
    description:
      - Where the program is attached.
      - V(native) is XDP in the driver; if the driver does not support it, or something is in its way, the module fails
        and says what, and how to change that. What is known beforehand fails before anything is touched.
      - V(tc) is the ingress of clsact, which every driver has. Others' filters there stay. It has no C(redirect) and no
        C(multi_buffer).
      - V(generic) is XDP without the driver's help. It works with every driver and costs most; going between native and
        generic leaves a moment in which packets pass without being balanced.
      - V(offload) is in the network card, which gets a program and tables of its own. It has services of C(dsr) and
        C(ipip) over IPv4 with the scheduler C(hash), on one interface, whose backends all have a C(mac), and needs
        O(unserved=pass). What else the document asks for is refused by name, before anything is touched, and so is a
        card that takes no programs or maps. Counters of replies and of new flows stay 0. A change between this mode and
        the others is refused; remove the balancer first.
      - V(auto) tries V(native), then V(tc), then V(generic). The result says which, and why.
    type: str
    choices: [auto, native, generic, tc, offload]
    default: auto
  prepare:
    description:
      - Change what keeps the driver from taking the program. That may be an MTU beyond what a page holds, LRO, or the
        numbers of channels. RV(prepared) says what was changed, and how it was before.
      - It is put back if the driver refuses the program nevertheless, but not when the program is detached later.
      - It is done again when the program is restored after a reboot.
      - With O(mode=auto), a program on another hook is tried on the driver's once more when this is switched on.
    type: bool
    default: false
  multi_buffer:
    description: Accept frames that are longer than a page, where the driver has them (kernel 5.18).
    type: bool
    default: false
  latency:
    description: Measure how long the program takes, for one packet in 256.
    type: bool
    default: false
  unserved:
    description:
      - Action for packets to a VIP or a source address of C(full_nat) that match no service. Packets to an address of
        this host always pass to the kernel.
      - V(drop) drops packets that the kernel would forward and counts them as C(vip_unserved), because the kernel would
        send them back to the router that they came from.
      - V(pass) passes them to the kernel, for hosts whose routes lead elsewhere.
    type: str
    choices: [drop, pass]
    default: drop
  reply_check:
    description:
      - What a packet with the source address and port of a C(dnat) or C(full_nat) backend must have to get the VIP as
        its source. Others pass to the kernel untouched and are counted as C(reply_unverified).
      - V(strict) accepts a reply on the interface that the kernel's routes name for the backend, and, if no gateway is
        between, from the backend's Ethernet address; if C(mac) is given, from that address on any interface.
      - V(interface) does not compare Ethernet addresses. Backends whose bond sends from several addresses need it, and
        networks whose routers answer ARP for hosts, and C(mac) of a virtual router (VRRP).
      - V(off) accepts replies from anywhere, for routing that is not symmetric. Whoever can send with a backend's
        address and port can then send in the VIP's name.
    type: str
    choices: [strict, interface, 'off']
    default: strict
  hash_seed:
    description:
      - A secret of 16 hexadecimal digits that is mixed into the hash by which backends are chosen, the same on all
        balancers that share services. Make it with C(openssl rand -hex 8), and quote it.
      - Without one the hash is public, and whoever chooses source ports can send all of his flows to one backend.
      - Another value, or none, moves the flows that are not in a flow table, and compiles the program again.
      - It is kept in the state file, which only root can read. Differences say that it changes, not what it is.
    type: str
    default: ''
  virtual_macs:
    description:
      - Ethernet addresses beside that of the interface, 16 at the most. Frames for them are balanced on all interfaces.
      - VRRP with virtual MAC addresses (C(use_vmac) of keepalived) needs C(00:00:5e:00:01:<VRID>) here, over IPv6
        C(00:00:5e:00:02:<VRID>). Frames for other addresses than these and the interface's own pass to the kernel and
        are counted as C(other_mac).
    type: list
    elements: str
    default: []
  next_program:
    description:
      - Path of a pinned XDP program of your own below C(/sys/fs/bpf), a firewall or a sampler, that shares the hook
        with the balancer. Each packet that the balancer passes goes to it by a tail call, and its verdict counts.
      - The program must be loaded for the expected attach type C(BPF_XDP), as libbpf does, and from a section
        C(xdp.frags) if and only if O(multi_buffer) is on. What does not fit is refused before anything is touched.
      - It is for XDP. With O(mode=tc) it is refused, and O(mode=auto) takes V(generic) instead of V(tc); packets that
        pass on tc go on to the next filter anyway.
      - Another program that is pinned at the path is called after the next run; C(lbops-watch@) puts it in within some
        seconds. A pin that is removed changes nothing until the program is restored.
      - If the pin is missing at a boot, the balancer serves without it, C(problems) of RV(program) and the metric
        C(lbops_problems) say so, and C(lbops-watch@) puts the program in once it is pinned.
    type: str
    default: ''
  max_services:
    description: How many services the maps hold, 65536 at the most.
    type: int
    default: 1024
  max_backends:
    description:
      - How many backends of all services the maps hold, plus one; 1048576 at the most.
      - A backend that changes takes two entries while both are in use.
    type: int
    default: 16384
  max_endpoints:
    description:
      - How many endpoints the maps hold, 1048576 at the most.
      - Each port of a service, each port of a C(dnat) backend and each VIP is one.
      - Kernels before 6.0 take no more than 32768, because a value of a map may have 4 MiB there.
    type: int
    default: 32768
  max_flows:
    description:
      - How many flows each CPU remembers, 16777216 at the most, with C(flow_table) and C(full_nat).
      - Each takes 16 bytes.
    type: int
    default: 262144
  max_new_flows:
    description: How many new flows of a service a CPU remembers in a second. Packets of more are not remembered.
    type: int
    default: 100000
  max_sessions:
    description: How many source ports all C(full_nat) sources have together, 1048576 at the most.
    type: int
    default: 65536
  max_filters:
    description: How many filters the maps hold, 1048576 at the most; up to a kilobyte each, while filters exist.
    type: int
    default: 1024
  source:
    description: Directory of the program's C files on the host; the role P(lbops.xdp.engine#role) installs them.
    type: path
    default: /usr/lib/lbops/current/bpf
  force:
    description:
      - Replace a program that somebody else attached.
      - With O(state=absent), remove everything even if the state file is damaged.
    type: bool
    default: false
requirements:
  - iovisor's BCC, from the target's distribution (C(python3-bpfcc) or C(python3-bcc))
  - kernel headers
"""
