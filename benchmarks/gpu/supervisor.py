"""Starts the process that runs the parts, and another one where it dies, hangs, or loses its device: what it has told
until then is kept, and the parts after the one at fault are still run.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 120.0     # until a process has begun its first part
LATE_S = 45.0       # beyond a part's budget, which it keeps by itself unless something hangs
POLL_S = 0.2
Command = Callable[[Path, Sequence[str], float], list[str]]


@dataclass
class Told:
    """What a process has told so far."""

    card: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: str | None = None
    budget_s: float = START_S

    def read(self, path: Path) -> bool:
        """-> whether a part has begun or ended since."""
        before = self.running, len(self.results)
        self.running, self.budget_s = None, START_S
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                self._take(json.loads(line))
        return before != (self.running, len(self.results))

    def _take(self, event: dict[str, Any]) -> None:
        self.card |= event.get("card", {})
        if name := event.get("begins"):
            self.running, self.budget_s = name, event["budget_s"]
        if name := event.get("ends"):
            self.running, self.budget_s = None, START_S
            self.results[name] = event["result"]


def supervise(names: Sequence[str], seconds: float, command: Command) -> Told:
    """Run these parts -> the results of all of them, those that failed with their error.

    command: (file for the report, parts, seconds) -> what to run
    """
    told, end = Told(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="streamproc-suite-") as folder:
        attempt = 0
        while rest := [name for name in names if name not in told.results]:
            path = Path(folder) / f"{attempt}.jsonl"
            path.touch()
            left = max(end - time.monotonic(), 0.0)
            problem = _watch(subprocess.Popen(command(path, rest, left)), path, told)
            missing = [name for name in names if name not in told.results]
            if missing == rest and told.running is None:      # it does not even start
                told.results |= {name: {"error": problem} for name in rest}
            elif told.running is not None:
                told.results[told.running] = {"error": problem}
            attempt += 1
    return told


def _watch(process: "subprocess.Popen[bytes]", path: Path, told: Told) -> str:
    """Until the process has ended -> why, where it left parts undone."""
    since = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        if told.read(path):
            since = time.monotonic()
        if time.monotonic() - since > told.budget_s + LATE_S:
            print(f"gpu_suite: {told.running or 'the start'} does not end: killed", file=sys.stderr)
            process.kill()
            process.wait()
            told.read(path)
            return f"no end {LATE_S:.0f} s after its time was over"
    told.read(path)
    return f"its process ended with status {process.returncode}"
