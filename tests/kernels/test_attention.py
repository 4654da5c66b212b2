"""Attention over items against plain attention in float64, and the bits of its rows against each other."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from guarded import guarded, poisoned

from streamproc.kernels.attention import attend
from streamproc.kernels.attention_configs import SMALL
from streamproc.kernels.reference import attend as reference_attend
from streamproc.kernels.reference import paged_attention, quantized
from streamproc.kernels.work import FIELDS, Scratch, Span, Work, make_lists, to_work

SIZES = SMALL
BLOCK_SIZE, NUM_BLOCKS, LAYER = 8, 64, 1
TILE, SPLIT = SIZES.key_tile, SIZES.key_split
WHOLE, SPLITS = 1, 10**6        # least_whole: every span one way
LENGTHS = ((0, 1), (7, 1), (8, 1), (9, 2), (TILE - 1, 3), (SPLIT - 1, 1), (SPLIT, 1), (SPLIT + 1, 1), (SPLIT - 2, 5),
           (2 * SPLIT, 2), (3, 21), (SPLIT + 13, 10))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class World:
    """Cells of one pool, spans over them, and their queries. Forks share the blocks of one session."""

    def __init__(self, heads: tuple[int, int] = (4, 2), head_dim: int = 32, dtype: torch.dtype = torch.float32,
                 codes: torch.dtype | None = None, lengths: Sequence[tuple[int, int]] = LENGTHS, num_shared: int = 0,
                 block_size: int = BLOCK_SIZE, num_blocks: int = NUM_BLOCKS) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        self.heads, self.dim, self.block_size, self.num_blocks = heads, head_dim, block_size, num_blocks
        cells = torch.randn(num_blocks + 1, 2, 2, heads[1], block_size, head_dim, generator=generator)
        cells[-1] = 0
        self.scales = None
        if codes is None:
            self.kv = guarded(cells.to(dtype))
            self.cells = self.kv.cpu()
        else:
            held, scales = quantized(cells, codes)
            self.cells = held.float() * scales[..., None]
            self.kv, self.scales = guarded(held.view(torch.int8)).view(codes), guarded(scales)
        free = random.Random(0).sample(range(num_blocks), num_blocks)
        shared, taken = free[:num_shared], num_shared
        self.spans: list[Span] = []
        row = 0
        for start, num_rows in lengths:
            num_own = -(-(start + num_rows) // block_size) - num_shared
            assert num_own >= 0
            table = (*shared, *(free[(taken + i) % num_blocks] for i in range(num_own)))
            self.spans.append(Span(row, num_rows, start, table))
            taken += num_own
            row += num_rows
        self.query = torch.randn(row, heads[0], head_dim, generator=generator).to(dtype)

    def run(self, spans: Sequence[Span] | None = None, window: int | None = None, softcap: float | None = None,
            least_whole: int = SIZES.least_whole, spare: int = 0) -> torch.Tensor:
        """Of these spans, packed one behind the other; spare: so many items of nobody behind each list."""
        spans = self.spans if spans is None else spans
        rows = [span.row + i for span in spans for i in range(span.num_rows)]
        packed, positions = [], []
        for span in spans:
            packed.append(span._replace(row=len(positions)))
            positions += range(span.start, span.start + span.num_rows)
        sizes = replace(SIZES, least_whole=least_whole)
        lists = make_lists(packed, window, sizes.cut(self.block_size, self.heads[0] // self.heads[1]), self.num_blocks)
        work = guarded_work(to_work(lists, positions, torch.device("cpu")), spare)
        scratch = Scratch(poisoned(lists.num_slots + 1, self.heads[0], 2, dtype=torch.float32),
                          poisoned(lists.num_slots + 1, self.heads[0], self.dim, dtype=torch.float32))
        out = poisoned(len(rows), self.heads[0], self.dim, dtype=self.query.dtype)
        found = attend(guarded(self.query[rows]), self.kv, self.scales, LAYER, work, scratch, sizes, self.dim ** -0.5,
                       window, softcap, out)
        return found.cpu()

    def expected(self, span: Span, window: int | None) -> torch.Tensor:
        query = self.query[span.row:span.row + span.num_rows]
        return paged_attention(query, self.cells[:, LAYER], span.table, span.start, window)

    def check(self, found: torch.Tensor, window: int | None = None) -> None:
        expected = torch.cat([self.expected(span, window) for span in self.spans])
        tolerance = TOLERANCE[self.query.dtype]
        assert torch.allclose(found.double(), expected, atol=tolerance, rtol=tolerance)


def guarded_work(work: Work, spare: int) -> Work:
    """Between bands; items and rows that nobody may look at hold numbers far outside of everything."""
    far = 2**30
    nobodys = torch.full((spare, FIELDS), far, dtype=torch.int32)
    items = (torch.cat([part, nobodys]) for part in (work.whole, work.split))
    merged = torch.cat([work.merged, torch.full((spare,), far, dtype=torch.int32)])
    rest = (work.rows, work.tables, work.positions, work.slots)
    return Work(*map(guarded, rest), *map(guarded, items), guarded(merged), guarded(work.counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, TILE, 50])
def test_rows_are_what_plain_attention_gives(window: int | None, dtype: torch.dtype) -> None:
    world = World(dtype=dtype)
    world.check(world.run(window=window, spare=2), window)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_heads_of_any_size(head_dim: int) -> None:
    world = World(head_dim=head_dim, dtype=torch.float16, lengths=((SPLIT - 1, 3), (5, 12)))
    world.check(world.run())


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (9, 3), (8, 1), (3, 3)])
def test_any_number_of_query_heads_for_a_head_of_keys(heads: tuple[int, int]) -> None:
    world = World(heads=heads, lengths=((SPLIT, 3), (0, 11)))
    world.check(world.run())


@pytest.mark.parametrize("block_size", [1, 4, TILE, 2 * TILE, 2 * SPLIT])
@pytest.mark.parametrize("window", [None, 50])
def test_blocks_of_any_size(window: int | None, block_size: int) -> None:
    """Smaller than a tile, as large, larger, and larger than a split."""
    world = World(lengths=((SPLIT + 3, 2), (0, 11), (SPLIT - 1, 1)), block_size=block_size, num_blocks=200)
    world.check(world.run(window=window), window)


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_keys_and_values_may_be_codes(codes: torch.dtype) -> None:
    world = World(codes=codes, lengths=((SPLIT + 3, 2), (0, 11), (TILE, 1)))
    world.check(world.run())


@pytest.mark.parametrize("window", [None, 50])
def test_capped_scores(window: int | None) -> None:
    """Against the reference, which is itself held to plain attention where nothing is capped."""
    world = World(lengths=((SPLIT + 3, 2), (2, 11)))
    sizes = SIZES.cut(BLOCK_SIZE, 2)
    positions = [span.start + i for span in world.spans for i in range(span.num_rows)]
    work = to_work(make_lists(world.spans, window, sizes, NUM_BLOCKS), positions, torch.device("cpu"))
    empty = Scratch(torch.empty(0), torch.empty(0))
    arguments = (world.query, world.cells, None, LAYER, work, empty, SIZES, world.dim ** -0.5, window)
    world.check(reference_attend(*arguments), window)
    assert torch.allclose(world.run(window=window, softcap=0.7), reference_attend(*arguments, 0.7), atol=2e-5)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_bits_are_its_own(window: int | None, dtype: torch.dtype) -> None:
    """Alone, in company, in one chunk or in pieces, by one program or by one for each split."""
    world = World(dtype=dtype, num_shared=0)
    together = world.run(window=window)
    for span in world.spans:
        rows = together[span.row:span.row + span.num_rows]
        for least_whole in (WHOLE, SPLITS):
            assert torch.equal(world.run([span], window, least_whole=least_whole), rows)
    long = world.spans[-1]
    whole = together[long.row:]
    for cut in (1, 3, 4):
        pieces = [Span(long.row + i, min(cut, long.num_rows - i), long.start + i, long.table)
                  for i in range(0, long.num_rows, cut)]
        assert torch.equal(world.run(pieces, window), whole)


@pytest.mark.parametrize("window", [None, 70])
def test_forks_read_their_sessions_keys_together_and_give_the_same_bits(window: int | None) -> None:
    num_shared = 2 * SPLIT // BLOCK_SIZE + 1        # two whole splits and the beginning of a third
    start = num_shared * BLOCK_SIZE
    lengths = [(start + i, 1 + i % 3) for i in range(6)] + [(start, 12)]
    world = World(lengths=lengths, num_shared=num_shared)
    together = world.run(window=window)
    world.check(together, window)
    sizes = SIZES.cut(BLOCK_SIZE, 2)
    few = [span for span in world.spans if span.num_rows < sizes.least_whole]
    lists = make_lists(few, None, sizes, NUM_BLOCKS)
    num_rows = sum(span.num_rows for span in few)
    tiles_of_shared = -(-num_rows // sizes.split_tokens)
    assert len(lists.split) == 2 * tiles_of_shared + len(few)
    for span in world.spans:
        assert torch.equal(world.run([span], window), together[span.row:span.row + span.num_rows])


@pytest.mark.parametrize("codes", [None, torch.int8], ids=str)
def test_what_was_left_behind_the_last_row_is_of_no_effect(codes: torch.dtype | None) -> None:
    """Cells that nobody has written yet may hold whatever their block held before."""
    world = World(lengths=((SPLIT + 3, 2),), codes=codes)
    before = world.run()
    span, end = world.spans[0], SPLIT + 5
    left = world.scales if world.scales is not None else world.kv
    left[span.table[end // BLOCK_SIZE], :, :, :, end % BLOCK_SIZE:] = float("nan")
    assert torch.equal(world.run(), before)


def test_a_restored_session_has_the_same_bits_in_other_blocks() -> None:
    world = World(lengths=((SPLIT + 20, 4),))
    before = world.run()
    span = world.spans[0]
    others = [block for block in range(NUM_BLOCKS) if block not in span.table][:len(span.table)]
    world.kv[others] = world.kv[list(span.table)].clone()
    assert torch.equal(world.run([span._replace(table=tuple(others))]), before)


@pytest.mark.parametrize("seed", range(40))
def test_every_key_that_a_row_sees_is_in_one_item(seed: int) -> None:
    rng = random.Random(seed)
    window = rng.choice([None, 1, 5, 40, 100])
    cut = SIZES.cut(BLOCK_SIZE, rng.choice([1, 2, 4]))
    spans, positions = [], []
    shared = tuple(range(rng.randrange(12)))
    for _ in range(rng.randrange(1, 9)):
        start, num_rows = rng.randrange(3 * SPLIT), rng.choice([1, 2, 5, 20])
        table = [*shared, *rng.sample(range(100, 2000), 60)]
        spans.append(Span(len(positions), num_rows, start, table))
        positions += range(start, start + num_rows)
    lists = make_lists(spans, window, cut, 9999)
    tables = [block for table in lists.tables for block in table.tolist()]
    seen: dict[tuple[int, int], int] = {}
    for first, num_rows, table, first_tile, seen_by_all, end_tile in [*lists.whole, *lists.split]:
        assert first_tile <= seen_by_all <= end_tile
        for row in lists.rows[first:first + num_rows]:
            span = max((each for each in spans if each.row <= row), key=lambda each: each.row)
            for key in range(first_tile * TILE, end_tile * TILE):
                is_seen = key <= positions[row] and (window is None or key > positions[row] - window)
                assert is_seen or key >= seen_by_all * TILE, "a tile that all see, but not this row"
                if is_seen:
                    seen[row, key] = seen.get((row, key), 0) + 1
                    block = tables[table + key // BLOCK_SIZE]
                    assert block == span.table[key // BLOCK_SIZE]
    expected = {(row, key) for row, position in enumerate(positions)
                for key in range(0 if window is None else max(0, position - window + 1), position + 1)}
    assert seen == dict.fromkeys(expected, 1)

