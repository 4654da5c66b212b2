"""A plan's chunks as one packed batch: tensors that are built once per step, not once per layer.

    rows      [chunk 0 | chunk 1 | ... | padding]     a multiple of `row_multiple`
    spans     a chunk's rows, cut into at most SPAN_ROWS; spans of equal size are attended together. Under a sliding
              window they are cut at absolute positions, where a row's keys lie at the same places of a short tile
              whatever the chunk: few keys are read and the bits are the row's own.
    sampled   the rows that are sampled, chunk after chunk, padded to the multiple too

Padding rows repeat token 0 at position 0; their K and V are not written and nobody reads what they give.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from streamproc.engine.attention import KEY_TILE, PagedStep, Reach, SpanGroup
from streamproc.engine.kv_cache import KVCache
from streamproc.schedule.plan import Chunk

SPAN_ROWS = 128            # query rows attended together: bounds the mask, skips keys that no row of a span sees
WINDOW_ROWS = 64           # query rows attended together under a sliding window; at least one block
MAX_GROUP_KEYS = 16_384    # keys gathered at once, over all spans of a group; one span may exceed it


@dataclass(frozen=True, slots=True)
class Geometry:
    """What shapes a batch besides the plan."""

    num_heads: int
    windows: frozenset[int | None]     # the different sliding windows of the layers; None is full attention
    row_multiple: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one step."""

    token_ids: torch.Tensor        # [1, rows]
    positions: torch.Tensor        # [1, rows]
    sampled_rows: torch.Tensor     # [padded number of samples]
    num_samples: int
    step: PagedStep


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive query rows of one chunk."""

    row: int                       # of the packed batch
    num_rows: int
    start: int                     # position of the first row
    block_table: tuple[int, ...]

    def keys(self, window: int | None, unit: int) -> range:
        """Positions of the keys to gather: whole tiles; under a window from a place that follows from `unit` alone."""
        if window is None:
            return range(0, -(-(self.start + self.num_rows) // KEY_TILE) * KEY_TILE)
        first = self.start // unit * unit
        return range(max(0, first - -(-(window - 1) // unit) * unit), first + unit)


def build_batch(chunks: Sequence[Chunk], kv: KVCache, geometry: Geometry) -> Batch:
    """The tensors of these chunks, on the cache's device. `chunks` is not empty."""
    check_chunks(chunks, kv)
    builder, device = _Builder(kv, geometry), kv.blocks.device
    token_ids = [token for chunk in chunks for token in chunk.token_ids]
    positions = [chunk.start + i for chunk in chunks for i in range(len(chunk.token_ids))]
    num_rows = len(token_ids)
    padding = [0] * (-num_rows % geometry.row_multiple)
    reaches = {window: builder.reach(chunks, window, num_rows + len(padding)) for window in geometry.windows}
    rows = _sampled(chunks)
    return Batch(torch.tensor([token_ids + padding], device=device), torch.tensor([positions + padding], device=device),
                 torch.tensor(rows + rows[:1] * (-len(rows) % geometry.row_multiple), dtype=torch.int64, device=device),
                 len(rows), PagedStep(kv, num_rows, builder.write_cells(chunks), reaches))


def check_chunks(chunks: Sequence[Chunk], kv: KVCache) -> None:
    """A plan that breaks these is a bug of whoever made it."""
    assert len({chunk.seq_id for chunk in chunks}) == len(chunks), "two chunks of one sequence"
    size = kv.layout.block_size
    for chunk in chunks:
        num_tokens = len(chunk.token_ids)
        assert num_tokens >= chunk.num_samples and num_tokens, "a chunk with too few tokens"  # noqa: PT018
        assert chunk.start + num_tokens <= len(chunk.block_table) * size, "a chunk without cells"
        kv.check(chunk.seq_id, chunk.block_table)


def cut_spans(chunks: Iterable[Chunk], unit: int | None = None) -> Iterable[Span]:
    """Runs of at most SPAN_ROWS rows; with a unit they end at its multiples, counted from position 0."""
    row = 0
    for chunk in chunks:
        i = 0
        while i < len(chunk.token_ids):
            most = unit - (chunk.start + i) % unit if unit else SPAN_ROWS
            num_rows = min(most, len(chunk.token_ids) - i)
            yield Span(row + i, num_rows, chunk.start + i, chunk.block_table)
            i += num_rows
        row += len(chunk.token_ids)


def _sampled(chunks: Iterable[Chunk]) -> list[int]:
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        end += len(chunk.token_ids)
        rows += range(end - chunk.num_samples, end)
    return rows


def window_unit(block_size: int) -> int:
    """Rows that are attended together under a window: whole blocks."""
    return max(WINDOW_ROWS, block_size)


class _Builder:
    """Index tensors into one cache."""

    def __init__(self, kv: KVCache, geometry: Geometry) -> None:
        self.kv = kv
        self.geometry = geometry
        self.device = kv.blocks.device
        self.unit = window_unit(kv.layout.block_size)

    def write_cells(self, chunks: Iterable[Chunk]) -> torch.Tensor:
        """[2 * kv_heads * rows] the cells of all rows in layer 0, K of all heads first."""
        size = self.kv.layout.block_size
        cells = [(chunk.block_table[position // size] * self.kv.block_stride * size + position % size)
                 for chunk in chunks for position in range(chunk.start, chunk.start + len(chunk.token_ids))]
        parts = torch.arange(self.kv.layer_stride)[:, None] * size
        return (parts + torch.tensor(cells)).flatten().to(self.device)

    def reach(self, chunks: Sequence[Chunk], window: int | None, num_packed: int) -> Reach:
        """The chunks' spans grouped by size, in calls of bounded size."""
        by_size: dict[tuple[int, int], list[Span]] = defaultdict(list)
        for span in cut_spans(chunks, None if window is None else self.unit):
            by_size[self._padded(span.num_rows), len(span.keys(window, self.unit))].append(span)
        groups: list[SpanGroup] = []
        order, end = [0] * num_packed, 0
        for (rows, num_keys), members in by_size.items():
            per_call = max(1, MAX_GROUP_KEYS // num_keys)
            for i in range(0, len(members), per_call):
                groups.append(self._group(members[i:i + per_call], window, rows))
            for span in members:
                order[span.row:span.row + span.num_rows] = range(end, end + span.num_rows)
                end += rows
        return Reach(tuple(groups), torch.tensor(order, device=self.device))

    def _padded(self, num_rows: int) -> int:
        """Few different sizes, so that spans find company."""
        rows = self.geometry.row_multiple
        while rows < num_rows:
            rows *= 2
        return rows

    def _group(self, spans: Sequence[Span], window: int | None, rows: int) -> SpanGroup:
        offsets = torch.arange(rows)
        last = torch.tensor([[span.num_rows - 1] for span in spans])
        within = torch.minimum(offsets, last)                                        # [spans, rows]
        query_rows = torch.tensor([[span.row] for span in spans]) + within
        positions = torch.tensor([[span.start] for span in spans]) + within
        return SpanGroup(len(spans), query_rows.flatten().to(self.device), self._key_runs(spans, window),
                         self._mask(positions, [span.keys(window, self.unit) for span in spans], window))

    def _key_runs(self, spans: Sequence[Span], window: int | None) -> torch.Tensor:
        tables = torch.tensor([self._blocks(span, span.keys(window, self.unit)) for span in spans])
        parts = torch.arange(self.kv.layer_stride)
        runs = tables[:, None, :] * self.kv.block_stride + parts[:, None]             # [spans, 2 * kv_heads, blocks]
        return runs.flatten().to(self.device)

    def _blocks(self, span: Span, keys: range) -> list[int]:
        """The blocks of these positions, filled up with the null block."""
        size = self.kv.layout.block_size
        end = -(-(span.start + span.num_rows) // size)
        blocks = list(span.block_table[keys.start // size:min(end, keys.stop // size)])
        return blocks + [self.kv.null_block] * (len(keys) // size - len(blocks))

    def _mask(self, positions: torch.Tensor, keys: Sequence[range], window: int | None) -> torch.Tensor:
        """[spans, 1, groups * rows, keys] what each row sees: 0 or -inf."""
        spans, rows, num_keys = len(keys), positions.shape[1], len(keys[0])
        first = torch.tensor([[span_keys.start] for span_keys in keys])
        key = (first + torch.arange(num_keys))[:, None, :]
        position = positions[:, :, None]
        hidden = key > position
        if window is not None:
            hidden |= key <= position - window
        mask = torch.zeros(hidden.shape, dtype=self.kv.layout.dtype).masked_fill_(hidden, float("-inf"))
        num_groups = self.geometry.num_heads // self.kv.layout.num_kv_heads
        mask = mask[:, None, None].expand(spans, 1, num_groups, rows, num_keys)
        return mask.reshape(spans, 1, num_groups * rows, num_keys).to(self.device)
