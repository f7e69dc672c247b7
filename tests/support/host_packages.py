# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python packages as they lie on a host: import this before "from lbops_exporter import ..."."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "engine": "plugins/module_utils",
    "lbops_exporter": "roles/exporter/files/lbops_exporter",
    "lbops_top": "roles/balancer/files/lbops_top",
}

DIRECTORY = Path(tempfile.mkdtemp(prefix="lbops-packages-"))
# A process that was forked does not take it away from its parent.
_owner = os.getpid()
atexit.register(lambda: shutil.rmtree(DIRECTORY) if os.getpid() == _owner else None)
for _name, _path in PACKAGES.items():
    (DIRECTORY / _name).symlink_to(ROOT / _path)
sys.path.append(str(DIRECTORY))
