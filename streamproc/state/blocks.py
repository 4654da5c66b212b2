"""The pool of KV blocks: who may write where. Block ids are plain integers; the bytes live in the engine.

A block is free or held; `share` adds a holder, `release` removes one. The pool is the only writer of these counts.
"""

from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` cells each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many cells."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Blocks with one holder each, or None if there are not that many free now."""
        if num_blocks > len(self._free):
            return None
        block_ids = [self._free.pop() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def share(self, block_ids: Sequence[int]) -> None:
        """One more holder for each of these held blocks."""
        for block_id in block_ids:
            assert self._num_holders[block_id] > 0, f"block {block_id} is free"
            self._num_holders[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One holder less for each; a block without holders is free again."""
        for block_id in reversed(block_ids):  # tail first: the head of a context is reused last
            assert self._num_holders[block_id] > 0, f"block {block_id} is free already"
            self._num_holders[block_id] -= 1
            if not self._num_holders[block_id]:
                self._free.append(block_id)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Every count equals the number of block tables that name the block; nothing leaks, nothing is freed early."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block_id in table:
                expected[block_id] += 1
        assert expected == self._num_holders, "block holders differ from the block tables"
        assert sorted(self._free) == [b for b, n in enumerate(expected) if not n], "free list differs from the counts"
