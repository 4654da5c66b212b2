"""A plan's chunks as one row of numbers: what a step needs on the device goes there in one copy.

    token_ids positions cells | sampled | for each window: slots whole split merged counts item_rows | tables

Every list has room for as many entries as its *bucket* says, a power of two: a graph that was captured for a bucket
computes any step that fits. What lies behind a list's end belongs to nobody: rows of padding are token 0 at position 0,
whose K and V are not written, and items behind the counts are not looked at.

A token that the step before samples is there as the place among those samples, below zero: the device takes it itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from streamproc.engine.kv_cache import Copies
from streamproc.errors import StreamprocError
from streamproc.kernels.splits import ascending
from streamproc.kernels.tables import Table, Tables
from streamproc.kernels.work import FIELDS, Lists, Step, Work
from streamproc.schedule.plan import UNTOLD, Chunk

Window = int | None
NOT_WRITTEN = -1
NO_SAMPLES: Mapping[int, int] = {}
ALIGNED = 4         # numbers in 16 bytes: what kernels are compiled for
FEW_ROWS, MANY_ROWS = 64, 128       # a product's weights are read as long for any; as many rows as a tile has
SPLIT_STEP = 4      # of a bucket's items: few different graphs, and few programs that find nothing to do


@dataclass(frozen=True, slots=True)
class Bucket:
    """How much of everything there is room for; `items`: by window, whole, split, merged rows, rows of items, slots."""

    rows: int
    samples: int
    tables: int
    items: tuple[tuple[int, int, int, int, int], ...]

    @property
    def num_slots(self) -> int:
        return max(slots for *_, slots in self.items)


@dataclass(eq=False, frozen=True, slots=True)
class Batch:
    """A step on the CPU: int32."""

    token_ids: Sequence[int]
    positions: np.ndarray
    cells: Sequence[int]
    sampled: np.ndarray
    step: Step
    lists: Mapping[Window, Lists]
    is_fed: bool        # with tokens that the step before samples

    @property
    def bucket(self) -> Bucket:
        """Exactly as large as the step."""
        return Bucket(len(self.token_ids), len(self.sampled), self.step.num_blocks,
                      tuple((len(x.whole), len(x.split), len(x.merged), len(x.rows), x.num_slots)
                            for x in self.lists.values()))


def graph_bucket(bucket: Bucket) -> Bucket:
    """The next larger one that graphs are made for: few different ones, and no row in vain that takes long."""
    rows = _above(bucket.rows) if bucket.rows <= FEW_ROWS else -(-bucket.rows // MANY_ROWS) * MANY_ROWS
    samples = rows if bucket.samples and rows <= FEW_ROWS else _above(bucket.samples)
    return Bucket(rows, samples, _above(bucket.tables, SPLIT_STEP, 256),
                  tuple((_above(whole, SPLIT_STEP), _above(split, SPLIT_STEP, 16), rows if merged else 0,
                         _above(of_items, SPLIT_STEP, 16), _above(slots, 2, 16))
                        for whole, split, merged, of_items, slots in bucket.items))  # fmt: skip


def _above(number: int, step: int = 2, least: int = 1) -> int:
    """0, or the next power of `step` times `least`."""
    size = least
    while size < number:
        size *= step
    return size if number else 0


def make_batch(chunks: Sequence[Chunk], windows: Sequence[Window], tables: Tables, before: Batch | None = None,
               samples: Mapping[int, int] = NO_SAMPLES) -> Batch:
    """`chunks` is not empty and `windows` are different; `before`: the step before this one; `samples`: where, among
    those of that step, a sequence's is. Raises StreamprocError where a chunk goes on from one that is not there.
    """
    token_ids, is_fed = _token_ids(chunks, samples)
    tables.begin_step()
    held = [tables.of(chunk.seq_id, chunk.block_table) for chunk in chunks]
    counts, starts = [len(chunk.token_ids) for chunk in chunks], [chunk.start for chunk in chunks]
    columns = np.array((counts, counts, starts), np.int32)
    ends = columns[1].cumsum(dtype=np.int32)
    columns[0] = ends - columns[1]
    positions = columns[2] if len(token_ids) == len(chunks) else ascending(columns[2], columns[1])
    num_samples = np.array([chunk.num_samples for chunk in chunks], np.int32)
    step = Step(columns, held, windows, tables, before.step if before else None)
    return Batch(token_ids, positions, _cells(held, starts, counts, tables.cut.block_size),
                 ascending(ends - num_samples, num_samples), step,
                 {window: step.lists(window) for window in windows}, is_fed)


def _token_ids(chunks: Sequence[Chunk], samples: Mapping[int, int]) -> tuple[list[int], bool]:
    """Those of all rows, and whether there are any among them that the step before samples."""
    token_ids = [token for chunk in chunks for token in chunk.token_ids]
    if UNTOLD not in token_ids:
        return token_ids, False
    row = 0
    for chunk in chunks:
        if chunk.is_untold:
            if chunk.seq_id not in samples:
                raise StreamprocError("the step that this one goes on from was not carried out")
            token_ids[row] = -1 - samples[chunk.seq_id]
        row += len(chunk.token_ids)
    return token_ids, True


def feed(token_ids: torch.Tensor, samples: torch.Tensor) -> None:
    """Put the tokens of the step before into their places. What is no token there has an error of its own."""
    fed = samples.index_select(0, (-1 - token_ids).clamp_(min=0)).clamp_(min=0)
    torch.where(token_ids < 0, fed, token_ids, out=token_ids)


def _cells(held: Sequence[Table], starts: Sequence[int], counts: Sequence[int], size: int) -> list[int]:
    """Where the rows' keys and values go."""
    found: list[int] = []
    for table, start, count in zip(held, starts, counts, strict=True):
        if count == 1:
            found.append(table.blocks[start // size] * size + start % size)
        else:
            places = np.arange(start, start + count, dtype=np.int32)
            found += (table.numbers[places // size] * size + places % size).tolist()
    return found


@dataclass(frozen=True, slots=True)
class Places:
    """Where a bucket's lists lie in the row of numbers."""

    bucket: Bucket
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.ends[-1]

    def views(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        return [numbers[first:end] for first, end in zip((0, *self.ends), self.ends, strict=False)]


def places(bucket: Bucket) -> Places:
    sizes = [bucket.rows, bucket.rows, bucket.rows, bucket.samples]
    for whole, split, merged, rows, _ in bucket.items:
        sizes += [bucket.rows, whole * FIELDS, split * FIELDS, merged, 3, rows]
    sizes.append(bucket.tables)
    aligned = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    return Places(bucket, tuple(np.cumsum(aligned).tolist()))


def fill(batch: Batch, where: Places, copies: Copies, numbers: torch.Tensor, before: Batch | None = None) -> int:
    """Write the batch, and behind it the sources and destinations of copies, into `numbers`, int32 on the CPU
    -> how many of them, from the first on, the device does not have. before: the batch that it got last, for the same
    places.
    """
    bucket, target = where.bucket, numbers.numpy()
    starts = (0, *where.ends)

    def put(place: int, values: Sequence[int] | np.ndarray) -> None:
        target[starts[place]:starts[place] + len(values)] = values

    target[:starts[4]] = 0
    target[starts[2]:starts[2] + bucket.rows] = NOT_WRITTEN
    put(0, batch.token_ids)
    put(1, batch.positions)
    put(2, batch.cells)
    put(3, batch.sampled)
    place = 4
    for window, lists in batch.lists.items():
        if before is not None and before.lists[window].rows is lists.rows:     # all but the last items are there
            tail = lists.split[-len(lists.merged):].ravel()
            end = starts[place + 2] + lists.split.size
            target[end - tail.size:end] = tail
        else:
            slots = np.zeros(bucket.rows, np.int32)
            slots[lists.merged] = lists.slots
            put(place, slots)
            put(place + 1, lists.whole.ravel())
            put(place + 2, lists.split.ravel())
            put(place + 3, lists.merged)
            put(place + 4, (len(lists.whole), len(lists.split), len(lists.merged)))
            put(place + 5, lists.rows)
        place += 6
    tables = target[starts[place]:starts[place] + batch.step.num_blocks]
    num_numbers: int = starts[place] + batch.step.write_tables(tables, before.step if before else None)
    for place_of, part in enumerate(pairs(where, copies, numbers)):
        part.numpy()[:] = [pair[place_of] for pair in copies]
    return size_with(where, copies) if copies else num_numbers


def pairs(where: Places, copies: Copies, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the sources and the destinations of copies lie, both aligned."""
    first, second = where.size, (where.size + size_with(where, copies)) // 2
    return numbers[first:first + len(copies)], numbers[second:second + len(copies)]


def size_with(where: Places, copies: Copies) -> int:
    """Numbers of the lists and of copies behind them."""
    return where.size + 2 * (-(-len(copies) // ALIGNED) * ALIGNED)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A step on the device: views of one row of numbers."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    sampled: torch.Tensor
    works: Mapping[Window, Work]


def inputs(where: Places, windows: Sequence[Window], numbers: torch.Tensor) -> Inputs:
    bucket, views = where.bucket, where.views(numbers)
    token_ids, positions, cells = (view[:bucket.rows] for view in views[:3])
    works = {}
    for i, (window, sizes) in enumerate(zip(windows, bucket.items, strict=True)):
        num_whole, num_split, num_merged, num_rows, _ = sizes
        slots, whole, split, merged, counts, rows = views[4 + 6 * i:10 + 6 * i]
        works[window] = Work(rows[:num_rows], views[-1], positions, slots, whole[:num_whole * FIELDS].view(-1, FIELDS),
                             split[:num_split * FIELDS].view(-1, FIELDS), merged[:num_merged], counts[:3])
    return Inputs(token_ids, positions, cells, views[3][:bucket.samples], works)
