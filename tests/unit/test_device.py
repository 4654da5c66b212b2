"""What is decided and launched while a step is out, and what has to wait for it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from fakes import FakeFlight, FakeRunner
from oracle import expected_answers
from world import CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.errors import OutOfMemory
from streamproc.messages import Query
from streamproc.schedule.plan import Plan

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


def test_an_answer_goes_on_when_its_token_is_known_and_records_with_it(world: World) -> None:
    """The step that is decided while one samples has the records; the token is added, and nothing waits for a third."""
    runner, processor = watch(world), world.processor
    processor.scheduler.speculation.is_on = False
    world.register(QUERY)
    for _ in range(40):
        world.log.produce(0, random_record(world.rng, "A"))
        world.processor.step()
        world.processor.check()
    assert most_out(runner.log) <= 2
    decoding = [plan for plan in runner.plans if any(c.num_samples and len(c.token_ids) == 1 for c in plan.chunks)]
    assert any(any(not chunk.num_samples for chunk in plan.chunks) for plan in decoding)
    world.drain()
    assert len(world.answers()) == 40


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


def test_a_step_that_samples_is_not_out_behind_another_one_whoever_was_asked(world: World) -> None:
    """Its question may have been withdrawn since."""
    runner, num_behind = watch(world), 0
    launch, device = runner.launch, world.processor.device

    def watched(plan: Plan) -> Watched:
        nonlocal num_behind
        before = [chunk for out in device._out for chunk in out.plan.chunks]
        num_behind += any(c.num_samples for c in plan.chunks) and any(c.num_samples for c in before)
        return launch(plan)

    runner.launch = watched  # type: ignore[method-assign]
    for turn in range(120):
        if turn % 3 == 0:
            world.register(Query("a", f"up {turn}?", every=1, max_tokens=9, stop=()))
            world.processor.calls.call("prompt", 1)
        world.log.produce(0, random_record(world.rng, f"S{turn % 3}"))
        world.step()
    assert most_out(runner.log) == 2
    assert not num_behind


class Short(FakeFlight):
    """Of a device whose memory did not do for it."""

    def wait(self) -> dict[int, tuple[int, ...]]:
        self.runner.cells = [0 if cell is None else cell for cell in self.runner.cells]     # there is something in them
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
