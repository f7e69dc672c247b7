# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Server ids in connection ids of QUIC, as endpoints. Pure functions."""

from __future__ import annotations

from ..config.model import Service
from .layout import ENDPOINT6, ENDPOINT_MULTIPLIER, ENDPOINT_QUIC_SERVER, MASK64, SERVER_KEY_MULTIPLIER


def server_key(service: Service, ring: int, server_id: str) -> bytes:
    """The bytes of a slot before its id, see layout.h; the service's lookup table is at `ring`."""
    length = service.server_id_length
    tail = (ring << 8 | service.quic_config_id << 5 | length) * SERVER_KEY_MULTIPLIER & MASK64
    number = int.from_bytes(bytes.fromhex(server_id).rjust(8, b"\0"), "little") ^ tail
    key = (number * ENDPOINT_MULTIPLIER & MASK64).to_bytes(8, "little")[1:] + bytes((ENDPOINT_QUIC_SERVER,))
    if service.family == 4:
        return key
    return ENDPOINT6.pack(key.ljust(16, b"\0"), bytes(2), 0, ENDPOINT_QUIC_SERVER, 0)[:20]
