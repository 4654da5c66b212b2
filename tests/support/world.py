"""A worker on fakes and a log that outlives it."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

from fakes import FakeClock, FakeControl, FakeEngine, FakeRenderer, FakeRunner, FakeSink, FakeSource, Log
from oracle import Expected

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Engine, Worker
from streamproc.keeper import Keeper
from streamproc.messages import Answer, Query, decode_answer
from streamproc.processor import StreamProcessor
from streamproc.records import Quote, Record, Trade

CONTEXT, KEEP, BLOCK = 160, 80, 4
QUERIES = [
    Query("always-2", "Is {last} {count}?", "*", every=2, max_tokens=5),
    Query("always-5", "{session} vwap {vwap} hi {high}", "S1*", every=5, max_tokens=9),
    Query("change-3", "up?", "*", every=3, emit="change", max_tokens=1),
    Query("choice-7", "b?", "S?", every=7, answer=AnswerType("choice", ("a", "b")), max_tokens=3, stop=("9", "x")),
]


def make_config(step_tokens: int = 48, backlog_tokens: int = 1_000) -> Config:
    engine = Engine(context_tokens=CONTEXT, keep=KEEP / CONTEXT, step_tokens=step_tokens, block_size=BLOCK)
    worker = Worker(
        slot="test", commit_interval_ms=10, backlog_tokens=backlog_tokens, max_question_tokens=60, max_answer_tokens=12,
        poison_after=1_000,     # a walk kills more often than any record deserves
    )  # fmt: skip
    return Config(engine=engine, worker=worker)


class World:
    """A log that outlives its workers."""

    def __init__(
        self,
        rng: random.Random,
        config: Config,
        num_partitions: int,
        num_blocks: int,
        looks_back: bool = False,
        keeper: Callable[[], Keeper | None] = lambda: None,
        host_bytes: int = 0,
    ) -> None:
        self.keeper = keeper
        config = replace(config, engine=replace(config.engine, host_bytes=host_bytes))
        self.renderer = FakeRenderer(looks_back=looks_back)
        self.rng, self.config, self.num_partitions, self.num_blocks = rng, config, num_partitions, num_blocks
        self.log = Log(config)
        self.clock = FakeClock()
        self.fate = "ok"
        self.rebalance_share = 0.02
        self.processor = self.start()

    def start(self) -> StreamProcessor:
        runner = FakeRunner(self.num_blocks, BLOCK)
        runner.looks = lambda: self.rng.choice((0, 0, 1, 3))
        engine = FakeEngine(runner, self.renderer)
        sink = FakeSink(self.log, lambda: self.fate)
        processor = StreamProcessor(self.config, engine, sink, FakeControl(self.log), self.clock.clock())
        self.source = FakeSource(self.log, batch=self.rng.choice((1, 3, 50)))
        self.source.listener = processor
        processor.connect(self.source, self.keeper())
        self.source.assign(range(self.num_partitions))
        return processor

    def step(self) -> None:
        self.clock.now_s += self.rng.choice((0.0, 0.004, 0.02))
        if self.rng.random() < self.rebalance_share:
            self.source.rebalances = [self.rng.randrange(self.num_partitions)]
        self.processor.step()
        self.processor.check()

    def drain(self) -> None:
        """Until nothing is left to do."""
        self.fate = "ok"
        for _ in range(20_000):
            self.clock.now_s += 0.02
            self.processor.step()
            if (self.processor.keeper and self.processor.keeper.sought) or self.processor.tier.num_coming:
                time.sleep(0.001)  # threads bring it
            idle = self.processor.is_at_rest and self.source.is_drained
            if idle and not any(p.finished or p.replies or p.dirty for p in self.processor.partitions.values()):
                return
        raise AssertionError("the worker does not come to rest: a deadlock")

    def sessions(self) -> dict[str, int]:
        """Tokens of every session's context."""
        partitions = self.processor.partitions.values()
        return {key: session.current.num_tokens for p in partitions for key, session in p.sessions.items()}

    def crash(self) -> None:
        self.processor = self.start()

    def register(self, query: Query) -> None:
        self.log.append(self.config.topics.control, 0, query.id.encode(), query.encode())

    def answers(self) -> list[Answer]:
        return [decode_answer(message.value or b"") for message in self.log.read(self.config.topics.answers)]


def random_record(rng: random.Random, sym: str) -> Record:
    if rng.random() < 0.3:
        return Quote(sym, rng.randrange(10**6), f"{rng.randrange(90, 100)}.5", f"{rng.randrange(100, 110)}.25")
    return Trade(sym, rng.randrange(10**6), f"{rng.randrange(90, 110)}.{rng.randrange(10)}", str(rng.randrange(1, 9)))


def in_log_order(answers: list[Answer]) -> list[Expected]:
    found = [
        Expected(a.session, a.as_of.offset, a.as_of.from_offset, a.query_id, a.text)
        for a in answers
        if a.kind == "flash" and a.as_of
    ]
    return sorted(found, key=lambda e: (e.offset, e.query_id))
