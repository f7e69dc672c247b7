# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a balancer: kill the engine at each step of what it does, and let the next run repair it.

A step is a call of bpf(2) that changes something, a change of the hook, a sync, a rename or a removal of a file. Every
sixth step is tried, from a random one on. What is found wrong goes to standard output, one line each; the last line
tells how many runs were killed.

Arguments: the interface of all documents, and another one that some documents have as well.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/lbops/current")
from engine.balancer import compiler, writing  # noqa: E402
from engine.balancer.balancer import Balancer, Conditions  # noqa: E402
from engine.balancer.document import Document, parse_document  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.kernel import bpf, link  # noqa: E402

NAME = "spare"
INTERFACE, OTHER = sys.argv[1:]
STRIDE = 6
READING = (
    bpf.MAP_LOOKUP_ELEM,
    bpf.MAP_LOOKUP_BATCH,
    bpf.OBJ_GET,
    bpf.OBJ_GET_INFO_BY_FD,
    bpf.PROG_GET_FD_BY_ID,
    # Fills lookup tables that nobody looks at yet.
    bpf.PROG_TEST_RUN,
)
XDP_TX = 3
VIP = "192.0.2.10"
SIZES = {"max_services": 16, "max_backends": 64, "max_endpoints": 256}


def document(names: str, addresses: tuple[str, ...] = (), dsr: bool = False, **settings: Any) -> Document:
    """Services with names of one letter, each on all of these backends; with `dsr` one more, of another mode."""
    services = [{"name": name, "address": VIP, "protocol": "udp", "port": ord(name)} for name in names]
    backends = [
        {"service": name, "address": address, "port": 1000 + ord(name), "mac": "02:00:00:00:00:01"}
        for name in names
        for address in addresses
    ]
    if dsr:
        services.append({"name": "dsr", "address": VIP, "protocol": "udp", "port": 9, "forwarding": "dsr"})
    defaults = {"interfaces": [INTERFACE], "mode": "native", "sizes": SIZES}
    return parse_document({**defaults, "services": services, "backends": backends, **settings})


FIRST = document("ab", ("198.51.100.1", "198.51.100.2"))
SECOND = document("bc", ("198.51.100.2", "198.51.100.3"))
LARGE = {**SIZES, "max_backends": 128}


def apply(wanted: Document) -> bool:
    return Balancer(NAME).apply(wanted, check=False).changed


def apply_in_parts(wanted: Document) -> bool:
    """As the modules for a part do."""
    raw = wanted.as_dict()
    return any(
        [
            Balancer(NAME).apply_services(raw["services"], purge=True, check=False).changed,
            Balancer(NAME).apply_backends(raw["backends"], purge=True, check=False).changed,
        ]
    )


def remove() -> None:
    Balancer(NAME).remove(check=False, conditions=Conditions(force=True))


@dataclass(frozen=True)
class Scenario:
    """From one document to another, None for no balancer; on the way packets see one of the two.

    In parts they may see the services of the one with the backends of the other.
    """

    before: Document | None
    after: Document | None
    in_parts: bool = False

    def prepare(self) -> None:
        remove()
        if self.before:
            # Twice, so that indexes in the maps are not those that a fresh start would give.
            apply(replace(SECOND, settings=self.before.settings))
            apply(self.before)

    def operate(self) -> None:
        if self.after is None:
            remove()
        elif self.in_parts:
            apply_in_parts(self.after)
        else:
            apply(self.after)


SCENARIOS = {
    "a first document": Scenario(None, FIRST),
    "other services and backends": Scenario(FIRST, SECOND),
    "other services and backends, in parts": Scenario(FIRST, SECOND, in_parts=True),
    "a wider program": Scenario(FIRST, document("bc", ("198.51.100.2", "198.51.100.3"), dsr=True)),
    "a narrower program": Scenario(document("bc", ("198.51.100.2", "198.51.100.3"), dsr=True), FIRST),
    "larger maps": Scenario(FIRST, document("ab", ("198.51.100.1", "198.51.100.2"), sizes=LARGE)),
    "one interface more": Scenario(
        FIRST, document("bc", ("198.51.100.2", "198.51.100.3"), interfaces=[INTERFACE, OTHER])
    ),
    "one interface less": Scenario(
        document("bc", ("198.51.100.2", "198.51.100.3"), interfaces=[INTERFACE, OTHER]), FIRST
    ),
    "no balancer any more": Scenario(FIRST, None),
}


def killed_at(step: int, operation: Callable[[], None]) -> bool:
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
        # Of rmtree() each file is one.
        os.unlink = counting(os.unlink)
        os.rmdir = counting(os.rmdir)
        Path.rename = counting(Path.rename)
        try:
            operation()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def frame(interface: str, name: str) -> bytes:
    """To the interface's own address."""
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
    destination = bytes.fromhex(link.find(interface).link().address.replace(":", ""))
    return destination + bytes.fromhex("020000000099 0800") + bytes(header) + udp


def target(interface: str, program: int, name: str) -> tuple[str, int] | None:
    """Where this program sends a packet of this service: backend and port, None if nowhere."""
    descriptor = bpf.program_fd(program)
    try:
        verdict, output, _duration = bpf.test_run(
            descriptor, frame(interface, name), 1, socket.if_nametoindex(interface)
        )
    finally:
        os.close(descriptor)
    if verdict != XDP_TX:
        return None
    return socket.inet_ntoa(output[30:34]), int.from_bytes(output[36:38], "big")


def wrong(*allowed: Document | None):
    """What packets see that is none of these documents."""
    for interface in (INTERFACE, OTHER):
        has = [bool(wanted and interface in wanted.interfaces) for wanted in allowed]
        attached = link.attached(interface)
        if attached is None:
            if all(has):
                yield f"{interface} has no program"
            continue
        if not any(has):
            yield f"{interface} has program {attached.program_id}"
        for name in "abc":
            found = target(interface, attached.program_id, name)
            expected = [
                [(key.address, key.port) for key in wanted.config.backends if key.service == name] if wanted else []
                for wanted in allowed
            ]
            if not any(found in backends if backends else found is None for backends in expected):
                yield f"service {name} of {interface} goes to {found}, not to one of {expected}"


def leftovers(wanted: Document | None):
    """What is there beside the pins and the state of this document."""
    pins, directory = Path("/sys/fs/bpf/lbops") / NAME, Path("/var/lib/lbops") / NAME
    if wanted is None:
        settings = Path(f"/etc/sysctl.d/90-lbops-{NAME}.conf")
        yield from (f"{path} is left over" for path in (pins, directory, settings) if path.exists())
        return
    expected = {
        pins: {"maps", "programs", "programs_new"},
        pins / "programs": set(wanted.interfaces),
        pins / "programs_new": set(),
        directory: {"state.json", "history", "compiled"},
    }
    for path, names in expected.items():
        found = {entry.name for entry in path.iterdir()}
        if found != names:
            yield f"in {path} there is {sorted(found)}, not {sorted(names)}"
    # Killed right before it is removed, a program that is not needed any more stays until the next change.
    if len(list((directory / "compiled").iterdir())) not in (1, 2):
        yield f"{directory / 'compiled'} has more than the programs before and after"


def readable():
    path = Path("/var/lib/lbops") / NAME / "state.json"
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        pass
    except ValueError as error:
        yield f"the state file is damaged: {error}"


def repaired(scenario: Scenario):
    """What is wrong after the next run."""
    try:
        scenario.operate()
        yield from readable()
        yield from wrong(scenario.after)
        yield from leftovers(scenario.after)
        if scenario.after and apply(scenario.after):
            yield "a second repair was needed"
    except (EngineError, OSError, LookupError, TypeError, ValueError, AssertionError) as error:
        yield f"the next run fails: {error!r}"


def main():
    # The compiler's part changes nothing on the host.
    compiler.compile_program = functools.cache(compiler.compile_program)
    # There are no replies to wait for.
    writing.REPLY_LINGER = 0
    runs = 0
    for what, scenario in SCENARIOS.items():
        scenario.prepare()
        # Compiles what the runs need.
        scenario.operate()
        mixed = [replace(SECOND, config=replace(SECOND.config, backends=FIRST.config.backends))]
        allowed = [scenario.before, scenario.after, *(mixed if scenario.in_parts else [])]
        for step in range(random.randrange(STRIDE), 400, STRIDE):
            scenario.prepare()
            if not killed_at(step, scenario.operate):
                break
            runs += 1
            for problem in [*readable(), *wrong(*allowed), *repaired(scenario)]:
                print(f"{what}, killed at step {step}: {problem}", flush=True)
        else:
            print(f"{what} takes more than 400 steps")
    remove()
    print(f"{runs} runs killed")


if __name__ == "__main__":
    main()
