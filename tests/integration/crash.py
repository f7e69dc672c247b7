# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a balancer: kill the engine at each step of what it does, and let the next run repair it.

A step is a call of bpf(2) that changes something, a change of the hook, a sync or a rename of a file. Every third step
is tried, from a random one on. What is found wrong goes to standard output, one line each; the last line tells how many
runs were killed.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/lbops/current")
from engine.balancer import compiler, state, writing  # noqa: E402
from engine.balancer.balancer import Balancer  # noqa: E402
from engine.balancer.program_request import ProgramRequest  # noqa: E402
from engine.kernel import bpf, link  # noqa: E402
from engine.tables import tables  # noqa: E402
from engine.tables.layout import Sizes  # noqa: E402

INTERFACE = sys.argv[1]
STRIDE = 3
SOURCE = Path("/usr/lib/lbops/current/bpf")
READING = (bpf.MAP_LOOKUP_ELEM, bpf.MAP_LOOKUP_BATCH, bpf.OBJ_GET, bpf.OBJ_GET_INFO_BY_FD, bpf.PROG_GET_FD_BY_ID)
SMALL, LARGE = Sizes(16, 64, 256), Sizes(16, 128, 256)
XDP_TX = 3
VIP = "192.0.2.10"

NOTHING = (), ()
FIRST = ("a", "b"), ("198.51.100.1", "198.51.100.2")
SECOND = ("b", "c"), ("198.51.100.2", "198.51.100.3")


def services(names):
    return [{"name": name, "address": VIP, "protocol": "udp", "port": ord(name)} for name in names]


def backends(names, addresses):
    return [
        {"service": name, "address": address, "port": 1000 + ord(name), "mac": "02:00:00:00:00:01"}
        for name in names
        for address in addresses
    ]


def program(sizes, features=("dnat",)):
    Balancer(INTERFACE).apply_program(ProgramRequest("native", frozenset(features), sizes, SOURCE), check=False)


def configure(names, addresses):
    live = Balancer(INTERFACE)
    changed = live.apply_services(services(names), purge=True, check=False).changed
    return live.apply_backends(backends(names, addresses), purge=True, check=False).changed or changed


def killed_at(step, operation) -> bool:
    """Run an operation in a process that kills itself before its n-th step; False if it ended before."""
    child = os.fork()
    if not child:
        left = step

        def count():
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def counting(function, counts=lambda *_arguments: True):
            @functools.wraps(function)
            def call(*arguments, **keywords):
                if counts(*arguments):
                    count()
                return function(*arguments, **keywords)

            return call

        bpf._bpf = counting(bpf._bpf, lambda command, *_rest: command not in READING)
        link._set = counting(link._set)
        os.replace = counting(os.replace)
        os.fsync = counting(os.fsync)
        Path.rename = counting(Path.rename)
        try:
            operation()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def frame(name):
    payload = b"x" * 18
    udp = struct.pack("!HHHH", 4000, ord(name), 8 + len(payload), 0) + payload
    header = bytearray(
        struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0),
            *(socket.inet_aton("192.0.2.99"), socket.inet_aton(VIP)),
        )
    )
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", header, 10, ~total & 0xFFFF)
    return bytes.fromhex("020000000002 020000000099 0800") + bytes(header) + udp


def target(name):
    """Where the program on the hook sends a packet of this service: backend and port, None if nowhere."""
    attached = link.attached(INTERFACE)
    if attached is None:
        return "no program"
    descriptor = bpf.program_fd(attached.program_id)
    try:
        verdict, output, _duration = bpf.test_run(descriptor, frame(name), 1, socket.if_nametoindex(INTERFACE))
    finally:
        os.close(descriptor)
    if verdict != XDP_TX:
        return None
    return socket.inet_ntoa(output[30:34]), int.from_bytes(output[36:38], "big")


def wrong(allowed):
    """What packets would see that is neither the old configuration nor the new one."""
    for name in "abc":
        found = target(name)
        expected = {
            (address, 1000 + ord(name)) for names, addresses in allowed if name in names for address in addresses
        }
        if found in expected or (found is None and any(name not in names for names, _addresses in allowed)):
            continue
        yield f"service {name} goes to {found}, not to one of {sorted(expected)}"


def leftovers():
    pins = Path("/sys/fs/bpf/lbops") / INTERFACE
    for path in (*pins.iterdir(), *Path("/var/lib/lbops").glob(f".{INTERFACE}*")):
        if path.name not in ("program", "maps"):
            yield f"{path} is left over"


def readable():
    try:
        json.loads(state.HOST_PATHS.state_file(INTERFACE).read_text())
    except ValueError as error:
        yield f"the state file is damaged: {error}"


def main():
    # The compiler's part changes nothing on the host.
    compiler.compile_program = functools.cache(compiler.compile_program)
    # There are no replies to wait for.
    writing.REPLY_LINGER = 0
    maglev = functools.cache(tables.maglev)
    tables.maglev = lambda names, weights: maglev(tuple(names), tuple(weights))
    runs = 0
    program(SMALL)
    program(LARGE)
    program(SMALL, ("dnat", "dsr"))

    def report(what, problems):
        for problem in problems:
            print(f"{what}, killed at step {step}: {problem}")

    def fresh():
        Balancer(INTERFACE).remove_program(False)
        program(SMALL)

    def configured():
        program(SMALL)
        # Twice, so that places in the maps are not those that a fresh start would give.
        configure(*SECOND)
        configure(*FIRST)
        report("before", wrong([FIRST]))

    scenarios = {
        "a first configuration": (fresh, lambda: configure(*FIRST), [NOTHING, FIRST], SMALL, FIRST),
        "a new configuration": (configured, lambda: configure(*SECOND), [FIRST, SECOND], SMALL, SECOND),
        "a new program": (configured, lambda: program(SMALL, ("dnat", "dsr")), [FIRST], SMALL, FIRST),
        "larger maps": (configured, lambda: program(LARGE), [FIRST], LARGE, FIRST),
    }
    for what, (prepare, operation, allowed, sizes, result) in scenarios.items():
        for step in range(random.randrange(STRIDE), 200, STRIDE):
            prepare()
            if not killed_at(step, operation):
                break
            runs += 1
            report(what, [*readable(), *wrong(allowed)])
            try:
                operation()
                program(sizes, ("dnat", "dsr") if what == "a new program" else ("dnat",))
                configure(*result)
                problems = [*readable(), *wrong([result]), *leftovers()]
                if configure(*result):
                    problems.append("a second repair was needed")
            except Exception as error:
                problems = [f"the next run fails: {error!r}"]
                Balancer(INTERFACE).remove_program(False, force=True)
            report(what, problems)
        else:
            print(f"{what} takes more than 200 steps")
    Balancer(INTERFACE).remove_program(False)
    print(f"{runs} runs killed")


if __name__ == "__main__":
    main()
