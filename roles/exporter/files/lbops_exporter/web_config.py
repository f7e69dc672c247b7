# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS and basic authentication by the keys of Prometheus' web configuration file, here JSON, a kind of YAML."""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.exporter_options import check_web
from engine.errors import EngineError

from .passwords import Users


class Tls:
    """Certificate and key, read anew when either was replaced."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = certificate, key
        self._signature: list[tuple[int, int]] = []
        self._context: ssl.SSLContext | None = None
        self.context()

    def context(self) -> ssl.SSLContext:
        """Raises OSError, ssl.SSLError included, for files that make none."""
        found = [os.stat(path) for path in self._files]
        signature = [(file.st_ino, file.st_mtime_ns) for file in found]
        if self._context is None or signature != self._signature:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                context.load_cert_chain(*self._files)
            except ssl.SSLError:
                # One of a renewed pair is there before the other.
                if self._context is None:
                    raise
                return self._context
            self._context, self._signature = context, signature
        return self._context


@dataclass(frozen=True)
class WebConfig:
    tls: Tls | None = None
    users: Users | None = None


def _tls(found: dict[str, Any], where: str) -> Tls:
    try:
        return Tls(found["cert_file"], found["key_file"])
    except OSError as error:
        raise EngineError(
            f"{where}: cert_file {found['cert_file']} and key_file {found['key_file']} cannot be used: {error}"
        ) from None


def load(path: Path | None) -> WebConfig:
    """Raises EngineError."""
    if path is None:
        return WebConfig()
    where = str(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check_web(found, where)
    except (OSError, ValueError) as error:
        raise EngineError(f"{where} cannot be read: {error}") from None
    tls, users = found.get("tls_server_config"), found.get("basic_auth_users")
    return WebConfig(_tls(tls, where) if tls else None, Users(users) if users else None)
