# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the balancer costs per packet, without NIC and driver: build/bench/dataplane.json.

With --before it compares two directories of C files instead and writes nothing. Needs root. It measures in a network
namespace of its own; nothing of the host changes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from tests.bench import comparison, report
from tests.bench.measurement import DIRECT, YARDSTICK, measure
from tests.bench.report import Aim
from tests.bench.rounds import TOLERANCE, Ratio, Run, figure, lower_quartile, ratio

METHOD = """\
BPF_PROG_TEST_RUN of a wrapper (wrapper.c) that restores length and headers, then tail-calls the balancer, minus the \
same wrapper with an empty program in its place. Of frames that grow, the wrapper's bpf_xdp_adjust_head() that \
shortens them again is subtracted, too: half of what a program costs that only grows them. One CPU, wall-clock time. \
{loads} loads of programs and maps in each of two runs, {rounds} rounds in each load. In a round every case has one \
slice of 10,000 packets, behind a few that warm the caches; with many flows in every fifth round one of 131,072. \
net_ns: the shortest slice of a load; median, min, max and lower_quartile are of the loads, and the lower quartile \
is the figure. to_yardstick, to_*: that figure by the figure of another case; median is that of all loads, min and \
max are those of the two runs. noise: the share by which the runs differ; a ratio that differs by more than 5 % and \
0.02 is no figure. yardstick: yardstick.c. The first frame of each case is compared with the model of the packet \
tests; after all rounds the counters must have grown by the packets. Each configuration (scenes.py) is compiled with \
the features it needs. 100 backends, or 4 in small_config and 2 in services_1000. Next hop from the kernel's FIB and \
neighbour tables, remembered by the program; from the inventory in the cases *_mac. *_1m: 2^20 flows instead of one, \
2^17 in *_100k; flow_miss: 2^24 flows in turn, so each packet is of a flow unseen, with the limit of new flows that \
is the default, which the warm-up uses up. filters_100k: dnat with 100,000 prefixes that do not hold the client. \
dnat_udp4_latency: with the histogram of times. direct_net_ns: without the wrapper, for programs that leave the next \
repeat the same work. floor: what was subtracted.\
"""

# By case: what the ratio is to, and its aim. Limits are for what every packet of a host pays.
AIMS: dict[str, tuple[str, Aim]] = {
    "dnat_udp4": (YARDSTICK, Aim(1.1, 3.3)),
    "dnat_tcp4": (YARDSTICK, Aim(1.1)),
    "dsr_udp4": (YARDSTICK, Aim(0.9)),
    "pass_tcp4": (YARDSTICK, Aim(0.35, 1.0)),
    "pass_ipv6": (YARDSTICK, Aim(0.2, 0.7)),
    "pass_arp": (YARDSTICK, Aim(0.2, 0.7)),
    "ipip_udp4": (YARDSTICK, Aim(1.7)),
    "ipip_udp4_1m": (YARDSTICK, Aim(1.7)),
    "flow_hit_1": (YARDSTICK, Aim(2.5)),
    "flow_hit_100k": (YARDSTICK, Aim(6)),
    "flow_hit_1m": (YARDSTICK, Aim(7)),
    "dnat_udp6": ("dnat_udp4", Aim(1.3)),
    "dsr_udp6": ("dsr_udp4", Aim(1.3)),
    "ipip_udp6": ("ipip_udp4", Aim(1.3)),
    "flow_miss": ("flow_hit_1", Aim(1.5)),
    "services_1000": ("dnat_udp4", Aim(1.1)),
    "small_config": ("dnat_udp4", Aim(0.9)),
}

Ratios = dict[str, dict[str, Ratio]]  # by case and base


def ratios(runs: tuple[Run, Run], cases: list[str]) -> Ratios:
    """Of every case to the yardstick, and to the case that its aim refers to."""
    found: Ratios = {}
    for name in cases:
        bases = {YARDSTICK, AIMS[name][0] if name in AIMS else YARDSTICK} & set(cases) - {name}
        found[name] = {base: ratio(runs, name, base) for base in sorted(bases, key=lambda base: base != YARDSTICK)}
    return found


def judge(found: Ratios) -> int:
    """Prints what misses its aim or is too noisy to say; returns the exit status."""
    judged, refused = [], []
    for name, (base, aim) in AIMS.items():
        if name not in found or base not in found[name]:
            continue
        if found[name][base].too_noisy:
            refused.append((name, aim))
        else:
            judged.append((f"{name} / {base}", found[name][base].value, aim))
    status = report.judge(judged)
    if refused:
        names = ", ".join(name for name, _aim in refused)
        print(f"too noisy here: two runs differ by more than {TOLERANCE:.0%}, no verdict on {names}")
    if status == report.HELD and any(aim.must is not None for _name, aim in refused):
        return report.TOO_NOISY
    return status


def table(runs: tuple[Run, Run], found: Ratios) -> str:
    width = max(len(name) for name in found) + 2
    lines = [f"{'case':<{width}}{'net ns':>8}{'ratio':>8}{'noise':>8}  to"]
    for name, by_base in found.items():
        line = f"{name:<{width}}{figure(runs[0] + runs[1], name):>8.1f}"
        for base, quotient in by_base.items():
            line += f"{quotient.value:>8.2f}{quotient.noise:>8.1%}  {base}"
            if name in AIMS and AIMS[name][0] == base:
                aim = AIMS[name][1]
                line += f" {aim.text()}: {'too noisy' if quotient.too_noisy else aim.verdict(quotient.value)}"
            lines.append(line)
            line = " " * (width + 8)
        if not by_base:
            lines.append(line)
    return "\n".join(lines)


def summaries(runs: tuple[Run, Run], found: Ratios) -> report.Cases:
    """The content of the file."""
    cases: report.Cases = {}
    loads = runs[0] + runs[1]
    for name, by_base in found.items():
        cases[name] = {"net_ns": _net(loads, name)}
        if name + DIRECT in loads[0]:
            cases[name]["direct_net_ns"] = _net(loads, name + DIRECT)
        for base, quotient in by_base.items():
            cases[name][f"to_{base}"] = {
                "median": round(quotient.value, 4),
                # The lower quartile of all loads may be a little outside those of both halves.
                "min": round(min(quotient.value, *quotient.runs), 4),
                "max": round(max(quotient.value, *quotient.runs), 4),
                "rounds": len(quotient.runs),
                "noise": round(quotient.noise, 4),
            }
    cases["floor"] = {"ns": _net(loads, "floor")}
    return cases


def _net(loads: Run, name: str) -> report.Quantity:
    samples = [load[name] for load in loads]
    return {**report.summary(samples), "lower_quartile": round(lower_quartile(samples), 4)}


def disagreement(runs: tuple[Run, Run]) -> float:
    """Returns the median difference between a program's figure behind the wrapper and without it, in nanoseconds."""
    loads = runs[0] + runs[1]
    names = [name for name in loads[0] if name + DIRECT in loads[0]]
    return statistics.median([abs(figure(loads, name) - figure(loads, name + DIRECT)) for name in names] or [0.0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=8, help="of programs and maps, in each of two runs")
    parser.add_argument("--rounds", type=int, default=20, help="in each load")
    parser.add_argument("--case", action="append", dest="cases", help="only this one; nothing is written")
    parser.add_argument("--before", type=Path, help="another checkout's files/bpf, to compare this one's with")
    parser.add_argument(
        "--limit", type=float, help="with --before: fail if a case costs more than so much of before, as 1.1"
    )
    options = parser.parse_args(arguments)
    only = set(options.cases or ())
    try:
        runs = measure(options.loads, options.rounds, only, options.before and options.before.resolve())
    except report.Failure as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return report.EXCEEDED
    # Names of cases have no space; others are of the same case.
    names = [name for name in runs[0][0] if " " not in name and name != "floor"]
    if options.before:
        return comparison.compare(runs, [name for name in names if name != YARDSTICK], options.limit)
    found = ratios(runs, names)
    print(table(runs, found))
    print(f"with and without the wrapper, figures differ by {disagreement(runs):.1f} ns (median of the cases)")
    if only:
        return judge(found)
    cases = summaries(runs, found)
    print(report.write("dataplane", METHOD.format(loads=options.loads, rounds=options.rounds), cases))
    title = "Cost of the balancer per packet, in yardsticks"
    aims = {name: aim for name, (base, aim) in AIMS.items() if base == YARDSTICK}
    print(report.plot("dataplane", title, "yardsticks", f"to_{YARDSTICK}", cases, aims))
    return judge(found)


if __name__ == "__main__":
    sys.exit(main())
