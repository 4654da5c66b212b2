"""Attention against its reference: head sizes, windows, soft caps, codes; and the bits of a row in any company.

One sequence's cells are random numbers in shuffled blocks; two forks of it share all blocks but the last. Rows of its
end are computed whole (a long chunk), split (few rows), alone, beside others, and in forks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpu.bench import Bench
from gpu.checking import Table, both, near, same
from gpu.guards import Guards
from streamproc.kernels import reference
from streamproc.kernels.attention_configs import Attention
from streamproc.kernels.work import Span, Work, make_lists, make_scratch, to_work

MOST = 6.0          # roundings: weights are rounded to the model's dtype before the second product
MOST_WIDE = 256.0   # of float32, where nothing else hides what the scores lose
CODES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass
class Pool:
    """One layer is looked at, the other one is NaN."""

    kv: torch.Tensor
    scales: torch.Tensor | None
    exact: torch.Tensor         # what the codes stand for before they were rounded; the cells themselves without codes
    table: list[int]
    fork: list[int]
    other: list[int]

    @property
    def null_block(self) -> int:
        return len(self.kv) - 1


@dataclass(frozen=True)
class Way:
    head_dim: int
    dtype: torch.dtype
    window: int | None = None
    softcap: float | None = None
    codes: str | None = None

    @property
    def name(self) -> str:
        extras = (f"window {self.window}" if self.window else "", "soft cap" if self.softcap else "", self.codes or "")
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join(filter(None, ("attention", str(self.head_dim), dtype, *extras)))


def check(table: Table) -> None:
    """What the engine's models need most comes first: time may not do for all."""
    bench, first = table.bench, table.bench.sizes.head_dims
    middle = 128 if 128 in first else first[0]
    basic = Way(middle, bench.dtype)
    window = bench.sizes.attention_start // 3
    ways = [basic, replace(basic, head_dim=first[-1], window=window, softcap=50.0),
            *(replace(basic, codes=codes) for codes in CODES), replace(basic, window=window),
            replace(basic, softcap=30.0), *(replace(basic, head_dim=dim) for dim in first if dim != middle),
            replace(basic, dtype=torch.float16)]
    for way in ways[:bench.sizes.attention_ways]:
        table.case(way.name, lambda g, w=way: Case(bench, g, w).found())


class Case:
    def __init__(self, bench: Bench, guards: Guards, way: Way) -> None:
        self.bench, self.guards, self.way = bench, guards, way
        self.rows, self.start = bench.sizes.attention_rows, bench.sizes.attention_start + bench.whole(0, 40)
        self.heads, self.kv_heads = bench.sizes.heads
        self.sizes: Attention = bench.kernels.attention_sizes(bench.device, way.head_dim,
                                                                     bool(way.codes or way.softcap))
        self.pool = self._pool()
        self.query = guards.copy(bench.normal(self.rows, self.heads, way.head_dim, dtype=way.dtype))

    def _pool(self) -> Pool:
        size, way = self.bench.sizes.block_size, self.way
        num_blocks = -(-(self.start + self.rows) // size)
        order = torch.randperm(2 * num_blocks + 1, device=self.bench.device, generator=self.bench.random).tolist()
        table, other, (last,) = order[:num_blocks], order[num_blocks:2 * num_blocks], order[2 * num_blocks:]
        shape = (2 * num_blocks + 2, 2, 2, self.kv_heads, size, way.head_dim)
        numbers = self.bench.normal(*shape, dtype=torch.float32)
        numbers[-1] = 0
        fork = [*table[:-1], last]
        numbers[last] = numbers[table[-1]]
        if way.codes is None:
            kv, scales = self.guards.copy(numbers.to(way.dtype)), None
            exact = kv.double()
        else:
            codes, scale = reference.quantized(numbers, CODES[way.codes])
            kv, scales = self.guards.copy(codes.view(torch.uint8)).view(codes.dtype), self.guards.copy(scale)
            exact = numbers.double()
        kv.view(torch.uint8)[:, 0] = 0xFF       # NaN, or -1
        return Pool(kv, scales, exact, table, fork, other)

    def attend(self, spans: Sequence[Span], rows: Sequence[int], ops: Any, query: torch.Tensor,
               pool: Pool | None = None) -> torch.Tensor:  # fmt: skip
        """`spans` of a batch whose row i has the query `rows[i]`."""
        pool, way = pool or self.pool, self.way
        work, num_slots = self._work(spans, len(rows))
        scratch = make_scratch(max(num_slots, 1), self.heads, way.head_dim, self.bench.device)
        given = query[list(rows)].contiguous()
        out = None if given.dtype == torch.float64 else self.guards.empty(*given.shape, dtype=given.dtype)
        return ops.attend(given, pool.kv, pool.scales, 1, work, scratch, self.sizes, way.head_dim ** -0.5, way.window,
                          way.softcap, out)  # fmt: skip

    def _work(self, spans: Sequence[Span], num_rows: int) -> tuple[Work, int]:
        cut = self.sizes.cut(self.bench.sizes.block_size, self.heads // self.kv_heads)
        positions = [0] * num_rows
        for span in spans:
            positions[span.row:span.row + span.num_rows] = range(span.start, span.start + span.num_rows)
        lists = make_lists(spans, self.way.window, cut, self.pool.null_block)
        return to_work(lists, positions, self.bench.device), lists.num_slots

    def found(self) -> dict[str, Any]:
        spans = [Span(0, self.rows, self.start, self.pool.table)]
        whole = self.attend(spans, range(self.rows), self.bench.kernels, self.query)
        exact = self.attend(spans, range(self.rows), reference, self.query.double())
        most = MOST_WIDE if self.way.dtype == torch.float32 else MOST
        figures = both(near(whole, exact, most), same(*self._pairs(whole)))
        if self.way.codes:
            plain = replace(self.pool, kv=self.pool.exact, scales=None)
            wide = self.attend(spans, range(self.rows), reference, self.query.double(), plain)
            figures["note"] = f"relative error of codes {float((exact - wide).norm() / wide.norm()):.2g}"
        return figures

    def _pairs(self, whole: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Results that have to have the same bits."""
        pairs = []
        for cut in self.bench.sizes.cuts:
            for first in range(0, self.rows, max(cut, self.rows // 3)):
                count = min(cut, self.rows - first)
                mine = range(first, first + count)
                alone = self._computed([Span(0, count, self.start + first, self.pool.table)], mine)
                company = [Span(0, 5, self.start, self.pool.other), Span(5, count, self.start + first, self.pool.table),
                           Span(5 + count, 2, 7, self.pool.other)]
                beside = self._computed(company, [*range(5), *mine, 0, 1])
                pairs += [(alone, whole[first:first + count]), (beside[5:5 + count], whole[first:first + count])]
        last = range(self.rows - 3, self.rows)
        forks = [Span(3 * i, 3, self.start + self.rows - 3, table)
                 for i, table in enumerate((self.pool.table, self.pool.fork))]
        both_forks = self._computed(forks, [*last, *last])
        return [*pairs, (both_forks[:3], whole[-3:]), (both_forks[3:], whole[-3:])]

    def _computed(self, spans: Sequence[Span], rows: Sequence[int]) -> torch.Tensor:
        return self.attend(spans, rows, self.bench.kernels, self.query)
