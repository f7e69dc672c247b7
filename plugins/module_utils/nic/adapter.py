# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that tune a network device have in common on Ansible's side."""

from __future__ import annotations

from typing import Any, Callable

from ..adapter import INTERFACE_ARGUMENT, run
from ..outcome import Outcome
from . import tuning
from .tuner import Rules, Tuner


def tune(options: dict[str, Any], make: Callable[[dict[str, Any]], Tuner], **constraints: Any) -> None:
    """A module with these options: `make` gets their values, None for those that are left out."""

    def apply(params: dict[str, Any], check: bool) -> Outcome:
        rules = Rules(clamp=params["on_exceed"] == "clamp", skip=params["on_unsupported"] == "skip", check=check)
        return tuning.apply(params["interface"], make({name: params[name] for name in options}), rules, check)

    run(
        {
            "interface": INTERFACE_ARGUMENT,
            **options,
            "on_exceed": {"type": "str", "choices": ["fail", "clamp"], "default": "fail"},
            "on_unsupported": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
        },
        apply,
        **constraints,
    )
