# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Ansible itself shows: the results of tasks in a play, defaults of a group, contradictions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/lbops.xdp.nic: {interface: lo, on_unsupported: skip}
  tasks:
    - name: First
      lbops.xdp.nic_rings: {rx: 512}
      register: first
    - name: Not skipped as a task
      ansible.builtin.assert:
        that: first is not skipped and first is not changed and 'rx' in first.unsupported
    - name: Second
      lbops.xdp.nic_rings: {rx: 1024}
    - name: Third
      lbops.xdp.nic_features: {lro: false}
    - name: Fourth
      lbops.xdp.nic_profile: {interface: lo, profile: custom, overrides: {features: {lro: true}}}
      check_mode: true
"""


def test_a_play(namespace: None, tmp_path: Path):
    (tmp_path / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(Path(__file__).parents[2] / "build/collections"),
        "ANSIBLE_HOME": str(tmp_path),
        "COLUMNS": "400",
    }
    playbook = Path(sys.executable).with_name("ansible-playbook")
    options = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    result = subprocess.run(
        [playbook, *options, "play.yml"], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert not result.returncode, result.stdout + result.stderr
    assert "lo: rx=1024 contradicts rx=512 of the earlier task 'First'" in result.stdout + result.stderr
    assert "lo: lro=True contradicts lro=False of the earlier task 'Third'" in result.stdout + result.stderr
