# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile asks for what the modules set that its options are those of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible_collections.lbops.xdp.plugins.plugin_utils import nic_action


class ActionModule(nic_action.ActionModule):
    def asked(self, arguments: dict[str, Any], result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for interface, plan in result.get("plan", {}).items():
            groups: dict[str, dict[str, Any]] = {}
            for entry in plan:
                group, _dot, option = entry["option"].partition(".")
                groups.setdefault(group, {"interface": interface})[option] = entry["after"]
            for group, options in groups.items():
                yield f"lbops.xdp.nic_{group}", options
