"""A worker with a real engine on a log that outlives it: records, questions, failing epochs and sudden deaths."""

import random
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from fakes import FakeClock, FakeControl, FakeEngine, FakeSink, FakeSource, Log
from watch import WatchedRunner

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Engine, Prompts, Worker
from streamproc.engine import build
from streamproc.engine.forward import run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.keeper import Keeper
from streamproc.messages import Answer, Ask, Query, decode_answer
from streamproc.processor import StreamProcessor
from streamproc.records import Quote, Record, Trade
from streamproc.schedule.plan import Chunk, Plan
from streamproc.snapshots.manifest import Identity
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation

SYSTEM = "What follows is a feed.\n"  # more than a block: sessions share it
PROMPTS = Prompts(system=SYSTEM, trade="{sym} {px} {sz}\n", quote="{sym} {bid_px} {ask_px}\n", stop=("\n", "~"))
MAX_QUESTION, MAX_ANSWER = 48, 26
SIGNAL = """{"type": "object", "properties": {"up": {"type": "boolean"}, "by": {"enum": [1, 2, 15]}},
            "required": ["up", "by"], "additionalProperties": false}"""
SIGNALS = tuple(f'{{"up": {up}, "by": {by}}}' for up in ("true", "false") for by in (1, 2, 15))
NUMBER, BOOLEAN = AnswerType("number"), AnswerType("boolean")
SIDE, SIGNAL_TYPE = AnswerType("choice", ("up", "down", "up a lot")), AnswerType("json", schema=SIGNAL)


class Size(NamedTuple):
    """What makes a walk go its way."""

    context_tokens: int
    step_tokens: int
    pool: int  # in sequences of the greatest length
    num_sessions: int
    num_digits: int  # of a trade's size: makes records long


SIZES = (
    Size(144, 17, pool=1, num_sessions=3, num_digits=2),  # short pieces, evictions
    Size(208, 300, pool=4, num_sessions=3, num_digits=2),  # all in one piece
    Size(592, 90, pool=2, num_sessions=2, num_digits=28),  # more than a tile of keys
)
QUERIES = (
    Query("every-3", "last {last}, {count} so far?", "*", every=3, max_tokens=5),
    Query("every-5", "{session} high {high}?", "S0", every=5, max_tokens=4, stop=("e", "7", "Q")),
    Query("change-2", "up?", "S*", every=2, emit="change", max_tokens=1),
    Query("idle", "now {mid}?", "*", max_tokens=3),
    Query("choice-4", "which way {last}?", "*", every=4, answer=SIDE, max_tokens=12),
    Query("number-3", "how many {high}?", "S*", every=3, answer=NUMBER, max_tokens=6),
    Query("json-5", "tell {vwap}", "*", every=5, answer=SIGNAL_TYPE, max_tokens=26, stop=("\n",)),
    Query("cut-5", "tell some {vwap}", "S1", every=5, answer=SIGNAL_TYPE, max_tokens=9, stop=()),
    Query("idle-boolean", "is it {mid}?", "*", answer=BOOLEAN, max_tokens=8),
)


def make_config(size: Size, host_bytes: int = 0) -> Config:
    engine = Engine(context_tokens=size.context_tokens, step_tokens=size.step_tokens, kv_bytes=4 * 2**20, threads=1,
                    host_bytes=host_bytes)  # fmt: skip
    worker = Worker(slot="test", commit_interval_ms=10, max_question_tokens=MAX_QUESTION, max_answer_tokens=MAX_ANSWER)
    return Config(engine=engine, worker=worker, prompts=PROMPTS)


class World:
    """A log, and a worker with a real engine that may die at any moment. With a folder there are snapshots in it,
    blocks leave the pool for host memory, and partitions come and go.
    """

    def __init__(self, engine: build.Engine, seed: int, folder: Path | None = None) -> None:
        self.rng = random.Random(seed)
        self.is_rash = seed // len(SIZES) % 2 == 1
        self.folder, self.more_rng = folder, random.Random(-1 - seed)  # what is drawn for the folder changes no feed
        self.notes: list[str] = []
        self.keeper: Keeper | None = None
        self.engine = engine
        self.size = SIZES[seed % len(SIZES)]
        host_blocks = self.more_rng.choice((4, 40)) if folder else 0
        self.config = make_config(self.size, host_blocks * engine.runner.block_bytes)
        longest = -(-build.longest_sequence(self.config) // engine.runner.block_size) + 1
        num_blocks = self.size.pool * longest * (4 if self.is_rash else 1)
        self.watch = WatchedRunner(engine.runner, min(num_blocks, engine.runner.num_blocks))
        looks = random.Random(f"looks {seed}")
        self.watch.hesitates = lambda: looks.random() < 0.5
        self.log = Log(self.config)
        self.clock = FakeClock()
        self.fate = "ok"
        self.asks: dict[str, Ask] = {}
        self.calls: list[tuple[str, int, AnswerType, Future[str]]] = []
        self.num_guessed = self.num_held = 0
        for query in QUERIES:
            self.log.append(self.config.topics.control, 0, query.id.encode(), query.encode())
        self.start()

    def start(self) -> None:
        """A new worker; what the one before held in memory is gone, its cells hold what they held."""
        engine = FakeEngine(self.watch, self.engine.renderer, self.engine.fingerprint, self.engine.why_not)
        sink = FakeSink(self.log, lambda: self.fate)
        self.processor = StreamProcessor(self.config, engine, sink, FakeControl(self.log), self.clock.clock())
        self._watch_speculation()
        self.source = FakeSource(self.log, batch=self.rng.choice((1, 4, 30)))
        self.source.listener = self.processor
        self.keeper = self._make_keeper()
        self.processor.connect(self.source, self.keeper)
        self.source.assign(range(2))

    def _make_keeper(self) -> Keeper | None:
        if not self.folder:
            return None
        store, fingerprint = open_store(str(self.folder)), f"{self.engine.fingerprint}.{self.engine.runner.block_size}"

        def identity(number: int, topic_id: str) -> Identity:
            return Identity(fingerprint, "group", "records", topic_id, number)

        self.writer = SnapshotWriter(store, self.notes.append)
        reader = SnapshotReader(store, self.notes.append)
        return Keeper(identity, self.writer, reader, self.more_rng.choice((0.0, 0.01)), self.notes.append)

    def die(self) -> None:
        """Its snapshots are written up to here, or not."""
        if self.keeper:
            self.writer.wait(self.more_rng.choice((0.0, 5.0)))
            self.keeper.close()

    def _watch_speculation(self) -> None:
        """With `is_rash` answers go on unseen whenever they can."""
        speculation = self.processor.scheduler.speculation
        settle = speculation.settle

        def counted(fork: Fork, num_guessed: int, num_held: int, num_forced: int) -> None:
            self.num_guessed += num_guessed
            self.num_held += num_held
            settle(fork, num_guessed, num_held, num_forced)

        speculation.settle = counted  # type: ignore[method-assign]
        if self.is_rash:
            speculation.is_one_token_likely = lambda *_: True  # type: ignore[method-assign]
            self.processor.scheduler._unseen._is_in_vain = lambda *_: False  # type: ignore[method-assign]

    def walk(self, num_turns: int) -> None:
        """Records and asks come in, steps are made, epochs fail, workers die."""
        for _ in range(num_turns):
            for _ in range(self.rng.choice((0, 1, 1, 4))):
                number = self.rng.randrange(self.size.num_sessions)
                self.log.produce(number % 2, self.record(f"S{number}"))
            if self.rng.random() < 0.12:
                self.ask(self.rng.randrange(self.size.num_sessions))
            if self.rng.random() < 0.3:
                self.call()
            self.fate = self.rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
            self.clock.now_s += self.rng.choice((0.0, 0.004, 0.02))
            self.processor.step()
            self.processor.check()
            if self.rng.random() < 0.04:
                check_cells(self)
                self.die()
                self.start()
            if self.folder and self.more_rng.random() < 0.06:
                self.source.rebalances = [self.more_rng.randrange(2)]
        self.drain()

    def record(self, sym: str) -> Record:
        rng, when = self.rng, self.rng.randrange(10**6)
        if rng.random() < 0.3:
            return Quote(sym, when, f"{rng.randrange(90, 100)}.5", f"{rng.randrange(100, 110)}.25")
        price = f"{rng.randrange(90, 110)}.{rng.randrange(100):02}"
        return Trade(sym, when, price, str(rng.randrange(1, 10**self.size.num_digits)))

    def ask(self, number: int) -> Ask:
        """A question to a session of which there is a record."""
        sym, partition = f"S{number}", number % 2
        offset = self.log.produce(partition, self.record(sym))
        answer = self.rng.choice((AnswerType(), NUMBER))
        words = "how is {last}?" if answer.type == "text" else "what number is {last}?"
        ask = Ask(f"ask-{len(self.asks)}", sym, words, min_offset=offset, max_tokens=8, answer=answer)
        if self.rng.random() < 0.5:  # what is asked anyhow
            same = self.rng.choice(QUERIES)
            ask = replace(ask, question=same.question, max_tokens=same.max_tokens, answer=same.answer, stop=same.stop)
        self.log.append(self.config.topics.asks, partition, sym.encode(), ask.encode())
        self.asks[ask.id] = ask
        return ask

    def call(self) -> None:
        """A prompt without a session, which often begins like one before it."""
        kind, words = self.rng.choice(((AnswerType(), "and?"), (AnswerType(), "then?"), (BOOLEAN, "is it?")))
        prompt = SYSTEM + "S0 7 8\n" * self.rng.choice((0, 3)) + words
        max_tokens = self.rng.randrange(1, 8)
        future = self.processor.calls.call(prompt, max_tokens, answer=kind)
        self.calls.append((prompt, max_tokens, kind, future))

    def drain(self) -> None:
        """Until nothing is left to do."""
        self.fate = "ok"
        for _ in range(10_000):
            self.clock.now_s += 0.02
            self.processor.step()
            idle = self.processor.is_at_rest and self.source.is_drained
            if idle and not any(p.finished or p.replies or p.dirty for p in self.processor.partitions.values()):
                self.processor.land()       # what is made ahead
                return
        raise AssertionError("the worker does not come to rest")

    def generations(self) -> list[Generation]:
        """All that hold cells."""
        sessions = [s for partition in self.processor.partitions.values() for s in partition.sessions.values()]
        return [generation for s in sessions for generation in s.generations if generation.num_computed]

    @property
    def num_hopped(self) -> int:
        """Sessions that have left records behind."""
        partitions = self.processor.partitions.values()
        return sum(s.current.records_before > 0 for partition in partitions for s in partition.sessions.values())

    def answers(self) -> list[Answer]:
        return [decode_answer(message.value or b"") for message in self.log.read(self.config.topics.answers)]


def check_cells(world: World) -> int:
    """Every live generation's cells are those of one chunk from nothing -> how many were compared."""
    runner, forward, num_cells = world.engine.runner, world.engine.runner.forward, 0
    world.processor.land()      # cells count as computed from the launch on
    for generation in world.generations():
        num_tokens = generation.num_computed
        table = tuple(range(-(-num_tokens // runner.block_size)))
        fresh = KVCache(runner.kv.layout, len(table), runner.kv.blocks.device)
        plan = Plan((), (Chunk(0, 0, tuple(generation.token_ids[:num_tokens]), table),))
        runner.call(lambda fresh=fresh, plan=plan: run_step(forward, fresh, plan))
        ours = forward.cells(runner.kv, generation.block_table[: len(table)], num_tokens)
        expected = forward.cells(fresh, table, num_tokens)
        assert torch.equal(ours, expected), f"cells differ in a generation of {num_tokens}"
        num_cells += num_tokens
    return num_cells
