"""Steps of our engine at a given size: decode, grouped prefill, and what the CPU does for one."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu.bench import Bench
from gpu.floors import Rows, step
from gpu.models import noisy_pool, run, run_queued
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.schedule.plan import UNTOLD, Chunk

WARM = 3        # a first step, one that captures a graph, and one that replays it
RESERVE = 6 * 2**30


class Sequences:
    """Contexts of random keys and values, each in blocks of its own."""

    def __init__(self, bench: Bench, count: int, context: int) -> None:
        size, subject = bench.sizes.block_size, bench.subject
        self.bench, self.context = bench, context
        self.per_table = -(-_room(bench, context) // size)
        self.kv = noisy_pool(subject.layout(size), count * self.per_table, bench.device)

    def tables(self, count: int) -> list[tuple[int, ...]]:
        return [tuple(range(i * self.per_table, (i + 1) * self.per_table)) for i in range(count)]

    def decode_s(self, forward: GpuForward, count: int) -> float:
        """Of one step of so many sequences, as its caller waits for it."""
        tables, taken = self.tables(count), []
        for i in range(WARM + self.bench.sizes.repeats):
            chunks = [Chunk(j, self.context + i, (17 * i + j,), table, 1) for j, table in enumerate(tables)]
            taken.append(self.bench.timer.waited(lambda c=chunks: run(forward, self.kv, c)))
        return statistics.median(taken[WARM:])

    def queued_s(self, forward: GpuForward, count: int) -> float:
        """Of one of many steps of a token of so many sequences, each begun while the one before it is on the device,
        with the tokens which that samples.
        """
        tables, repeats = self.tables(count), self.bench.sizes.repeats
        steps = [[Chunk(j, self.context + i, (UNTOLD,) if i else (j,), table, 1) for j, table in enumerate(tables)]
                 for i in range(repeats)]  # fmt: skip
        return self.bench.timer.wall(lambda: run_queued(forward, self.kv, steps), repeats=3, warm=2) / repeats

    def prefill_s(self, forward: GpuForward, count: int, rows: int, start: int = 0) -> float:
        """Of one step that computes so many rows of each of so many sequences."""
        ids = self.bench.subject.ids(start, rows)
        chunks = [Chunk(j, start, ids, table) for j, table in enumerate(self.tables(count))]
        return self.bench.timer.wall(lambda: run(forward, self.kv, chunks), repeats=3, warm=WARM)


def how_many_fit(bench: Bench, counts: Sequence[int], context: int) -> int:
    """The most of these that the device's free memory has room for; 0: none."""
    if bench.device.type != "cuda":
        return max(counts)
    free, _ = torch.cuda.mem_get_info(bench.device)
    layout = bench.subject.layout(bench.sizes.block_size)
    room = _room(bench, context) + bench.sizes.block_size
    return max((count for count in counts if count * room * layout.bytes_per_token < free - RESERVE), default=0)


def _room(bench: Bench, context: int) -> int:
    """Tokens of a sequence, whichever step comes."""
    return max(context + WARM + bench.sizes.repeats, bench.sizes.portion)


def blocks_that_fit(bench: Bench, layout: Layout) -> int:
    """Of a pool, in what is free now."""
    if bench.device.type != "cuda":
        return 10**6
    return max(int(torch.cuda.mem_get_info(bench.device)[0] - RESERVE) // layout.block_bytes, 0)


def decode_floor_s(bench: Bench, count: int, context: int) -> float:
    rows = [Rows(context + WARM + bench.sizes.repeats // 2, 1, 1)] * count
    return step(bench.subject.shape, rows).seconds(bench.ceilings)


def prefill_share(bench: Bench, seconds: float, count: int, rows: int) -> float:
    """Of the measured rate of a large product."""
    return step(bench.subject.shape, [Rows(0, rows)] * count).flops / seconds / bench.ceilings.flops_per_s


@dataclass
class Watched:
    """In place of the event that says when a step's results are back: when the last launch of a step was made."""

    event: Any
    at: float = 0.0

    def record(self) -> None:
        if self.event:
            self.event.record()
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        if self.event:
            self.event.synchronize()


def host_s(bench: Bench, forward: GpuForward, kv: KVCache, chunks: Sequence[Chunk]) -> float:
    """From the call to the last launch, the median; waiting for the device is not in it."""
    staging, found = forward._staging, []
    events = staging._events
    watched = Watched(events[0])
    staging._events = [watched] * len(events)
    try:
        for _ in range(WARM + bench.sizes.repeats):
            bench.timer.finish()
            started = time.perf_counter()
            run(forward, kv, chunks)
            found.append(watched.at - started)
    finally:
        staging._events = events
    return statistics.median(found[WARM:])
