# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live page's files, which lie beside this one: read once, nothing else is ever served."""

from __future__ import annotations

from pathlib import Path

_DIRECTORY = Path(__file__).with_name("page")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere, nothing inline.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def files() -> dict[str, tuple[bytes, str]]:
    """Content and type by path."""
    return {
        "/" if path.name == "index.html" else f"/page/{path.name}": (
            path.read_bytes(),
            f"{_KINDS[path.suffix]}; charset=utf-8",
        )
        for path in sorted(_DIRECTORY.iterdir())
    }
