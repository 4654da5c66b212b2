"""What an attention's lists are, item by item in plain Python: whole tables, and splits compared by bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamproc.kernels.work import Cut, Span


@dataclass(slots=True)
class Lists:
    """A Work in the making, on the CPU."""

    rows: list[int] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    whole: list[tuple[int, ...]] = field(default_factory=list)
    split: list[tuple[int, ...]] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    num_slots: int = 0
    num_table_blocks: int = 0


def make_lists(spans: Sequence[Span], window: int | None, cut: Cut, null_block: int) -> Lists:
    """The items of these spans under one window."""
    lists = Lists()
    tables = [lists.num_table_blocks] * len(spans)
    for i, span in enumerate(spans):
        tables[i] = _add_table(lists, span, cut, null_block)
    few = [i for i, span in enumerate(spans) if span.num_rows < cut.least_whole]
    for i, span in enumerate(spans):
        if span.num_rows >= cut.least_whole:
            _add_whole(lists, span, tables[i], window, cut)
    for i in few:
        _add_slots(lists, spans[i], window, cut)
    for split, members in _by_split([spans[i] for i in few], [tables[i] for i in few], lists, window, cut):
        _add_split(lists, members, split, window, cut)
    return lists


def _add_table(lists: Lists, span: Span, cut: Cut, null_block: int) -> int:
    """-> where the span's blocks begin in the tables."""
    end = span.start + span.num_rows
    num_blocks = cut.blocks_before(end)
    padded = np.full(cut.blocks_before(-(-end // cut.key_tile) * cut.key_tile), null_block, np.int32)
    padded[:num_blocks] = span.table[:num_blocks]
    lists.tables.append(padded)
    first = lists.num_table_blocks
    lists.num_table_blocks += len(padded)
    return first


def _first_key(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _item(lists: Lists, rows: Sequence[int], reach: tuple[int, int], table: int, window: int | None,
          tiles: tuple[int, int], key_tile: int) -> tuple[int, ...]:
    """`reach`: positions of the first and the last of the rows; `tiles`: no others, whatever the rows see."""
    lowest, highest = reach
    first = max(tiles[0], _first_key(lowest, window) // key_tile)
    end = min(tiles[1], highest // key_tile + 1)
    seen_by_all = (lowest + 1) // key_tile if window is None else first
    item = (len(lists.rows), len(rows), table, first, min(max(seen_by_all, first), end), end)
    lists.rows += rows
    return item


def _add_whole(lists: Lists, span: Span, table: int, window: int | None, cut: Cut) -> None:
    for i in range(0, span.num_rows, cut.whole_tokens):
        num_rows = min(cut.whole_tokens, span.num_rows - i)
        first = span.start + i
        lists.whole.append(_item(lists, range(span.row + i, span.row + i + num_rows), (first, first + num_rows - 1),
                                 table, window, (0, 2**30), cut.key_tile))


def _add_slots(lists: Lists, span: Span, window: int | None, cut: Cut) -> None:
    for i in range(span.num_rows):
        position = span.start + i
        first = _first_key(position, window) // cut.key_split
        lists.slots[span.row + i] = lists.num_slots - first
        lists.num_slots += position // cut.key_split - first + 1
        lists.merged.append(span.row + i)


def _by_split(spans: Sequence[Span], tables: Sequence[int], lists: Lists, window: int | None,
              cut: Cut) -> Iterator[tuple[int, list[tuple[Span, int]]]]:
    """Every split with the spans that see the same blocks in it, and their tables."""
    groups: dict[tuple[int, bytes], list[tuple[Span, int]]] = {}
    flat = np.concatenate(lists.tables) if lists.tables else np.empty(0, np.int32)
    for span, table in zip(spans, tables, strict=True):
        last = (span.start + span.num_rows - 1) // cut.key_split
        for split in range(_first_key(span.start, window) // cut.key_split, last + 1):
            first, end = split * cut.key_split // cut.block_size, cut.blocks_before((split + 1) * cut.key_split)
            # the last split, which may end before others' does, is the sequence's own
            blocks = flat[table + first:table + end].tobytes() if split < last else table.to_bytes(8, "little")
            groups.setdefault((split, blocks), []).append((span, table))
    for (split, _), members in groups.items():
        yield split, members


def _add_split(lists: Lists, members: Sequence[tuple[Span, int]], split: int, window: int | None, cut: Cut) -> None:
    """Tiles of the members' rows that see something of this split."""
    first_key, end_key = split * cut.key_split, (split + 1) * cut.key_split
    rows: list[tuple[int, int]] = []
    for span, _ in members:
        first = max(span.start, first_key)
        end = span.start + span.num_rows if window is None else min(span.start + span.num_rows, end_key + window - 1)
        rows += [(span.row + position - span.start, position) for position in range(first, end)]
    tiles = first_key // cut.key_tile, end_key // cut.key_tile
    for i in range(0, len(rows), cut.split_tokens):
        part = rows[i:i + cut.split_tokens]
        positions = [position for _, position in part]
        lists.split.append(_item(lists, [row for row, _ in part], (min(positions), max(positions)), members[0][1],
                                 window, tiles, cut.key_tile))
