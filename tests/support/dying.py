"""A world whose workers die, at a record that kills them or by chance, and are started again."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fakes import FakeRenderer, FakeRunner
from oracle import expected_answers
from world import BLOCK, CONTEXT, KEEP, World, make_config

from streamproc.config import Config
from streamproc.messages import Query
from streamproc.records import Record, Trade
from streamproc.schedule.plan import Plan
from streamproc.state.stamp import decode_stamp

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
    """`where`: a record with the price POISON kills in the renderer, in the runner, or not at all ("nothing")."""

    def __init__(self, seed: int, where: str, poison_after: int = 3) -> None:
        self.where = where
        super().__init__(random.Random(seed), make(poison_after), num_partitions=2, num_blocks=400)
        self.rebalance_share = 0
        self.num_deaths = 0

    def start(self):  # type: ignore[no-untyped-def]
        self.renderer = DeadlyRenderer() if self.where == "renderer" else MarkingRenderer()
        processor = super().start()
        if self.where == "runner":
            processor.device.runner = DeadlyRunner(self.num_blocks, BLOCK)
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

    def produce_poison(self, number: int) -> tuple[int, int]:
        """Add a record that kills -> its partition and offset."""
        return number, self.log.produce(number, Trade(self.rng.choice("ABC"), 5, POISON, "1"))

    def dead(self) -> list[tuple[int, int]]:
        """Partition and offset of what went to the dead topic."""
        return sorted((int(letter["partition"]), int(letter["offset"])) for letter in self.letters())

    def found(self) -> list[tuple[str, int, int, str | None]]:
        """Answers as session, partition, offset, text."""
        return sorted((a.session, a.as_of.partition, a.as_of.offset, a.text) for a in self.answers() if a.as_of)

    def expected(self, query: Query, left_out: set[tuple[int, int]]) -> list[tuple[str, int, int, str | None]]:
        """What the oracle answers without these records."""
        expected: list[tuple[str, int, int, str | None]] = []
        for number in range(self.num_partitions):
            messages = self.log.read(self.config.topics.records, number)
            good = [message for message in messages if (number, message.offset) not in left_out]
            for answer in expected_answers(FakeRenderer(), good, [query], CONTEXT, KEEP):
                expected.append((answer.session, number, answer.offset, answer.text))
        return sorted(expected)


class Doomed(Mortal):
    """Workers also die by chance, before or after anything that reaches the log; no innocent record is named twice."""

    def __init__(self, seed: int, where: str, poison_after: int, share: float) -> None:
        self.share, self.num_chance, self.named = share, 0, set[tuple[int, int]]()
        super().__init__(seed, where, poison_after)

    def start(self):  # type: ignore[no-untyped-def]
        processor = super().start()
        for owner, name in ((self.source, "poll"), (self.source, "stamp"), (processor._sink, "commit")):
            setattr(owner, name, self._perilous(getattr(owner, name)))
        return processor

    def _perilous(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._perhaps_die()
            result = act(*args)
            self._perhaps_die()
            return result

        return call

    def _perhaps_die(self) -> None:
        named = {
            (number, stamp.work.start)
            for number in range(self.num_partitions)
            for stamp in [decode_stamp(self.log.committed.get((self.config.topics.records, number), (0, ""))[1])]
            if stamp.work and stamp.work.is_alone
        }
        if self.rng.random() < self.share and not named & self.named:
            self.named |= named
            self.num_chance += 1
            raise Death
