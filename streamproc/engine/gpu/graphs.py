"""CUDA graphs of steps: captured when a bucket comes for the second time, replayed from then on.

A graph reads its inputs from where they were when it was captured and writes its results there; all graphs share one
pool of memory, since one runs at a time.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from streamproc.engine.shortage import lacks_memory

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
        # One for all: the allocator gives what was used on a stream to the same stream only, in a shared pool, too.
        self._stream = torch.cuda.Stream(device) if self.are_used else None

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What the work gives; the same key stands for the same work, but for the numbers that it reads."""
        if key not in self._seen:       # kernels are compiled and loaded in a first run: that cannot be captured
            results = work()
            self._seen.add(key)
            return results
        if key not in self._captured and key not in self._too_large:
            self._keep(key, work)
        found = self._captured.get(key)
        if found is None:
            return work()
        self._captured.move_to_end(key)
        found.graph.replay()
        return found.results

    def _keep(self, key: Hashable, work: Callable[[], Any]) -> None:
        """Capture it; where memory lacks once more after all that is cached was given back, it is never tried again:
        what its step needs at once, its graph would hold for good.
        """
        found = self._capture(work)
        if found is None:
            torch.cuda.empty_cache()        # while a graph is captured, the allocator gives nothing back by itself
            found = self._capture(work)
        if found is None:
            self._too_large.add(key)
            return
        self._captured[key] = found
        if len(self._captured) > MOST:
            self._captured.popitem(last=False)

    def _capture(self, work: Callable[[], Any]) -> Captured | None:
        """None where memory lacks. Without torch.cuda.graph, which would wait for the device, and give back all memory
        that steps and copies keep for the next one.
        """
        assert self._stream is not None, "graphs of a CPU"
        graph, step = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(step)
        results, problem = None, None
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                results = work()
            except Exception as met:        # raised below
                problem = met
            try:
                graph.capture_end()
            except RuntimeError as met:     # it is broken by the error before it, which says why
                problem = problem or met
        step.wait_stream(self._stream)
        if problem is None:
            return Captured(graph, results)
        if not self._captured:      # with its only graph a pool is gone, and its handle is of no use any more
            self._pool = torch.cuda.graph_pool_handle()
        if lacks_memory(problem):
            problem.with_traceback(None)        # which holds what the work has taken
            return None
        raise problem

    def forget(self) -> None:
        """What graphs read lies elsewhere now; one of them may be at work still."""
        if self._captured:
            torch.cuda.synchronize()
        self._captured.clear()
        self._seen.clear()
        self._too_large.clear()
        self._pool = torch.cuda.graph_pool_handle() if self.are_used else None      # the old one may not be used again
