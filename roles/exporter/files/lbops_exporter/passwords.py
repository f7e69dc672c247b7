# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bcrypt, as the C library of every distribution here knows it."""

from __future__ import annotations

import ctypes
import hmac
import os
import threading

# Debian, Ubuntu; RHEL
LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")
# Somebody nobody has the password of, so that a name that does not exist takes as long to refuse as one that does.
NOBODY = "$2b$10$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"


class Bcrypt:
    def __init__(self) -> None:
        # crypt() has one buffer for all threads.
        self._lock = threading.Lock()
        for name in LIBRARIES:
            try:
                self._crypt = ctypes.CDLL(name).crypt
                break
            except OSError:
                continue
        else:
            raise OSError(f"none of {', '.join(LIBRARIES)} is there; install the distribution's libcrypt")
        self._crypt.restype = ctypes.c_char_p

    def matches(self, password: bytes, digest: str) -> bool:
        if b"\0" in password:
            return False
        with self._lock:
            found = self._crypt(ctypes.c_char_p(password), ctypes.c_char_p(digest.encode()))
        return found is not None and hmac.compare_digest(found, digest.encode())


class Users:
    """Names with their bcrypt digests. A password that was right once is compared by a keyed hash from then on."""

    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests
        self._bcrypt = Bcrypt()
        self._key = os.urandom(32)
        self._known: dict[str, bytes] = {}

    def accept(self, name: str, password: bytes) -> bool:
        mark = hmac.digest(self._key, password, "sha256")
        if name in self._known and hmac.compare_digest(self._known[name], mark):
            return True
        right = self._bcrypt.matches(password, self._digests.get(name, NOBODY)) and name in self._digests
        if right:
            self._known[name] = mark
        return right
