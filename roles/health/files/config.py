# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked: the role's file says how, the balancer's state says whom."""

from __future__ import annotations

import json
from pathlib import Path

from engine.balancer import state
from engine.balancer.balancer import Balancer
from engine.balancer.health_store import Version
from engine.config.health import Health, load
from engine.config.model import BackendKey
from engine.errors import EngineError

from .common import Target

DIRECTORY = Path("/etc/lbops")


def read_checks(balancer: str, directory: Path = DIRECTORY) -> dict[str, Health]:
    """By the name of the service."""
    path = directory / f"health-{balancer}.json"
    try:
        return load(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise EngineError(f"{path} does not exist; apply the role lbops.xdp.health") from None
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({error}); apply the role lbops.xdp.health again") from None


class Targets:
    """The backends of the services that are checked, read again when a module wrote the balancer's state."""

    def __init__(self, balancer: Balancer, checks: dict[str, Health]) -> None:
        self._balancer, self._checks = balancer, checks
        self._version: Version | None = None

    def changed(self) -> bool:
        """Since it was read last."""
        return self._balancer.configured() != self._version

    def read(self) -> dict[BackendKey, Target]:
        self._version = self._balancer.configured()
        current = state.load(self._balancer.state_file)
        if current is None:
            return {}
        services = current.config.services
        return {
            key: Target(self._checks[key.service], services[key.service], backend, current.document.interfaces)
            for key, backend in current.config.backends.items()
            if key.service in self._checks and backend.address
        }
