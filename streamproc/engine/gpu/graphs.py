"""CUDA graphs of steps: captured when a bucket comes for the second time, replayed from then on.

A graph reads its inputs from where they were when it was captured and writes its results there; all graphs share one
pool of memory, since one runs at a time.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

MOST = 96       # kept at once


@dataclass(frozen=True, slots=True)
class Captured:
    graph: Any      # torch.cuda.CUDAGraph
    results: Any


class Graphs:
    """Of one device; on a CPU there are none."""

    def __init__(self, device: torch.device) -> None:
        self.are_used = device.type == "cuda"
        self._seen: set[Hashable] = set()
        self._too_large: set[Hashable] = set()
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self.are_used else None

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What the work gives; the same key stands for the same work, but for the numbers that it reads."""
        if key not in self._seen:       # kernels are compiled and loaded in a first run: that cannot be captured
            self._seen.add(key)
            return work()
        if key in self._too_large:
            return work()
        found = self._captured.get(key)
        if found is None:
            try:
                found = self._captured[key] = self._capture(work)
            except torch.OutOfMemoryError:      # what its step needs at once, its graph would hold for good
                self._too_large.add(key)
                return work()
            if len(self._captured) > MOST:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        found.graph.replay()
        return found.results

    def _capture(self, work: Callable[[], Any]) -> Captured:
        """Without torch.cuda.graph, which would give back all memory that steps and copies keep for the next one."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                results = work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return Captured(graph, results)

    def forget(self) -> None:
        """What graphs read lies elsewhere now; one of them may be at work still."""
        if self._captured:
            torch.cuda.synchronize()
        self._captured.clear()
        self._seen.clear()
        self._too_large.clear()
        self._pool = torch.cuda.graph_pool_handle() if self.are_used else None      # the old one may not be used again
