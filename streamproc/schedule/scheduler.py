"""Decides what the next step computes. State in, plan out.

There is no prefill phase and no decode phase: every sequence has `num_tokens` and `num_computed`, and a step lets
computed catch up. A step's tokens go, in this order, to
    1. asks and calls that are being answered      2. new records, shared between sequences
    3. questions of asks, prompts of calls         4. flash queries, from what is left      5. hops made ahead
A step takes as many tokens as, by what was learned of steps (steptime.py), it can compute in `step_s`; so nobody waits
for long before what has just come is looked at.

Memory: a fork starts only when the cells for its longest answer are reserved, so whatever runs can finish; a
generation keeps its cells until the questions that could start have (cells.py). So a step always brings the oldest need
or a waiting question further, and there is no deadlock: `_unstick` covers the one case that is left.

Fairness: sessions that are behind share a step and take turns where it is too small for all; so do sessions with
questions (state/turns.py).
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from streamproc.schedule.builder import FEWEST, StepBuilder, share
from streamproc.schedule.cells import Cells
from streamproc.schedule.plan import UNTOLD, Chunk, Constraint, Plan
from streamproc.schedule.recompute import Recompute
from streamproc.schedule.speculation import Speculation
from streamproc.schedule.steptime import StepTimes
from streamproc.schedule.unseen import Unseen
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation
from streamproc.state.recent import expected_ids
from streamproc.state.tier import Tier
from streamproc.state.turns import Turns, Verdict
from streamproc.state.workload import Workload

ASK_SHARE = 4  # while questions of asks wait, records leave them at least this fraction of a step
RECOVERY = 100  # steps after which a step may be twice as large again
FIRST_TOKENS = 64  # in a step before anything is known of how long steps take


class Scheduler:
    """Plans steps of at most `step_tokens` tokens and about `step_s` seconds; recomputes: what is stored too."""

    def __init__(
        self, workload: Workload, step_tokens: int, step_s: float, tier: Tier | None = None, recomputes: bool = False
    ) -> None:
        self.workload = workload
        self.tier = tier or Tier()
        self.times = StepTimes()
        recompute = Recompute(self.times, self.tier, workload, step_tokens, step_s) if recomputes else None
        self.cells = Cells(workload, self.tier, recompute)
        self.step_tokens, self.step_s = step_tokens, step_s
        self.speculation = Speculation(self.times)
        self._unseen = Unseen(workload, self.speculation)
        self.is_short = False  # growing generations do not all get the cells that they need
        self._turn: tuple[int, int] | None = None  # while short: whose turn it is, and up to which of its tokens
        self._lacks_cells: Turns | None = None  # whose next question found no cells in the newest plan
        self._most_tokens, self._num_good_steps = step_tokens, 0
        self._held: Collection[int] = ()
        self._waiting: set[int] = set()  # generations, for blocks that are outside memory

    def plan(self, saves: Collection[tuple[int, bytes]] = (), held: Collection[int] = ()) -> Plan:
        """The next step, where no plan is out. saves, held: as for `begin`."""
        return self.finish(self.begin(saves, held))

    @property
    def looks_ahead(self) -> bool:
        """Whether a step may be decided while the one before it is out. Not where cells are short: what lands frees
        cells, and who waits for them would come a step later.
        """
        return self.times.is_known and not self.is_short and self._lacks_cells is None

    def begin(self, saves: Collection[tuple[int, bytes]] = (), held: Collection[int] = ()) -> StepBuilder:
        """Decide the next step, or all of it that does not wait for tokens which a plan that is out samples.

        saves: blocks that somebody else wants to have copied out of the pool, as they are now; held: generations whose
        cells may be somewhere: what is not found in reach waits.
        """
        self._held, self._waiting = held, set()
        num_tokens = self.step_tokens if self.times.is_known else min(self.step_tokens, FIRST_TOKENS)
        step = StepBuilder(self.times, num_tokens, self.step_s)
        self.cells.begin()
        step.feeds_snapshot = bool(saves)
        running, late = self._unseen.split()
        step.waits = bool(late)
        awaited = [fork for fork in running if fork.question.is_awaited]
        step.reserve(fork for fork in late if fork.question.is_awaited)
        self._advance(step, (fork for fork in awaited if self._is_answering(fork)))
        lacking, self._lacks_cells = self._lacks_cells, None
        if lacking is not None:     # before records take what others have let go of
            self._start(step, lacking, self._by_need() if self._is_urgent(lacking) else [])
        self._grow(step)
        self._advance(step, (fork for fork in awaited if not self._is_answering(fork)))
        self._start(step, self.workload.awaited, self._by_need())
        step.reserve(fork for fork in late if not fork.question.is_awaited)
        self._advance(step, (fork for fork in running if not fork.question.is_awaited))
        self._start(step, self.workload.flash, self._by_need() if self._is_urgent(self.workload.flash) else [])
        if not step.chunks and not self.workload.out:
            self._unstick(step)
        if not self.is_short:
            self._make_ahead(step)
        step.saves += {**dict(self.tier.take_leaving()), **dict(saves)}.items()
        self.tier.saving(name for _, name in step.saves)
        return step

    def finish(self, step: StepBuilder) -> Plan:
        """The rest of it: answers that go on from tokens which are known by now. Gives cells to nobody."""
        step.open_reserve()
        late = [fork for fork in step.late if fork.seq_id in self.workload.running]
        assert self.workload.untold.keys().isdisjoint(fork.seq_id for fork in late), "the plan before this one is out"
        self._advance(step, (fork for fork in late if fork.question.is_awaited))
        self._advance(step, (fork for fork in late if not fork.question.is_awaited))
        return step.plan()

    def _is_answering(self, fork: Fork) -> bool:
        """Whether its question is computed."""
        return fork.is_decoding or fork.seq_id in self.workload.untold

    def _is_urgent(self, turns: Turns) -> bool:
        """Whether its questions may take cells of generations that are behind."""
        return self.is_short or turns is self.workload.awaited

    def landed(self, step: StepBuilder, seconds: float) -> None:
        """The oldest plan that was out is carried out; it took so long."""
        if step.chunks:
            if not step.loads and not step.saves:
                self.times.observe(step.load, seconds)
            elif step.loads and self.times.is_known:
                self.cells.loaded(len(step.loads), seconds - self.times.step_s(step.load))
            self._num_good_steps += 1
            if self._num_good_steps >= RECOVERY and self.step_tokens < self._most_tokens:
                self.step_tokens, self._num_good_steps = min(2 * self.step_tokens, self._most_tokens), 0

    def retreat(self, steps: Sequence[StepBuilder]) -> None:
        """The first of these, the newest ones, did not fit the device's memory, and none of them counts: nothing is in
        the cells that they were to write. Flash queries let go of theirs and wait again, and for a while a step takes
        half of what was in that one.
        """
        for fork in [fork for fork in self.workload.running.values() if not fork.question.is_awaited]:
            self.workload.start_over(fork)
        self.cells.take_back(steps)
        self.tier.lost(name for step in steps for _, name in step.saves)
        self.step_tokens = max(min(self.step_tokens, FEWEST), steps[0].num_tokens // 2)
        self._num_good_steps = 0

    # Forks

    def _advance(self, step: StepBuilder, forks: Iterable[Fork]) -> None:
        for fork in forks:
            if step.is_full:
                return
            self._add_fork(step, fork)

    def _add_fork(self, step: StepBuilder, fork: Fork) -> None:
        """The next tokens of a running fork; where they are its last, also a guess at those that follow."""
        if fork.seq_id in self.workload.untold:
            end, constraint = fork.base + fork.num_tokens, self._constraint(fork)
            chunk = Chunk(fork.seq_id, end, (UNTOLD,), fork.block_table, 1, constraint=constraint)
            step.add(chunk, fork.generation.seq_id)
            return
        start, position = fork.num_computed, fork.base + fork.num_computed
        ids, num_samples = fork.token_ids[start:], 1
        guess = self.speculation.guess(fork, len(self.workload.running))
        if guess or len(ids) > 1:
            room, missing = max(1, step.tokens_at(position)), len(ids)
            ids, num_samples = [*ids, *guess][:room], max(min(room - missing, len(guess)) + 1, 0)
        constraint = self._constraint(fork) if num_samples else None
        after, table = step.after.get(fork.seq_id), fork.block_table
        chunk = Chunk(fork.seq_id, position, tuple(ids), table, num_samples, after, constraint)
        step.add(chunk, fork.generation.seq_id)
        if not fork.is_decoding:
            end = fork.base + min(start + len(ids), len(fork.question.tail_ids))
            self.cells.name(step, fork, position, end)

    @staticmethod
    def _constraint(fork: Fork) -> Constraint | None:
        grammar = fork.question.grammar
        return Constraint(grammar, tuple(fork.answer_ids)) if grammar else None

    def _start(self, step: StepBuilder, turns: Turns, younger: list[Generation]) -> None:
        def start(fork: Fork) -> Verdict:
            if not step.room:
                return Verdict.FULL
            if fork.generation.num_computed < fork.base or fork.generation.seq_id in step.after:
                return Verdict.NOT_YET
            if self._begin(step, fork, younger):
                return Verdict.STARTED
            if self._lacks_cells is None or turns is self.workload.awaited:
                self._lacks_cells = turns
            return Verdict.FULL

        if step.room:
            turns.offer(start)

    def _unstick(self, step: StepBuilder) -> None:
        """Complete generations fill the pool and none of their questions can start: the first one makes room."""
        for turns in (self.workload.awaited, self.workload.flash):
            for fork in list(turns):
                ready = fork.generation.num_computed >= fork.base
                if ready and self._begin(step, fork, list(self.workload.resident.values()), is_stuck=True):
                    turns.remove(fork)
                    return

    def _begin(self, step: StepBuilder, fork: Fork, younger: list[Generation], is_stuck: bool = False) -> bool:
        """Start a fork -> whether the cells for it could be had."""
        if not self.cells.give_fork(step, fork, younger, is_stuck):
            return False
        fork.expected = expected_ids(fork.session, fork.question)
        self.workload.start(fork)
        self.workload.touch(fork.generation)
        self._add_fork(step, fork)
        return True

    # Generations

    def _grow(self, step: StepBuilder) -> None:
        """Let generations catch up, of a session the oldest one first: so cells go to those whose questions come next.
        While there are cells for all, sessions share the step and take turns; else one after the other gets what it
        needs. While a question that could start lacks cells, only those grow that somebody waits for.
        """
        order, asked = self._by_need(), self._asked()
        is_held = self._lacks_cells is self.workload.flash
        if is_held:
            order = [generation for generation in order if generation.seq_id in asked]
        step.hold_back(ASK_SHARE if self.workload.awaited else 0)
        got_all, is_first = not is_held, True
        lines, unfinished = {generation.line for generation in order}, set()
        for place, generation in enumerate(order):
            if step.room <= 0:
                got_all &= not self.is_short    # who came first may have taken all: the others are still to be seen to
                self._expect(order[place:])
                break
            if generation.line in unfinished:
                continue
            most = self._share(step, generation.seq_id in asked, max(len(lines), 1))
            asks = is_first or not self.is_short    # short of cells, others would ask in vain
            if not self._extend(step, generation, most, order[place + 1 :], asks):
                got_all = False
                break
            lines.discard(generation.line)
            if not step.is_finished(generation):
                unfinished.add(generation.line)
            is_first &= generation.seq_id in self._held
        step.give_back()
        is_turn_waiting = self._turn is not None and self._turn[0] in self._waiting     # nobody else needs its cells
        self.is_short = not got_all or step.took_from_growing or is_turn_waiting
        self._take_turns(step)

    def _expect(self, later: Iterable[Generation]) -> None:
        """Generations that this step has no room for find what is stored of them at hand in their turn."""
        if self.is_short or self.tier.shelf is None:
            return      # what has come would wait for cells
        for generation in later:
            if not self.cells.expect(generation):
                return

    def _share(self, step: StepBuilder, is_asked: bool, num_waiting: int) -> int:
        if self.is_short:
            return step.room
        if is_asked and num_waiting > 1:
            return max(step.room // 2, share(step.room, num_waiting))
        return share(step.room, num_waiting)

    def _take_turns(self, step: StepBuilder) -> None:
        """Those that have waited for longest come first in the next step. Short of cells, a generation's turn lasts
        until it has caught up with what it had at the beginning: cells taken too early would be computed in vain.
        """
        growing = self.workload.growing
        if not self.is_short:
            self._turn = None
            for seq_id in [seq_id for seq_id in growing if seq_id in step.planned] if len(growing) > 1 else ():
                growing[seq_id] = growing.pop(seq_id)
            return
        if self._turn and self._turn[0] in growing and growing[self._turn[0]].num_computed >= self._turn[1]:
            growing[self._turn[0]] = growing.pop(self._turn[0])
        first = min(growing.values(), key=self._rank_of(growing.values()), default=None)
        if first and (self._turn is None or self._turn[0] != first.seq_id):
            self._turn = first.seq_id, first.num_tokens

    def _make_ahead(self, step: StepBuilder) -> None:
        """Generations that sessions will hop to, where cells are free anyway."""
        for generation in list(self.workload.ahead.values()):
            if not step.room:
                return
            self._extend(step, generation, step.room, None, asks=self.workload.pool.num_free > 0)

    def _extend(
        self, step: StepBuilder, generation: Generation, most: int, younger: list[Generation] | None, asks: bool = True
    ) -> bool:
        """The next tokens of a generation, `most` at most -> whether there were cells for any.

        `younger`: generations whose cells it may take besides those that nobody waits for; None: nobody's. `asks`: for
        blocks that are outside memory.
        """
        self.cells.reuse(step, generation)
        if self.cells.load(step, generation, younger, asks) or generation.seq_id in self._held:
            self._waiting.add(generation.seq_id)
            return True
        start = generation.num_computed
        end = start + min(most, step.tokens_at(start), generation.num_tokens - start)
        if end == start:
            return True
        if not self.is_short:   # else whoever waits for what is stored keeps others waiting for its cells
            end = self.cells.gap_end(generation, start, end)
        end = self.cells.give_generation(step, generation, end, younger)
        if end == start:
            return False
        ids, table = tuple(generation.token_ids[start:end]), tuple(generation.block_table)
        after = step.after.get(generation.seq_id)
        step.add(Chunk(generation.seq_id, start, ids, table, after=after), generation.seq_id)
        self.cells.name(step, generation, start, end)
        self.workload.touch(generation)
        return True

    def _asked(self) -> set[int]:
        """Generations that somebody waits for."""
        return {fork.generation.seq_id for fork in self.workload.awaited}

    def _by_need(self) -> list[Generation]:
        """Growing generations: short of cells the one whose turn it is; those that somebody waits for; then in turn,
        the oldest of each session before any of their second ones.
        """
        asked, turn = self._asked(), self._turn[0] if self._turn else None
        growing = list(self.workload.growing.values())
        is_one_each = len({generation.line for generation in growing}) == len(growing)
        if is_one_each and not asked and turn is None:
            return growing
        rank = self._rank_of(() if is_one_each else growing)
        return sorted(growing, key=lambda generation: (
            generation.seq_id != turn, generation.seq_id not in asked, rank(generation),
        ))  # fmt: skip

    @staticmethod
    def _rank_of(generations: Iterable[Generation]) -> Callable[[Generation], int]:
        """How many older ones of its session each of these has among them."""
        ranks: dict[int, int] = {}
        num_older: dict[int, int] = {}
        for generation in sorted(generations, key=lambda generation: generation.seq_id):
            ranks[generation.seq_id] = num_older.get(generation.line, 0)
            num_older[generation.line] = ranks[generation.seq_id] + 1
        return lambda generation: ranks.get(generation.seq_id, 0)
