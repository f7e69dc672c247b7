# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is for Prometheus and Grafana, by Prometheus' own tool and against the table of all metrics."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "files/prometheus/lbops.rules.yml"
PROGRAMS = ROOT / "build/cache/prometheus/usr/bin"
DASHBOARD = ROOT / "files/grafana/lbops.json"
NAME = re.compile(r"\b(?:[a-z_]+:)?lbops_\w+(?::\w+)?")


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    """All of the dashboard."""
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [annotation["expr"] for annotation in board["annotations"]["list"]]
    return found + [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]


def test_rules_by_promtool():
    done = subprocess.run(
        [PROGRAMS / "promtool", "test", "rules", "lbops.test.yml"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_is_asked_for_is_there():
    known = set(re.findall(r"^\| `(lbops_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    assert len(known) > 50
    known |= {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for query in [*queries(), *(rule["expr"] for rule in rules())] for name in NAME.findall(query)}
    assert len(asked) > 20 and asked <= known, asked - known


def test_every_alert_is_explained_and_has_been_seen_firing():
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == set(re.findall(r"^\| `(Lbops\w+)` \|", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE))
    assert alerts == set(re.findall(r'alertname="(Lbops\w+)"', Path(__file__).with_name("lbops.test.yml").read_text()))
