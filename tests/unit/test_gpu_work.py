"""A step's lists against the plain ones: every key that a row sees in one item, in the block that its table names."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import plain_lists
import pytest

from streamproc.kernels import tables as tables_module
from streamproc.kernels.tables import Cut, Tables
from streamproc.kernels.work import Lists, Span, Step, make_lists

TILE, SPLIT, NULL = 16, 64, 9999
CUTS = [Cut(TILE, SPLIT, size, 8, 4, 9) for size in (1, 8, 16, 32, 256)]
Ids = tuple[int, ...]
Seen = dict[tuple[int, int], int]       # (row, key) -> block


def packed(sequences: Sequence[tuple[int, int, Ids]]) -> list[Span]:
    """sequences: (start, rows, blocks)"""
    rows = np.cumsum([0, *(num_rows for _, num_rows, _ in sequences)]).tolist()
    return [Span(row, num_rows, start, table)
            for row, (start, num_rows, table) in zip(rows, sequences, strict=False)]


def columns(spans: Sequence[Span]) -> np.ndarray:
    return np.array([span[:3] for span in spans], np.int32).T


def random_sequences(rng: random.Random, cut: Cut, most_rows: int = 20) -> list[tuple[int, int, Ids]]:
    """Some begin with the same blocks, some are another's, longer than they are needed."""
    families = [rng.sample(range(9000), 2 * SPLIT * 5) for _ in range(2)]
    found = []
    for _ in range(rng.randrange(1, 12)):
        start, num_rows = rng.randrange(4 * SPLIT), rng.choice([1, 1, 1, 2, 5, 9, most_rows])
        least, family = -(-(start + num_rows) // cut.block_size), rng.choice(families)
        shared = rng.choice([0, least // 2, least])
        table = (*family[:shared], *rng.sample(range(9000), least - shared + rng.randrange(3)))
        found.append((start, num_rows, table))
    return found


def coverage(lists: Lists, spans: Sequence[Span], window: int | None, blocks: np.ndarray, cut: Cut) -> Seen:
    """What the kernel reads unhidden: each once, and of tiles without a mask every key is seen."""
    positions = {span.row + i: span.start + i for span in spans for i in range(span.num_rows)}
    seen: Seen = {}
    for first, num_rows, table, first_tile, seen_by_all, end_tile in [*lists.whole, *lists.split]:
        assert first_tile <= seen_by_all <= end_tile
        for row in lists.rows[first:first + num_rows]:
            for key in range(first_tile * TILE, end_tile * TILE):
                block = int(blocks[table + key // cut.block_size])
                is_seen = key <= positions[row] and (window is None or key > positions[row] - window)
                assert is_seen or key >= seen_by_all * TILE, "a tile that all see, but not this row"
                if is_seen:
                    assert (row, key) not in seen, "a key read twice"
                    seen[int(row), key] = block
    return seen


def expected(spans: Sequence[Span], window: int | None, cut: Cut) -> Seen:
    return {(span.row + i, key): span.table[key // cut.block_size]
            for span in spans for i in range(span.num_rows)
            for key in range(0 if window is None else max(0, span.start + i - window + 1), span.start + i + 1)}


def check_slots(lists: Lists, spans: Sequence[Span], window: int | None, cut: Cut) -> None:
    """Every split of every row that is merged has a place of its own."""
    positions = {span.row + i: span.start + i for span in spans for i in range(span.num_rows)}
    taken = [int(slot) + split for row, slot in zip(lists.merged, lists.slots, strict=True)
             for split in range(0 if window is None else max(0, positions[row] - window + 1) // SPLIT,
                                positions[row] // SPLIT + 1)]
    assert sorted(taken) == list(range(lists.num_slots))
    assert sorted(lists.merged) == [span.row + i for span in spans if span.num_rows < cut.least_whole
                                    for i in range(span.num_rows)]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"blocks of {cut.block_size}")
@pytest.mark.parametrize("seed", range(12))
def test_lists_cover_what_the_plain_ones_do(seed: int, cut: Cut) -> None:
    rng = random.Random(seed)
    cut = replace(cut, split_tokens=rng.choice([1, 4, 16]))
    window = rng.choice([None, None, 1, 5, 40, 100])
    spans = packed(random_sequences(rng, cut))
    found, plain = make_lists(spans, window, cut, NULL), plain_lists.make_lists(spans, window, cut, NULL)
    wanted = expected(spans, window, cut)
    assert coverage(found, spans, window, np.concatenate(found.tables), cut) == wanted
    rows = np.array(plain.rows)
    assert coverage(replace(found, rows=rows, whole=plain.whole, split=plain.split), spans, window,
                    np.concatenate(plain.tables), cut) == wanted
    check_slots(found, spans, window, cut)
    assert found.num_slots == plain.num_slots
    assert len(found.rows) == len(plain.rows)
    assert sorted(map(tuple, found.whole[:, [1, 3, 4, 5]])) == sorted((item[1], *item[3:]) for item in plain.whole)
    if cut.split_tokens == 1:       # who is in a tile with whom is the only thing that is free
        assert sorted(map(tuple, found.split[:, [1, 3, 4, 5]])) == sorted((item[1], *item[3:]) for item in plain.split)
    assert len(found.split) == len(plain.split)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"blocks of {cut.block_size}")
@pytest.mark.parametrize("seed", range(6))
def test_steps_that_take_over_what_is_the_same(seed: int, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences go on, end, begin, are cut back, and get other blocks in their middle; numbers of sequences come again.
    Every step's lists are what its own tables say, whatever is kept of the steps before.
    """
    rng = random.Random(seed)
    monkeypatch.setattr(tables_module, "MOST", rng.choice([0, 3000, 2**20]))
    tables, windows, before = Tables(cut, NULL), rng.choice([[None], [None, 40], [5, 40]]), None
    living = dict(enumerate(random_sequences(rng, cut, most_rows=8)))
    room, blocks = np.full((2, 2**16), -1, np.int32)
    for _ in range(25):
        spans = packed(list(living.values()))
        tables.begin_step()
        held = [tables.of(seq_id, table) for seq_id, (_, _, table) in living.items()]
        step = Step(columns(spans), held, windows, tables, before)
        num_new = step.write_tables(room[:step.num_blocks], before)
        blocks[:num_new] = room[:num_new]       # as it comes to the device
        for window in windows:
            lists = step.lists(window)
            assert coverage(lists, spans, window, blocks, cut) == expected(spans, window, cut)
            check_slots(lists, spans, window, cut)
        before = step
        living = {seq_id: changed(rng, cut, *sequence) for seq_id, sequence in living.items()}
        if rng.random() < 0.2:
            living[rng.randrange(20)] = rng.choice(random_sequences(rng, cut))
        if rng.random() < 0.1 and len(living) > 1:
            del living[rng.choice(list(living))]


def test_until_a_sequence_comes_to_its_next_split_what_is_behind_stays() -> None:
    tables, before, kept = Tables(CUTS[1], NULL), None, []
    blocks = tuple(range(100))
    for start in range(2 * SPLIT, 4 * SPLIT):
        held = [tables.of(0, blocks), tables.of(1, blocks[::-1])]
        step = Step(np.array([(0, 1), (1, 2), (start, 3 * SPLIT)], np.int32), held, [None], tables, before)
        lists = step.lists(None)
        kept.append(before is not None and step.reads is before.reads)
        assert len(lists.split) == 4 + start // SPLIT + 1
        before = step
    assert [i for i, is_same in enumerate(kept) if not is_same] == [0, SPLIT]


def changed(rng: random.Random, cut: Cut, start: int, num_rows: int, table: Ids) -> tuple[int, int, Ids]:
    """The sequence's next step."""
    what = rng.random()
    if what < 0.03:
        start = rng.randrange(start + 1)
        table = table[:-(-(start + num_rows) // cut.block_size)]
    elif what < 0.06:
        i = rng.randrange(len(table))
        table = (*table[:i], rng.randrange(9000), *table[i + 1:])
    else:
        start += num_rows
    missing = -(-(start + num_rows) // cut.block_size) - len(table)
    if missing > 0:
        table = (*table, *rng.sample(range(9000), missing))
    return start, num_rows, tuple(list(table)) if what > 0.5 else table


def test_forks_upload_their_sessions_table_once() -> None:
    cut = CUTS[1]
    shared = tuple(range(4 * SPLIT // 8))
    spans = packed([(4 * SPLIT + i, 1, (*shared, 1000 + i)) for i in range(8)])
    lists = make_lists(spans, None, cut, NULL)
    assert len(np.concatenate(lists.tables)) == len(shared) + 8 * SPLIT // 8
    assert len(lists.split) == 4 * 2 + 8        # tiles of four rows; then every fork's own


def test_blocks_that_no_row_reaches_are_the_null_block() -> None:
    cut = CUTS[1]
    spans = packed([(3, 2, tuple(range(100, 108))), (0, 17, tuple(range(200, 220)))])
    found = np.concatenate(make_lists(spans, None, cut, NULL).tables).tolist()
    assert found == [100, *[NULL] * 7, 200, 201, 202, NULL]     # a line of one split; whole tiles


def test_a_table_is_told_again_only_where_it_is_another() -> None:
    tables = Tables(CUTS[1], NULL)
    blocks = tuple(range(20))
    first = tables.of(7, blocks)
    assert tables.of(7, blocks) is first
    same = tables.of(7, tuple(list(blocks)))
    assert same.numbers is first.numbers
    longer = tables.of(7, (*blocks, 50))
    assert longer.lines[:2].tolist() == first.lines[:2].tolist()
    assert longer.numbers.tolist() == [*blocks, 50]
    other = tables.of(7, (*blocks[:9], 999, *blocks[10:]))
    assert other.lines[0] == first.lines[0]
    assert other.lines[1] != first.lines[1]


def test_what_tables_keep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "MOST", 1000)
    tables = Tables(CUTS[1], NULL)
    for step in range(300):
        tables.begin_step()
        tables.of(step, tuple(range(step, step + 50)))
    assert len(tables._tables) < 50
    assert len(tables.contents) <= 512
    blocks = [tuple(range(i, i + 50)) for i in range(40)]
    found = []
    for _ in range(8):      # a step that needs more is not to tell all of it in every step
        tables.begin_step()
        found.append([tables.of(i, each) for i, each in enumerate(blocks)])
    assert found[-1] == found[-2] == found[-3]      # the same objects


@pytest.mark.parametrize(("split", "block_size"), [(64, 48), (64, 96)])
def test_blocks_that_do_not_fit_the_splits(split: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="splits of 64 keys"):
        Tables(Cut(TILE, split, block_size, 8, 4, 9), NULL)
