"""The scheduler with sessions, questions and a fake runner, without a processor around it."""

import random
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

from fakes import FakeRenderer, FakeRunner
from oracle import fake_answer

from streamproc.answertypes import AnswerType
from streamproc.messages import Ask, AsOf, Query
from streamproc.records import Trade
from streamproc.schedule.builder import StepBuilder
from streamproc.schedule.plan import Plan
from streamproc.schedule.progress import Progress
from streamproc.schedule.scheduler import Scheduler
from streamproc.state.blocks import BlockPool
from streamproc.state.fork import NOWHERE, Call, Fork, Question
from streamproc.state.generation import Generation
from streamproc.state.session import Session, Shape
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

Ids = tuple[int, ...]


class Planning:
    """Every answer is held to a rolling hash of its context; steps last as long as `seconds_of` says."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        step_tokens: int,
        shape: Shape,
        step_s: float = 1.0,
        tier: Tier | None = None,
        recomputes: bool = False,
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.workload = Workload(self.pool)
        self.scheduler = Scheduler(self.workload, step_tokens, step_s, tier, recomputes)
        self.runner = FakeRunner(num_blocks, block_size)
        self.renderer = FakeRenderer()
        self.progress = Progress(self.workload, self.scheduler.speculation, self.renderer)
        self.shape = shape
        self.sessions: list[Session] = []
        self.asked_in: dict[int, int] = {}  # plan before which a question that is open was asked
        self.waits: dict[int, int] = {}  # plans that an answered question took
        self.num_plans = self.num_tokens = self.offset = 0
        self.out: list[tuple[StepBuilder, Plan]] = []
        self.may_be_empty = False

    def session(self) -> Session:
        self.sessions.append(Session(f"S{len(self.sessions)}", self.shape, 0, 0, self.workload.new_seq_id()))
        return self.sessions[-1]

    def record(self, session: Session, ids: Ids) -> None:
        self.offset += 1
        if session.append(self.offset, Trade(session.key, 1, "1", "1"), ids, self.workload.new_seq_id):
            self.workload.retire(session.retired[-1])
        for generation in session.unused:
            self.workload.drop(generation)
        session.unused.clear()
        self.workload.grow(session.current)
        if session.next:
            self.workload.make_ahead(session.next)

    def ask(self, session: Session, source: Query | Ask, tail: Ids) -> Fork:
        as_of = AsOf("t", 0, 0, session.last_offset or 0, 0)
        question = Question(source, session.key, source.question, tail, source.max_tokens, source.stop or (), as_of)
        generation = session.current
        return self.wait(Fork(self.workload.new_seq_id(), question, session, generation, generation.num_tokens, 0.0))

    def call(self, ids: Ids, max_tokens: int) -> Fork:
        call = Call("prompt", max_tokens, (), AnswerType(), Future())
        question = Question(call, "", "prompt", ids, max_tokens, (), NOWHERE)
        nothing = Generation(self.workload.new_seq_id(), (), 0, 0)
        return self.wait(Fork(self.workload.new_seq_id(), question, None, nothing, 0, 0.0))

    def wait(self, fork: Fork) -> Fork:
        self.workload.wait(fork)
        self.asked_in[fork.seq_id] = self.num_plans
        return fork

    def seconds_of(self, plan: Plan) -> float:
        return 1e-3 * plan.num_tokens

    def begin(self, held: Collection[int] = ()) -> StepBuilder:
        self.may_be_empty = bool(held or self.out)     # else there is something for it to do, if for anybody
        return self.scheduler.begin((), held)

    def launch(self, step: StepBuilder) -> Plan:
        """It is computed when it lands, as late as a device may."""
        plan = self.scheduler.finish(step)
        assert plan.num_tokens <= self.scheduler.step_tokens
        is_busy = plan.chunks or plan.loads or self.scheduler.tier.num_coming or self.may_be_empty
        assert is_busy or self.workload.is_idle, "there is something to do, and nothing is done"
        self.progress.launched(plan)
        self.out.append((step, plan))
        return plan

    def land(self) -> None:
        """The oldest plan that is out."""
        step, plan = self.out.pop(0)
        sampled = self.runner.carry_out(plan)
        self.scheduler.landed(step, self.seconds_of(plan))
        self.scheduler.tier.put(self.runner.saved)
        self.num_plans += 1
        self.num_tokens += plan.num_tokens
        for fork in self.progress.landed(plan, sampled, 0.0):
            ids = [*fork.generation.token_ids[: fork.base], *fork.question.tail_ids]
            assert fork.text == fake_answer(self.renderer, ids, fork.question.max_tokens, fork.question.stop)
            self.waits[fork.seq_id] = self.num_plans - self.asked_in.pop(fork.seq_id)

    def step(self, held: Collection[int] = ()) -> Plan:
        """A plan, decided and carried out."""
        while self.out:
            self.land()
        plan = self.launch(self.begin(held))
        while self.out:
            self.land()
        return plan

    def step_ahead(self) -> None:
        """A plan, decided while the one before it is out, which then lands."""
        if not self.scheduler.looks_ahead:
            while self.out:
                self.land()
        step = self.begin()
        if step.waits:
            self.land()
            self.launch(step)
        else:
            self.launch(step)
            if len(self.out) > 1:
                self.land()

    def retreat(self, *begun: StepBuilder) -> None:
        """The oldest plan that is out does not fit the memory; `begun`: one that was to come next."""
        steps = [*(step for step, _ in self.out), *begun]
        self.progress.failed([plan for _, plan in self.out])
        self.out.clear()
        self.scheduler.retreat(steps)

    def rounds(
        self, rng: random.Random, count: int, lengths: Sequence[int], between: Callable[[], None] = lambda: None
    ) -> tuple[int, int, int]:
        """In each round 64 of the sessions are at work, others than before: a record of some length, and now and then a
        question -> tokens given, questions, sessions that came back to no cells.
        """
        num_given = num_asked = num_returns = 0
        for number in range(count):
            for place in range(64):
                session = self.sessions[(number * 61 + place) % len(self.sessions)]
                ids = tuple(rng.randrange(100) for _ in range(rng.choice(lengths)))
                num_returns += not session.current.block_table
                self.record(session, ids)
                num_given += len(ids) + (len(self.shape.prefix_ids) if len(session.current.entries) == 1 else 0)
                if rng.random() < 0.3:
                    self.ask(session, Query("q", "q", max_tokens=2), (7, 8, 9))
                    num_asked += 1
            self.drain(between=between)
            self.settle()
        return num_given, num_asked, num_returns

    def drain(self, most: int = 20_000, between: Callable[[], None] = lambda: None) -> int:
        """Until nothing is asked for -> plans that it took."""
        for taken in range(most):
            if self.workload.is_idle:
                return taken
            self.step()
            between()
        raise AssertionError("it does not come to rest")

    def settle(self) -> None:
        """All hops so far are committed."""
        for session in self.sessions:
            for generation in session.settle(self.offset):
                self.workload.drop(generation)
