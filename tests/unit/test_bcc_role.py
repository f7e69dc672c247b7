# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages and headers that the role bcc decides on, by Ansible's own filters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROLE = Path(__file__).resolve().parents[2] / "roles" / "bcc"
TOOLS = ["python3-bpfcc", "python3-pyroute2"]

# The running kernel, installed packages, and the metapackages of headers that fit.
METAPACKAGES = [
    ("6.1.0-33-amd64", ["linux-image-6.1.0-33-amd64", "linux-image-amd64"], ["linux-headers-amd64"]),
    ("6.1.0-33-cloud-amd64", ["linux-image-amd64", "linux-image-cloud-amd64"], ["linux-headers-cloud-amd64"]),
    ("6.1.0-33-rt-amd64", ["linux-image-rt-amd64"], ["linux-headers-rt-amd64"]),
    ("6.12.12+bpo-amd64", ["linux-image-amd64"], ["linux-headers-amd64"]),
    ("6.1.0-0.deb11.13-arm64", ["linux-image-arm64"], ["linux-headers-arm64"]),
    ("6.12.38+deb13-arm64-16k", ["linux-image-arm64", "linux-image-arm64-16k"], ["linux-headers-arm64-16k"]),
    ("6.12.38+deb13-arm64", ["linux-image-arm64-16k"], []),
    ("5.15.0-91-generic", ["linux-image-generic"], ["linux-headers-generic"]),
    ("6.8.0-45-generic", ["linux-image-generic-hwe-22.04"], ["linux-headers-generic-hwe-22.04"]),
    ("6.8.0-45-generic", ["linux-image-generic-6.8"], ["linux-headers-generic-6.8"]),
    ("6.8.0-45-generic", ["linux-image-virtual"], ["linux-headers-virtual"]),
    ("6.8.0-1015-aws", ["linux-image-aws-lts-24.04", "linux-image-virtual"], ["linux-headers-aws-lts-24.04"]),
    # Of no distribution, or with no metapackage that brings it.
    ("6.18.44-fc-v657", ["linux-image-amd64"], []),
    ("6.6.1", ["linux-image-amd64"], []),
    ("6.1.0-33-amd64", ["linux-image-6.1.0-33-amd64", "linux-image-amd64-dbg", "linux-headers-amd64"], []),
    ("5.15.0-91-generic", ["linux-image-unsigned-5.15.0-91-generic", "linux-image-extra-virtual"], []),
]
NEWEST = [
    (["6.1.0-9-amd64", "6.1.0-33-amd64"], "6.1.0-33-amd64"),
    (["6.12.0-1-amd64", "6.9.7-1-amd64"], "6.12.0-1-amd64"),
    (["5.15.0-1050-aws", "5.15.0-205-aws"], "5.15.0-1050-aws"),
    (["5.14.0-503.9.1.el9_5.x86_64", "5.14.0-503.33.1.el9_5.x86_64"], "5.14.0-503.33.1.el9_5.x86_64"),
    (["6.12-rc7-amd64", "6.12.0-1-amd64"], "6.12.0-1-amd64"),
    (["6.1.0-33-amd64"], "6.1.0-33-amd64"),
]


def looked(packages: list[str] = (), releases: list[str] = (), more: list[str] = ()) -> dict[str, Any]:
    """What the role's look at the host finds."""
    paths = [
        *(f"/var/lib/dpkg/info/{package}.md5sums" for package in packages),
        *(f"/lib/modules/{release}/build/Makefile" for release in releases),
        *more,
    ]
    return {"files": [{"path": path} for path in paths]}


def check(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    """Each case has variables, the name of one more and what it is expected to be."""
    task = {
        "name": "Compare",
        "ansible.builtin.assert": {
            "that": "lookup('ansible.builtin.vars', item.name) == item.expected",
            "fail_msg": "{{ item.name }} is {{ lookup('ansible.builtin.vars', item.name) }}, not {{ item.expected }}",
        },
        "vars": {"bcc_kernel": "{{ item.kernel }}", "bcc_looked": "{{ item.looked }}"},
        "loop": "{{ cases }}",
    }
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"cases": cases}, "tasks": [task]}
    play["vars_files"] = [str(ROLE / "vars" / "main.yml")]
    playbook = tmp_path / "playbook.json"
    playbook.write_text(json.dumps([play]))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(playbook)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metapackage_of_headers_is_that_of_the_running_kernels_flavour(tmp_path):
    check(
        tmp_path,
        [
            {"kernel": kernel, "looked": looked(packages), "name": "bcc_headers_metapackages", "expected": expected}
            for kernel, packages, expected in METAPACKAGES
        ],
    )


def test_the_newest_headers_are_found_by_numbers_and_where_they_are_headers(tmp_path):
    others = ["/lib/modules/9.9.9-amd64/Makefile", "/lib/modules/9.9.9-amd64/build/scripts/Makefile"]
    cases = [
        {
            "kernel": "6.18.44-custom",
            "looked": looked(TOOLS, order, others),
            "name": "bcc_newest_headers",
            "expected": f"/lib/modules/{expected}",
        }
        for releases, expected in NEWEST
        for order in (releases, releases[::-1])
    ]
    check(tmp_path, cases)


def test_nothing_is_missing_on_a_host_that_has_everything(tmp_path):
    kernel, image, headers = "6.1.0-33-amd64", "linux-image-amd64", "linux-headers-amd64"
    cases = [
        ([*TOOLS, image, headers], []),
        (TOOLS, []),
        ([*TOOLS, image], [headers]),
        ([TOOLS[1], image], [TOOLS[0], headers]),
        ([], TOOLS),
    ]
    check(
        tmp_path,
        [
            {"kernel": kernel, "looked": looked(packages), "name": "bcc_missing", "expected": expected}
            for packages, expected in cases
        ],
    )


def test_headers_are_those_of_the_running_kernel(tmp_path):
    kernel = "6.1.0-33-amd64"
    cases = [([kernel], True), (["6.1.0-9-amd64", kernel], True), (["6.1.0-9-amd64"], False), ([], False)]
    check(
        tmp_path,
        [
            {"kernel": kernel, "looked": looked(TOOLS, releases), "name": "bcc_has_headers", "expected": expected}
            for releases, expected in cases
        ],
    )
