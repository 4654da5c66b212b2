"""Random walks of the scheduler in which everything happens between the decision of a step and its launch.

Records come, sessions hop and go, hops are committed and their names forgotten, questions are withdrawn, steps lack
memory. No session is taken back to an earlier offset: that lands all steps first.
"""

import random
from collections.abc import Callable

import pytest
from wandering import BACKLOG, SlowShelf, Walk

from streamproc.state.fork import Fork
from streamproc.state.session import Session
from streamproc.state.tier import Tier


class AheadWalk(Walk):
    """Every step is decided while one is out, if any may be."""

    def __init__(self, seed: int, tier: Tier, failures: float) -> None:
        super().__init__(2 * seed + 1, tier, failures)
        self.is_deciding = False

    def step_ahead(self) -> None:
        self.is_deciding = True
        if not self.scheduler.looks_ahead:
            while self.out:
                self.land()
        if self.out and self._fails():
            self.retreat(*([self.begin()] if self.rng.random() < 0.5 else []))
        self._decide()
        self.workload.check()
        self.is_deciding = False

    def _decide(self) -> None:
        step = self.begin()
        self._meanwhile()
        if step.waits:
            if self._fails():
                self.retreat(step)
                return
            self.land()
            self.launch(step)
            return
        self.launch(step)
        self._meanwhile()
        if len(self.out) > 1:
            if self._fails():
                self.retreat()
            else:
                self.land()

    def _fails(self) -> bool:
        return self.rng.random() < self.failures

    def _meanwhile(self) -> None:
        rng = self.rng
        if rng.random() < 0.5 and self.workload.num_behind + self.workload.num_waiting < BACKLOG:
            self.give()
        if rng.random() < 0.3:
            self._commit()
        forks = [fork for fork in self.workload.forks() if fork.session]
        if forks and rng.random() < 0.05:
            withdrawn = rng.choice(forks).question.source
            self._drop(lambda fork: fork.question.source is withdrawn)
        if len(self.sessions) > 1 and rng.random() < 0.01:
            gone = self.sessions.pop(rng.randrange(1, len(self.sessions)))
            self._drop(lambda fork: fork.session is gone)
            for generation in gone.all_generations:
                self.workload.drop(generation)
            self.session()

    def _drop(self, is_gone: Callable[[Fork], bool]) -> None:
        for fork in self.workload.drop_forks(is_gone):
            del self.asked_in[fork.seq_id]
            self.num_asked -= 1

    def _commit(self) -> None:
        for session in self.sessions:
            for generation in session.settle(self.offset):
                self.workload.drop(generation)
                names = generation.own_names(self.pool.block_size)
                self.pool.forget(names)
                self.scheduler.tier.forget(names)

    def truncate(self, session: Session) -> None:
        if not self.is_deciding:
            super().truncate(session)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_between_the_decision_of_a_step_and_its_launch(seed: int) -> None:
    rng = random.Random(seed)
    shelf = SlowShelf(rng) if seed % 3 == 0 else None
    tier = Tier(rng.choice((0, 6, 20, 400)), shelf, most_coming=rng.choice((3, 50)), most_loads=rng.choice((2, 100)))
    walk = AheadWalk(seed, tier, rng.choice((0.0, 0.03)))
    for _ in range(700):
        walk.turn()
        walk.scheduler.step_tokens = walk.scheduler._most_tokens  # it would take 100 steps each time
        if shelf:
            shelf.turn(walk.runner.saved)
    walk.drain(between=(lambda: shelf.turn({})) if shelf else (lambda: None))
    assert walk.num_asked == len(walk.waits) > 20
    walk.workload.check()
