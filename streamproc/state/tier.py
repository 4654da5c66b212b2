"""Blocks outside the pool, by name (blocks.py): those that had to leave it, in host memory, and those of a shelf that
is further away, such as a snapshot.

leaving   the pool gives a named block to somebody else: the next step copies its bytes out before it writes there
here      the bytes are in host memory: a step copies them into a block instead of computing it
coming    asked of the shelf: whoever needs the block next waits for it, which is quicker than to compute it
spare     of a partition that is somebody else's, in memory that is not needed for what is ours (spare.py)
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from streamproc.state.spare import Spare

Bytes = Any  # of one block, as a runner has copied them out; nobody looks inside


class Shelf(Protocol):
    """Where blocks lie that are not in memory."""

    def has(self, name: bytes) -> bool: ...

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Bytes]]":
        """Those of these blocks that can be read; returns at once."""
        ...


class Tier:
    """`most_blocks` blocks that left the pool, the longest unused ones go first; 0: none are kept.

    Of a shelf, at most `most_coming` blocks are on their way at a time; a step copies at most `most_loads` in.
    """

    def __init__(self, most_blocks: int = 0, shelf: Shelf | None = None, most_coming: int = 256, most_loads: int = 256):
        self.shelf = shelf
        self._spare = Spare()
        self.most_loads = most_loads
        self.num_loaded = 0  # blocks that were not computed thanks to this
        self._most_blocks, self._most_coming = most_blocks, most_coming
        self._here: OrderedDict[bytes, Bytes] = OrderedDict()
        self._coming: set[bytes] = set()
        self._missing: set[bytes] = set()  # the shelf promised them, and could not read them
        self._fetches: list[tuple[frozenset[bytes], Future[Mapping[bytes, Bytes]]]] = []
        self._leaving: list[tuple[int, bytes]] = []

    @property
    def is_empty(self) -> bool:
        return not self._here and self.shelf is None

    @property
    def num_coming(self) -> int:
        return len(self._coming)

    def has(self, name: bytes) -> bool:
        """Whether this block need not be computed."""
        return name in self._here or name in self._coming or name in self._spare or self._is_on_shelf(name)

    def is_here(self, name: bytes) -> bool:
        """Whether it is in memory as one of ours. From any thread."""
        return name in self._here

    def get(self, name: bytes) -> Bytes | None:
        """The bytes, if they are in memory."""
        data = self._here.get(name)
        return self._spare.get(name) if data is None else data

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody needs these blocks again."""
        for name in names:
            self._here.pop(name, None)
        self._give_rest()

    def share(self, spare: Spare) -> None:
        """What memory is not needed for blocks of ours is for these from now on."""
        self._spare = spare
        self._give_rest()

    def adopt(self, names: Sequence[bytes]) -> None:
        """These blocks are ours now, where they are in memory; the first ones are the last to go."""
        for name in reversed(names):
            if name in self._spare and (data := self._spare.take(name)) is not None:
                self._keep(name, data)
        self._give_rest()

    def part_with(self, names: Iterable[bytes]) -> None:
        """These blocks are somebody else's now."""
        lent = {name: data for name in names if (data := self._here.pop(name, None)) is not None}
        self._give_rest()
        self._spare.lend(lent)

    def _give_rest(self) -> None:
        self._spare.give(self._most_blocks - len(self._here))

    def leave(self, block_id: int, name: bytes) -> None:
        """The pool gives this block to somebody else."""
        if self._most_blocks and name not in self._here:
            self._leaving.append((block_id, name))

    def take_leaving(self) -> list[tuple[int, bytes]]:
        """What the step that is being planned has to copy out first."""
        leaving, self._leaving = self._leaving, []
        return leaving

    def put(self, saved: Mapping[bytes, Bytes]) -> None:
        """A step has copied these out."""
        if self._most_blocks:
            for name, data in saved.items():
                self._keep(name, data)
            self._give_rest()

    def offer(self, names: Sequence[bytes]) -> tuple[list[Bytes], bool]:
        """The bytes of the first of these blocks, of as many as are here; and whether the next one is coming.

        names: of a sequence's next blocks. What comes after those that are here is asked of the shelf.
        """
        found: list[Bytes] = []
        for name in names:
            if name in self._spare:
                self.adopt([name])
            if name not in self._here:
                break
            self._here.move_to_end(name)
            found.append(self._here[name])
        rest = names[len(found) :]
        self._ask(rest)
        return found, bool(rest) and rest[0] in self._coming

    def collect(self) -> None:
        """Take in what the shelf has sent."""
        for names, future in [item for item in self._fetches if item[1].done()]:
            self._fetches.remove((names, future))
            self._coming -= names
            found = future.result()
            self._missing |= names - found.keys()
            for name, data in found.items():
                self._keep(name, data)
            self._give_rest()

    def _ask(self, names: Sequence[bytes]) -> None:
        wanted: list[bytes] = []
        for name in names[: max(0, self._most_coming - len(self._coming))]:
            if name in self._here or name in self._coming or not self._is_on_shelf(name):
                break
            wanted.append(name)
        if wanted and self.shelf:
            self._coming.update(wanted)
            self._fetches.append((frozenset(wanted), self.shelf.fetch(wanted)))

    def _is_on_shelf(self, name: bytes) -> bool:
        return self.shelf is not None and name not in self._missing and self.shelf.has(name)

    def _keep(self, name: bytes, data: Bytes) -> None:
        self._here[name] = data
        self._here.move_to_end(name)
        while len(self._here) > max(self._most_blocks, self._most_coming):
            self._here.popitem(last=False)
