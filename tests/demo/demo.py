# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From nothing to balanced traffic, told step by step: make demo. The result is build/demo/report.json."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Client

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "demo"
ANSIBLE = ROOT / ".venv" / "bin" / "ansible-playbook"
# The recap is read, so a callback or colours that the operator chose must not change it.
PLAIN = {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
SSH = ["ssh", "-F", str(ROOT / "build/lab/lab/ssh_config")]

SERVICE, VIP, PORT = "echo-udp", "10.77.0.10", 7
# Enough that chance alone keeps a share within 5 % of its weight: for a quarter of 16,000 flows one standard deviation
# is sqrt(0.75 / (0.25 * 16000)) = 1.4 %.
FLOWS = 16000
CONNECTIONS = 3000
BACKENDS, NEW = ("be1", "be2", "be3"), "be4"
SHARE_TOLERANCE = 5.0  # percent of the expected share
MOVED_LIMIT = 1.0  # percent of the flows on backends that stayed


class Failure(Exception):
    """What went wrong, for the operator."""


class Story:
    """Numbered steps with the time since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.number = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def step(self, text: str) -> None:
        self.number += 1
        print(f"\n[{self.seconds:5.1f} s] {self.number}. {text}", flush=True)

    def say(self, text: str) -> None:
        print(f"          {text}", flush=True)


def playbook(name: str, *arguments: str, log: str) -> dict[str, int]:
    """Run a playbook, showing the task it is at; changed tasks by host."""
    path = BUILD / f"{log}.log"
    command = [str(ANSIBLE), *arguments, str(ROOT / "playbooks" / name)]
    live = sys.stdout.isatty()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        path.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **PLAIN}, text=True, **pipes) as process,
    ):
        lines = []
        for line in process.stdout or ():
            file.write(line)
            lines.append(line)
            task = re.match(r"TASK \[(.*)\] \*", line)
            if task and live:
                print(f"\r\033[K          {task[1][:100]}", end="", flush=True)
    if live:
        print("\r\033[K", end="", flush=True)
    if process.returncode:
        raise Failure(f"{shlex.join(command)} failed; the end of {path}:\n" + "".join(lines[-40:]))
    recap = "".join(lines).partition("PLAY RECAP")[2]
    return {host: int(changed) for host, changed in re.findall(r"^(\S+) +: .*?changed=(\d+)", recap, re.MULTILINE)}


def apply_site(log: str, *inventories: str) -> dict[str, int]:
    """Changed tasks by host; both balancers are among them."""
    chosen = [argument for inventory in inventories for argument in ("-i", f"inventory/{inventory}")]
    changed = playbook("site.yml", *chosen, "-e", "balancers_at_once=2", log=log)
    if set(changed) != {"lb1", "lb2"}:
        raise Failure(f"the recap of site.yml names {sorted(changed)} instead of lb1 and lb2; see {BUILD / log}.log")
    return changed


def on(host: str, command: str, check: bool = True) -> str:
    """What a command on a host of the lab prints."""
    result = subprocess.run([*SSH, host, command], capture_output=True, text=True, check=False, timeout=60)
    if check and result.returncode:
        raise Failure(f"{command!r} on {host} failed: {result.stderr.strip()}")
    return result.stdout


def metrics() -> dict[str, Any]:
    """What the exporter of lb1 says over HTTP."""
    found: dict[str, Any] = {"packets": Counter(), "hook": "none"}
    text = on("lb1", "curl --silent --fail http://127.0.0.1:9477/metrics")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "lbops_service_packets_total" and sample.labels["service"] == SERVICE:
                found["packets"][sample.labels["direction"]] += int(sample.value)
            if sample.name == "lbops_program_info":
                found["hook"] = sample.labels["hook"]
    return found


def show_shares(story: Story, replies: Counter) -> dict[str, float]:
    total = max(replies.total(), 1)
    shares = {name: 100 * replies[name] / total for name in sorted(replies)}
    for name, share in shares.items():
        story.say(f"{name:<6} {replies[name]:>6} flows {share:5.1f} %  {'#' * round(share)}")
    return {name: round(share, 2) for name, share in shares.items()}


def ordinary_tools(story: Story) -> tuple[int, int, int, int]:
    """nc and ping, as anybody would try; how many UDP and TCP requests, and how many answers."""
    found = []
    for protocol, options in (("UDP", "-u -w1"), ("TCP", "-N -w2")):
        reply = on("client", f"echo hello | nc {options} {VIP} {PORT}", check=False).strip()
        story.say(f"{protocol}: echo hello | nc {options} {VIP} {PORT}  ->  {reply or 'no answer'}")
        found += [1, int(reply.endswith("hello"))]
    ping = on("client", f"ping -c 3 -i 0.2 -W 1 {VIP}", check=False)
    story.say("ping: " + next((line for line in ping.splitlines() if "received" in line), "no answer"))
    return tuple(found)


def failures(report: dict[str, Any]) -> list[str]:
    """What does not hold of what the demo promises."""
    promises = {
        "every UDP request is answered": report["udp_sent"] == report["udp_replies"],
        "every TCP request is answered": report["tcp_requests"] == report["tcp_replies"],
        "the program is on the native hook": report["mode"] == "native",
        "a second run changes nothing": report["second_run_changed"] == 0,
        "UDP requests go on during the change": report["requests_during_change"] > 0,
        "TCP requests go on during the change": report["tcp_requests_during_change"] > 0,
        "no request is lost during the change": report["lost_during_change"] == 0,
        f"less than {MOVED_LIMIT} % of the flows move": report["flows_moved_percent"] < MOVED_LIMIT,
        "the exporter counts what was sent": report["exporter_packets"] == report["udp_sent"],
    }
    for when, backends in (("before", BACKENDS), ("after", (*BACKENDS, NEW))):
        shares = report[f"shares_{when}"]
        promises[f"exactly {', '.join(backends)} answer {when}"] = set(shares) == set(backends)
        # The lab's backends have equal weights.
        expected = 100 / len(backends)
        for name in backends:
            promises[f"the share of {name} {when} is within {SHARE_TOLERANCE} % of {expected:.1f} %"] = (
                abs(shares.get(name, 0) - expected) <= expected * SHARE_TOLERANCE / 100
            )
    return [promise for promise, kept in promises.items() if not kept]


def run(story: Story) -> dict[str, Any]:
    BUILD.mkdir(parents=True, exist_ok=True)
    story.step("Bring the lab up: client, lb1, lb2, be1 to be4, containers with SSH and systemd on virtual links")
    playbook("lab_up.yml", "-i", "inventory/lab", log="lab_up")

    story.step("Run site.yml: install BCC, compile and attach the program, write services and backends")
    changed = apply_site("site_first", "lab")
    story.say("changed tasks: " + ", ".join(f"{host} {count}" for host, count in changed.items()))

    story.step("Run it again: nothing may change")
    second = sum(apply_site("site_second", "lab").values())
    story.say(f"changed tasks: {second}")

    before_traffic = metrics()
    story.step(f"Try the virtual address {VIP} with ordinary tools from the client")
    udp_sent, udp_replies, tcp_requests, tcp_replies = ordinary_tools(story)

    client = Client(ROOT / "build/lab/lab/ssh_config")
    try:
        story.step(f"Ask once on each of {FLOWS:,} UDP flows and {CONNECTIONS:,} TCP connections")
        client("open_flows", FLOWS, VIP, PORT)
        first = client("ask_flows")
        connections = client("connect", CONNECTIONS, VIP, PORT)
        shares_before = show_shares(story, Counter(answer for answer in first if answer))
        answered = sum(answer is not None for answer in first) + sum(n for name, n in connections.items() if name)
        story.say(
            f"{answered:,} of {FLOWS + CONNECTIONS:,} requests were answered, "
            f"from {VIP}:{PORT} and by a backend that saw the client's own address"
        )

        story.step("Add be4 to the inventory and run site.yml, while requests go on without a pause")
        client("start_load", VIP, PORT, 1000, 100)
        changed = apply_site("site_be4", "lab", "demo")
        load = client("stop_load")
        lost = load["udp_sent"] - load["udp_replies"]
        story.say("changed tasks: " + ", ".join(f"{host} {count}" for host, count in changed.items()))
        story.say(
            f"{load['udp_sent']:,} UDP requests meanwhile, {lost} lost, the slowest took {load['udp_slowest_ms']} ms; "
            f"{load['tcp_requests']:,} TCP connections, {load['tcp_requests'] - load['tcp_replies']} failed, "
            f"{load['tcp_reconnects']} connected again as their flow moved"
        )

        story.step("Ask again on the same flows")
        again = client("ask_flows")
        shares_after = show_shares(story, Counter(answer for answer in again if answer))
    finally:
        client.close()
    stayed = [(old, new) for old, new in zip(first, again, strict=True) if new != NEW]
    moved = sum(old != new for old, new in stayed)
    story.say(f"{NEW} took {len(first) - len(stayed):,} flows; of the other {len(stayed):,}, {moved} moved")

    story.step("Read the exporter of lb1 over HTTP")
    after_traffic = metrics()
    counted = after_traffic["packets"] - before_traffic["packets"]
    replied_before, replied_after = (Counter(answer for answer in answers if answer) for answers in (first, again))
    udp_sent += 2 * FLOWS + load["udp_sent"]
    story.say(f"{counted['to_backend']:,} packets to backends and {counted['to_client']:,} back; sent: {udp_sent:,}")
    return {
        "udp_sent": udp_sent,
        "udp_replies": udp_replies + replied_before.total() + replied_after.total() + load["udp_replies"],
        "tcp_requests": tcp_requests + CONNECTIONS + load["tcp_requests"],
        "tcp_replies": tcp_replies + sum(n for name, n in connections.items() if name) + load["tcp_replies"],
        # One request on each UDP flow, with three backends and then with four.
        "per_backend_before": dict(sorted(replied_before.items())),
        "per_backend": dict(sorted(replied_after.items())),
        "shares_before": shares_before,
        "shares_after": shares_after,
        "second_run_changed": second,
        "flows_moved_percent": round(100 * moved / max(len(stayed), 1), 3),
        "lost_during_change": lost,
        "requests_during_change": load["udp_sent"],
        "tcp_requests_during_change": load["tcp_requests"],
        "tcp_reconnects_during_change": load["tcp_reconnects"],
        "tcp_lost_during_change": load["tcp_requests"] - load["tcp_replies"],
        "slowest_during_change_ms": load["udp_slowest_ms"],
        "exporter_packets": counted["to_backend"],
        "exporter_reply_packets": counted["to_client"],
        "mode": after_traffic["hook"],
    }


def main() -> int:
    story = Story()
    try:
        report = run(story)
    except (Failure, ConnectionError, subprocess.TimeoutExpired) as failure:
        print(f"\nThe demo failed: {failure}", file=sys.stderr)
        return 1
    report["seconds_total"] = round(story.seconds, 1)
    report["failures"] = failures(report)
    path = BUILD / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"""
{"Done" if not report["failures"] else "Something is not as promised"} after {report["seconds_total"]} s.
  {report["udp_replies"]:,} of {report["udp_sent"]:,} UDP and {report["tcp_replies"]:,} of {report["tcp_requests"]:,} \
TCP requests were answered.
  While be4 was added, {report["lost_during_change"]} requests were lost and {report["flows_moved_percent"]} % of the \
other flows moved.
  lb2 stands by with the same program and the same rings. The report is {path.relative_to(ROOT)}.

Look around:  ssh -F build/lab/lab/ssh_config lb1
              .venv/bin/ansible-playbook -i inventory/lab -i inventory/demo playbooks/status.yml
Clean up:     make lab-down""")
    for promise in report["failures"]:
        print(f"NOT KEPT: {promise}", file=sys.stderr)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
