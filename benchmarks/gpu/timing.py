"""How long things take: by CUDA events on a GPU, by the clock on a CPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

AHEAD_CYCLES = 1_000_000    # half a millisecond, in which the CPU gets ahead of the device


class Clock:
    """Time until something has to be over."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        return self._end - self._now()


class Timer:
    """Of one device. What was read or written last is not in its caches when something is measured."""

    def __init__(self, device: torch.device, flushed_bytes: int) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._flushed = torch.empty(flushed_bytes, dtype=torch.uint8, device=device)

    def finish(self) -> None:
        """Wait until the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 7, warm: int = 2) -> float:
        """Of the device alone: the median of the repeats, launches not counted."""
        for _ in range(warm):
            work()
        found = [self._once(work) for _ in range(repeats)]
        self.finish()
        return statistics.median(each() for each in found)

    def _once(self, work: Callable[[], Any]) -> Callable[[], float]:
        self._flushed.zero_()
        if not self.is_cuda:
            started = time.perf_counter()
            work()
            taken = time.perf_counter() - started
            return lambda: taken
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD_CYCLES)
        start.record()
        work()
        end.record()
        return lambda: start.elapsed_time(end) / 1e3

    def wall(self, work: Callable[[], Any], repeats: int, warm: int = 0) -> float:
        """As somebody waits for it, launches and copies counted: the median."""
        for _ in range(warm):
            work()
        return statistics.median(self.waited(work) for _ in range(repeats))

    def waited(self, work: Callable[[], Any]) -> float:
        self.finish()
        started = time.perf_counter()
        work()
        self.finish()
        return time.perf_counter() - started
