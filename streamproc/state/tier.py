"""Blocks outside the pool, by name (blocks.py): those that had to leave it, in host memory, and those of a shelf that
is further away, such as a snapshot store.

leaving   the pool gives a named block to somebody else: the next step copies its bytes out before it writes there
here      the bytes are in host memory: a step copies them into a block instead of computing it
coming    asked of the shelf, until a step copies it in: whoever needs the block next waits for it, unless to compute
          it is quicker (schedule/recompute.py)
missing   the shelf has promised it and could not read it: it is computed, until the shelf has something newer
spare     of a partition that is somebody else's, in memory that is not needed for what is ours (spare.py)

What leaves the pool goes to host memory; what has no room there, to the shelf, unless it lies there already.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from streamproc.state.fetches import Fetches
from streamproc.state.spare import Spare

Bytes = Any  # of one block, as a runner has copied them out; nobody looks inside

COMING_BYTES = 64 * 2**20  # on their way from the shelf
STEP_BYTES = 32 * 2**20  # that a step copies in, and as many out: some milliseconds
PATIENCE = 4  # steps for which a block that has come waits for whoever asked for it, where others need its place


class Shelf(Protocol):
    """Where blocks lie that are not in memory."""

    def has(self, name: bytes) -> bool: ...

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Bytes]]":
        """These blocks, None for one that cannot be read; those are left out for which there was no answer. Returns at
        once.
        """
        ...

    @property
    def room(self) -> int:
        """Blocks that it takes now."""
        ...

    def put(self, name: bytes, data: Bytes) -> None:
        """Keep this block too; one for which there is no room is not kept."""
        ...


@dataclass(slots=True)
class Arrived:
    """A block that the shelf has sent; `turn`: when somebody last looked for it."""

    data: Bytes
    turn: int


class Tier:
    """`most_blocks` blocks that left the pool, the longest unused ones go first; 0: none are kept.

    Of a shelf, at most `most_coming` blocks are coming at a time; a step copies at most `most_loads` in, and as many
    out for the shelf. `now`: seconds.
    """

    def __init__(
        self,
        most_blocks: int = 0,
        shelf: Shelf | None = None,
        most_coming: int = 256,
        most_loads: int = 256,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shelf = shelf
        self._spare = Spare()
        self.most_coming, self.most_loads = most_coming, most_loads
        self.num_loaded = 0  # blocks that were not computed thanks to this
        self._most_blocks = most_blocks
        self.fetches = Fetches(now)
        self._here: OrderedDict[bytes, Bytes] = OrderedDict()
        self._arrived: dict[bytes, Arrived] = {}
        self._missing: set[bytes] = set()
        self._leaving: list[tuple[int, bytes]] = []
        self._left: set[bytes] = set()  # with plans that are out
        self._saving: set[bytes] = set()  # what such plans copy out
        self._useless: set[bytes] = set()  # of that
        self._turn = 0

    @classmethod
    def sized(cls, host_bytes: int, block_bytes: int) -> "Tier":
        """With so much host memory, for blocks of this size."""
        num_coming, num_loads = (max(most // block_bytes, 1) for most in (COMING_BYTES, STEP_BYTES))
        return cls(host_bytes // block_bytes, most_coming=num_coming, most_loads=num_loads)

    @property
    def is_empty(self) -> bool:
        return not self._here and self.shelf is None

    @property
    def num_coming(self) -> int:
        return len(self.fetches.names) + len(self._arrived)

    def has(self, name: bytes) -> bool:
        """Whether this block need not be computed."""
        return self.is_near(name) or self.is_asked(name) or self._is_on_shelf(name)

    def is_near(self, name: bytes) -> bool:
        """Whether it is in memory, whosever it is."""
        return self.is_here(name) or name in self._spare

    def is_asked(self, name: bytes) -> bool:
        """Whether the shelf was asked for it and has not answered yet."""
        return name in self.fetches.names

    def is_here(self, name: bytes) -> bool:
        """Whether it is in memory as one of ours. From any thread."""
        return name in self._here or name in self._arrived

    def is_leaving(self, name: bytes) -> bool:
        """Whether it is on its way out of the pool."""
        return name in self._saving and name not in self._useless

    def get(self, name: bytes) -> Bytes | None:
        """The bytes, if they are in memory."""
        if name in self._here:
            return self._here[name]
        return self._arrived[name].data if name in self._arrived else self._spare.get(name)

    # Memory that is lent

    def forget(self, names: Iterable[bytes]) -> None:
        """Nobody needs these blocks again."""
        for name in names:
            self._here.pop(name, None)
            if name in self._saving:
                self._useless.add(name)
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
        lent: dict[bytes, Bytes] = {}
        for name in names:
            if self.is_here(name):
                lent[name] = self.get(name)
                self._here.pop(name, None)
                self._arrived.pop(name, None)
        self._give_rest()
        self._spare.lend(lent)

    def _give_rest(self) -> None:
        self._spare.give(self._most_blocks - len(self._here))

    # Out of the pool

    def leave(self, block_id: int, name: bytes) -> None:
        """The pool gives this block to somebody else."""
        if name not in self._here and (self._most_blocks or self._is_wanted(name, len(self._leaving))):
            self._leaving.append((block_id, name))

    def take_leaving(self) -> list[tuple[int, bytes]]:
        """What the step that is being planned has to copy out first."""
        leaving, self._leaving = self._leaving, []
        self._left.update(name for _, name in leaving)
        return leaving

    def saving(self, names: Iterable[bytes]) -> None:
        """Plans that are out, or are being decided, copy these blocks out."""
        self._saving.update(names)

    def lost(self, names: Iterable[bytes]) -> None:
        """These blocks were not copied out."""
        names = set(names)
        for on_their_way in (self._left, self._saving, self._useless):
            on_their_way.difference_update(names)

    def put(self, saved: Mapping[bytes, Bytes]) -> None:
        """A step has copied these out; what was forgotten meanwhile is not kept."""
        for name, data in saved.items():
            if name in self._useless:
                continue
            if self._most_blocks:
                self._keep(name, data)
            elif name in self._left:
                self._shelve(name, data)
        self._left -= saved.keys()
        self._saving -= saved.keys()
        self._useless -= saved.keys()
        self._give_rest()

    def _keep(self, name: bytes, data: Bytes) -> None:
        """In host memory; what that has no room for goes on to the shelf."""
        self._here[name] = data
        self._here.move_to_end(name)
        while len(self._here) > self._most_blocks:
            self._shelve(*self._here.popitem(last=False))

    def _shelve(self, name: bytes, data: Bytes) -> None:
        if self.shelf and self._is_wanted(name, 0):
            self.shelf.put(name, data)
            self._missing.discard(name)

    def _is_wanted(self, name: bytes, num_before: int) -> bool:
        """Whether the shelf takes this block, after so many others."""
        if not self.shelf or (self.shelf.has(name) and name not in self._missing):
            return False
        return num_before < min(self.shelf.room, self.most_loads)

    # Into the pool

    def offer(
        self, names: Sequence[bytes], most: int | None = None, asks: bool = True
    ) -> tuple[list[Bytes], bool]:
        """The bytes of the first of these blocks, of as many as are here, `most` at most; and whether the next one has
        to be waited for: it is here too, is coming, or will be when there is room for more.

        names: of a sequence's next blocks. asks: what comes after those that are here is asked of the shelf; not for
        whoever may get no cells: what came for it would be in the way of what others wait for.
        """
        found: list[Bytes] = []
        for name in names[:most]:
            if name in self._spare:
                self.adopt([name])
            if not self.is_here(name):
                break
            found.append(self.get(name))
        rest = names[len(found) :]
        if asks:
            self._touch(names[: len(found)])
            self._ask(rest)
        return found, bool(rest) and self.has(rest[0])

    def expect(self, names: Sequence[bytes]) -> bool:
        """A later step needs these: they are asked for now -> whether there is room to ask for more."""
        self.offer(names)
        return self._room > 0

    def _touch(self, names: Iterable[bytes]) -> None:
        for name in names:
            if name in self._arrived:
                self._arrived[name].turn = self._turn
            elif name in self._here:
                self._here.move_to_end(name)

    def loaded(self, names: Iterable[bytes]) -> None:
        """The step that is being planned copies these in."""
        for name in names:
            self.num_loaded += 1
            self._settle(name)
        self._give_rest()

    def _settle(self, name: bytes) -> None:
        """What has come for somebody is like any other block from now on."""
        arrived = self._arrived.pop(name, None)
        if arrived and self._most_blocks:
            self._keep(name, arrived.data)

    def collect(self) -> None:
        """Take in what the shelf has sent; once a step."""
        self._turn += 1
        for found in self.fetches.collect():
            for name, data in found.items():
                if data is None:
                    self._missing.add(name)
                elif not self.is_here(name):
                    self._arrived[name] = Arrived(data, self._turn)

    def retry(self, *names: Container[bytes]) -> None:
        """What the shelf has of these is other than before: those that were missing may be there."""
        self._missing = {name for name in self._missing if not any(name in each for each in names)}

    def _ask(self, names: Sequence[bytes]) -> None:
        wanted: list[bytes] = []
        for name in names:
            if self.is_asked(name) or self.is_here(name):
                continue
            if not self._is_on_shelf(name) or len(wanted) >= self._make_room(len(wanted) + 1):
                break
            wanted.append(name)
        if wanted and self.shelf:
            self.fetches.begin(frozenset(wanted), self.shelf.fetch(wanted))

    @property
    def _room(self) -> int:
        return self.most_coming - self.num_coming

    def _make_room(self, num_blocks: int) -> int:
        """Room for so many blocks to come, or what there is; what nobody has looked for of late gives up its place."""
        if self._room < num_blocks:
            for name in [name for name, each in self._arrived.items() if each.turn < self._turn - PATIENCE]:
                self._settle(name)
            self._give_rest()
        return self._room

    def _is_on_shelf(self, name: bytes) -> bool:
        if self.shelf is None or self.fetches.is_silent or not self.most_coming or name in self._missing:
            return False
        return self.shelf.has(name)
