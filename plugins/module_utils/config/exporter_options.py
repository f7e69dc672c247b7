# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the exporter can be told: where to listen, TLS and users, by the keys of Prometheus' web configuration file."""

from __future__ import annotations

import ipaddress
from typing import Any

from ..errors import EngineError
from .entries import NUMBER_PATTERN

FILES = ("cert_file", "key_file")
# Of bcrypt digests.
PREFIXES = ("$2a$", "$2b$", "$2y$")


def check_listening(address: Any, port: Any) -> None:
    """Raises EngineError that names the value."""
    try:
        ipaddress.ip_address(address if isinstance(address, str) else "")
    except ValueError:
        raise EngineError(f"address {address!r} is not an IP address such as 127.0.0.1 or ::") from None
    if not NUMBER_PATTERN.fullmatch(str(port)) or not 1 <= int(port) <= 65535:
        raise EngineError(f"port {port!r} is not between 1 and 65535")


def check_web(found: Any, where: str) -> None:
    """Raises EngineError that names the key, never a digest."""
    _only(found, ("tls_server_config", "basic_auth_users"), where)
    tls, users = found.get("tls_server_config"), found.get("basic_auth_users")
    if tls is not None:
        _only(tls, FILES, f"{where}: tls_server_config")
        for key in FILES:
            if key not in tls:
                raise EngineError(f"{where}: tls_server_config has no {key}")
            if not isinstance(tls[key], str) or not tls[key].startswith("/"):
                raise EngineError(f"{where}: tls_server_config: {key} {tls[key]!r} is not a path such as /etc/lb1.pem")
    if users is not None:
        _only(users, tuple(users), f"{where}: basic_auth_users")
        for name, digest in users.items():
            if not isinstance(digest, str) or not digest.startswith(PREFIXES):
                problem = f"that of {name} is not a bcrypt digest; make one with htpasswd -nB {name}"
                raise EngineError(f"{where}: basic_auth_users: {problem}")


def _only(found: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(found, dict):
        raise EngineError(f"{where} is not a mapping")
    strange = [name for name in found if name not in known]
    if strange:
        raise EngineError(f"{where} has no {strange[0]!r}; there are {', '.join(known)}")
