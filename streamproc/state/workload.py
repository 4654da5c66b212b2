"""What there is to compute: generations that are behind, and forks that wait or run. The scheduler chooses from it.

    growing   generations with tokens to compute, the one that has waited for longest first
    ahead     generations that sessions will hop to, with tokens to compute while there is time
    awaited   forks of asks and calls that have not started     \
    flash     forks of standing questions, likewise             /  started once their generation has computed their base
    running   forks that own their cells
    out       sequences that are on the device: what is computed of them is counted already

A plan counts as carried out from its launch on, since plans are carried out in order (schedule/progress.py). What is
certain only once it has landed: that it did no harm, and the tokens that it samples; the forks that those are for are
`untold`.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from streamproc.state.blocks import BlockPool
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation
from streamproc.state.turns import Turns


class Workload:
    """The queues. Holds block tables' owners, so that `check` can account for every block."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.growing: dict[int, Generation] = {}
        self.ahead: dict[int, Generation] = {}
        self.resident: dict[int, Generation] = {}  # generations that hold blocks, least recently used first
        self.awaited = Turns()
        self.flash = Turns()
        self.running: dict[int, Fork] = {}
        self.out: Counter[int] = Counter()  # by sequence: in how many plans that are out
        self.untold: dict[int, int] = {}  # fork -> where the newest chunk on the device that samples for it ends
        self._next_seq_id = 0

    def new_seq_id(self) -> int:
        """A number that no other sequence of this worker has."""
        self._next_seq_id += 1
        return self._next_seq_id

    @property
    def num_behind(self) -> int:
        """Tokens of generations that are not computed yet."""
        return sum(generation.num_tokens - generation.num_computed for generation in self.growing.values())

    @property
    def num_cells_needed(self) -> int:
        """Cells of the generations that are behind: what they hold and what they still need."""
        return sum(generation.num_tokens for generation in self.growing.values())

    @property
    def num_blocks_left(self) -> int:
        """Blocks that are free and that no generation which is behind needs; questions come on top."""
        missing = (self.num_blocks_missing(generation) for generation in self.growing.values())
        return self.pool.num_free - sum(missing)

    def num_blocks_missing(self, generation: Generation) -> int:
        """Blocks that a generation needs and does not hold; some of them others may have."""
        return self.pool.num_blocks_for(generation.num_tokens) - len(generation.block_table)

    @property
    def num_waiting(self) -> int:
        """Tokens that unfinished forks may still need."""
        running = sum(fork.num_tokens - fork.num_computed + fork.question.max_tokens for fork in self.running.values())
        return self.awaited.num_tokens + self.flash.num_tokens + running

    @property
    def is_idle(self) -> bool:
        """Nothing is asked for; what could be made ahead does not count."""
        return not (self.growing or self.awaited or self.flash or self.running or self._is_out)

    @property
    def _is_out(self) -> bool:
        """Whether anything is on the device but what is made ahead."""
        return not all(seq_id in self.resident and self.resident[seq_id].is_ahead for seq_id in self.out)

    def is_behind(self, generation: Generation) -> bool:
        """Whether it is needed and not all of it is computed for sure."""
        return generation.seq_id in self.growing or generation.seq_id in self.out

    def forks(self) -> Iterator[Fork]:
        yield from self.awaited
        yield from self.flash
        yield from self.running.values()

    def turns_of(self, fork: Fork) -> Turns:
        return self.awaited if fork.question.is_awaited else self.flash

    def grow(self, generation: Generation) -> None:
        """This generation has tokens to compute."""
        self.ahead.pop(generation.seq_id, None)
        if generation.num_computed < generation.num_tokens:
            self.growing.setdefault(generation.seq_id, generation)

    def make_ahead(self, generation: Generation) -> None:
        """A session will hop to this generation: compute it when there is nothing else to do."""
        if generation.num_computed < generation.num_tokens:
            self.ahead.setdefault(generation.seq_id, generation)

    def advance(self, generation: Generation, num_tokens: int) -> None:
        """This many more of its cells are written."""
        generation.advance(num_tokens)
        if generation.num_computed == generation.num_tokens:
            self.growing.pop(generation.seq_id, None)
            self.ahead.pop(generation.seq_id, None)

    def touch(self, generation: Generation) -> None:
        """This generation was just used: it is the last that should lose its cells."""
        if generation.block_table:
            self.resident.pop(generation.seq_id, None)
            self.resident[generation.seq_id] = generation

    def wait(self, fork: Fork) -> None:
        """Queue a new fork."""
        fork.generation.num_waiting_forks += 1
        self.turns_of(fork).add(fork)
        self.grow(fork.generation)

    def start(self, fork: Fork) -> None:
        """A fork that has left its queue has got its cells."""
        fork.generation.num_waiting_forks -= 1
        fork.generation.num_running_forks += 1
        self.running[fork.seq_id] = fork

    def finish(self, fork: Fork) -> None:
        """A running fork is done: its cells are free."""
        self._stop(fork)
        self._stop_if_useless(fork.generation)

    def start_over(self, fork: Fork) -> None:
        """Take a running fork's cells; it waits again, with nothing computed."""
        self._stop(fork)
        fork.start_over()
        fork.generation.num_waiting_forks += 1
        self.turns_of(fork).put_back(fork)
        self.grow(fork.generation)

    def _stop(self, fork: Fork) -> None:
        del self.running[fork.seq_id]
        fork.generation.num_running_forks -= 1
        self.pool.release(fork.block_table)
        fork.block_table = ()

    def drop_forks(self, gone: Callable[[Fork], bool]) -> list[Fork]:
        """Take out the forks, waiting or running, for which `gone` holds."""
        dropped = [fork for fork in self.forks() if gone(fork)]
        for fork in dropped:
            if fork.seq_id in self.running:
                self.finish(fork)
            else:
                self.turns_of(fork).remove(fork)
                fork.generation.num_waiting_forks -= 1
                self._stop_if_useless(fork.generation)
        return dropped

    def rewind(self, generation: Generation, position: int) -> None:
        """What is computed of it from this position on is not."""
        generation.rewind(position)
        if generation.is_ahead:
            self.make_ahead(generation)
        elif not generation.is_retired or generation.num_waiting_forks:
            self.grow(generation)

    def evict(self, generation: Generation) -> None:
        """Take a generation's cells; it computes them again when somebody needs them."""
        self._take_cells(generation)
        if generation.num_waiting_forks:
            self.grow(generation)

    def drop(self, generation: Generation) -> None:
        """A generation is gone for good."""
        self._take_cells(generation, is_over=generation.is_ahead)
        self.growing.pop(generation.seq_id, None)
        self.ahead.pop(generation.seq_id, None)

    def _take_cells(self, generation: Generation, is_over: bool = False) -> None:
        """is_over: nobody goes on with it; nor with one that was hopped from. A session's newest generation may be gone
        because somebody else has it now, and come back.
        """
        block_ids = generation.forget_cells()
        self.pool.release(block_ids)
        self.resident.pop(generation.seq_id, None)
        if is_over or (generation.is_retired and not generation.num_waiting_forks):
            self.pool.spend(block_ids)

    def retire(self, generation: Generation) -> None:
        """A generation was hopped from: only questions that already wait for it still need it computed."""
        if not generation.num_waiting_forks:
            self.growing.pop(generation.seq_id, None)

    def _stop_if_useless(self, generation: Generation) -> None:
        if generation.is_retired and not generation.num_waiting_forks:
            self.growing.pop(generation.seq_id, None)

    def check(self) -> None:
        """Every block is accounted for by exactly the tables that name it; what waits is counted."""
        for turns in (self.awaited, self.flash):
            assert turns.num_tokens == sum(fork.num_own_tokens for fork in turns)
            assert len(turns) == sum(1 for _ in turns)
        tables = [generation.block_table for generation in self.resident.values()]
        self.pool.check(tables + [fork.block_table for fork in self.running.values()])
