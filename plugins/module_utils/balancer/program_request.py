# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of xdp_program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..tables.layout import Sizes


@dataclass(frozen=True)
class ProgramRequest:
    mode: str
    features: frozenset[str]
    sizes: Sizes
    source: Path
    attached: bool = True
    force: bool = False
    # Change what is in the way of a native program.
    prepare: bool = False
