# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot into another release of the kernel, without BCC and without that release's headers.

setarch gives the program that restores a balancer another release: its uname(2) says 2.6 with the same suffix.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, tc

from tests.packet.frames import CLIENT, tcp
from tests.packet.network import FRONT, mac, neighbour_mac
from tests.support import balancer as support
from tests.support.balancer import declared, settings

VIP = "203.0.113.10"
WEB = {"name": "web", "address": VIP, "protocol": "tcp", "port": 80}
BACKEND = {"service": "web", "address": "10.0.0.7"}
ETH_P_ALL = 0x0003

# The program of lbops-restore@.service over the paths of this test; with "without", `import bcc` fails.
RESTORE = """
import functools, sys
from pathlib import Path
pins, directory, name, compiler = sys.argv[1:]
if compiler == "without":
    sys.modules["bcc"] = None
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import restore, state
restore.Balancer = functools.partial(restore.Balancer, paths=state.Paths(Path(pins), Path(directory)))
sys.argv = ["restore", name]
raise SystemExit(restore.main())
"""
OTHER_RELEASE = subprocess.run(
    ["setarch", "--uname-2.6", "uname", "-r"], capture_output=True, text=True, check=True
).stdout.strip()


def boot(balancer: Balancer, *prefix: str, compiler: str = "without") -> subprocess.CompletedProcess[str]:
    """What the restore at boot does, and leaves: neither programs, nor pins, nor anything in memory."""
    attached = link.attached(FRONT)
    if attached:
        descriptor = bpf.program_fd(attached.program_id)
        link.detach(FRONT, attached.hook, descriptor)
        os.close(descriptor)
    if tc.attached(FRONT):
        tc.detach(FRONT)
    shutil.rmtree(balancer.paths.pins, ignore_errors=True)
    arguments = [str(balancer.paths.pins), str(balancer.paths.state), balancer.name, compiler]
    return subprocess.run(
        [*prefix, sys.executable, "-c", RESTORE, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def boot_another_release(balancer: Balancer, compiler: str = "without") -> subprocess.CompletedProcess[str]:
    assert not Path("/lib/modules", OTHER_RELEASE, "build").exists()
    return boot(balancer, "setarch", "--uname-2.6", compiler=compiler)


@pytest.fixture
def far_end(net) -> Iterator[None]:
    """veth hands over what XDP sends back only if the other end has a program, too."""
    passing = bpf.program_load("pass", bpf.PASS_PROGRAM)
    link.attach("front-peer", passing, "native", None)
    yield
    link.detach("front-peer", "native", passing)
    os.close(passing)


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """What one test has compiled, for the next."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def balancer(net, programs) -> Iterator[Balancer]:
    with support.balancer() as made:
        made.places.compiled.mkdir(parents=True)
        shutil.copytree(programs, made.places.compiled, dirs_exist_ok=True)
        apply(made, "native")
        for path in kept(made):
            shutil.copy(path, programs)
        yield made


def apply(balancer: Balancer, mode: str) -> bool:
    return balancer.apply(declared(settings(FRONT, mode=mode), [WEB], [BACKEND]), check=False).changed


def kept(balancer: Balancer) -> list[Path]:
    return sorted(balancer.places.compiled.glob("*.program"))


def answer(frame: bytes, receiver: str, address: str) -> bytes | None:
    """Send a frame to the front; what comes out of an interface's other end with this destination MAC address."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as out,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as into,
    ):
        out.bind((receiver, ETH_P_ALL))
        out.settimeout(0.2)
        into.bind(("front-peer", 0))
        into.send(frame)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                found, sender = out.recvfrom(2048)
            except TimeoutError:
                continue
            if sender[2] != socket.PACKET_OUTGOING and found[:6] == mac(address):
                return found
    return None


def is_balanced() -> bool:
    found = answer(tcp(CLIENT, 20000, VIP, 80), "front-peer", neighbour_mac(0, 7))
    return found is not None and socket.inet_ntoa(found[30:34]) == BACKEND["address"]


def is_forwarded() -> bool:
    """By the kernel, to the other network."""
    return answer(tcp(CLIENT, 20000, "10.0.1.9", 80), "back-peer", neighbour_mac(1, 9)) is not None


def test_another_release_boots_from_what_was_kept(balancer, far_end):
    assert is_balanced()
    assert OTHER_RELEASE != platform.release()
    before = [(path, path.read_bytes()) for path in kept(balancer)]
    done = boot_another_release(balancer)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"result=restored interface={FRONT} hook=native" in done.stdout
    assert is_balanced() and is_forwarded()
    assert [(path, path.read_bytes()) for path in kept(balancer)] == before
    # Applying the same again, under this release, is no change.
    assert not apply(balancer, "native")


def refused_by_the_verifier(path: Path) -> None:
    """Let a kept program read what its last argument points to, which is nothing, under a checksum that fits."""
    record = path.read_bytes()[32:].partition(b"\n")[0]
    code = b"".join(
        bpf.INSTRUCTION.pack(*instruction)
        for instruction in (
            (0xB7, 0x00, 0, 0),  # r0 = 0
            (0x61, 0x00, 0, 0),  # r0 = *(u32 *)(r0 + 0)
            (0x95, 0x00, 0, 0),  # exit
        )
    )
    content = record + b"\n" + code
    path.write_bytes(hashlib.sha256(content).digest() + content)


def assert_nothing_is_half_done(balancer: Balancer, state_before: str) -> None:
    assert link.attached(FRONT) is None and tc.attached(FRONT) is None
    assert not balancer.places.pins.exists()
    assert balancer.state_file.read_text() == state_before
    assert is_forwarded() and not is_balanced()


def test_a_boot_whose_program_is_refused_says_so_and_leaves_traffic_alone(balancer, far_end):
    (path,) = kept(balancer)
    refused_by_the_verifier(path)
    content, before = path.read_bytes(), balancer.state_file.read_text()
    done = boot_another_release(balancer)
    assert done.returncode == 1
    for words in (
        "restore balancer=main result=failed: ",
        f"verifier of kernel {OTHER_RELEASE} refuses the program that was compiled under kernel {platform.release()} ",
        "R0 invalid mem access",
        "It cannot be compiled again: BCC is missing",
        f"apt install linux-headers-{OTHER_RELEASE}",
    ):
        assert words in done.stderr
    assert_nothing_is_half_done(balancer, before)
    assert path.read_bytes() == content
    # With the compiler and the headers of the release that runs, it is compiled again.
    done = boot(balancer, compiler="with")
    assert (done.returncode, done.stderr) == (0, "")
    assert is_balanced()
    assert kept(balancer) == [path] and path.read_bytes() != content
    assert boot_another_release(balancer).returncode == 0 and is_balanced()


def test_a_damaged_file_is_never_loaded(balancer, far_end):
    (path,) = kept(balancer)
    content, before = path.read_bytes(), balancer.state_file.read_text()
    path.write_bytes(content[:-8])
    done = boot_another_release(balancer)
    assert done.returncode == 1
    assert f"{path} is damaged, so the program has to be compiled again" in done.stderr
    assert_nothing_is_half_done(balancer, before)


def set_mtu(mtu: int) -> None:
    for name in (FRONT, "front-peer"):
        subprocess.run(["ip", "link", "set", name, "mtu", str(mtu)], check=True)


def test_the_hook_of_tc_after_xdps_was_refused_needs_no_compiler_either(balancer):
    balancer.remove(check=False)
    # More than veth's driver takes for a program of frames in one buffer.
    set_mtu(9000)
    try:
        apply(balancer, "auto")
        assert balancer.info()["program"]["interfaces"][0]["hook"] == "tc"
        done = boot_another_release(balancer)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"result=restored interface={FRONT} hook=tc" in done.stdout
        assert is_balanced()
    finally:
        balancer.remove(check=False)
        set_mtu(1500)
