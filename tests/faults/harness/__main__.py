"""Scenarios of faults in turn until the time is over: a table, and one JSON line last.

    python -P -m harness --seconds 1800 --seed 7
    python -P -m harness --only T1,T3 --length 20 --nodes 3
    python -P -m harness --check build/faults/T1-7/history.jsonl

Histories of runs without a violation are deleted; the others stay. Exits with 1 where there was a violation.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.anomalies import Anomaly
from harness.checker import Verdict, check_file
from harness.cluster import Cluster
from harness.scenarios import HUNTS, SCENARIOS, Scenario, Setting

ALL = {**SCENARIOS, **HUNTS}
OUT = Path("build/faults")
SHOWN = 5  # violations of a run that are told in full


@dataclass
class Line:
    """One scenario's line in the table."""

    about: str
    runs: int = 0
    faults: int = 0
    answers: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    longest_stall_s: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.runs += 1
        self.faults += verdict.num_faults
        self.answers += verdict.num_answers
        self.violations.update(anomaly.name for anomaly in verdict.anomalies)
        self.longest_stall_s = max(self.longest_stall_s, verdict.longest_stall_s)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.check:
        return tell(str(options.check), check_file(options.check))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was begun is ended
    names = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := [name for name in names if name not in ALL]:
        sys.exit(f"no scenario {unknown[0]}: there are {', '.join(ALL)}")
    lines = {name: Line(ALL[name].about) for name in names}
    with tempfile.TemporaryDirectory(prefix="streamproc-faults-") as data:
        cluster = Cluster(Path(data) / "kafka", seed, options.nodes)
        try:
            cluster.start()
            run_all(cluster, lines, seed, options)
        finally:
            cluster.close()
    show(lines)
    return summary(lines, seed, options.nodes)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="harness", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long to begin new runs")
    parser.add_argument("--length", type=float, help="seconds of load in one run; default: each scenario's own")
    parser.add_argument("--seed", type=int, help="default: a random one, which is told")
    parser.add_argument("--only", help="scenarios, such as T1,T3")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="of the Kafka under test")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the histories of bad runs")
    parser.add_argument("--check", type=Path, help="check a history again instead")
    return parser.parse_args(arguments)


def run_all(cluster: Cluster, lines: dict[str, Line], seed: int, options: argparse.Namespace) -> None:
    """Scenario after scenario, each run with a seed of its own, until the time is over."""
    deadline, number = time.monotonic() + options.seconds, 0
    while time.monotonic() < deadline:
        for name, line in lines.items():
            if time.monotonic() >= deadline and number:
                return
            scenario, run_seed = ALL[name], seed + number
            folder = options.out / f"{name}-{run_seed}"
            shutil.rmtree(folder, ignore_errors=True)
            verdict = once(scenario, Setting(cluster, folder, run_seed, options.length or scenario.long_s))
            line.add(verdict)
            tell(f"{name} seed {run_seed}", verdict)
            if not verdict.anomalies:
                shutil.rmtree(folder, ignore_errors=True)
            number += 1


def once(scenario: Scenario, setting: Setting) -> Verdict:
    """One run; what keeps it from its end is a violation too."""
    try:
        return scenario.play(setting)
    except Exception as problem:
        traceback.print_exc()
        return Verdict([Anomaly("stuck", f"the run did not come to its end: {problem!r}")], 0.0, 0, 0)


def tell(what: str, verdict: Verdict) -> int:
    print(
        f"{what}: {verdict.num_answers} answers, {verdict.num_faults} faults, {len(verdict.anomalies)} violations, "
        f"longest stall {verdict.longest_stall_s:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    for anomaly in verdict.anomalies[:SHOWN]:
        print(f"  {anomaly.name}: {anomaly.text}", file=sys.stderr, flush=True)
    return bool(verdict.anomalies)


def show(lines: dict[str, Line]) -> None:
    rows = [("", "scenario", "runs", "faults", "answers", "violations", "longest stall")]
    for name, line in lines.items():
        bad = ", ".join(f"{count} {what}" for what, count in sorted(line.violations.items())) or "0"
        rows.append(
            (
                name,
                line.about,
                str(line.runs),
                str(line.faults),
                str(line.answers),
                bad,
                f"{line.longest_stall_s:.1f} s",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def summary(lines: dict[str, Line], seed: int, num_nodes: int) -> int:
    violations = sum(sum(line.violations.values()) for line in lines.values())
    doc = {
        "faults": sum(line.faults for line in lines.values()),
        "violations": violations,
        "longest_stall_s": round(max(line.longest_stall_s for line in lines.values()), 2),
        "seed": seed,
        "nodes": num_nodes,
    }
    print(json.dumps(doc))
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
