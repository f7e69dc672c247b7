# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel fills lookup tables as lookup.fill() does, slot by slot; without it, lookup.fill() takes its place."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.fill import Fastest, KernelFill
from ansible_collections.lbops.xdp.plugins.module_utils.config.vocabulary import DEFAULT_TABLE_SIZE
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf
from ansible_collections.lbops.xdp.plugins.module_utils.tables import lookup
from hypothesis import given, settings
from hypothesis import strategies as st

PRIMES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, DEFAULT_TABLE_SIZE, 131071)


def members(weights: list[int], size: int = DEFAULT_TABLE_SIZE, seed: int = 1) -> lookup.Members:
    """Backends with random addresses and ids."""
    generator = random.Random(seed)
    names = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80" for number in range(len(weights))]
    generator.shuffle(names)
    ids = generator.sample(range(1, 1 << 20), len(weights))
    return lookup.members(names, weights, ids, size)


@pytest.fixture(scope="module")
def in_kernel() -> Iterator[KernelFill]:
    filler = KernelFill()
    yield filler
    filler.close()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 65535), min_size=1, max_size=40), st.sampled_from(PRIMES[:4]), st.integers())
def test_small_tables_are_the_same(in_kernel, weights, size, seed):
    found = members(weights, size, seed)
    assert in_kernel(found) == lookup.fill(found)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=300), st.sampled_from(PRIMES), st.integers())
def test_tables_of_all_sizes_are_the_same(in_kernel, weights, size, seed):
    found = members(weights, size, seed)
    assert in_kernel(found) == lookup.fill(found)


def test_it_takes_no_capability_but_bpf():
    """The service for health checks has no other of those that the kernel asks for."""
    code = (
        "from ansible_collections.lbops.xdp.plugins.module_utils.balancer.fill import KernelFill\n"
        "from ansible_collections.lbops.xdp.plugins.module_utils.tables import lookup\n"
        "found = lookup.members(['10.0.0.1:80', '10.0.0.2:80'], [1, 2], [7, 8], 251)\n"
        "assert KernelFill()(found) == lookup.fill(found)"
    )
    limited = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+bpf")
    collections = Path(__file__).parents[2] / "build/collections"
    subprocess.run([*limited, sys.executable, "-c", code], cwd=collections, check=True)


@pytest.mark.parametrize("count", [1, 2, 1000, DEFAULT_TABLE_SIZE - 1, DEFAULT_TABLE_SIZE, 70_000])
def test_tables_of_many_backends_are_the_same(in_kernel, count):
    found = members([1] * count)
    assert in_kernel(found) == lookup.fill(found)


def test_as_many_backends_as_the_largest_table_has_slots(in_kernel):
    found = members([1] * 131071, 131071)
    assert in_kernel(found) == lookup.fill(found)


@pytest.mark.parametrize("weights", [[65535] + [1] * 50, [1, 65535], [65535, 65534, 3, 2, 1] * 20])
def test_tables_of_uneven_weights_are_the_same(in_kernel, weights):
    found = members(weights)
    assert in_kernel(found) == lookup.fill(found)


def test_a_table_does_not_depend_on_the_one_before(in_kernel):
    large, small = members([1] * 500, 131071), members([3, 1], 251)
    expected = [lookup.fill(large), lookup.fill(small)]
    assert [in_kernel(large), in_kernel(small)] == expected
    assert [in_kernel(small), in_kernel(large)] == expected[::-1]


def test_signals_do_not_disturb_it(in_kernel):
    found, arrived = members([1] * 1000, 131071), []
    expected = lookup.fill(found)
    before = signal.signal(signal.SIGALRM, lambda *_arguments: arrived.append(None))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for _round in range(100):
            assert in_kernel(found) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert arrived


def test_nothing_stays_open():
    before = len(os.listdir("/proc/self/fd"))
    KernelFill().close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_fastest_way_is_the_kernel():
    filler = Fastest()
    found = members([2, 3, 4])
    assert filler(found) == lookup.fill(found)
    assert not filler.problem


@pytest.mark.parametrize("call", ["map_create", "program_load", "test_run"])
def test_a_kernel_that_refuses_is_named_once_and_python_fills(monkeypatch, caplog, call):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(bpf, call, refuse)
    filler, found = Fastest(), members([2, 3, 4])
    assert filler(found) == filler(found) == lookup.fill(found)
    assert "EPERM" in filler.problem
    assert [record.getMessage() for record in caplog.records] == [filler.problem]


def test_a_program_that_fills_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr(bpf, "test_run", lambda *_arguments, **_options: (0, b"", 0))
    filler, found = Fastest(), members([1, 1])
    assert filler(found) == lookup.fill(found)
    assert "EIO" in filler.problem
