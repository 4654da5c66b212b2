"""Decides what the next step computes. State in, plan out; the only writer of block tables.

There is no prefill phase and no decode phase: every sequence has `num_tokens` and `num_computed`, and a step lets
computed catch up. A step's tokens go, in this order, to
    1. asks that are being answered     2. new records, shared between sequences     3. questions of new asks
    4. flash queries, from what is left
Memory: a fork starts only when the cells for its longest answer are reserved, so whatever runs can finish. Cells are
taken, in this order, from generations that nobody waits for (they are computed again on demand) and from younger needs;
a generation that is complete keeps its cells until the questions that wait for it have started. So a step always brings
the oldest need or a waiting question further, and there is no deadlock: `_unstick` covers the one case that is left.
"""

from collections.abc import Iterator

from streamproc.schedule.plan import Chunk, Constraint, Plan
from streamproc.state.fork import Fork
from streamproc.state.session import Generation
from streamproc.state.workload import Workload

ASK_SHARE = 4  # while questions of asks wait, records leave them at least this fraction of a step

FEWEST = 32  # tokens of a sequence in one step, if it has them


def share(room: int, num_waiting: int) -> int:
    """Of the tokens that are left, those for the next of so many sequences; what it does not need the others may have.

    Chunks of many sequences go side by side where a runner has lanes, and no long one keeps the others waiting.
    """
    return min(room, max(room // num_waiting, FEWEST))


class _Draft:
    """A plan in the making."""

    def __init__(self, num_tokens: int) -> None:
        self.room = num_tokens
        self.chunks: list[Chunk] = []
        self.copies: list[tuple[int, int]] = []
        self.planned: set[int] = set()  # sequences of this plan: their cells are not to be taken

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.planned.add(chunk.seq_id)
        self.room -= len(chunk.token_ids)


class Scheduler:
    """Plans steps of at most `step_tokens` tokens over a workload."""

    def __init__(self, workload: Workload, step_tokens: int) -> None:
        self.workload = workload
        self.pool = workload.pool
        self.step_tokens = step_tokens
        self.is_short = False  # the newest plan could not give a generation all the cells it needs

    def plan(self) -> Plan:
        draft = _Draft(self.step_tokens)
        running = list(self.workload.running.values())
        self._advance(draft, [fork for fork in running if fork.question.is_ask])
        self.is_short = not self._grow(draft)
        self._start(draft, list(self.workload.asks), self._by_need())
        self._advance(draft, [fork for fork in running if not fork.question.is_ask])
        self._start(draft, list(self.workload.flash), self._by_need() if self.is_short else [])
        if not draft.chunks:
            self._unstick(draft)
        return Plan(tuple(draft.copies), tuple(draft.chunks))

    def _advance(self, draft: _Draft, forks: list[Fork]) -> None:
        for fork in forks:
            if not draft.room:
                return
            self._add_fork(draft, fork)

    def _add_fork(self, draft: _Draft, fork: Fork) -> None:
        start = fork.num_computed
        ids = tuple(fork.token_ids[start : start + draft.room])
        done = start + len(ids) == fork.num_tokens
        grammar = fork.question.grammar
        constraint = Constraint(grammar, tuple(fork.answer_ids)) if grammar and done else None
        table = tuple(fork.block_table)
        draft.add(Chunk(fork.seq_id, fork.base + start, ids, table, int(done), constraint=constraint))

    def _start(self, draft: _Draft, waiting: list[Fork], younger: list[Generation]) -> None:
        for fork in waiting:
            if not draft.room:
                return
            if fork.generation.num_computed >= fork.base and self._reserve(draft, fork, younger):
                self.workload.start(fork)
                self._add_fork(draft, fork)

    def _unstick(self, draft: _Draft) -> None:
        """Complete generations fill the pool and none of their questions can start: the first one makes room."""
        for fork in [*self.workload.asks, *self.workload.flash]:
            self._start(draft, [fork], list(self.workload.resident.values()))
            if draft.chunks:
                return

    def _reserve(self, draft: _Draft, fork: Fork, younger: list[Generation]) -> bool:
        """All cells that this fork can ever need, shared and its own -> whether they could be had."""
        num_shared = fork.base // self.pool.block_size
        num_own = self.pool.num_blocks_for(fork.max_cells) - num_shared
        own = self._allocate(num_own, self._victims(draft, fork.generation, younger))
        if own is None:
            return False
        shared = fork.generation.block_table[:num_shared]
        if fork.base % self.pool.block_size and own:
            draft.copies.append((fork.generation.block_table[num_shared], own[0]))
        self.pool.share(shared)
        fork.block_table = shared + own
        self.workload.touch(fork.generation)
        return True

    def _grow(self, draft: _Draft) -> bool:
        """Let generations catch up -> False if one of them could not get its blocks."""
        room = draft.room - (self.step_tokens // ASK_SHARE if self.workload.asks else 0)
        asked, order = self._asked(), self._by_need()
        for place, generation in enumerate(order):
            if room <= 0:
                return True
            takes_all = self.is_short or generation.seq_id in asked     # short of cells: the oldest need first
            most = room if takes_all else share(room, len(order) - place)
            num_tokens = min(most, generation.num_tokens - generation.num_computed)
            num_tokens = self._make_room(draft, generation, num_tokens, order[place + 1 :])
            if not num_tokens:
                return False
            start = generation.num_computed
            ids = tuple(generation.token_ids[start : start + num_tokens])
            draft.add(Chunk(generation.seq_id, start, ids, tuple(generation.block_table)))
            self.workload.touch(generation)
            room -= num_tokens
        return True

    def _asked(self) -> set[int]:
        """Generations that an ask waits for."""
        return {fork.generation.seq_id for fork in self.workload.asks}

    def _by_need(self) -> list[Generation]:
        """Growing generations: those that an ask waits for, then the oldest need first."""
        asked = self._asked()
        return sorted(self.workload.growing.values(), key=lambda generation: generation.seq_id not in asked)

    def _make_room(self, draft: _Draft, generation: Generation, num_tokens: int, younger: list[Generation]) -> int:
        """Blocks for the next `num_tokens` of a generation -> how many of them fit."""
        end = generation.num_computed + num_tokens
        missing = self.pool.num_blocks_for(end) - len(generation.block_table)
        if missing > 0:
            block_ids = self._allocate(missing, self._victims(draft, generation, younger))
            generation.block_table += block_ids or self.pool.allocate(self.pool.num_free) or []
        return min(end, len(generation.block_table) * self.pool.block_size) - generation.num_computed

    def _allocate(self, num_blocks: int, victims: Iterator[Generation]) -> list[int] | None:
        while self.pool.num_free < num_blocks:
            victim = next(victims, None)
            if victim is None:
                return None
            self.workload.evict(victim)
        return self.pool.allocate(max(num_blocks, 0))

    def _victims(self, draft: _Draft, needy: Generation, younger: list[Generation]) -> Iterator[Generation]:
        """Generations whose cells may be taken, the least missed first."""
        growing = self.workload.growing
        resident = self.workload.resident
        kept = {*draft.planned, needy.seq_id}
        free = [g for g in resident.values() if g.seq_id not in kept and not g.num_running_forks]
        yield from [g for g in free if g.is_retired and not g.num_waiting_forks]
        yield from [g for g in free if not g.is_retired and not g.num_waiting_forks and g.seq_id not in growing]
        yield from [g for g in reversed(younger) if g in free and g.seq_id in resident]
