# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot into another kernel, on a host that has lost its compiler and all headers: the last test of a guest."""

from __future__ import annotations

import pytest

from tests.guests.conftest import GUESTS, Guests
from tests.guests.data0 import answers
from tests.support.batch import Task
from tests.vm import image

HAVE_ANOTHER = [guest for guest in GUESTS if guest in image.OTHER_KERNELS]
KEPT = "sha256sum /var/lib/lbops/main/compiled/*.program"
REMOVE = "dpkg --purge python3-bpfcc libbpfcc $(dpkg-query -W -f '${Package} ' 'linux-headers-*')"


def program(guests: Guests, guest: str) -> dict:
    found = guests.run(Task("xdp_info", {"balancer": "main"}))[guest][0]["program"]
    return {key: found[key] for key in ("digest", "tables_digest", "features", "attached", "problems")}


@pytest.mark.parametrize("guest", HAVE_ANOTHER)
def test_a_balancer_comes_back_from_the_bytecode_that_was_kept(guests: Guests, guest: str):
    release = guests.ssh(guest, "uname -r")
    before, kept = program(guests, guest), guests.ssh(guest, KEPT)
    assert before["attached"] and before["problems"] == [] and answers(guests, guest) == {"be1", "be2"}
    guests.ssh(guest, REMOVE)
    other = guests.ssh(guest, "cd /boot; ls initrd.img-*").removeprefix("initrd.img-")
    guests.ssh(guest, f"kexec --load /boot/vmlinuz-{other} --initrd=/boot/initrd.img-{other} --reuse-cmdline")
    guests.reboot("systemctl kexec", [guest])
    assert guests.ssh(guest, "uname -r") == other != release
    guests.ssh(guest, "! python3 -c 'import bcc' && ! ls /lib/modules/*/build/Makefile")
    assert not guests.ssh(guest, "systemctl --failed --no-legend")
    restored = guests.ssh(guest, "journalctl -b -u lbops-restore@main -o cat")
    assert "balancer=main result=restored interface=data0 hook=native" in restored
    assert program(guests, guest) == before and guests.ssh(guest, KEPT) == kept
    assert answers(guests, guest) == {"be1", "be2"}
