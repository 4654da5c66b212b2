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
from streamproc.kernels.tables import Cut, Table, Tables

FIELDS = 6  # of an item: first of its rows, how many, its table, first tile, first tile not all rows see, end of tiles

NOTHING = np.empty(0, np.int32)
NO_ITEMS = np.empty((0, FIELDS), np.int32)


class Span(NamedTuple):
    """Consecutive rows of one sequence."""

    row: int  # of the packed batch
    num_rows: int
    start: int  # position of the first row
    table: Sequence[int]  # the sequence's blocks, at least as many as its rows reach


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
    """A Work of one window on the CPU: int32. `slots` [merged rows]: of those alone. Two lists with the same object as
    `rows` are the same but for the last of the split items, of which there are at most as many as merged rows.
    """

    rows: np.ndarray
    slots: np.ndarray
    whole: np.ndarray
    split: np.ndarray
    merged: np.ndarray
    num_slots: int
    tables: list[np.ndarray] = field(default_factory=list)      # only where make_lists has made it


class Tiles(NamedTuple):
    """Of split items: rows, items [tiles, FIELDS], and of each tile a span, the lowest and the highest position."""

    rows: np.ndarray
    items: np.ndarray
    span: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


@dataclass(eq=False, frozen=True, slots=True)
class Settled:
    """Lists of spans all of whose rows have come to their last split: in the steps until the next one only the ends of
    tiles in it are others. `span`, `low`, `high` [tiles in last splits]: whose it is, its first and last row's distance
    from the span's first.
    """

    lists: Lists
    span: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Step:
    """The spans of one step, and where their tables lie: lines of split spans, then whole tables of the others."""

    def __init__(self, columns: np.ndarray, held: Sequence[Table], windows: Collection[int | None], tables: Tables,
                 before: "Step | None" = None) -> None:
        """columns: first rows, numbers of rows, starts [3, spans] int32; held: the spans' tables, of `tables`; before:
        the step before this one, from which what is the same is taken.
        """
        cut = self.cut = tables.cut
        self.tables = tables
        most = int(columns[1].max())
        self.whole: list[tuple[int, ...]] = []     # row, number of rows, start, where the table lies
        self._whole_tables: list[Table] = []
        if most >= cut.least_whole:
            is_few = columns[1] < cut.least_whole
            whole, columns = columns[:, ~is_few].T.tolist(), columns[:, is_few]
            self._whole_tables = [table for table, few in zip(held, is_few, strict=True) if not few]
            held = [table for table, few in zip(held, is_few, strict=True) if few]
        self.row, self.num_rows, self.start = columns
        self.end = self.start + self.num_rows
        self.last = (self.end - 1) // cut.key_split
        self.is_single = most == 1
        self.rows, self.positions = self.row, self.start
        if not self.is_single:
            self.rows, self.positions = ascending(self.row, self.num_rows), ascending(self.start, self.num_rows)
        first = self._first_splits(self.start, None if None in windows else max(filter(None, windows)))
        self._key = [*held], first.tobytes(), self.last.tobytes()
        is_same = before is not None and before.tables is tables and before._key == self._key
        self.reads = before.reads if is_same and before else reads_of(held, first, self.last, tables)
        self.num_blocks = self.reads.num_lines * tables.width
        if self._whole_tables:
            for row, num_rows, start in whole:
                self.whole.append((row, num_rows, start, self.num_blocks))
                self.num_blocks += self._num_padded(start + num_rows)

    def _first_splits(self, positions: np.ndarray, window: int | None) -> np.ndarray:
        """The splits of the first keys that rows at these positions see."""
        if window is None:
            return np.zeros_like(positions)
        return np.maximum(positions - window + 1, 0) // self.cut.key_split

    def _num_padded(self, end: int) -> int:
        """Blocks of a whole table, filled up to whole tiles."""
        return self.cut.blocks_before(-(-end // self.cut.key_tile) * self.cut.key_tile)

    def write_tables(self, target: np.ndarray, before: "Step | None" = None) -> int:
        """Into [num_blocks] int32 -> how many of them, from the first on, may be others than they were. Blocks that no
        row reaches are the null block. before: the step whose tables are there.
        """
        width, null_block, contents = self.tables.width, self.tables.null_block, self.tables.contents
        num_own, end = len(self.reads.own) * width, self.reads.num_lines * width
        own = target[:num_own].reshape(-1, width)
        np.take(contents, self.reads.own, 0, own, "clip")
        reached = -(-self.end // self.cut.block_size) - self.last * self.cut.key_split // self.cut.block_size
        own[np.arange(width, dtype=np.int32) >= reached[:, None]] = null_block
        for table, (_, num_rows, start, place) in zip(self._whole_tables, self.whole, strict=True):
            reach = self.cut.blocks_before(start + num_rows)
            target[place:place + reach] = table.numbers[:reach]
            target[place + reach:place + self._num_padded(start + num_rows)] = null_block
        if before is None or before.reads is not self.reads:
            np.take(contents, self.reads.lines, 0, target[num_own:end].reshape(-1, width), "clip")
        elif not self.whole:
            return num_own
        return self.num_blocks

    def lists(self, window: int | None) -> Lists:
        if window is not None or self.whole or (self.start < self.last * self.cut.key_split).any():
            return self._lists(window).lists
        key = self.row.tobytes(), self.num_rows.tobytes()
        settled = self.reads.kept.get(key)
        if settled is None:
            self.reads.kept.clear()
            settled = self.reads.kept[key] = self._lists(window)
            return settled.lists
        kept, start = settled.lists, self.start[settled.span]
        split = kept.split.copy()
        self._write_ends(split[-len(start):], start + settled.low, start + settled.high)
        return Lists(kept.rows, kept.slots, kept.whole, split, kept.merged, kept.num_slots)

    def _lists(self, window: int | None) -> Settled:
        rows, whole = self._whole(window) if self.whole else (NOTHING, NO_ITEMS)
        if not len(self.row):
            return Settled(Lists(rows, NOTHING, whole, NO_ITEMS, NOTHING, 0), NOTHING, NOTHING, NOTHING)
        num_behind = len(self.reads.group) - len(self.row)
        behind = self._split(window, slice(num_behind), len(rows))
        own = self._split(window, slice(num_behind, None), len(rows) + len(behind.rows))
        first = self._first_splits(self.positions, window)
        counts = self.positions // self.cut.key_split - first + 1
        ends = counts.cumsum(dtype=np.int32)
        lists = Lists(np.concatenate((rows, behind.rows, own.rows)), ends - counts - first, whole,
                      np.concatenate((behind.items, own.items)), self.rows, int(ends[-1]))
        start = self.start[own.span]
        return Settled(lists, own.span, own.lowest - start, own.highest - start)

    def _whole(self, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        rows, items, tokens = [], [], self.cut.whole_tokens
        begin = 0
        for row, num_rows, start, table in self.whole:
            rows.append(np.arange(row, row + num_rows, dtype=np.int32))
            first = np.arange(0, num_rows, tokens, dtype=np.int32)
            end = np.minimum(first + tokens, num_rows)
            lowest, highest = first + start, end + (start - 1)
            items.append(self._items(begin + first, end - first, table, 0, 2**30, lowest, highest, window))
            begin += num_rows
        joined = np.concatenate(items)
        longest_first = np.argsort(joined[:, 3] - joined[:, 5], kind="stable")     # the last to end began early
        return np.concatenate(rows), joined[longest_first]

    def _split(self, window: int | None, pairs: slice, begin: int) -> Tiles:
        """Of these pairs; begin: how many rows of items come before theirs."""
        cut, reads, start = self.cut, self.reads, self.start
        span, split, group, table = reads.span[pairs], reads.split[pairs], reads.group[pairs], reads.table[pairs]
        if window is not None:
            sees = split >= self._first_splits(start, window)[span]
            span, split, group, table = span[sees], split[sees], group[sees], table[sees]
        if not len(span):
            return Tiles(NOTHING, NO_ITEMS, NOTHING, NOTHING, NOTHING)
        low, high = np.maximum(start[span], split * cut.key_split), self.end[span]
        if window is not None:
            high = np.minimum(high, (split + 1) * cut.key_split + (window - 1))
        rows, positions = low + (self.row - start)[span], low
        if not self.is_single:
            counts = high - low
            rows, positions = ascending(rows, counts), ascending(low, counts)
            span, split, group, table = (each.repeat(counts) for each in (span, split, group, table))
        first, counts = _tiles(group, cut.split_tokens)
        lowest = highest = positions
        if len(first) < len(rows):
            lowest, highest = np.minimum.reduceat(positions, first), np.maximum.reduceat(positions, first)
            span, split, table = span[first], split[first], table[first]
        tiles = cut.key_split // cut.key_tile
        tile = split * tiles
        items = self._items(first + begin, counts, table, tile, tile + tiles, lowest, highest, window)
        return Tiles(rows, items, span, lowest, highest)

    def _items(self, first: np.ndarray, counts: np.ndarray, tables: Any, first_tile: Any, end_tile: Any,
               lowest: np.ndarray, highest: np.ndarray, window: int | None) -> np.ndarray:
        """Positions of the first and the last of the rows; tiles: no others, whatever the rows see."""
        if window is not None:
            first_tile = np.maximum(first_tile, np.maximum(lowest - window + 1, 0) // self.cut.key_tile)
        items = np.empty((len(first), FIELDS), np.int32)
        for i, column in enumerate((first, counts, tables, first_tile)):
            items[:, i] = column
        self._write_ends(items, lowest, highest, end_tile, window)
        return items

    def _write_ends(self, items: np.ndarray, lowest: np.ndarray, highest: np.ndarray, end_tile: Any = 2**30,
                    window: int | None = None) -> None:
        first_tile, tile = items[:, 3], self.cut.key_tile
        end = np.minimum(end_tile, highest // tile + 1)
        seen_by_all = np.maximum((lowest + 1) // tile, first_tile) if window is None else first_tile
        items[:, 4] = np.minimum(seen_by_all, end)
        items[:, 5] = end


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
    """The lists of these spans under one window, with their tables."""
    tables = Tables(cut, null_block)
    columns = np.array([span[:3] for span in spans], np.int32).T
    step = Step(columns, [tables.table(tuple(span.table)) for span in spans], [window], tables)
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
