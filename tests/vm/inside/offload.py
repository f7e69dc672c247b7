# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a guest: the engine loads a program into a device's hardware, attaches and detaches it: offload.py nsim0.

The kernel's own tools say whether it is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

sys.path.insert(0, "/usr/lib/lbops/current")

from engine.kernel import bpf, link  # noqa: E402


def kernel(interface: str) -> tuple[list[str], list[str]]:
    """The hooks with a program according to ip, and the devices that programs are loaded into according to bpftool."""
    shown = json.loads(subprocess.check_output(["ip", "-d", "-j", "link", "show", "dev", interface]))[0]
    programs = json.loads(subprocess.check_output(["bpftool", "-j", "prog", "show"]))
    hooks = [name for number, name in ((1, "native"), (2, "generic"), (3, "offload")) if is_on(shown, number)]
    return hooks, [program["dev"]["ifname"] for program in programs if "dev" in program]


def is_on(shown: dict, number: int) -> bool:
    xdp = shown.get("xdp") or {}
    return xdp.get("mode") == number or any(each.get("mode") == number for each in xdp.get("attached", []))


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"{what}: {found!r}, expected {wanted!r}")
    print(f"{what}: {found!r}")


def refusal(interface: str, program: int, hook: str) -> str:
    try:
        link.attach(interface, program, hook, None)
    except link.HookRefused as error:
        return str(error)
    return ""


def main() -> None:
    interface = sys.argv[1]
    index = link.interface_index(interface)
    expect("before", kernel(interface), ([], []))
    offloaded = bpf.program_load("offloaded", bpf.PASS_PROGRAM, device=index)
    expect("loaded", kernel(interface), ([], [interface]))
    link.attach(interface, offloaded, "offload", None)
    expect("attached", kernel(interface), (["offload"], [interface]))
    expect("as the engine sees it", link.attached(interface).hook, "offload")
    link.detach(interface, "offload", offloaded)
    expect("detached", kernel(interface), ([], [interface]))
    os.close(offloaded)
    expect("closed", kernel(interface), ([], []))
    # One that is loaded into the kernel is not for the device.
    program = bpf.program_load("not_offloaded", bpf.PASS_PROGRAM)
    words = f"offload XDP on {interface} (driver netdevsim): netdevsim: xdpoffload of non-bound program (EINVAL)"
    expect("not loaded into the device", refusal(interface, program, "offload"), words)
    os.close(program)


if __name__ == "__main__":
    main()
