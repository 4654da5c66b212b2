"""A session of the scheduler alone: sessions that grow and hop, questions, prompts, drafts, in too small a pool."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fakes import ForcingRunner
from planning import Planning

from streamproc.messages import Query
from streamproc.state.session import Session, Shape
from streamproc.state.tier import Tier

BLOCK, CONTEXT, KEEP, TAIL, ANSWER = 4, 96, 48, 12, 8
LONGEST = -(-(CONTEXT + TAIL + ANSWER) // BLOCK) + 1
PREFIX = tuple(range(1, 11))
BACKLOG = 600  # tokens: more is not given
LONGEST_WAIT = 1_000  # plans; a step may be of 7 tokens, and the pool may hold a single sequence
STOP = tuple("!19AIQYaiqy")  # one token in eight
QUERIES = [Query(f"q{i}", f"question {i}", max_tokens=1 + i, stop=STOP if i % 2 else ()) for i in range(ANSWER)]
HEAD = tuple(range(40, 46))


class SlowShelf:
    """Keeps half of what is saved anywhere, brings it some turns after it was asked for, or never."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.blocks: dict[bytes, Any] = {}
        self.asked: list[tuple[Sequence[bytes], Future[Mapping[bytes, Any]]]] = []

    def has(self, name: bytes) -> bool:
        return name in self.blocks

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        self.asked.append((names, Future()))
        return self.asked[-1][1]

    @property
    def room(self) -> int:
        return self.rng.choice((0, 1, 50))

    def put(self, name: bytes, data: Any) -> None:
        self.blocks[name] = data

    def turn(self, saved: Mapping[bytes, Any]) -> None:
        self.blocks |= {name: data for name, data in saved.items() if self.rng.random() < 0.5}
        while self.asked and self.rng.random() < 0.6:
            names, future = self.asked.pop(0)
            future.set_result({name: self.blocks[name] if self.rng.random() < 0.9 else None for name in names})


class Walk(Planning):
    """One hot session and some quiet ones."""

    def __init__(self, seed: int, tier: Tier | None = None, failures: float = 0.0) -> None:
        """failures: share of the plans that do not fit the memory."""
        self.is_ahead, self.failures = seed % 2 == 1, failures
        self.rng = rng = random.Random(seed)
        shape = Shape(PREFIX, CONTEXT, KEEP)
        super().__init__(LONGEST * rng.choice((1, 2, 4, 12)), BLOCK, rng.choice((7, 40, 200)), shape, tier=tier)
        for _ in range(rng.choice((2, 9))):
            self.session()
        self.num_asked = 0
        if rng.random() < 0.3:  # answers go on unseen whenever they can
            self.scheduler.speculation.is_one_token_likely = lambda *_: True  # type: ignore[method-assign]
            self.scheduler._unseen._is_in_vain = lambda *_: False  # type: ignore[method-assign]
        if rng.random() < 0.3:
            self.runner = ForcingRunner(self.pool.num_blocks, BLOCK)

    def turn(self) -> None:
        if self.workload.num_behind + self.workload.num_waiting < BACKLOG:
            self.give()
        if self.is_ahead:
            self.step_ahead()
        else:
            self.step()
        assert self.num_plans - min(self.asked_in.values(), default=self.num_plans) < LONGEST_WAIT
        if self.num_plans % 50 == 0:
            self.workload.check()
            self.settle()

    def give(self) -> None:
        rng = self.rng
        for session in self.sessions:
            if session is self.sessions[0] or rng.random() < 0.1:
                self.record(session, tuple(rng.randrange(100) for _ in range(rng.choice((1, 6, 30)))))
                if rng.random() < 0.4:
                    query = rng.choice(QUERIES)
                    number = 100 + int(query.id[1:])
                    self.ask(session, query, (*HEAD, *(number,) * rng.choice((2, TAIL - len(HEAD)))))
                    self.num_asked += 1
        if rng.random() < 0.1:
            ids = (rng.randrange(4) for _ in range(rng.choice((1, 20, CONTEXT))))
            self.call((*PREFIX, *ids), rng.randrange(1, ANSWER))
            self.num_asked += 1
        if rng.random() < 0.01:
            self.truncate(rng.choice(self.sessions))

    def truncate(self, session: Session) -> None:
        """Back to a place within its current generation; what was asked after it is not asked any more."""
        while self.out:
            self.land()
        if len(session.current.entries) < 2:
            return
        offset = self.rng.choice(session.current.entries[1:]).offset
        for fork in self.workload.drop_forks(lambda f: f.session is session and f.question.as_of.offset >= offset):
            del self.asked_in[fork.seq_id]
            self.num_asked -= 1
        for generation in session.truncate(offset):
            self.workload.drop(generation)
        self.pool.release(session.current.trim_blocks(self.pool))
        if session.current.num_computed == session.current.num_tokens:
            self.workload.growing.pop(session.current.seq_id, None)
        else:
            self.workload.grow(session.current)


    def step_ahead(self) -> None:
        if self.out and self.rng.random() < self.failures:
            self.retreat(*([self.begin()] if self.scheduler.looks_ahead else []))
        super().step_ahead()


