"""Looks over a runner's shoulder: which token every cell holds, and so all that a sampled token has seen.

A token that the plan before samples is a `Coming` in its cell, until that has landed.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrapping import Around, AroundFlight

from streamproc.schedule.plan import Chunk, Plan

Ids = tuple[int, ...]
STEP_S, TOKEN_S = 5e-4, 5e-6  # of a step, and of each token in it


class WatchedRunner(Around):
    """A runner of which only `num_blocks` may be used. `sampled`: the token that followed each sequence of ids."""

    def __init__(self, runner: Any, num_blocks: int) -> None:
        super().__init__(runner)
        self._num_usable = num_blocks
        self.sampled: dict[Ids, int] = {}
        self.num_loaded = 0
        self.hesitates: Callable[[], bool] = lambda: False  # a step is not seen to be done, however fast it was
        self._cells: dict[int, int | Coming] = {}
        self._newest: WatchedFlight | None = None
        self._named: dict[bytes, tuple[Ids, bytes]] = {}  # saved blocks: their tokens, digest of bytes
        self._tokens: dict[bytes, Ids] = {}  # by that digest

    @property
    def num_blocks(self) -> int:
        return self._num_usable

    def launch(self, plan: Plan) -> "WatchedFlight":
        saves = {name: self._held(block_id) for block_id, name in plan.saves}
        for block_id, data in plan.loads:
            self._load(block_id, data)
        for source, target in plan.copies:
            self._copy(source, target)
        seen = {}
        for chunk in plan.chunks:
            ids = self._take(chunk)
            if chunk.num_samples:
                seen[chunk.seq_id] = ids[: len(ids) - len(chunk.draft)]
        self._newest = WatchedFlight(self.runner.launch(plan), self, seen, saves, plan.num_tokens)
        return self._newest

    def answers(self, context: Ids) -> Iterator[int]:
        """The tokens that were sampled after this context, one upon the other."""
        while context in self.sampled:
            yield self.sampled[context]
            context = (*context, self.sampled[context])

    def note_saved(self, tokens: Ids, name: bytes, data: Any) -> None:
        """A name stands for the same tokens and the same bytes, whoever has computed them."""
        digest = hashlib.sha256(data).digest()
        assert self._named.setdefault(name, (tokens, digest)) == (tokens, digest), "a name stands for two contents"
        assert self._tokens.setdefault(digest, tokens) == tokens, "the same bytes for other tokens"

    def _held(self, block_id: int) -> Ids:
        """The tokens of a full block."""
        assert block_id < self.num_blocks
        return known(self._cells[slot] for slot in range(block_id * self.block_size, (block_id + 1) * self.block_size))

    def _load(self, block_id: int, data: Any) -> None:
        """Bytes that were saved once, of whatever worker."""
        assert block_id < self.num_blocks
        self.num_loaded += 1
        tokens = self._tokens[hashlib.sha256(data).digest()]
        self._cells.update(zip(itertools.count(block_id * self.block_size), tokens, strict=False))

    def _copy(self, source: int, target: int) -> None:
        for i in range(self.block_size):
            if source * self.block_size + i in self._cells:
                self._cells[target * self.block_size + i] = self._cells[source * self.block_size + i]

    def _take(self, chunk: Chunk) -> "tuple[int | Coming, ...]":
        """Fill the chunk's cells -> the ids of its sequence up to its end."""
        assert max(chunk.block_table) < self.num_blocks
        end = chunk.start + len(chunk.token_ids)
        size = self.block_size
        slots = [chunk.block_table[position // size] * size + position % size for position in range(end)]
        ids: Sequence[int | Coming] = chunk.token_ids
        if chunk.is_untold:
            assert self._newest, "the first plan"
            assert chunk.seq_id in self._newest.seen, "a plan goes on from what nobody samples"
            ids = (Coming(self._newest, chunk.seq_id),)
        self._cells.update(zip(slots[chunk.start :], ids, strict=True))
        return tuple(self._cells[slot] for slot in slots)


@dataclass(frozen=True)
class Coming:
    """The first token that a flight samples for a sequence."""

    flight: "WatchedFlight"
    seq_id: int


def known(ids: "Iterable[int | Coming]") -> Ids:
    return tuple(token.flight.found[token.seq_id][0] if isinstance(token, Coming) else token for token in ids)


@dataclass
class WatchedFlight(AroundFlight):
    """Notes what a flight has sampled; the same ids are never followed by two different tokens."""

    watch: WatchedRunner
    seen: dict[int, tuple[int | Coming, ...]]
    saves: dict[bytes, Ids]
    num_tokens: int
    found: dict[int, Ids] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a device that takes as long for the same work every time, so that what is decided can be repeated."""
        return STEP_S + self.num_tokens * TOKEN_S

    def is_done(self, timeout_s: float) -> bool:
        return not self.watch.hesitates() and super().is_done(timeout_s)

    def wait(self) -> dict[int, Ids]:
        found = self.found = self.flight.wait()
        assert found.keys() == self.seen.keys()
        assert self.flight.saved.keys() == self.saves.keys()
        for name, data in self.flight.saved.items():
            self.watch.note_saved(self.saves[name], name, data)
        for seq_id, seen in self.seen.items():
            ids = known(seen)
            for i, token in enumerate(found[seq_id]):
                assert self.watch.sampled.setdefault((*ids, *found[seq_id][:i]), token) == token
        return found
