"""Kernels beside their floors: nothing of what they read is in the chip's cache, launches are not counted.

    attention   decode: one row of each sequence, each over cells of its own; prefill: one chunk from empty
    product     ours beside torch's library
    others      row-wise kernels, the choice of tokens, copies of blocks

`share` is the floor over the time: of the measured memory rate or of the measured rate of a large product, whichever is
the floor.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from gpu.bench import Bench, Row, free
from gpu.floors import Cost, Rows, Shape, attention, product
from gpu.sizes import Sizes
from streamproc.kernels.work import Span, make_lists, make_scratch, to_work

LOGITS_ROWS = 64


def run(bench: Bench) -> dict[str, Any]:
    times = Times(bench)
    for work in (times.decode, times.prefill, times.products, times.others):
        work()
        free(bench)
    found: dict[str, Any] = {"rows": times.rows, "not_run": times.not_run}
    if times.failed:
        found["error"] = f"failed: {times.failed}"
    return found


def shape_of(sizes: Sizes, dtype: torch.dtype) -> Shape:
    """One layer's."""
    model = sizes.model
    return Shape(1, model["hidden_size"], model["num_attention_heads"], model["num_key_value_heads"], model["head_dim"],
                 model["intermediate_size"], model["vocab_size"], dtype.itemsize, dtype.itemsize)


class Times:
    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes = bench, bench.sizes
        self.ops = bench.ops
        self.shape = shape_of(bench.sizes, bench.dtype)
        self.rows: list[Row] = []
        self.not_run: list[str] = []
        self.failed: dict[str, str] = {}

    def measure(self, name: str, make: Callable[[], tuple[Callable[[], Any], Cost]],
                beside: Callable[[], Any] | None = None) -> None:
        """`make` gives what to measure and what it costs at least; `beside`: what somebody else takes for the same."""
        if self.bench.clock.left <= 0:
            self.not_run.append(name)
            return
        try:
            work, cost = make()
            taken = self.bench.timer.seconds(work)
            other = self.bench.timer.seconds(beside) if beside else None
        except torch.OutOfMemoryError:
            self.not_run.append(f"{name}: memory")
            return
        except Exception as problem:        # one that does not compile does not stop the others
            traceback.print_exc()
            self.bench.timer.finish()       # raises where the device is lost
            self.failed[name] = f"{type(problem).__name__}: {problem}".split("\n", 1)[0][:100]
            return
        self.rows.append({
            "kernel": name, "us": taken * 1e6, "share": cost.seconds(self.bench.ceilings) / taken,
            "gb_per_s": cost.bytes / taken / 1e9, "tflop_per_s": cost.flops / taken / 1e12,
            "torch_us": other * 1e6 if other else "", "over_torch": taken / other if other else "",
        })  # fmt: skip

    def decode(self) -> None:
        for context in self.sizes.decode_contexts:
            for batch in self.sizes.batches:
                self.measure(f"decode {batch} x {context}",
                             lambda b=batch, c=context: self._attention([(c, 1)] * b))

    def prefill(self) -> None:
        for context in self.sizes.prefill_contexts:
            self.measure(f"prefill {context}", lambda c=context: self._attention([(0, c)]))

    def _attention(self, sequences: Sequence[tuple[int, int]]) -> tuple[Callable[[], Any], Cost]:
        """sequences: (cells before the rows, rows)"""
        shape, size, device = self.shape, self.sizes.block_size, self.bench.device
        blocks = [-(-(start + count) // size) for start, count in sequences]
        kv = torch.empty(sum(blocks) + 1, 1, 2, shape.kv_heads, size, shape.head_dim, dtype=self.bench.dtype,
                         device=device).normal_()
        order = torch.randperm(sum(blocks)).tolist()
        spans, row, first = [], 0, 0
        for (start, count), num_blocks in zip(sequences, blocks, strict=True):
            spans.append(Span(row, count, start, order[first:first + num_blocks]))
            row, first = row + count, first + num_blocks
        sizes = self.ops.attention_sizes(device, shape.head_dim)
        lists = make_lists(spans, None, sizes.cut(size, shape.heads // shape.kv_heads), len(kv) - 1)
        positions = [start + i for start, count in sequences for i in range(count)]
        work = to_work(lists, positions, device)
        scratch = make_scratch(max(lists.num_slots, 1), shape.heads, shape.head_dim, device)
        query = self.bench.normal(row, shape.heads, shape.head_dim)
        out = torch.empty_like(query)
        cost = attention(shape, [Rows(start, count) for start, count in sequences])
        return lambda: self.ops.attend(query, kv, None, 0, work, scratch, sizes, shape.head_dim ** -0.5, out=out), cost

    def products(self) -> None:
        named = (*self.shape.products, ("head", self.shape.vocab, self.shape.hidden))
        for name, columns, depth in named:
            weight = self.bench.normal(columns, depth)
            for rows in self.sizes.product_rows:
                if name == "head" and rows > LOGITS_ROWS:       # nobody samples so many
                    continue
                x = self.bench.normal(rows, depth)
                cost = product(rows, columns, depth, self.bench.dtype.itemsize)
                self.measure(f"{name} {rows} x {columns} x {depth}",
                             lambda x=x, w=weight, c=cost: (lambda: self.ops.matmul(x, w), c),
                             lambda x=x, w=weight: F.linear(x, w))

    def others(self) -> None:
        bench, shape, ops = self.bench, self.shape, self.ops
        size = bench.dtype.itemsize
        for rows in (self.sizes.product_rows[0], self.sizes.product_rows[-1]):
            x, gate_up = bench.normal(rows, shape.hidden), bench.normal(rows, 2 * shape.intermediate)
            weight, residual = bench.normal(shape.hidden, dtype=torch.float32), bench.normal(rows, shape.hidden)
            self.measure(f"add_rms_norm {rows}", lambda x=x, r=residual, w=weight: (
                lambda: ops.add_rms_norm(x, r, w, 1e-5), Cost(4 * x.numel() * size + w.numel() * 4)))
            self.measure(f"gated {rows}", lambda g=gate_up: (
                lambda: ops.gated(g, False), Cost(g.numel() * 3 // 2 * size)))
            self.measure(f"rotary_write {rows}", lambda n=rows: self._rotary(n))
        logits = bench.normal(LOGITS_ROWS, shape.vocab)
        self.measure(f"greedy {LOGITS_ROWS}", lambda: (lambda: ops.greedy(logits), Cost(logits.numel() * size)),
                     lambda: logits.argmax(-1))
        self.measure("copy_blocks", self._copies)

    def _rotary(self, rows: int) -> tuple[Callable[[], Any], Cost]:
        bench, shape, size = self.bench, self.shape, self.sizes.block_size
        kv = torch.zeros(-(-rows // size) + 1, 1, 2, shape.kv_heads, size, shape.head_dim, dtype=bench.dtype,
                         device=bench.device)
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        qkv, angles = bench.normal(rows, width), bench.normal(2, rows, shape.head_dim // 2, dtype=torch.float32)
        cells = torch.arange(rows, dtype=torch.int32, device=bench.device)
        places = cells.int()
        cost = Cost(2 * qkv.numel() * bench.dtype.itemsize + angles.numel() * 4)
        return lambda: self.ops.rotary_write(qkv, cells, places, angles[0], angles[1], kv, None, 0, shape.heads), cost

    def _copies(self) -> tuple[Callable[[], Any], Cost]:
        """Blocks of all the model's layers, within a pool."""
        bench = self.bench
        block_bytes = self.shape.kv_bytes * bench.sizes.model["num_hidden_layers"] * bench.sizes.block_size
        count = max(bench.sizes.moved_bytes // 4 // block_bytes, 1)
        pool = torch.zeros(2 * count, block_bytes, dtype=torch.uint8, device=bench.device)
        sources, targets = torch.randperm(2 * count, device=bench.device).int().split(count)
        return lambda: self.ops.copy_blocks(pool, sources, targets), Cost(2 * count * block_bytes)
