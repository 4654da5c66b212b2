"""Who gets which blocks, and who loses them; when, the scheduler decides.

Cells are taken, in this order, from generations made ahead, from those that nobody waits for, the retired ones first
(all are computed again on demand), and from younger needs. A generation whose question could start keeps its cells
until it has.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from streamproc.schedule.builder import StepBuilder
from streamproc.schedule.recompute import Recompute
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

LEAST_RUN = 4  # blocks: to wait for fewer takes longer than to compute them


class Cells:
    """The only writer of block tables. recompute: None: what is stored is never computed."""

    def __init__(self, workload: Workload, tier: Tier, recompute: Recompute | None = None) -> None:
        self.workload = workload
        self.pool = workload.pool
        self.tier = tier
        self.recompute = recompute
        self._passing: set[int] = set()     # named blocks of questions, which are not worth keeping elsewhere
        self.pool.on_forget = self._forgotten

    def begin(self) -> None:
        """A plan is begun."""
        self.tier.collect()
        if self.recompute:
            self.recompute.begin()

    def loaded(self, num_loads: int, seconds: float) -> None:
        """A step took so much longer than without the blocks that it copied in."""
        if self.recompute:
            self.recompute.loaded(num_loads, seconds)

    def give_fork(self, step: StepBuilder, fork: Fork, younger: Sequence[Generation], is_stuck: bool) -> bool:
        """All cells that a fork can ever need, shared and its own -> whether they could be had."""
        size, table = self.pool.block_size, fork.generation.block_table
        num_shared = fork.base // size
        found = self._find(step, fork, num_shared, (fork.base + len(fork.question.tail_ids) - 1) // size)
        shared = [*table[:num_shared], *found]
        self.pool.share(table[:num_shared])
        num_own = self.pool.num_blocks_for(fork.max_cells) - len(shared)
        own = self._allocate(step, num_own, self._victims(step, fork.generation, younger, is_stuck))
        if own is None:
            self.pool.release(shared)
            return False
        if found:
            step.come_after(fork.seq_id, found)
            fork.num_computed = len(shared) * size - fork.base
        elif fork.base % size and own:
            step.copies.append((table[num_shared], own[0]))
        fork.block_table = (*shared, *own)
        return True

    def give_generation(
        self, step: StepBuilder, generation: Generation, end: int, younger: Sequence[Generation] | None
    ) -> int:
        """Blocks for a generation's cells up to position `end` -> the end of those that it has.

        younger: generations that come after it; None: it gets only what is free.
        """
        missing = self.pool.num_blocks_for(end) - len(generation.block_table)
        generation.block_table += self._some(step, generation, missing, younger)
        return min(end, len(generation.block_table) * self.pool.block_size)

    def load(
        self, step: StepBuilder, generation: Generation, younger: Sequence[Generation] | None, asks: bool
    ) -> bool:
        """Give a generation blocks whose bytes are outside the pool -> whether its next block is one of those, and has
        to wait for a later step: it would be computed in vain. asks: for what is further away than memory, unless to
        compute it is quicker.
        """
        size, first = self.pool.block_size, generation.num_computed // self.pool.block_size
        num_full = generation.num_tokens // size - first
        if self.tier.is_empty or num_full < 1:
            return False
        is_computed = self._is_computed(generation, first, asks)
        self._forget_part(generation, self.tier.is_near if is_computed else self.tier.has)
        if generation.num_computed != len(generation.block_table) * size:
            return False
        most = max(self.tier.most_loads - len(step.loads), 0)
        end = first + min(num_full, most + max(self.tier.most_coming, 1))
        names = [generation.name(index, size) for index in range(first, end)]
        found, is_waiting = self.tier.offer(names, most, asks and not is_computed)
        block_ids = self._some(step, generation, len(found), younger)
        for block_id, name, data in zip(block_ids, names, found, strict=False):
            self.pool.name(block_id, name)
            step.loads.append((block_id, data))
        self.tier.loaded(names[: len(block_ids)])
        generation.block_table += block_ids
        if block_ids:
            self.workload.advance(generation, len(block_ids) * size)
            self.workload.touch(generation)
            step.planned.add(generation.seq_id)     # nobody may save, as that of others, what is not there yet
        return bool(block_ids) if len(block_ids) < len(found) else is_waiting and not is_computed

    def _is_computed(self, generation: Generation, first: int, chooses: bool) -> bool:
        """Whether its blocks from the one of index `first` on are computed rather than fetched. chooses: now."""
        if self.recompute is None:
            return False
        if chooses:
            return self.recompute.choose(generation, first, max(self.tier.most_coming, LEAST_RUN))
        return self.recompute.covers(generation, first)

    def expect(self, generation: Generation) -> bool:
        """A later step comes to this generation: what it needs of the shelf is on its way by then -> whether there is
        room for that of others.
        """
        size, first = self.pool.block_size, generation.num_computed // self.pool.block_size
        end = min(generation.num_tokens // size, first + self.tier.most_coming)
        if first < end and self._is_computed(generation, first, chooses=True):
            end = first
        return self.tier.expect([generation.name(index, size) for index in range(first, end)])

    def gap_end(self, generation: Generation, start: int, end: int) -> int:
        """Where, from `start` to `end`, blocks begin that need not be computed, `LEAST_RUN` in a row: one that could
        not be read is no reason to compute those behind it, and fewer are computed sooner than they come.
        """
        size, num_full, num_stored = self.pool.block_size, generation.num_tokens // self.pool.block_size, 0
        if self.tier.is_empty:
            return end
        for index in range(start // size + 1, min(-(-end // size) + LEAST_RUN - 1, num_full)):
            is_computed = self.recompute is not None and self.recompute.covers(generation, index)
            is_there = self.tier.is_near if is_computed else self.tier.has
            num_stored = num_stored + 1 if is_there(generation.name(index, size)) else 0
            if num_stored == LEAST_RUN:
                return min((index + 1 - LEAST_RUN) * size, end)
        return end

    def _forget_part(self, generation: Generation, is_there: Callable[[bytes], bool]) -> None:
        """A partly filled block that would be a full one outside the pool is taken from there, unless somebody is about
        to read it: while records are read again, contexts grow by pieces that are no whole blocks.
        """
        size = self.pool.block_size
        index, is_asked = generation.num_computed // size, generation.num_waiting_forks or generation.num_running_forks
        is_part = generation.num_computed % size and len(generation.block_table) == index + 1
        if is_part and not is_asked and is_there(generation.name(index, size)):
            self.pool.release(generation.forget_part(size))

    def _some(
        self, step: StepBuilder, generation: Generation, num_blocks: int, younger: Sequence[Generation] | None
    ) -> list[int]:
        """As many of so many blocks for a generation as can be had."""
        if num_blocks > self.pool.num_free:
            victims = [] if younger is None else [*self._victims(step, generation, younger, False)]
            most = self.pool.most([victim.block_table for victim in victims])
            return self._allocate(step, min(num_blocks, most), victims) or []
        return self.pool.allocate(max(num_blocks, 0)) or []

    def _forgotten(self, block_id: int, name: bytes, is_spent: bool) -> None:
        if block_id in self._passing:
            self._passing.remove(block_id)
        elif not is_spent:
            self.tier.leave(block_id, name)

    def reuse(self, step: StepBuilder, generation: Generation) -> None:
        """Give a generation blocks that somebody has computed already, or will have with this plan."""
        size, start = self.pool.block_size, generation.num_computed
        if start != len(generation.block_table) * size:
            return
        found = self._find(step, generation, start // size, generation.num_tokens // size)
        end = start + len(found) * size
        if end == generation.num_tokens and step.writer(found) is not None:
            self.pool.release(found)    # it would have no chunk in the plan that computes them
        elif found:
            step.come_after(generation.seq_id, found)
            generation.block_table += found
            self.workload.advance(generation, end - start)
            self.workload.touch(generation)

    def _find(self, step: StepBuilder, sequence: Generation | Fork, first: int, end: int) -> list[int]:
        """Blocks from index `first` below `end` that hold, or with this plan will, what this sequence needs, each with
        one more holder.
        """
        found: list[int] = []
        writer: int | None = None
        for index in range(first, end):
            block_id = self.pool.look_up(sequence.name(index, self.pool.block_size))
            if block_id is None:
                break
            by = step.writers.get(block_id)
            if by is not None:
                if writer is not None and not step.is_after(by, writer):
                    break       # a sequence comes after one other, and after all that this one comes after
                writer = by
            self.pool.take(block_id)
            found.append(block_id)
        return found

    def name(self, step: StepBuilder, sequence: Generation | Fork, start: int, end: int) -> None:
        """The blocks that a chunk of these positions makes full."""
        size = self.pool.block_size
        for index in range(start // size, end // size):
            block_id = sequence.block_table[index]
            if self.pool.name(block_id, sequence.name(index, size)):
                step.writers[block_id] = sequence.seq_id
                if isinstance(sequence, Fork):
                    self._passing.add(block_id)

    def take_back(self, steps: Sequence[StepBuilder]) -> None:
        """These plans, the newest ones, were not carried out: who relies on their cells, or on a copy that they were to
        make, starts over.
        """
        written = {block_id for step in steps for block_id in (*step.writers, *(block for block, _ in step.loads))}
        planned = {seq_id for step in steps for seq_id in step.planned}
        for fork in list(self.workload.running.values()):
            is_new = not fork.num_computed or fork.generation.seq_id in planned
            if is_new or not written.isdisjoint(fork.block_table):
                self.workload.start_over(fork)
        for generation in [g for g in self.workload.resident.values() if not written.isdisjoint(g.block_table)]:
            self.workload.evict(generation)
            self.workload.rewind(generation, 0)
        self.pool.unname(list(written))
        self._passing -= written

    def _allocate(self, step: StepBuilder, num_blocks: int, victims: Iterable[Generation]) -> list[int] | None:
        """So many blocks, or None; nobody loses cells in vain."""
        victims = list(victims) if self.pool.num_free < num_blocks else []
        num_chosen = self.pool.num_enough(num_blocks, [victim.block_table for victim in victims])
        if num_chosen is None:
            return None
        for victim in victims[:num_chosen]:
            step.took_from_growing |= victim.seq_id in self.workload.growing
            self.workload.evict(victim)
        return self.pool.allocate(max(num_blocks, 0))

    def _victims(
        self, step: StepBuilder, needy: Generation, younger: Sequence[Generation], is_stuck: bool
    ) -> Iterator[Generation]:
        """Generations whose cells may be taken, the least missed first. is_stuck: nothing else goes on, so all may."""
        growing, resident = self.workload.growing, self.workload.resident
        kept = {*step.planned, needy.seq_id}
        free = [g for g in resident.values() if g.seq_id not in kept and not g.num_running_forks]
        yield from [g for g in free if g.is_ahead]
        idle = [g for g in free if not g.num_waiting_forks and not g.is_ahead]
        yield from [g for g in idle if g.is_retired]
        yield from [g for g in idle if not g.is_retired and g.seq_id not in growing]
        others = {g.seq_id for g in free if not g.is_ahead} - (set() if is_stuck else self._ready())
        yield from [g for g in reversed(younger) if g.seq_id in others and g.seq_id in resident]

    def _ready(self) -> set[int]:
        """Generations with a question that could start: it would be asked in vain if they lost their cells now."""
        waiting = itertools.chain(self.workload.awaited, self.workload.flash)
        return {fork.generation.seq_id for fork in waiting if fork.generation.num_computed >= fork.base}
