"""Block tables, kept from step to step as arrays and as numbers of *lines*.

A line is what a table has in one split of the keys. Equal lines of one split have one number, whosever they are: forks
find what they share with their session by comparing numbers. A sequence's table is compared with what it was before
and only what is new of it is converted: most steps bring the same tuple again.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 2**20        # blocks told before all is forgotten: that bounds the memory, and tables are soon told again


@dataclass(frozen=True, slots=True)
class Cut:
    """How keys and rows are cut. Bits depend on the first two alone."""

    key_tile: int
    key_split: int
    block_size: int
    whole_tokens: int  # of one sequence, in a tile of a whole item
    split_tokens: int  # in a tile of a split item
    least_whole: int  # rows of a span that is computed whole

    @property
    def width(self) -> int:
        """Blocks of a line. ValueError: splits that are no whole number of blocks, nor the other way round."""
        if self.key_split % self.block_size and self.block_size % self.key_split:
            raise ValueError(f"splits of {self.key_split} keys in blocks of {self.block_size}")
        return max(self.key_split // self.block_size, 1)

    def blocks_before(self, position: int) -> int:
        """Blocks that the positions below this one lie in."""
        return -(-position // self.block_size)


@dataclass(eq=False, slots=True)
class Table:
    """numbers [blocks], lines [splits]: the last one may be not full, and is then nobody else's. int32"""

    blocks: tuple[int, ...]     # equal ones may come to stand here, and nothing else changes
    numbers: np.ndarray
    lines: np.ndarray


class Tables:
    """Of one pool; one caller at a time."""

    def __init__(self, cut: Cut, null_block: int) -> None:
        self.cut, self.null_block, self.width = cut, null_block, cut.width
        self.contents = np.empty((256, self.width), np.int32)      # [lines, width]; a line never changes
        self._limit = MOST
        self._forget()

    def _forget(self) -> None:
        self._tables: dict[int, Table] = {}
        self._full: dict[tuple[int, bytes], int] = {}
        self._num_lines = self._num_told = 0
        self._is_new = True

    def begin_step(self) -> None:
        """Room is made where too much is kept: this step's tables are told anew, those of steps before hold no more."""
        if self._is_new and self._num_told:     # a step that needs more than the most is not to forget every time
            self._limit, self._is_new = max(MOST, 2 * self._num_told), False
        if self._num_told > self._limit:
            self._forget()

    def of(self, seq_id: int, blocks: Sequence[int]) -> Table:
        """The table of this sequence, which has these blocks now."""
        told, known = tuple(blocks), self._tables.get(seq_id)
        if known is not None:
            if known.blocks is told:
                return known
            if known.blocks != told[:len(known.blocks)]:
                known = None
            elif len(known.blocks) == len(told):
                known.blocks = told
                return known
        found = self._tables[seq_id] = self.table(told, known)
        return found

    def table(self, blocks: tuple[int, ...], known: Table | None = None) -> Table:
        """Of nobody; known: its beginning."""
        num_known = len(known.blocks) if known else 0
        numbers = np.frombuffer(array("i", blocks[num_known:]), np.int32)
        self._num_told += len(numbers) + self.width
        first = num_known * self.cut.block_size // self.cut.key_split       # what is full in `known` stays
        num_full = len(blocks) * self.cut.block_size // self.cut.key_split
        if known:
            numbers = np.concatenate((known.numbers, numbers))
        found = [self._full_line(first + i, line) if first + i < num_full else self._new_line(line)
                 for i, line in enumerate(self._cut(numbers, first))]
        lines = np.array(found, np.int32)
        return Table(blocks, numbers, np.concatenate((known.lines[:first], lines)) if known else lines)

    def _cut(self, numbers: np.ndarray, first: int) -> np.ndarray:
        """[splits from the first on, width] filled up with the null block"""
        size, split = self.cut.block_size, self.cut.key_split
        if size > split:
            return numbers[np.arange(first, len(numbers) * size // split) * split // size, None]
        rest = numbers[first * self.width:]
        filled = np.full((-(-len(rest) // self.width), self.width), self.null_block, np.int32)
        filled.reshape(-1)[:len(rest)] = rest
        return filled

    def _full_line(self, split: int, line: np.ndarray) -> int:
        key = split, line.tobytes()
        number = self._full.get(key)
        if number is None:
            number = self._full[key] = self._new_line(line)
        return number

    def _new_line(self, line: np.ndarray) -> int:
        if self._num_lines == len(self.contents):
            self.contents = np.concatenate((self.contents, np.empty_like(self.contents)))
        self.contents[self._num_lines] = line
        self._num_lines += 1
        return self._num_lines - 1
