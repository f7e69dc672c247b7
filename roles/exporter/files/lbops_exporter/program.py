# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program on the hook, what the kernel says of it, and the configuration that it works with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .collector import Collector
from .exposition import Family, Page
from .source import Sources

_INTERFACE = ("interface",)
STATISTICS_SETTING = Path("/proc/sys/kernel/bpf_stats_enabled")

UP = Family("lbops_up", "gauge", "Whether the balancer's program is attached.", _INTERFACE)
INFO = Family(
    "lbops_program_info",
    "gauge",
    "The balancer's program; the value is 1.",
    ("digest", "hook", "interface", "mode", "name", "tag"),
)
DESIRED = Family("lbops_program_desired", "gauge", "Whether the program is to be attached.", _INTERFACE)
ID = Family("lbops_program_id", "gauge", "The kernel's id of the program.", _INTERFACE)
ATTACHED = Family(
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
    _INTERFACE,
)
RUNS = Family(
    "lbops_program_runs_total",
    "counter",
    "Runs of the program, one for each packet; only while kernel.bpf_stats_enabled is on.",
    _INTERFACE,
)
STATISTICS = Family("lbops_bpf_stats_enabled", "gauge", "Whether the kernel measures the run time of programs.")
GENERATION = Family(
    "lbops_configuration_generation",
    "gauge",
    "How often something of it was changed.",
    _INTERFACE,
)
APPLIED = Family("lbops_configuration_applied_timestamp_seconds", "gauge", "When the last change was done.", _INTERFACE)
COUNTING = Family("lbops_counters_start_timestamp_seconds", "gauge", "Since when counters have only grown.", _INTERFACE)


class Runs:
    """Runs and nanoseconds of all programs so far; each new one begins at zero."""

    def __init__(self) -> None:
        self._program = 0
        self._earlier = self._latest = (0, 0)

    def add(self, program: int, count: int, nanoseconds: int) -> tuple[int, int]:
        if program != self._program:
            self._program = program
            self._earlier = self._total()
        self._latest = (count, nanoseconds)
        return self._total()

    def _total(self) -> tuple[int, int]:
        return self._earlier[0] + self._latest[0], self._earlier[1] + self._latest[1]


class ProgramCollector(Collector):
    name = "program"
    families = (UP, DESIRED, INFO, ID, ATTACHED, VERIFIED, JITED, RUN_TIME, RUNS, GENERATION, APPLIED, COUNTING)

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._runs: dict[str, Runs] = {}

    def subjects(self) -> Iterable[str]:
        return self._sources.interfaces()

    def collect(self, page: Page, interface: str) -> None:
        reading = self._sources.read(interface)
        facts = reading.program
        page.add(UP, int(facts["attached"]), interface=interface)
        if reading.current:
            page.add(DESIRED, int(reading.current.program.attached), interface=interface)
        if "program_id" not in facts:
            return
        described = {name: facts[name] for name in ("digest", "hook", "mode", "name", "tag")}
        page.add(INFO, 1, interface=interface, **described)
        for family, value in (
            (ID, facts["program_id"]),
            (VERIFIED, facts["verified_instructions"]),
            (JITED, facts["jited_bytes"]),
            (GENERATION, facts["generation"]),
            (APPLIED, facts["applied_at"]),
            (COUNTING, facts["counting_since"]),
        ):
            page.add(family, value, interface=interface)
        if facts["attached"]:
            page.add(ATTACHED, facts["attached_at"], interface=interface)
        runs = self._runs.setdefault(interface, Runs())
        count, nanoseconds = runs.add(facts["program_id"], facts["run_count"], facts["run_time_ns"])
        if count:
            page.add(RUNS, count, interface=interface)
            page.add(RUN_TIME, nanoseconds / 1e9, interface=interface)


class StatisticsCollector(Collector):
    """Whether run times are measured at all."""

    name = "bpf_stats"
    families = (STATISTICS,)

    def collect(self, page: Page, interface: str) -> None:
        page.add(STATISTICS, int(STATISTICS_SETTING.read_text(encoding="ascii")))
