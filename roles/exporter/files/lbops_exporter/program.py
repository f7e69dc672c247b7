# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program on the hook, what the kernel says of it, and the configuration that it works with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .collector import Collector, Subject
from .exposition import Family, Page
from .source import Sources

_BALANCER = ("balancer",)
_INTERFACE = ("balancer", "interface")
STATISTICS_SETTING = Path("/proc/sys/kernel/bpf_stats_enabled")

UP = Family(
    "lbops_up",
    "gauge",
    "Whether the balancer forwards on all of its interfaces: the program is attached, the link is up.",
    _BALANCER,
)
PROBLEMS = Family("lbops_problems", "gauge", "What keeps the balancer from forwarding on all interfaces.", _BALANCER)
DESIRED = Family("lbops_program_desired", "gauge", "Whether the program is to be attached.", _BALANCER)
ATTACHED = Family("lbops_interface_attached", "gauge", "Whether the program is attached to the interface.", _INTERFACE)
PRESENT = Family("lbops_interface_present", "gauge", "Whether an interface of the balancer exists.", _INTERFACE)
INFO = Family(
    "lbops_program_info",
    "gauge",
    "The program of an interface; the value is 1.",
    ("balancer", "digest", "hook", "interface", "mode", "name", "tag"),
)
ID = Family("lbops_program_id", "gauge", "The kernel's id of the program.", _INTERFACE)
ATTACHED_AT = Family(
    "lbops_program_attached_timestamp_seconds", "gauge", "When the program was put on its hook.", _INTERFACE
)
VERIFIED = Family(
    "lbops_program_verified_instructions", "gauge", "Instructions that the verifier went through.", _INTERFACE
)
JITED = Family("lbops_program_jited_bytes", "gauge", "Size of the machine code.", _INTERFACE)
RUN_TIME = Family(
    "lbops_program_run_seconds_total",
    "counter",
    "Time spent in the program; only while kernel.bpf_stats_enabled is on.",
    _BALANCER,
)
RUNS = Family(
    "lbops_program_runs_total",
    "counter",
    "Runs of the program, one for each packet; only while kernel.bpf_stats_enabled is on.",
    _BALANCER,
)
STATISTICS = Family("lbops_bpf_stats_enabled", "gauge", "Whether the kernel measures the run time of programs.")
GENERATION = Family("lbops_generation", "gauge", "How often the balancer was changed.", _BALANCER)
APPLIED = Family("lbops_applied_timestamp_seconds", "gauge", "When the last change was done.", _BALANCER)
TABLES = Family(
    "lbops_tables_info",
    "gauge",
    "Digest of the lookup tables, equal on hosts that spread packets alike; the value is 1.",
    ("balancer", "digest"),
)
COUNTING = Family("lbops_counters_start_timestamp_seconds", "gauge", "Since when counters have only grown.", _BALANCER)


class Runs:
    """Runs and nanoseconds of all programs so far; each new one begins at zero."""

    def __init__(self) -> None:
        # By id, of those that are there, and the sum of those that are not any more.
        self._latest: dict[int, tuple[int, int]] = {}
        self._earlier = (0, 0)

    def add(self, programs: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """Returns the sums. `programs`: runs and nanoseconds by id."""
        gone = [row for program, row in self._latest.items() if program not in programs]
        self._earlier = _sum([self._earlier, *gone])
        self._latest = dict(programs)
        return _sum([self._earlier, *programs.values()])


def _sum(rows: Iterable[tuple[int, int]]) -> tuple[int, int]:
    runs, nanoseconds = zip(*rows)
    return sum(runs), sum(nanoseconds)


class ProgramCollector(Collector):
    name = "program"
    families = (
        UP,
        PROBLEMS,
        DESIRED,
        ATTACHED,
        PRESENT,
        INFO,
        ID,
        ATTACHED_AT,
        VERIFIED,
        JITED,
        RUN_TIME,
        RUNS,
        GENERATION,
        APPLIED,
        TABLES,
        COUNTING,
    )

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._runs: dict[str, Runs] = {}

    def subjects(self) -> Iterable[Subject]:
        return map(Subject, self._sources.balancers())

    def collect(self, page: Page, subject: Subject) -> None:
        balancer = subject.balancer
        reading = self._sources.read(balancer)
        facts = reading.program
        page.add(UP, int(facts["attached"] and not facts["problems"]), balancer=balancer)
        page.add(PROBLEMS, len(facts["problems"]), balancer=balancer)
        if reading.current:
            page.add(DESIRED, int(reading.current.document.settings.attached), balancer=balancer)
        for entry in facts["interfaces"]:
            self._interface(page, balancer, facts, entry)
        if "generation" not in facts:
            return
        page.add(TABLES, 1, balancer=balancer, digest=facts["tables_digest"])
        for family, value in (
            (GENERATION, facts["generation"]),
            (APPLIED, facts["applied_at"]),
            (COUNTING, facts["counting_since"]),
        ):
            page.add(family, value, balancer=balancer)
        self._add_runs(page, balancer, facts["interfaces"])

    @staticmethod
    def _interface(page: Page, balancer: str, facts: dict[str, Any], entry: dict[str, Any]) -> None:
        labels = {"balancer": balancer, "interface": entry["interface"]}
        page.add(ATTACHED, int(entry["attached"]), **labels)
        page.add(PRESENT, int(entry["present"]), **labels)
        if "verified_instructions" not in entry:
            return
        described = {name: entry[name] for name in ("hook", "name", "tag")}
        page.add(INFO, 1, digest=facts["digest"], mode=facts["mode"], **described, **labels)
        page.add(ID, entry["program_id"], **labels)
        page.add(VERIFIED, entry["verified_instructions"], **labels)
        page.add(JITED, entry["jited_bytes"], **labels)
        if entry["attached"]:
            page.add(ATTACHED_AT, entry["attached_at"], **labels)

    def _add_runs(self, page: Page, balancer: str, interfaces: list[dict[str, Any]]) -> None:
        programs = {
            entry["program_id"]: (entry["run_count"], entry["run_time_ns"])
            for entry in interfaces
            if "run_count" in entry
        }
        count, nanoseconds = self._runs.setdefault(balancer, Runs()).add(programs)
        if count:
            page.add(RUNS, count, balancer=balancer)
            page.add(RUN_TIME, nanoseconds / 1e9, balancer=balancer)


class StatisticsCollector(Collector):
    """Whether run times are measured at all."""

    name = "bpf_stats"
    families = (STATISTICS,)

    def collect(self, page: Page, subject: Subject) -> None:
        page.add(STATISTICS, int(STATISTICS_SETTING.read_text(encoding="ascii")))
