"""How much of the machine others took while we measured: figures of a busy machine say little, and favour whoever bears
company best.
"""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
IDLE = (3, 4)       # of the first line's columns: idle, waiting for a disk
GUESTS = 8          # these columns are counted in earlier ones already


class Noise:
    """Counts from its making on."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def others(self) -> float | None:
        """Share of all cores that other processes, and other machines on this one, took; None where it is not known."""
        now = busy_seconds()
        if self.busy is None or now is None:
            return None
        capacity = (time.monotonic() - self.started) * (os.cpu_count() or 1)
        return round(max(now - self.busy - (own_seconds() - self.own), 0.0) / capacity, 3)


def busy_seconds() -> float | None:
    """CPU seconds of the whole machine that were not idle."""
    if not STAT.is_file():
        return None
    columns = [int(text) for text in STAT.read_text().splitlines()[0].split()[1 : 1 + GUESTS]]
    return sum(value for i, value in enumerate(columns) if i not in IDLE) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    times = os.times()
    return times.user + times.system
