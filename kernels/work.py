"""What one attention computes, as lists that its kernels read from the device: a graph that is captured once serves any
step whose lists fit.

An *item* is a tile of query rows that see the same blocks, and a run of key tiles. Prefill, decode, verification of
drafts, and forks of one session are all items, and nothing else: one kernel computes them (attention.py).

    whole    all keys of its rows: long chunks, enough of them to keep the device busy
    split    one split of the keys: few rows over many keys; what the splits give is merged afterwards, in their order

Splits are cut at absolute positions, multiples of `key_split`. A split's rows may belong to several sequences, where
their blocks there are the same ones: forks read their session's keys once for all of them (as in Hydragen, FlashInfer's
cascade). Which way a row goes, and who is in its tile, changes none of its bits.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from streamproc.kernels.splits import ascending, reads_of
from streamproc.kernels.tables import Cut, Tables

FIELDS = 6  # of an item: first of its rows, how many, its table, first tile, first tile not all rows see, end of tiles

NOTHING = np.empty(0, np.int32)
NO_ITEMS = np.empty((0, FIELDS), np.int32)
Items = tuple[np.ndarray, np.ndarray]  # rows, and items of FIELDS


class Span(NamedTuple):
    """Consecutive rows of one sequence."""

    row: int  # of the packed batch
    num_rows: int
    start: int  # position of the first row
    table: Any  # Table: the sequence's blocks, at least as many as its rows reach


@dataclass(frozen=True, slots=True)
class Work:
    """Tensors int32 on the device. `counts`: how many items of `whole`, of `split`, and rows of `merged` there are."""

    rows: torch.Tensor  # [..] rows of the packed batch, item after item
    tables: torch.Tensor  # [..] blocks; an item's table begins where block 0 would be, maybe before all of them
    positions: torch.Tensor  # [packed rows]
    slots: torch.Tensor  # [packed rows] where a row's partial results lie: that of split s in slots[row] + s
    whole: torch.Tensor  # [.., FIELDS]
    split: torch.Tensor  # [.., FIELDS]
    merged: torch.Tensor  # [..] rows whose splits are to be merged
    counts: torch.Tensor  # [3]


@dataclass(frozen=True, slots=True)
class Scratch:
    """Partial results of rows that are split, float32: [slots, heads, 2] maxima and sums, [slots, heads, head_dim]."""

    stats: torch.Tensor
    sums: torch.Tensor


def make_scratch(num_slots: int, num_heads: int, head_dim: int, device: torch.device) -> Scratch:
    return Scratch(torch.empty(num_slots, num_heads, 2, device=device),
                   torch.empty(num_slots, num_heads, head_dim, device=device))


@dataclass(eq=False, frozen=True, slots=True)
class Lists:
    """A Work of one window on the CPU: int32. `slots` [merged rows]: of those alone."""

    rows: np.ndarray
    slots: np.ndarray
    whole: np.ndarray
    split: np.ndarray
    merged: np.ndarray
    num_slots: int
    tables: list[np.ndarray] = field(default_factory=list)      # only where make_lists has made it


class Step:
    """The spans of one step, and where their tables lie: lines of split spans, then whole tables of the others."""

    def __init__(self, spans: Sequence[Span], windows: Collection[int | None], tables: Tables,
                 before: "Step | None" = None) -> None:
        """Spans' tables are Tables'. before: the step before this one, from which what is the same is taken."""
        cut = self.cut = tables.cut
        self.tables = tables
        self.whole = [span for span in spans if span.num_rows >= cut.least_whole]
        few = [span for span in spans if span.num_rows < cut.least_whole] if self.whole else spans
        rows, counts, starts = np.array([span[:3] for span in spans], np.int32).reshape(-1, 3).T.copy()
        self.is_single = int(counts.max()) == 1
        self.positions = starts if self.is_single else ascending(starts, counts)      # of all packed rows
        if self.whole:
            is_few = counts < cut.least_whole
            rows, counts, starts = rows[is_few], counts[is_few], starts[is_few]
        self.row, self.num_rows, self.start = rows, counts, starts
        self.few_rows = rows if self.is_single else ascending(rows, counts)
        self.few_positions = ascending(starts, counts) if self.whole else self.positions
        self.end = self.start + self.num_rows
        self.last = (self.end - 1) // cut.key_split
        first = self._first_splits(self.start, None if None in windows else max(filter(None, windows)))
        self._key = [span.table for span in few], first.tobytes(), self.last.tobytes()
        is_same = before is not None and before.tables is tables and before._key == self._key
        self.reads = before.reads if is_same and before else reads_of(self._key[0], first, self.last, tables)
        self.starts, self.num_blocks = [], self.reads.num_lines * tables.width      # of whole tables
        for span in self.whole:
            self.starts.append(self.num_blocks)
            self.num_blocks += self._num_padded(span)

    def _first_splits(self, positions: np.ndarray, window: int | None) -> np.ndarray:
        """The splits of the first keys that rows at these positions see."""
        if window is None:
            return np.zeros_like(positions)
        return np.maximum(positions - window + 1, 0) // self.cut.key_split

    def _num_padded(self, span: Span) -> int:
        """Blocks of a whole table, filled up to whole tiles."""
        end = span.start + span.num_rows
        return self.cut.blocks_before(-(-end // self.cut.key_tile) * self.cut.key_tile)

    def write_tables(self, target: np.ndarray) -> None:
        """Into [num_blocks] int32. Blocks that no row reaches are the null block."""
        width, null_block, lines = self.tables.width, self.tables.null_block, self.reads.lines
        own = target[len(lines) * width:self.reads.num_lines * width].reshape(-1, width)
        np.take(self.tables.contents, lines, 0, target[:len(lines) * width].reshape(-1, width), "clip")
        np.take(self.tables.contents, self.reads.own, 0, own, "clip")
        reached = -(-self.end // self.cut.block_size) - self.last * self.cut.key_split // self.cut.block_size
        own[np.arange(width, dtype=np.int32) >= reached[:, None]] = null_block
        for span, start in zip(self.whole, self.starts, strict=True):
            reach = self.cut.blocks_before(span.start + span.num_rows)
            target[start:start + self._num_padded(span)] = null_block
            target[start:start + reach] = span.table.numbers[:reach]

    def lists(self, window: int | None) -> Lists:
        rows, whole = self._whole(window) if self.whole else (NOTHING, NO_ITEMS)
        if not len(self.row):
            return Lists(rows, NOTHING, whole, NO_ITEMS, NOTHING, 0)
        behind = self._behind(window, len(rows))
        own = self._split(window, slice(len(self.reads.group) - len(self.row), None), len(rows) + len(behind[0]))
        first = self._first_splits(self.few_positions, window)
        counts = self.few_positions // self.cut.key_split - first + 1
        ends = counts.cumsum(dtype=np.int32)
        return Lists(np.concatenate((rows, behind[0], own[0])), ends - counts - first, whole,
                     np.concatenate((behind[1], own[1])), self.few_rows, int(ends[-1]))

    def _whole(self, window: int | None) -> Items:
        rows, items, tokens = [], [], self.cut.whole_tokens
        begin = 0
        for span, table in zip(self.whole, self.starts, strict=True):
            rows.append(np.arange(span.row, span.row + span.num_rows, dtype=np.int32))
            first = np.arange(0, span.num_rows, tokens, dtype=np.int32)
            end = np.minimum(first + tokens, span.num_rows)
            reach = first + span.start, end + (span.start - 1)
            items.append(self._items(begin + first, end - first, table, reach, 0, 2**30, window))
            begin += span.num_rows
        return np.concatenate(rows), np.concatenate(items)

    def _behind(self, window: int | None, begin: int) -> Items:
        """Of splits before their spans' last one. Where all rows have come to the last one, these are the same in every
        step, whatever the rows' positions.
        """
        pairs = slice(len(self.reads.group) - len(self.row))
        if window is not None or (self.start < self.last * self.cut.key_split).any():
            return self._split(window, pairs, begin)
        key = begin, self.row.tobytes(), self.num_rows.tobytes()
        found = self.reads.behind.get(key)
        if found is None:
            self.reads.behind.clear()
            found = self.reads.behind[key] = self._split(window, pairs, begin)
        return found

    def _split(self, window: int | None, pairs: slice, begin: int) -> Items:
        """Of these pairs; begin: how many rows of items come before theirs."""
        cut, reads, start = self.cut, self.reads, self.start
        span, split, group, table = reads.span[pairs], reads.split[pairs], reads.group[pairs], reads.table[pairs]
        if window is not None:
            sees = split >= self._first_splits(start, window)[span]
            span, split, group, table = span[sees], split[sees], group[sees], table[sees]
        if not len(span):
            return NOTHING, NO_ITEMS
        low, high = np.maximum(start[span], split * cut.key_split), self.end[span]
        if window is not None:
            high = np.minimum(high, (split + 1) * cut.key_split + (window - 1))
        rows, positions = low + (self.row - start)[span], low
        if not self.is_single:
            counts = high - low
            rows, positions = ascending(rows, counts), ascending(low, counts)
            split, group, table = (each.repeat(counts) for each in (split, group, table))
        first, counts = _tiles(group, cut.split_tokens)
        reach = positions, positions
        if len(first) < len(rows):
            reach = np.minimum.reduceat(positions, first), np.maximum.reduceat(positions, first)
            split, table = split[first], table[first]
        tiles = cut.key_split // cut.key_tile
        tile = split * tiles
        return rows, self._items(first + begin, counts, table, reach, tile, tile + tiles, window)

    def _items(self, first: Any, counts: Any, tables: Any, reach: tuple[np.ndarray, np.ndarray], first_tile: Any,
               end_tile: Any, window: int | None) -> np.ndarray:
        """`reach`: positions of the first and the last of the rows; tiles: no others, whatever the rows see."""
        lowest, highest = reach
        tile = self.cut.key_tile
        end = np.minimum(end_tile, highest // tile + 1)
        if window is None:
            seen_by_all = np.minimum(np.maximum((lowest + 1) // tile, first_tile), end)
        else:
            first_tile = np.maximum(first_tile, np.maximum(lowest - window + 1, 0) // tile)
            seen_by_all = np.minimum(first_tile, end)
        items = np.empty((len(first), FIELDS), np.int32)
        for i, column in enumerate((first, counts, tables, first_tile, seen_by_all, end)):
            items[:, i] = column
        return items


def _tiles(group: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Where tiles begin, of at most so many rows of one group, and how many rows each has."""
    is_first = group[1:] != group[:-1]
    if is_first.all():
        return np.arange(len(group), dtype=np.int32), np.ones(len(group), np.int32)
    begins = np.concatenate(([0], is_first.nonzero()[0] + 1), dtype=np.int32)
    counts = _lengths(begins, len(group))
    if counts.max() > most:
        num_tiles = -(-counts // most)
        begins = ascending(np.zeros_like(begins), num_tiles) * most + begins.repeat(num_tiles)
        counts = _lengths(begins, len(group))
    return begins, counts


def _lengths(begins: np.ndarray, end: int) -> np.ndarray:
    counts = np.empty_like(begins)
    np.subtract(begins[1:], begins[:-1], counts[:-1])
    counts[-1] = end - begins[-1]
    return counts


def make_lists(spans: Sequence[Span], window: int | None, cut: Cut, null_block: int) -> Lists:
    """The lists of these spans under one window; spans' tables are sequences of blocks."""
    tables = Tables(cut, null_block)
    step = Step([span._replace(table=tables.table(tuple(span.table))) for span in spans], [window], tables)
    written = np.empty(step.num_blocks, np.int32)
    step.write_tables(written)
    return replace(step.lists(window), tables=[written])


def to_work(lists: Lists, positions: Sequence[int], device: torch.device) -> Work:
    """On the device. `positions`: of all packed rows."""
    def ints(values: Any, *shape: int) -> torch.Tensor:
        return torch.tensor(np.asarray(values, np.int32).reshape(shape or -1), device=device)

    slots = np.zeros(len(positions), np.int32)
    slots[lists.merged] = lists.slots
    counts = len(lists.whole), len(lists.split), len(lists.merged)
    return Work(ints(lists.rows), ints(np.concatenate(lists.tables)), ints(positions), ints(slots),
                ints(lists.whole, -1, FIELDS), ints(lists.split, -1, FIELDS), ints(lists.merged), ints(counts))
