"""What is decided and launched while a step is out, and what has to wait for it."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from fakes import FakeFlight, FakeRunner
from oracle import expected_answers
from world import CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.answertypes import AnswerType
from streamproc.device import LEAST_AHEAD_S, MOST_AHEAD_S, Out
from streamproc.errors import OutOfMemory
from streamproc.messages import Ask, Query
from streamproc.schedule.plan import Chunk, Plan
from streamproc.state.epoch import Epoch, Message

QUERY = Query("q", "how is {last}?", every=1, max_tokens=9, stop=())


@dataclass
class Watched(FakeFlight):
    """One of a runner that knows what is out; done at the third look."""

    log: list[str] = field(default_factory=list)

    def wait(self) -> dict[int, tuple[int, ...]]:
        self.log.append("landed")
        return super().wait()


class WatchedRunner(FakeRunner):
    """`plans`: all so far; `log`: what happened to those with chunks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.plans: list[Plan] = []
        self.log: list[str] = []

    def launch(self, plan: Plan) -> Watched:
        self.plans.append(plan)
        self.log.append("launched")
        return Watched(self, plan, looks=3, log=self.log)


@pytest.fixture
def world() -> World:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    world.rebalance_share = 0
    world.log.produce(0, random_record(world.rng, "A"))
    for _ in range(9):      # what a step takes is known
        world.log.produce(0, random_record(world.rng, "A"))
        world.drain()
    return world


def watch(world: World) -> WatchedRunner:
    device = world.processor.device
    runner = WatchedRunner(world.num_blocks, 4)
    runner.cells = device.runner.cells  # type: ignore[attr-defined]
    device.runner = runner
    return runner


def most_out(log: Sequence[str]) -> int:
    num_out, most = 0, 0
    for event in log:
        num_out += 1 if event == "launched" else -1
        most = max(most, num_out)
    return most


def test_records_are_put_behind_the_step_that_is_out(world: World) -> None:
    runner = watch(world)
    for _ in range(30):
        world.log.produce(0, random_record(world.rng, "A"))
        world.processor.step()
        world.processor.check()
    assert most_out(runner.log) == 2
    assert runner.log.count("launched") > 20
    world.drain()
    (session,) = world.processor.partitions[0].sessions.values()
    assert session.current.num_computed == session.current.num_tokens


def test_an_epoch_is_committed_while_the_device_works(world: World) -> None:
    world.register(QUERY)
    out_at_commit: list[bool] = []
    commit = world.processor._sink.commit

    def watched(*arguments: object) -> None:
        out_at_commit.append(world.processor.device.oldest is not None)
        commit(*arguments)  # type: ignore[arg-type]

    world.processor._sink.commit = watched  # type: ignore[assignment, method-assign]
    watch(world)
    for _ in range(30):
        world.log.produce(0, random_record(world.rng, "A"))
        world.step()
    assert sum(out_at_commit) > len(out_at_commit) / 2


def launches_behind(world: World, runner: WatchedRunner) -> list[tuple[Plan, list[Chunk]]]:
    """To be filled: plans that are launched behind another one, with the chunks of that one whose forks still run."""
    found: list[tuple[Plan, list[Chunk]]] = []
    launch, device, running = runner.launch, world.processor.device, world.processor.workload.running

    def watched(plan: Plan) -> Watched:
        if before := [chunk for out in device._out for chunk in out.plan.chunks if chunk.seq_id in running]:
            found.append((plan, before))
        return launch(plan)

    runner.launch = watched  # type: ignore[method-assign]
    return found


def test_an_answer_goes_on_behind_the_step_that_samples_its_token(world: World) -> None:
    """And has no row too many where its length is known."""
    runner, processor = watch(world), world.processor
    processor.scheduler.speculation.is_on = False
    found = launches_behind(world, runner)
    world.register(QUERY)
    for _ in range(20):
        world.log.produce(0, random_record(world.rng, "A"))
        world.drain()
    assert len(world.answers()) == 20
    untold = [chunk for plan, _ in found for chunk in plan.chunks if chunk.is_untold]
    assert len(untold) > 20 * 7
    samples = Counter(chunk.seq_id for plan in runner.plans for chunk in plan.chunks if chunk.num_samples)
    assert set(samples.values()) == {QUERY.max_tokens}


def test_an_answer_that_ends_unforeseen_has_one_row_too_many_that_changes_nothing(world: World) -> None:
    runner, processor = watch(world), world.processor
    processor.scheduler.speculation.is_on = False
    stop = tuple("159AIQYaq")
    query = Query("q", "how is {last}?", every=1, max_tokens=9, stop=stop[:8])
    world.register(query)
    for _ in range(60):
        world.log.produce(0, random_record(world.rng, "A"))
        world.step()
    world.drain()
    messages = world.log.read(processor.publisher.topics.records, 0)
    expected = expected_answers(world.renderer, messages, [query], CONTEXT, KEEP)[-60:]
    assert in_log_order(world.answers())[-60:] == expected
    num_sampling = sum(chunk.num_samples > 0 for plan in runner.plans for chunk in plan.chunks)
    num_tokens = sum(min(len(answer.text) + 1, 9) for answer in expected)     # the text lacks its stop
    assert num_tokens < num_sampling <= num_tokens + 60


@pytest.mark.parametrize("answer", ["number", "text"])
def test_what_follows_from_the_token_itself_waits_for_it(world: World, answer: str) -> None:
    """What a type leaves no choice about, as long as nothing is known of that, and a draft's end."""
    runner, num_seen = watch(world), 0
    found = launches_behind(world, runner)
    for turn in range(120):
        if turn % 3 == 0:
            question = f"up {turn}?" if answer == "number" else "up?"
            world.register(Query("a", question, every=1, answer=AnswerType(answer), max_tokens=9, stop=()))
        world.log.produce(0, random_record(world.rng, f"S{turn % 3}"))
        world.step()
    assert most_out(runner.log) == 2
    for plan, before in found:
        assert not any(chunk.draft for chunk in before)
        num_seen += any(chunk.is_untold for chunk in plan.chunks)
        if answer == "number":      # each question is a new one
            assert not any(chunk.is_untold or chunk.constraint for chunk in plan.chunks)
    assert bool(num_seen) == (answer == "text")


class Phases:
    """Of a worker's turns: in which of them replies are committed. An ask whose answer is known is read whenever a step
    is out; transactions take so long.
    """

    def __init__(self, world: World, commit_s: float) -> None:
        self.world, self.phase, self.found = world, "", Counter[object]()
        self.num_asked, self.commit_s = 0, commit_s
        processor = world.processor
        self._commit, self._plan, self._poll = processor._sink.commit, processor.device.plan, world.source.poll
        processor._sink.commit = self.commit  # type: ignore[assignment, method-assign]
        processor.device.plan = self.plan  # type: ignore[assignment, method-assign]
        world.source.poll = self.poll  # type: ignore[method-assign]

    def turn(self) -> None:
        self.phase = "attending"
        self.world.step()

    def plan(self, *arguments: object) -> None:
        self._plan(*arguments)  # type: ignore[arg-type]
        self.phase = "planned"

    def poll(self, timeout_s: float) -> list[Message]:
        self.phase = "polled" if self.phase == "planned" else self.phase
        processor = self.world.processor
        if processor.device.oldest and not any(p.replies for p in processor.partitions.values()):
            self.num_asked += 1
            ask = Ask(f"ask{self.num_asked}", "A", "how?", answer=AnswerType("number"), max_tokens=3, stop=())
            self.world.log.append(processor.publisher.topics.asks, 0, None, ask.encode())
        return self._poll(timeout_s)

    def commit(self, epoch: Epoch, *arguments: object) -> None:
        device = self.world.processor.device
        keys = [message.key or b"" for message in epoch.messages]
        self.found["with replies", self.phase] += any(key.startswith(b"ask") for key in keys)
        self.found["while a step waits"] += device.has_begun
        self._commit(epoch, *arguments)  # type: ignore[arg-type]
        self.world.processor._pace.commit_s = self.commit_s


@pytest.mark.parametrize("commit_s", [0.0, 1e9])
def test_replies_are_committed_while_the_device_works_and_keep_no_step_waiting(world: World, commit_s: float) -> None:
    watch(world)
    world.register(Query("a", "how?", every=1, answer=AnswerType("number"), max_tokens=3, stop=()))
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    phases, times = Phases(world, commit_s), world.processor.scheduler.times
    times.step_s = lambda load: 0.002  # type: ignore[method-assign] - so that there is a time before its end
    for turn in range(300):
        if turn % 10 == 0:
            world.log.produce(0, random_record(world.rng, "B"))
        phases.turn()
    assert phases.num_asked > 40
    assert not phases.found["while a step waits"]
    assert phases.found["with replies", "planned"] > 10
    assert bool(phases.found["with replies", "attending"]) == (commit_s == 0.0)


def test_the_next_plans_are_decided_earlier_where_one_came_late(world: World) -> None:
    """And later again, where none does."""
    device, step = world.processor.device, world.processor.scheduler.begin()
    plan, at = Plan((), ()), 100.0
    aheads = []
    for late_s in (*[0.004] * 3, *[-0.001] * 300, 5.0, *[-0.001] * 3):
        flight = FakeFlight(FakeRunner(), plan, queued_at=at + late_s, ended_at=at + 0.01)
        device._note_times(Out(step, plan, flight, is_behind=at > 100.0))
        at += 0.01
        aheads.append(device._ahead_s)
    assert aheads[0] == LEAST_AHEAD_S
    assert aheads[1] == pytest.approx(LEAST_AHEAD_S + 0.004)
    assert aheads[2] > aheads[1]
    assert aheads[2] > aheads[3] > aheads[4]
    assert aheads[302] == LEAST_AHEAD_S
    assert aheads[303] == MOST_AHEAD_S > aheads[-1]


class Short(FakeFlight):
    """Of a device whose memory did not do for it."""

    def wait(self) -> dict[int, tuple[int, ...]]:
        self.runner.cells = [0 if cell is None else cell for cell in self.runner.cells]     # there is something in them
        self.runner.sampled = {}
        raise OutOfMemory("out of memory")


class ShortRunner(FakeRunner):
    """Not twice in a row: that would be the end of a worker."""

    def __init__(self, rng: random.Random, num_blocks: int) -> None:
        super().__init__(num_blocks, 4)
        self.rng, self.num_short, self.num_fine = rng, 0, 0

    def launch(self, plan: Plan) -> FakeFlight:
        self.num_fine += bool(plan.chunks)
        if not plan.chunks or self.num_fine < 5 or self.rng.random() < 0.9:
            return super().launch(plan)
        self.num_short, self.num_fine = self.num_short + 1, 0
        return Short(self, plan, self.looks())


@pytest.mark.parametrize("seed", range(20))
def test_a_step_that_lacks_memory_changes_no_answer_whatever_is_behind_it(seed: int) -> None:
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((16, 48, 400)))
    world = World(rng, config, 2, num_blocks=rng.choice((90, 400)), host_bytes=rng.choice((0, 2**20)))
    for query in QUERIES:
        world.register(query)
    runner = ShortRunner(rng, world.num_blocks)
    runner.looks = lambda: rng.choice((0, 1, 3))
    world.processor.device.runner = runner
    symbols = [f"S{i}" for i in range(rng.choice((1, 3, 12)))]
    for _ in range(300):
        sym = rng.choice(symbols)
        for _ in range(rng.choice((0, 1, 1, 5))):
            world.log.produce(symbols.index(sym) % 2, random_record(rng, sym))
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
    world.drain()
    assert runner.num_short > 5
    expected = []
    for number in range(2):
        messages = world.log.read(config.topics.records, number)
        expected += expected_answers(world.renderer, messages, QUERIES, CONTEXT, KEEP)
    expected.sort(key=lambda e: (e.offset, e.query_id, e.session))
    assert sorted(in_log_order(world.answers()), key=lambda e: (e.offset, e.query_id, e.session)) == expected
