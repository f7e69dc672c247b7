# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules say of bad input and of hosts that lack something; none of it changes anything."""

from __future__ import annotations

import pytest

from tests.integration.conftest import INTERFACE, SPARE
from tests.support.batch import Task, run, shell

ON_SPARE = {"balancer": SPARE}
T0 = {**ON_SPARE, "interfaces": ["t0"]}
DNS = {"name": "dns", "address": "192.0.2.10", "protocol": "udp", "port": 53}
WEB = {"name": "web", "address": "192.0.2.10", "protocol": "tcp", "port": 80}
NODE = {"service": "dns", "address": "198.51.100.1", "port": 5353, "mac": "02:00:00:00:01:01"}
SIZES = {"max_services": 2, "max_backends": 3, "max_endpoints": 8}


def services(*entries: dict) -> Task:
    return Task("xdp_services", {**ON_SPARE, "services": list(entries)})


def backends(*entries: dict, **options) -> Task:
    return Task("xdp_backends", {**ON_SPARE, "backends": list(entries), **options})


def filters(*entries: dict) -> Task:
    return Task("xdp_filters", {**ON_SPARE, "filters": list(entries)})


ENTRIES = {
    "VIP is no address": (
        services({**DNS, "address": "10.77.0.300"}),
        "services[0] (dns 10.77.0.300): address '10.77.0.300' is not an IPv4 address such as 192.0.2.10 or an IPv6 "
        "address such as 2001:db8::10",
    ),
    "VIP is a group": (
        services({**DNS, "address": "224.0.0.1"}),
        "services[0] (dns 224.0.0.1): address '224.0.0.1' is not a unicast address of a host on a network",
    ),
    "port 0": (
        services(WEB, {**DNS, "port": 0}),
        "services[1] (dns 192.0.2.10): port '0' is not between 1 and 65535",
    ),
    "port 65536": (
        services({**DNS, "port": 65536}),
        "services[0] (dns 192.0.2.10): port '65536' is not between 1 and 65535",
    ),
    "port in words": (
        services({**DNS, "port": "domain"}),
        "services[0] (dns 192.0.2.10): port 'domain' is not a whole number",
    ),
    "reversed range": (
        services({**DNS, "port": "90-80"}),
        "services[0] (dns 192.0.2.10): port range '90-80' is reversed, write 80-90",
    ),
    "two mistakes": (
        services({**DNS, "port": 0}, {**WEB, "address": "web"}),
        "services[0] (dns 192.0.2.10): port '0' is not between 1 and 65535; "
        "services[1] (web web): address 'web' is not an IPv4 address such as 192.0.2.10 or an IPv6 address "
        "such as 2001:db8::10",
    ),
    "duplicate service": (
        services(DNS, {**DNS, "port": 54}),
        "services[1] (dns 192.0.2.10): duplicate service, the name dns is taken already",
    ),
    "duplicate port": (
        services({**DNS, "port": "50-60"}, {**DNS, "name": "other"}),
        "services[1] (other 192.0.2.10): duplicate service, 192.0.2.10 udp port 53 belongs to dns already",
    ),
    "round robin of TCP": (
        services({**WEB, "scheduler": "round_robin"}),
        "services[0] (web 192.0.2.10): scheduler 'round_robin' sends each packet of a TCP connection to another "
        "backend; use maglev, or flow_table: true",
    ),
    "VIP of a single link": (
        services({**DNS, "address": "fe80::1"}),
        "services[0] (dns fe80::1): address 'fe80::1' is not a unicast address of a host on a network",
    ),
    "full_nat without a source": (
        services({**DNS, "forwarding": "full_nat"}),
        "services[0] (dns 192.0.2.10): source is missing: full_nat sends from an address of the balancer's, such as "
        "198.51.100.2",
    ),
    "source of another family": (
        services({**DNS, "forwarding": "full_nat", "source": "2001:db8::2"}),
        "services[0] (dns 192.0.2.10): source '2001:db8::2' is not of the VIP's family, IPv4",
    ),
    "source that nothing uses": (
        services({**DNS, "source": "198.51.100.2"}),
        "services[0] (dns 192.0.2.10): source is for full_nat, ipip, gue, not for dnat",
    ),
    "prefix with more bits than its length": (
        services({**DNS, "forwarding": "ipip", "source": "10.99.1.0/16"}),
        "services[0] (dns 192.0.2.10): source '10.99.1.0/16' has bits behind its length; write 10.99.0.0/16",
    ),
    "idle timeout of nothing": (
        services({**DNS, "idle_timeout": 10}),
        "services[0] (dns 192.0.2.10): idle_timeout is for services with flow_table: true or forwarding full_nat",
    ),
    "idle timeout of a day": (
        services({**DNS, "flow_table": True, "idle_timeout": 86400}),
        "services[0] (dns 192.0.2.10): idle_timeout 86400 is not between 1 and 3600",
    ),
    "source shared with other ports": (
        services(
            {**DNS, "forwarding": "full_nat", "source": "198.51.100.2"},
            {**WEB, "forwarding": "full_nat", "source": "198.51.100.2", "source_ports": "1-9"},
        ),
        "service web: source_ports 1-9 of 198.51.100.2 are 10000-32767 for service dns; services share an address "
        "with the same ports only",
    ),
    "service that does not fit its backends": (
        services({**DNS, "address": "2001:db8::10"}),
        "backend 198.51.100.1 of service dns: dnat cannot go from IPv6, the VIP's family, to IPv4",
    ),
    "backend of another family": (
        backends({**NODE, "address": "2001:db8::7"}),
        "backend 2001:db8::7 of service dns: dnat cannot go from IPv4, the VIP's family, to IPv6",
    ),
    "interface for a mode with addresses": (
        backends({"service": "dns", "interface": "t0"}),
        "backend t0 of service dns: interface t0 is for redirect, not for dnat; give address",
    ),
    "interface and address": (
        backends({**NODE, "interface": "t0"}),
        "backends[0] (dns 198.51.100.1 t0): address '198.51.100.1' beside interface: redirect leaves frames as they "
        "are",
    ),
    "filter without a prefix": (
        filters({"action": "drop"}),
        "filters[0]: prefix is missing",
    ),
    "filter for half an address": (
        filters({"prefix": "10.0.0.0/33", "action": "drop"}),
        "filters[0] (10.0.0.0/33): prefix '10.0.0.0/33' has no length from 0 to 32 behind the slash",
    ),
    "filter with an action of its own": (
        filters({"prefix": "10.0.0.0/8", "action": "reject"}),
        "filters[0] (10.0.0.0/8): action 'reject' is not one of drop, pass, limit",
    ),
    "limit without a rate": (
        filters({"prefix": "10.0.0.0/8", "action": "limit"}),
        "filters[0] (10.0.0.0/8): rate is missing",
    ),
    "rate of what is dropped": (
        filters({"prefix": "10.0.0.0/8", "action": "drop", "rate": 5}),
        "filters[0] (10.0.0.0/8): rate is for action limit, not for drop",
    ),
    "the same filter twice": (
        filters({"prefix": "10.0.0.0/8", "action": "drop"}, {"prefix": "10.0.0.0/8", "action": "pass"}),
        "filters[1] (10.0.0.0/8): duplicate filter, 10.0.0.0/8 has a rule for any already",
    ),
    "backend is no address": (
        backends({**NODE, "address": "node1"}),
        "backends[0] (dns node1): address 'node1' is not an IPv4 address such as 192.0.2.10 or an IPv6 address "
        "such as 2001:db8::10",
    ),
    "negative weight": (
        backends({**NODE, "weight": -1}),
        "backends[0] (dns 198.51.100.1): weight -1 is not between 0 and 65535",
    ),
    "unknown state": (
        backends({**NODE, "state": "down"}),
        "backends[0] (dns 198.51.100.1): state 'down' is not one of enabled, drained, backup",
    ),
    "unknown key": (
        backends({**NODE, "prot": 80}),
        "backends[0] (dns 198.51.100.1): unknown key 'prot'; known are address, interface, local, mac, name, port, "
        "server_id, service, state, weight",
    ),
    "MAC of zeros": (
        backends({**NODE, "mac": "00:00:00:00:00:00"}),
        "backends[0] (dns 198.51.100.1): mac '00:00:00:00:00:00' is not the address of one host",
    ),
    "service is missing": (
        backends({"address": "198.51.100.1"}),
        "backends[0] (198.51.100.1): service is missing",
    ),
    "duplicate backend": (
        backends(NODE, {**NODE, "weight": 2}),
        "backends[1] (dns 198.51.100.1): duplicate backend of service dns",
    ),
    "backend of an unknown service": (
        backends({**NODE, "service": "ntp"}),
        "backend 198.51.100.1 of service ntp: unknown service 'ntp'; known services: dns",
    ),
    "slice of an unknown service": (
        backends(NODE, service="ntp"),
        "service: unknown service 'ntp'; known services: dns",
    ),
    "backend outside the slice": (
        backends({**NODE, "service": "web"}, service="dns"),
        "backend 198.51.100.1 is of service web, but only those of service dns are declared here",
    ),
    "backend is the VIP": (
        backends({**NODE, "address": "192.0.2.10"}),
        "backend 192.0.2.10 of service dns: the address is the VIP of service dns",
    ),
    "more services than fit": (
        services(DNS, WEB, {**WEB, "name": "tls", "port": 443}),
        "3 services are more than the maps hold, 2 with max_services 2; raise max_services of the balancer",
    ),
    "more backends than fit": (
        backends(*({**NODE, "address": f"198.51.100.{number}"} for number in (1, 2, 3))),
        "3 backends are more than the maps hold, 2 with max_backends 3; raise max_backends of the balancer",
    ),
    "more endpoints than fit": (
        services(DNS, {**WEB, "port": "50-59"}),
        "the configuration needs 13 endpoints (a port of a service, a port of a dnat backend, a VIP, a server id), "
        "max_endpoints is 8; raise max_endpoints of the balancer",
    ),
    "smaller than what is there": (
        Task("xdp_program", {**T0, **SIZES, "max_backends": 1}),
        "1 backends are more than the maps hold, 0 with max_backends 1; raise max_backends of the balancer",
    ),
    "maps of nothing": (
        Task("xdp_program", {**T0, **SIZES, "max_services": 0}),
        "max_services 0 is not between 1 and 65536",
    ),
    "maps beyond reason": (
        Task("xdp_program", {**T0, **SIZES, "max_endpoints": 1 << 30}),
        "max_endpoints 1073741824 is not between 1 and 1048576",
    ),
    "unknown interface": (
        Task("xdp_program", {**ON_SPARE, "interfaces": ["t0", "eth9"]}),
        "interface 'eth9' does not exist; this host has lo, mgmt0, data0, t1, t0",
    ),
    "path for an interface": (
        Task("xdp_program", {**ON_SPARE, "interfaces": ["../x"]}),
        "interfaces[0]: '../x' is not a name of an interface",
    ),
    "no interfaces": (
        Task("xdp_program", {**ON_SPARE, "interfaces": []}),
        "interfaces is empty; name the interfaces whose packets are balanced",
    ),
    "the same interface twice": (
        Task("xdp_balancer", {**ON_SPARE, "interfaces": ["t0", "t0"]}),
        "interfaces[1]: t0 is listed twice",
    ),
    "interface that does not fit into two balancers": (
        Task("xdp_balancer", {**ON_SPARE, "interfaces": ["t0", INTERFACE]}),
        f"interface {INTERFACE} is in balancer main already; an interface is in one only",
    ),
    "path for a balancer": (
        Task("xdp_program", {"balancer": "../x", "interfaces": ["t0"]}),
        "balancer '../x': a name has letters, digits, _ and -, begins with a letter or digit, and is at most 32 "
        "characters long",
    ),
    "generation that somebody else has changed": (
        Task("xdp_balancer", {**T0, **SIZES, "generation": 1}),
        "balancer spare: generation 1 is not the current one, which is 3; somebody else changed it meanwhile, look at "
        "the difference and run this again",
    ),
    "services of an unknown balancer": (
        Task("xdp_services", {"balancer": "other", "services": []}),
        "there is no balancer other on this host; declare it with xdp_balancer or xdp_program first",
    ),
    "backends of an unknown balancer": (
        Task("xdp_backends", {"balancer": "other", "backends": []}),
        "there is no balancer other on this host; declare it with xdp_balancer or xdp_program first",
    ),
    "filters of an unknown balancer": (
        Task("xdp_filters", {"balancer": "other", "filters": []}),
        "there is no balancer other on this host; declare it with xdp_balancer or xdp_program first",
    ),
    "no source": (
        Task("xdp_program", {**T0, **SIZES, "source": "/nonexistent"}),
        "/nonexistent/balancer.c does not exist; the role lbops.xdp.balancer installs the program's source",
    ),
}


@pytest.fixture
def small(lab, spare_interface):
    """A program on t0 whose maps hold two of each."""
    made = run(
        lab,
        [
            Task("xdp_program", {**T0, **SIZES}),
            services(DNS),
            backends(NODE),
        ],
    )
    assert not any(result["failed"] for result in made), made
    return spare_interface


def test_bad_entries_are_named_and_nothing_is_touched(lab, small):
    before = lab.fingerprint()
    tasks = [task for task, _message in ENTRIES.values()]
    # In check mode the same words, of what only a plan shows, too.
    late = [name for name in ENTRIES if "fit" in name or "smaller" in name or "unknown" in name]
    checked = [Task(ENTRIES[name][0].module, ENTRIES[name][0].arguments, check=True) for name in late]
    results = run(lab, tasks + checked)
    found = {name: result.get("msg", result) for name, result in zip(ENTRIES, results)}
    assert found == {name: message for name, (_task, message) in ENTRIES.items()}
    found_in_check = {name: result.get("msg", result) for name, result in zip(late, results[len(tasks) :])}
    assert found_in_check == {name: found[name] for name in late}
    assert all(result["failed"] for result in results)
    assert lab.fingerprint() == before
    # The maps are what they were, too.
    assert [result["changed"] for result in run(lab, [services(DNS), backends(NODE)])] == [False, False]


# Python for Ansible in a mount namespace in which something is missing.
INTERPRETER = """\
cat >/root/python-{name} <<'END'
#!/bin/sh
exec unshare --mount sh -c '{command} && exec /usr/bin/python3 "$@"' python "$@"
END
chmod 755 /root/python-{name}"""
PACKAGES = "/usr/lib/python3/dist-packages"
MISSING = {
    "bpffs": "umount /sys/fs/bpf",
    # BCC stays, without which nobody gets as far.
    "pyroute2": f"mkdir -p /tmp/bcc; mount --bind {PACKAGES}/bcc /tmp/bcc; mount -t tmpfs tmpfs {PACKAGES}; "
    f"mkdir {PACKAGES}/bcc; mount --bind /tmp/bcc {PACKAGES}/bcc",
    "headers": "mount -t tmpfs tmpfs /lib/modules",
    "iovisor": f"echo >/tmp/other; mount --bind /tmp/other {PACKAGES}/bcc/__init__.py",
}


def test_a_host_that_lacks_something_is_told_what(lab, small):
    release = lab.ssh("lb1", "uname -r")
    before = lab.fingerprint()

    def lacking(name: str, module: str = "xdp_program", **arguments) -> Task:
        interpreter = {"ansible_python_interpreter": f"/root/python-{name}"}
        # A feature that is not there yet has to be compiled.
        return Task(module, {**ON_SPARE, **arguments}, keywords={"vars": interpreter})

    same = {**T0, **SIZES}
    other = {**same, "latency": True}
    # Variables, because the inventory's win over a task's own keywords.
    become = {"become": True, "become_user": "nobody", "become_method": "su", "become_flags": "-s /bin/sh"}
    unprivileged = {"vars": {f"ansible_{name}": value for name, value in become.items()}}
    results = run(
        lab,
        [
            *(shell(INTERPRETER.format(name=name, command=command)) for name, command in MISSING.items()),
            lacking("bpffs", **same),
            lacking("bpffs", "xdp_info"),
            lacking("pyroute2", **other),
            lacking("headers", **other),
            lacking("iovisor", **other),
            shell(f"mv {PACKAGES}/bcc {PACKAGES}/bcc-hidden"),
            Task("xdp_program", other),
            shell(f"mv {PACKAGES}/bcc-hidden {PACKAGES}/bcc"),
            Task("xdp_program", same, keywords=unprivileged),
            Task("xdp_services", {**ON_SPARE, "services": []}, keywords=unprivileged),
            Task("xdp_info", ON_SPARE, keywords=unprivileged),
            shell("rm -r /root/python-* /tmp/other /tmp/bcc"),
        ],
    )
    found = [result.get("msg", result) for result in results if result.get("failed")]
    no_bpffs = (
        "no BPF file system is mounted for /sys/fs/bpf/lbops; run mount -t bpf bpf /sys/fs/bpf, or apply the role "
        "lbops.xdp.balancer, which mounts it at boot"
    )
    no_root = "BPF programs and maps need root; use become: true"
    distribution = "python3-bpfcc (Debian, Ubuntu) or python3-bcc (Rocky, RHEL)"
    assert found == [
        no_bpffs,
        no_bpffs,
        "pyroute2 is missing (No module named 'pyroute2'); install the distribution's package python3-pyroute2, or "
        "apply the role lbops.xdp.bcc",
        f"kernel headers are missing: /lib/modules/{release}/build does not exist; run apt install "
        f"linux-headers-{release} (Debian, Ubuntu) or dnf install kernel-devel-{release} (Rocky, RHEL), or apply the "
        "role lbops.xdp.bcc, which also knows what to do for a kernel without a header package",
        f"{PACKAGES}/bcc/__init__.py is not iovisor's BCC; remove that package and install the distribution's "
        f"{distribution}",
        f"BCC is missing (No module named 'bcc'); install the distribution's package {distribution}, or apply the role "
        "lbops.xdp.bcc",
        *[no_root] * 3,
    ]
    assert lab.fingerprint() == before
