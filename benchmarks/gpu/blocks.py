"""Blocks out of the pool into pinned memory and back, beside the link's rate; and when that is better than computing.

    each        one copy for every block, on a side stream, all of them on their way at once
    gathered    one kernel collects them on the device, one copy moves them; and back
    engine      a step's saves and loads (engine/transfers.py), with nothing to compute beside them

`restore_over_compute`: what a sequence of so many tokens takes to restore, over computing it in steps: below 1
restoring is better. `crossover_tokens`: the fewest from which on it is, between measured lengths by straight lines.
"""

from collections.abc import Callable
from typing import Any

import torch

from gpu.bench import Bench, Row, free
from gpu.models import Kept, noisy_pool
from gpu.targets import verdict
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.transfers import Transfers
from streamproc.schedule.plan import Plan


def run(bench: Bench) -> dict[str, Any]:
    moves = Moves(bench)
    rows = moves.rates()
    found: dict[str, Any] = {"rows": rows, "not_run": []}
    by_engine = next(row["restore_gb_per_s"] for row in rows if row["way"] == "engine")
    found["targets"] = [verdict("restore", by_engine * 1e9 / bench.ceilings.to_device, "as the engine does it")]
    if bench.clock.left <= 0:
        found["not_run"].append("restore beside computing")
        return found
    found["more_rows"], found["crossover_tokens"] = moves.beside_computing()
    del moves
    free(bench)
    return found


class Moves:
    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes = bench, bench.sizes
        self.is_cuda = bench.device.type == "cuda"
        layout = bench.subject.layout(self.sizes.block_size)
        self.block_bytes = layout.block_bytes
        self.longest = max(min(self.sizes.contexts[-1], 8 * self.sizes.portion), self.sizes.block_size)
        wanted = max(self.sizes.moved_bytes // self.block_bytes, self.longest // self.sizes.block_size + 1)
        self.kv: KVCache = noisy_pool(layout, wanted, bench.device)
        self.order = torch.randperm(wanted).tolist()
        self.on_host = torch.empty(wanted, self.block_bytes, dtype=torch.uint8, pin_memory=self.is_cuda)
        self.gathered = torch.empty(wanted, self.block_bytes, dtype=torch.uint8, device=bench.device)
        self.stream = torch.cuda.Stream(bench.device) if self.is_cuda else None
        self.transfers, self.saved = Transfers(self.kv), dict[bytes, Any]()

    def rates(self) -> list[Row]:
        count = len(self.order)
        ways = {"each": (self.save_each, self.load_each), "gathered": (self.save_gathered, self.load_gathered),
                "engine": (self.save_by_engine, self.load_by_engine)}  # fmt: skip
        rows = []
        for name, (save, load) in ways.items():
            before = self.kv.data[self.order].clone()
            saved = self._seconds(save, count)
            self.kv.data[self.order] = 0
            loaded = self._seconds(load, count)
            assert torch.equal(self.kv.data[self.order], before), f"{name}: other bytes came back"
            size = count * self.block_bytes
            rows.append({"way": name, "blocks": count, "block_bytes": self.block_bytes,
                         "snapshot_gb_per_s": size / saved / 1e9, "restore_gb_per_s": size / loaded / 1e9,
                         "of_link_out": size / saved / self.bench.ceilings.to_host,
                         "of_link_in": size / loaded / self.bench.ceilings.to_device})  # fmt: skip
        return rows

    def _seconds(self, work: Callable[[int], None], count: int) -> float:
        return self.bench.timer.wall(lambda: self._aside(lambda: work(count)), repeats=3, warm=1)

    def _aside(self, work: Callable[[], None]) -> None:
        """On the side stream."""
        if self.stream is None:
            work()
            return
        with torch.cuda.stream(self.stream):
            work()
        self.stream.synchronize()

    def save_each(self, count: int) -> None:
        for i, block in enumerate(self.order[:count]):
            self.on_host[i].copy_(self.kv.data[block], non_blocking=True)

    def load_each(self, count: int) -> None:
        for i, block in enumerate(self.order[:count]):
            self.kv.data[block].copy_(self.on_host[i], non_blocking=True)

    def _index(self, count: int) -> torch.Tensor:
        return torch.tensor(self.order[:count], dtype=torch.int32, device=self.bench.device)

    def save_gathered(self, count: int) -> None:
        self.bench.ops.gather_blocks(self.kv.data, self._index(count), self.gathered[:count])
        self.on_host[:count].copy_(self.gathered[:count], non_blocking=True)

    def load_gathered(self, count: int) -> None:
        self.gathered[:count].copy_(self.on_host[:count], non_blocking=True)
        self.bench.ops.scatter_blocks(self.kv.data, self._index(count), self.gathered[:count])

    def save_by_engine(self, count: int) -> None:
        self.saved = self.transfers.begin(Plan((), (), tuple((i, i.to_bytes(4)) for i in self.order[:count])))()

    def load_by_engine(self, count: int) -> None:
        loads = tuple((i, self.saved[i.to_bytes(4)]) for i in self.order[:count])
        self.transfers.begin(Plan((), (), (), loads))()
        if self.is_cuda:
            torch.cuda.current_stream().synchronize()

    def beside_computing(self) -> tuple[list[Row], int]:
        """-> rows by length; tokens from which on restoring is faster, -1 where it is at no length that was tried."""
        size, bench = self.sizes.block_size, self.bench
        lengths, length = [], size
        while length <= self.longest:
            lengths.append(length)
            length *= 4
        restored = [min(self._seconds(way, length // size) for way in (self.load_each, self.load_gathered))
                    for length in lengths]
        kept, rows = Kept(bench.subject.exact, self.kv, range(self.longest // size + 1)), []
        for length, restore in zip(lengths, restored, strict=True):
            if bench.clock.left <= 0:
                break
            compute = bench.timer.wall(lambda n=length: self._compute(kept, n), repeats=2, warm=2)
            rows.append({"tokens": length, "restore_ms": restore * 1e3, "compute_ms": compute * 1e3,
                         "restore_over_compute": restore / compute})  # fmt: skip
        return rows, crossover([(row["tokens"], row["restore_ms"], row["compute_ms"]) for row in rows])

    def _compute(self, kept: Kept, length: int) -> None:
        kept.cut(0)
        while kept.size < length:
            kept.grow(self.bench.subject.ids(kept.size, min(self.sizes.portion, length - kept.size)))


def crossover(measured: list[tuple[int, float, float]]) -> int:
    """(tokens, restoring, computing), in ascending order -> the fewest tokens from which on restoring stays faster, on
    straight lines between what was measured; -1: it is slower at the end.
    """
    if not measured or measured[-1][1] >= measured[-1][2]:
        return -1
    later = measured[-1]
    for earlier in reversed(measured[:-1]):
        if earlier[1] >= earlier[2]:
            before, behind = earlier[1] - earlier[2], later[2] - later[1]
            return round(earlier[0] + (later[0] - earlier[0]) * before / (before + behind))
        later = earlier
    return later[0]
