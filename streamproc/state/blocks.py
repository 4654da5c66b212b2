"""The pool of KV blocks: who may write where, and which content lies where. Block ids are plain integers; the bytes
live in the engine.

A block is free or held; `share` adds a holder, `release` removes one. The pool is the only writer of these counts.

A full block has a *name*: a digest of all tokens from the start of its sequence to its end, on which its bytes depend.
A sequence that needs a block of that name takes it instead of computing it, from whoever has it: the system prefix of
all sessions, the common head of questions, a prompt that was sent before. A named block keeps its content while it is
free, until it is the one that has been free for longest and somebody needs its cells. (Prefix caching by chained
hashes is vLLM's; Kwon et al. 2023 share blocks of one prompt.)
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = b""  # the name of what comes before the first block


def name_of(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full block, given that of the block before it."""
    return hashlib.blake2b(before + array("i", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """`num_blocks` blocks of `block_size` cells each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, without content
        self._kept: OrderedDict[int, None] = OrderedDict()  # free, named; the longest free first
        self._spent: set[int] = set()  # of those
        self._names: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        # a named block is somebody else's; whether it was spent
        self.on_forget: Callable[[int, bytes, bool], None] = lambda block_id, name, is_spent: None

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._kept)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many cells."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Blocks with one holder each, or None if there are not that many free now."""
        if num_blocks > self.num_free:
            return None
        block_ids = [self._blank.pop() if self._blank else self._forget_oldest() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def _forget_oldest(self) -> int:
        block_id, _ = self._kept.popitem(last=False)
        name = self._names.pop(block_id)
        del self._blocks[name]
        self.on_forget(block_id, name, block_id in self._spent)
        self._spent.discard(block_id)
        return block_id

    def num_enough(self, num_blocks: int, tables: Iterable[Sequence[int]]) -> int | None:
        """How many of these tables, from the first on, let go until so many blocks are free; None: all do not do."""
        return next((i for i, num_free in enumerate(self._freed(tables)) if num_free >= num_blocks), None)

    def most(self, tables: Iterable[Sequence[int]]) -> int:
        """Blocks that are free once all of these tables have let go."""
        return max(self._freed(tables))

    def _freed(self, tables: Iterable[Sequence[int]]) -> Iterator[int]:
        """Blocks that are free now, once the first of these tables has let go, then the second too ..."""
        num_free, left = self.num_free, dict[int, int]()
        yield num_free
        for table in tables:
            for block_id in table:
                left[block_id] = left.get(block_id, self._num_holders[block_id]) - 1
                num_free += not left[block_id]
            yield num_free

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
                if block_id in self._names:
                    self._kept[block_id] = None
                else:
                    self._blank.append(block_id)

    def spend(self, block_ids: Iterable[int]) -> None:
        """Those of these blocks that are free and named are not likely to be needed again: they are the first to be
        somebody else's, and then they are said to be spent.
        """
        for block_id in block_ids:
            if block_id in self._kept:
                self._kept.move_to_end(block_id, last=False)
                self._spent.add(block_id)

    def name(self, block_id: int, name: bytes) -> bool:
        """This held block has, or will have when the next step is done, its final content -> whether it got the name:
        the first block of a name keeps it.
        """
        assert self._num_holders[block_id] > 0, f"block {block_id} is free"
        if name in self._blocks or block_id in self._names:
            return False
        self._blocks[name], self._names[block_id] = block_id, name
        return True

    def is_named(self, block_id: int) -> bool:
        return block_id in self._names

    def look_up(self, name: bytes) -> int | None:
        """The block of this name, if there is one."""
        return self._blocks.get(name)

    def take(self, block_id: int) -> None:
        """One more holder for a named block, held or free."""
        assert block_id in self._names, f"block {block_id} has no name"
        if not self._num_holders[block_id]:
            del self._kept[block_id]
            self._spent.discard(block_id)
        self._num_holders[block_id] += 1

    def unname(self, block_ids: Iterable[int]) -> None:
        """What these blocks should have held was not computed."""
        for block_id in block_ids:
            if name := self._names.pop(block_id, None):
                del self._blocks[name]
                if not self._num_holders[block_id]:
                    del self._kept[block_id]
                    self._spent.discard(block_id)
                    self._blank.append(block_id)

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody needs blocks of these names again: those that are free are blank from now on."""
        block_ids = [self._blocks[name] for name in names if name in self._blocks]
        self.unname([block_id for block_id in block_ids if not self._num_holders[block_id]])

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Every count equals the number of block tables that name the block; nothing leaks, nothing is freed early."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block_id in table:
                expected[block_id] += 1
        assert expected == self._num_holders, "block holders differ from the block tables"
        free = sorted([*self._blank, *self._kept])
        assert free == [b for b, n in enumerate(expected) if not n], "free list differs from the counts"
        assert all(block_id in self._names for block_id in self._kept), "a block is kept without a name"
        assert self._spent <= self._kept.keys(), "a block is spent that is not free"
        assert {block: name for name, block in self._blocks.items()} == self._names, "names and blocks differ"
