# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A balancer on interfaces of a test's network, with pins and state of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, document, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer, Conditions

from tests.support.compile_once import SOURCE, compile_program
from tests.support.program import SIZES

__all__ = ["Conditions", "balancer", "declared", "settings"]

# However many state directories there are.
compiler.compile_program = compile_program


def settings(*interfaces: str, mode: str = "native", **others: Any) -> document.Settings:
    return document.Settings(interfaces, mode=mode, **{"sizes": SIZES, "source": str(SOURCE), **others})


def declared(
    chosen: document.Settings, services: list[dict], backends: list[dict], filters: list[dict] | None = None
) -> document.Document:
    raw = {**chosen.as_dict(), "services": services, "backends": backends, "filters": filters or []}
    return document.parse_document(raw)


@contextmanager
def balancer(name: str = "main") -> Iterator[Balancer]:
    """One that is removed on return."""
    with tempfile.TemporaryDirectory() as directory:
        pins = Path("/sys/fs/bpf") / f"lbops-test-{os.getpid()}"
        made = Balancer(name, state.Paths(pins, Path(directory)))
        try:
            yield made
        finally:
            made.remove(check=False)
