"""A plan in the making."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from streamproc.schedule.plan import Chunk, Plan
from streamproc.schedule.steptime import Load, StepTimes
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation

FEWEST = 32  # tokens of a sequence in one step, if it has them
LEAST = 8  # tokens that an empty step takes however long they may last


def share(room: int, num_waiting: int) -> int:
    """Of the tokens that are left, those for the next of so many sequences; what it does not need the others may have.

    Chunks of many sequences go side by side where a runner has lanes, and no long one keeps the others waiting.
    """
    return min(room, max(room // num_waiting, FEWEST))


@dataclass
class StepBuilder:
    """So many tokens at most, and about as many as can be computed in `seconds`."""

    times: StepTimes
    most_tokens: int
    seconds: float
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    loads: list[tuple[int, Any]] = field(default_factory=list)
    saves: list[tuple[int, bytes]] = field(default_factory=list)
    waits: bool = False  # for tokens that a plan which is out samples: it may not be launched before
    feeds_snapshot: bool = False  # copies blocks out for one
    late: list[Fork] = field(default_factory=list)  # forks that are added once it has them
    planned: set[int] = field(default_factory=set)  # sequences of this plan: their cells are not to be taken
    took_from_growing: bool = False  # cells of a generation that still needs them
    after: dict[int, int] = field(default_factory=dict)  # sequence -> one of this plan that writes cells it reads
    writers: dict[int, int] = field(default_factory=dict)  # block that this plan makes full -> sequence
    _ends: dict[int, int] = field(default_factory=dict)  # sequence -> how far it is computed after this plan
    _families: dict[int, list[Chunk]] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    _left_s: float = 0.0
    _left_tokens: int = 0
    _held_back: tuple[int, float] = (0, 0.0)
    _reserved: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        self._left_tokens = self.most_tokens
        self._left_s = self.seconds - self.times.fixed if self.times.is_known else math.inf

    @property
    def room(self) -> int:
        """Tokens at the start of a sequence that may be added."""
        return self.tokens_at(0)

    @property
    def is_full(self) -> bool:
        """Whether even a token at the start of a sequence takes too long."""
        return self._left_tokens <= 0 or (self._left_s <= 0 and bool(self.chunks))

    def tokens_at(self, position: int) -> int:
        """Tokens of a sequence from this position on that may be added."""
        left = self._left_tokens
        if left <= 0:
            return 0
        fits = min(left, self.times.most_tokens(self._left_s, position))
        return fits if self.chunks else max(fits, min(left, LEAST))

    def hold_back(self, share: int) -> None:
        """Keep the share-th part of the step for those who come later; 0: none."""
        self._held_back = (self.most_tokens // share, self.seconds / share) if share else (0, 0.0)
        self._left_tokens -= self._held_back[0]
        self._left_s -= self._held_back[1]

    def give_back(self) -> None:
        self._left_tokens += self._held_back[0]
        self._left_s += self._held_back[1]
        self._held_back = (0, 0.0)

    def reserve(self, forks: Iterable[Fork]) -> None:
        """These go on in this plan, each by a token as far as there is room; they are added once it is known which and
        how many. What was added before them comes first.
        """
        forks = list(forks)
        seconds = sum(self.times.seconds(Load().add(fork.base + fork.num_tokens, 1, 1)) for fork in forks)
        self.late += forks
        self._reserved = self._reserved[0] + len(forks), self._reserved[1] + seconds
        self._left_tokens -= len(forks)
        self._left_s -= seconds

    def open_reserve(self) -> None:
        """Now they are added."""
        self._left_tokens += self._reserved[0]
        self._left_s += self._reserved[1]
        self._reserved = (0, 0.0)

    def writer(self, block_ids: Iterable[int]) -> int | None:
        """The sequence of this plan that makes the last of these blocks full, if any does."""
        return next((self.writers[block_id] for block_id in reversed([*block_ids]) if block_id in self.writers), None)

    def is_after(self, seq_id: int, other: int) -> bool:
        """Whether this sequence is the other one, or comes after it."""
        while seq_id != other and seq_id in self.after:
            seq_id = self.after[seq_id]
        return seq_id == other

    def come_after(self, seq_id: int, block_ids: Iterable[int]) -> None:
        """This sequence reads these blocks."""
        writer = self.writer(block_ids)
        if writer is not None:
            self.after[seq_id] = writer

    def is_finished(self, generation: Generation) -> bool:
        """Whether it has caught up after this plan."""
        return self._ends.get(generation.seq_id, generation.num_computed) == generation.num_tokens

    def add(self, chunk: Chunk, family: int) -> None:
        """Chunks of a family read the same cells: they go side by side."""
        self.chunks.append(chunk)
        self._families.setdefault(family, []).append(chunk)
        self.planned.add(chunk.seq_id)
        self._ends[chunk.seq_id] = chunk.start + len(chunk.token_ids)
        self._left_tokens -= len(chunk.token_ids)
        self._left_s -= self.times.seconds(self.load.add(chunk.start, len(chunk.token_ids), chunk.num_samples))

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)

    def plan(self) -> Plan:
        together = [chunk for family in self._families.values() for chunk in family]
        chunks = tuple(together if _is_ordered(together) else self.chunks)
        return Plan(tuple(self.copies), chunks, tuple(self.saves), tuple(self.loads))


def _is_ordered(chunks: list[Chunk]) -> bool:
    """Whether every chunk comes after the one that it needs."""
    seen: set[int] = set()
    for chunk in chunks:
        if chunk.after is not None and chunk.after not in seen:
            return False
        seen.add(chunk.seq_id)
    return True
