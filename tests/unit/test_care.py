"""Which record kills the worker: found on fakes, among innocent ones, whatever else dies meanwhile."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from fakes import FakeRenderer, FakeRunner
from oracle import expected_answers
from world import BLOCK, CONTEXT, KEEP, World, make_config, random_record

from streamproc.config import Config
from streamproc.errors import StreamprocError
from streamproc.messages import Query
from streamproc.records import Record, Trade
from streamproc.schedule.plan import Plan
from streamproc.state.care import Care
from streamproc.state.partition import Partition, Recovery
from streamproc.state.session import Shape
from streamproc.state.blocks import BlockPool
from streamproc.state.stamp import EVER, MAX_POISONED, Stamp, Work
from streamproc.state.workload import Workload

QUERY = Query("q", "how is {last}?", every=2, max_tokens=5)
IDLE = Query("idle", "now {last}?", max_tokens=4)
POISON, DEADLY = "666", 1


class Death(BaseException):
    """The process is gone: nothing after it happens."""


class DeadlyRenderer(FakeRenderer):
    def record_ids(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        if any(getattr(record, "px", "") == POISON for record in records):
            raise Death
        return super().record_ids(records)


class MarkingRenderer(FakeRenderer):
    """A token that no answer has stands for the poison, however a record is cut into chunks."""

    @staticmethod
    def text(record: Record) -> str:
        return FakeRenderer.text(record).replace(f" {POISON} ", chr(DEADLY))


class DeadlyRunner(FakeRunner):
    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        if any(DEADLY in chunk.token_ids for chunk in plan.chunks):
            raise Death
        return super().run(plan)


def make(poison_after: int = 3) -> Config:
    config = make_config()
    return replace(config, worker=replace(config.worker, poison_after=poison_after))


class Mortal(World):
    """A world whose workers die and are started again."""

    def __init__(self, seed: int, where: str, poison_after: int = 3) -> None:
        self.where = where
        super().__init__(random.Random(seed), make(poison_after), num_partitions=2, num_blocks=400)
        self.rebalance_share = 0
        self.num_deaths = 0

    def start(self):  # type: ignore[no-untyped-def]
        self.renderer = DeadlyRenderer() if self.where == "renderer" else MarkingRenderer()
        processor = super().start()
        if self.where == "runner":
            processor.runner = DeadlyRunner(self.num_blocks, BLOCK)
        return processor

    def live(self, what: Callable[[], object], most: int = 20) -> None:
        """Do this, with a new worker after each death."""
        for _ in range(most):
            try:
                what()
            except Death:
                self.num_deaths += 1
                self.crash()
            else:
                return
        raise AssertionError(f"{most} deaths")

    def letters(self) -> list[dict[str, bytes]]:
        return [headers for message, headers in self.log.headers if message.topic == self.config.topics.dead]


@pytest.mark.parametrize("where", ["renderer", "runner"])
@pytest.mark.parametrize("seed", range(15))
def test_a_record_that_kills_is_set_aside_and_all_others_are_answered(seed: int, where: str) -> None:
    world = Mortal(seed, where)
    world.register(QUERY)
    rng, poison = world.rng, set()
    for _ in range(rng.randrange(5, 60)):
        world.log.produce(rng.randrange(2), random_record(rng, rng.choice("ABC")))
        if rng.random() < 0.5:
            world.live(world.step)
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(2)
        poison.add((number, world.log.produce(number, Trade(rng.choice("ABC"), 5, POISON, "1"))))
        for _ in range(rng.randrange(1, 30)):
            world.log.produce(rng.randrange(2), random_record(rng, rng.choice("ABC")))
    world.live(world.drain)
    world.crash()
    world.live(world.drain)
    letters = [(int(letter["partition"]), int(letter["offset"])) for letter in world.letters()]
    assert sorted(letters) == sorted(poison)
    assert all(letter["code"] == b"POISON_RECORD" and int(letter["deaths"]) >= 3 for letter in world.letters())
    assert world.num_deaths <= 5 * len(poison)  # one is not counted, and one may be blamed on the other partition
    found = sorted((a.session, a.as_of.partition, a.as_of.offset, a.text) for a in world.answers() if a.as_of)
    expected = []
    for number in range(2):
        messages = [m for m in world.log.read(world.config.topics.records, number) if (number, m.offset) not in poison]
        for answer in expected_answers(FakeRenderer(), messages, [QUERY], CONTEXT, KEEP):
            expected.append((answer.session, number, answer.offset, answer.text))
    assert found == sorted(expected)


@pytest.mark.parametrize("poison_after", [2, 3, 5])
def test_so_many_deaths_at_one_offset_are_needed_and_no_more(poison_after: int) -> None:
    world = Mortal(1, "renderer", poison_after)
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    world.log.produce(0, Trade("A", 5, POISON, "1"))
    world.live(world.drain)
    assert world.num_deaths in (max(poison_after, 3), max(poison_after, 3) + 1)
    assert len(world.letters()) == 1


def test_a_record_that_kills_after_its_offset_was_committed_is_found_in_the_restore() -> None:
    world = Mortal(1, "nothing")
    world.register(IDLE)
    for px in ("1", POISON, "2"):
        world.log.produce(0, Trade("A", 5, px, "1"))
    world.drain()
    world.where = "runner"
    world.crash()
    world.live(world.drain)
    (letter,) = world.letters()
    assert int(letter["offset"]) == 1
    world.num_deaths = 0
    world.crash()
    world.live(world.drain)
    assert world.num_deaths == 0
    assert len(world.letters()) == 1


@pytest.mark.parametrize("seed", range(10))
def test_workers_that_are_killed_at_random_while_they_make_progress_make_no_record_suspect(seed: int) -> None:
    world = Mortal(seed, "nothing")
    world.register(QUERY)
    for turn in range(120):
        world.log.produce(turn % 2, random_record(world.rng, "AB"[turn % 2]))
        world.step()
        if turn % 20 == 19:
            world.drain()
            world.crash()
    world.drain()
    assert world.letters() == []
    assert len(world.answers()) == 60


def test_a_clean_end_counts_no_death_and_an_owner_that_makes_progress_forgets_them() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    for _ in range(6):
        world.log.produce(0, random_record(world.rng, "A"))
        world.drain()
        world.processor.close()
        world.crash()
    stamp = Stamp(work=Work(0, EVER)).succeeded()
    assert replace(stamp, work=Work(0, EVER)).succeeded().num_deaths == 2
    recovery = world.source.recover(0)
    assert recovery.stamp.left
    assert recovery.stamp.succeeded().num_deaths == 0


def test_too_many_poisoned_records_stop_the_worker_with_one_line() -> None:
    care = Care("records", 3, Workload(BlockPool(1, 1)), lambda partition: None)
    shape = Shape((1,), 100, 10)
    recovery = Recovery(0, 0, {}, 0, stamp=Stamp(poisoned=dict.fromkeys(range(MAX_POISONED + 1), 0)))
    with pytest.raises(StreamprocError, match="65 records have killed the worker, the newest at offset 64") as problem:
        care.assigned(Partition.recover(0, shape, recovery), recovery)
    assert "\n" not in str(problem.value)


def test_nothing_is_written_for_a_record() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    written: list[object] = []
    stamp = world.source.stamp
    world.source.stamp = lambda stamps: written.append(stamps) or stamp(stamps)  # type: ignore[method-assign]
    for turn in range(100):
        world.log.produce(turn % 2, random_record(world.rng, "A"))
        world.step()
    world.drain()
    assert len(written) == 2
