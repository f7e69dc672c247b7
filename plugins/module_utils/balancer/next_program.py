# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The next program: an XDP program of the operator, pinned by him, which gets by a tail call what the balancer passes.

The kernel keeps it in an array beside the balancer's other maps. An array takes programs of one kind only, that of the
program that looks into it (bpf_prog_map_compatible() in kernel/bpf/core.c), so there is one for each kind.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from ..errors import EngineError
from ..kernel import bpf
from ..tables.layout import INDEX, index
from .document import Settings
from .map_specs import NEXT_PROGRAM_MAPS
from .maps import Maps
from .places import Places, pinned_id
from .state import State

# What a descriptor of a pinned object links to in /proc.
PROGRAM_LINK = "anon_inode:bpf-prog"
FLAGS = {False: 0, True: bpf.PROG_FLAG_XDP_HAS_FRAGS}


def open_pinned(settings: Settings, pins: Path) -> int:
    """The descriptor of the next program. Raises EngineError if it cannot follow a program with these settings.

    `pins`: where the balancers' own programs are pinned.
    """
    where = f"next_program {settings.next_program}"
    if Path(settings.next_program).is_relative_to(pins):
        raise EngineError(f"{where} is a balancer's own; name the program that is to follow it")
    try:
        descriptor = bpf.object_get(settings.next_program)
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(f"{where} does not exist; pin the program there, or leave next_program out") from None
    except OSError as error:
        raise EngineError(f"{where} is no pinned program ({error.strerror}); pin an XDP program there") from None
    try:
        refusal = _refusal(descriptor, settings.multi_buffer)
        if refusal:
            raise EngineError(f"{where} {refusal}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refusal(descriptor: int, multi_buffer: bool) -> str:
    """Why a pinned object cannot be the next program; empty if it can."""
    if os.readlink(f"/proc/self/fd/{descriptor}") != PROGRAM_LINK:
        return "is not a program but another BPF object; pin an XDP program there"
    kind = bpf.program_info(descriptor).type
    if kind != bpf.PROG_TYPE_XDP:
        return f"is of type {kind}, not XDP ({bpf.PROG_TYPE_XDP}); pin an XDP program there"
    if _fits(descriptor, multi_buffer, bpf.ATTACH_TYPE_XDP):
        return ""
    if _fits(descriptor, multi_buffer, 0):
        return "was loaded without the expected attach type BPF_XDP; load it with that, as libbpf does"
    if any(_fits(descriptor, not multi_buffer, attach_type) for attach_type in (bpf.ATTACH_TYPE_XDP, 0)):
        if multi_buffer:
            return (
                "does not take frames of several buffers; load it from a section xdp.frags, or switch multi_buffer off"
            )
        return "takes frames of several buffers; load it from a section xdp, or set multi_buffer: true"
    return "cannot be called by another program: it was loaded for one device, or for a devmap or cpumap"


def _fits(descriptor: int, multi_buffer: bool, attach_type: int) -> bool:
    """Whether the kernel lets a program of this kind call it: an array that holds the one takes the other."""
    with ExitStack() as stack:
        try:
            array = bpf.map_create("next_program", bpf.MAP_TYPE_PROG_ARRAY, INDEX.size, 1)
            stack.callback(os.close, array)
            set_entry(array, descriptor)
            ours = bpf.program_load("like_ours", bpf.PASS_PROGRAM, flags=FLAGS[multi_buffer], attach_type=attach_type)
            stack.callback(os.close, ours)
            set_entry(array, ours)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True


def set_entry(array: int, descriptor: int | None) -> None:
    """Put a program into the array with one place, or take out the one that is there."""
    if descriptor is not None:
        bpf.map_update(array, index(0), INDEX.pack(descriptor))
        return
    try:
        bpf.map_delete(array, index(0))
    except FileNotFoundError:
        pass


def entry(array: int) -> int:
    """The id of the program in the array; 0 for none."""
    try:
        return int(INDEX.unpack(bpf.map_lookup(array, index(0), INDEX.size))[0])
    except FileNotFoundError:
        return 0


class NextProgram:
    """What a document wants in the arrays. Raises EngineError for a program that cannot be there.

    `lenient`: the balancer goes on with what is in the arrays, and `problem` says why.
    """

    def __init__(self, settings: Settings, pins: Path, lenient: bool) -> None:
        self.problem = ""
        # By map, the id of the program that belongs there, 0 for none; a map that is left alone is not in it.
        self._wanted = dict.fromkeys(NEXT_PROGRAM_MAPS.values(), 0)
        # What was there before.
        self._before: dict[str, int] = {}
        if not settings.next_program:
            return
        name = NEXT_PROGRAM_MAPS[settings.multi_buffer]
        try:
            descriptor = open_pinned(settings, pins)
        except EngineError as error:
            if not lenient:
                raise
            self.problem = str(error)
            del self._wanted[name]
            return
        try:
            self._wanted[name] = bpf.program_info(descriptor).id
        finally:
            os.close(descriptor)

    def differs(self, live_maps: Maps) -> bool:
        """Whether an array holds another program than it should."""
        return any(entry(live_maps[name]) != number for name, number in self._wanted.items())

    def enter(self, live_maps: Maps) -> None:
        """Put the program into its array, before a program that looks there is on a hook."""
        self._before = {name: entry(live_maps[name]) for name in NEXT_PROGRAM_MAPS.values()}
        for name, number in self._wanted.items():
            if number:
                _set(live_maps[name], number)

    def leave(self, live_maps: Maps) -> None:
        """Empty the arrays that no program looks into any more."""
        for name, number in self._wanted.items():
            if not number:
                set_entry(live_maps[name], None)

    def undo(self, live_maps: Maps) -> None:
        """Have in the arrays what was there before enter()."""
        for name, number in self._before.items():
            _set(live_maps[name], number)


def _set(array: int, program_id: int) -> None:
    """The same with an id, 0 for none; nothing happens if that program is there already."""
    if entry(array) == program_id:
        return
    descriptor = bpf.program_fd(program_id) if program_id else None
    try:
        set_entry(array, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def live_entry(places: Places, current: State) -> int:
    """The id of the program that gets what the balancer passes; 0 for none."""
    pin = places.maps / NEXT_PROGRAM_MAPS[current.document.settings.multi_buffer]
    try:
        array = bpf.object_get(str(pin), read_only=True)
    except FileNotFoundError:
        return 0
    try:
        return entry(array)
    finally:
        os.close(array)


def missing(places: Places, current: State) -> str:
    """The problem that nothing follows, in a sentence for people."""
    return (
        f"next_program {current.document.settings.next_program} is not called: it was not pinned or did not fit; "
        f"packets that pass go to the kernel without it; lbops-watch@{places.name} puts it in once it is there"
    )


def is_due(places: Places, current: State) -> bool:
    """Whether the program that is pinned now can follow the balancer's, and is not in its array yet."""
    settings = current.document.settings
    if not settings.next_program:
        return False
    try:
        # Nearly always it is, and trying both programs together takes several calls.
        if pinned_id(Path(settings.next_program)) == live_entry(places, current):
            return False
        os.close(open_pinned(settings, places.paths.pins))
    except (EngineError, OSError):
        return False
    return True
