"""A feed, a log and a folder of snapshots that outlive the workers on them; every worker has a real engine and an end.

The feed is the same at every run and comes turn by turn, so a run without any death says what must be there after any.
"""

import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine_world import MAX_ANSWER, MAX_QUESTION, PROMPTS, QUERIES
from fakes import FakeClock, FakeControl, FakeEngine, Log
from mortal import Death, Killed, MortalKeeper, MortalRunner, MortalSink, MortalSource, MortalStore, MortalWriter

from streamproc.config import Config, Engine, Worker
from streamproc.engine import build
from streamproc.messages import decode_answer
from streamproc.processor import StreamProcessor
from streamproc.records import Quote, Record, Trade
from streamproc.schedule.builder import StepBuilder
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import FileStore
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation
from streamproc.state.session import Session

NUM_SESSIONS, NUM_PARTITIONS, NUM_TURNS = 8, 2, 28
STEPS = 3  # in a turn: most questions are answered before more records come
TRIGGERED = tuple(query for query in QUERIES if query.every and query.answer.type != "json")  # the log decides on them


def make_config(dtype: str) -> Config:
    """Contexts of nine blocks, and cells for all of them."""
    engine = Engine(context_tokens=144, step_tokens=90, kv_bytes=8 * 2**20, threads=1, model="random-tiny", dtype=dtype)
    worker = Worker(slot="test", commit_interval_ms=10, max_question_tokens=MAX_QUESTION, max_answer_tokens=MAX_ANSWER)
    return Config(engine=engine, worker=worker, prompts=PROMPTS)


def feed(num_turns: int = NUM_TURNS) -> Iterator[list[tuple[int, Record]]]:
    """The records of every turn, with their partition."""
    rng = random.Random(7)
    for _ in range(num_turns):
        numbers = [rng.randrange(NUM_SESSIONS) for _ in range(rng.choice((3, 5, 7)))]
        yield [(number % NUM_PARTITIONS, random_record(rng, f"S{number}")) for number in numbers]


def random_record(rng: random.Random, sym: str) -> Record:
    if rng.random() < 0.3:
        return Quote(sym, rng.randrange(10**6), f"{rng.randrange(90, 100)}.5", f"{rng.randrange(100, 110)}.25")
    return Trade(sym, rng.randrange(10**6), f"{rng.randrange(90, 110)}.{rng.randrange(100):02}", str(rng.randrange(99)))


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: a digest of every session's tokens and cells; by session and query its answers, in order."""

    digests: dict[str, str]
    answers: dict[tuple[str, str], list[bytes]]


@dataclass
class CrashWorld:
    """`folder`: of the snapshots; None: there are none. `interval_s`: between two of them."""

    engine: build.Engine
    config: Config
    folder: Path | None = None
    interval_s: float = 0.0
    num_files: int = 10**9  # that fit the disk
    rebalances: dict[int, list[int]] = field(default_factory=dict)  # by turn: partitions that go, and come back
    notes: list[str] = field(default_factory=list)  # what workers have warned of
    num_lives: int = 0
    make_log: Callable[[Config], Log] = Log
    expected: dict[tuple[str, int], torch.Tensor] | None = None  # cells by session and start offset; None: noted here
    cells: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log, self.clock, self._turn = self.make_log(self.config), FakeClock(), 0
        self._feed = list(feed())
        for query in TRIGGERED:
            self.log.append(self.config.topics.control, 0, query.id.encode(), query.encode())

    def live(self, death: Death | None = None) -> bool:
        """The life of a worker: to the end of the feed and until nothing is left to do, or up to its death -> whether
        it has died. What the one before held in memory is gone, and its cells are overwritten.
        """
        self.death = death or Death()
        self.num_lives += 1
        self._num_seen: dict[int, int] = {}  # computed tokens of a generation, by its seq id
        self._num_steps = 0
        self.engine.runner.call(self._scribble)
        self._start()
        try:
            self.source.assign(range(NUM_PARTITIONS))
            while self._turn < len(self._feed):
                self.source.rebalances = list(self.rebalances.get(self._turn, ()))
                self.produce()
                for _ in range(STEPS):
                    self.step()
            self._drain()
        except Killed:
            pass
        self.engine.runner.call(lambda: None)  # what was launched lands before anybody else uses the cells
        if self.keeper:
            self.keeper.close()
        return self.death.is_dead

    def produce(self) -> None:
        """The records of the next turn."""
        for number, record in self._feed[self._turn]:
            self.log.produce(number, record)
        self._turn += 1

    def produce_all(self) -> None:
        while self._turn < len(self._feed):
            self.produce()

    def _scribble(self) -> None:
        self.engine.runner.kv.blocks[:-1] = 0.5 + self.num_lives

    def _start(self) -> None:
        self.runner = MortalRunner(self.engine.runner, self.death)
        engine: Any = FakeEngine(self.runner, self.engine.renderer, self.engine.fingerprint, self.engine.why_not)  # type: ignore[arg-type]
        sink = MortalSink(self.log)
        self.keeper = self._make_keeper() if self.folder else None
        self.processor = StreamProcessor(self.config, engine, sink, FakeControl(self.log), self.clock.clock())
        self.processor.scheduler.cells.recompute = None  # what is stored is read, however slow a busy machine makes it
        batch = 40 if self.num_lives == 2 else 5  # many blocks come back at once, or one by one
        self.source = MortalSource(self.log, batch)
        sink.death = self.source.death = self.death
        self.source.listener = self.processor
        self.processor.connect(self.source, self.keeper)
        self._note_computed()

    def _note_computed(self) -> None:
        """`computed`: names of the blocks of generations that a chunk made full."""
        self.computed: set[bytes] = set()
        cells = self.processor.scheduler.cells
        name = cells.name

        def noted(step: StepBuilder, sequence: Generation | Fork, start: int, end: int) -> None:
            name(step, sequence, start, end)
            if isinstance(sequence, Generation):
                size = self.engine.runner.block_size
                self.computed |= {sequence.name(index, size) for index in range(start // size, end // size)}

        cells.name = noted  # type: ignore[method-assign]

    def _make_keeper(self) -> MortalKeeper:
        assert self.folder
        store = MortalStore(self.folder, self.death, self.num_files)
        self.writer = MortalWriter(store, self.notes.append)
        reader = SnapshotReader(store, self.notes.append)
        keeper = MortalKeeper(self.identity, self.writer, reader, self.interval_s, self.notes.append)
        keeper.death = self.writer.death = self.death
        return keeper

    def identity(self, number: int, topic_id: str) -> Identity:
        fingerprint = f"{self.engine.fingerprint}.{self.engine.runner.block_size}"
        return Identity(fingerprint, "group", "records", topic_id, number)

    def step(self) -> None:
        self.clock.now_s += 0.02
        self.processor.step()
        self.processor.check()
        if self.keeper:
            self.writer.wait(5.0)
        is_first = self.num_lives == 1 and self.expected is not None  # nothing can have come back yet
        self._num_steps += 1
        if is_first or self._num_steps % 2:
            return
        self.processor.land()       # cells count as computed from the launch on
        for partition in self.processor.partitions.values():
            for session in partition.sessions.values():
                for generation in session.generations:
                    self._look_at(session.key, generation)

    def _look_at(self, key: str, generation: Generation) -> None:
        """Cells only grow: those of any moment are the first of what a run without deaths had in the end."""
        runner, num_tokens = self.engine.runner, generation.num_computed
        name, num_known = (key, generation.start_offset), self._num_seen.get(generation.seq_id, 0)
        if num_tokens == num_known:
            return
        self._num_seen[generation.seq_id] = num_tokens
        table = generation.block_table[: -(-num_tokens // runner.block_size)]
        cells = runner.forward.cells(runner.kv, table, num_tokens)  # [layers, 2, kv_heads, num_tokens, head_dim]
        if self.expected is None:
            if name not in self.cells or self.cells[name].shape[3] < num_tokens:
                self.cells[name] = cells
        elif name in self.expected:
            most = min(num_tokens, self.expected[name].shape[3])
            same = torch.equal(cells[:, :, :, :most], self.expected[name][:, :, :, :most])
            assert same, f"{key} from {generation.start_offset} has other cells among its first {most}"

    def _drain(self) -> None:
        for _ in range(20_000):
            self.step()
            if self.processor.tier.num_coming:
                time.sleep(0.001)  # threads bring it
            partitions = self.processor.partitions.values()
            idle = self.processor.is_at_rest and self.source.is_drained
            if idle and not any(p.finished or p.replies or p.dirty for p in partitions):
                return
        raise AssertionError("the worker does not come to rest")

    def stored(self) -> set[bytes]:
        """Names of the blocks that a worker which starts now finds whole, of generations that are still current."""
        assert self.folder
        reader = SnapshotReader(FileStore(self.folder), lambda note: None)
        found: set[bytes] = set()
        for number in range(NUM_PARTITIONS):
            offset = self.log.committed.get((self.config.topics.records, number), (0, ""))[0]
            if manifest := reader.find(self.identity(number, self.log.topic_id), offset):
                found |= reader.open(manifest).fetch(self._needed(number, manifest)).keys()
        reader.close()
        return found

    def shared(self) -> set[bytes]:
        """Names of the system prefix's blocks: a partition without a snapshot does not wait for that of another one."""
        size = self.engine.runner.block_size
        num_blocks = len(self.engine.renderer.prefix_ids) // size
        sessions = [s for partition in self.processor.partitions.values() for s in partition.sessions.values()]
        return {session.current.name(index, size) for session in sessions[:1] for index in range(num_blocks)}

    def _needed(self, number: int, manifest: Manifest) -> set[bytes]:
        """Names of a manifest's blocks, without those of sessions that have hopped since."""
        heads = self.log.heads(number)
        return {
            name
            for part in manifest.sessions
            if part.key not in heads or heads[part.key].start_offset == part.start_offset
            for name in part.names
        }

    def outcome(self) -> Outcome:
        sessions = {key: s for p in self.processor.partitions.values() for key, s in p.sessions.items()}
        answers = defaultdict(list)
        for message in self.log.read(self.config.topics.answers):
            answer = decode_answer(message.value or b"")
            answers[answer.session, answer.query_id or ""].append(message.value or b"")
        return Outcome({key: self._digest(session) for key, session in sessions.items()}, dict(answers))

    def _digest(self, session: Session) -> str:
        """SHA-256 of what the current generation is, and of its cells."""
        current, runner = session.current, self.engine.runner
        assert current.num_computed == current.num_tokens, f"{session.key} is not computed"
        cells = runner.forward.cells(runner.kv, current.block_table, current.num_tokens)
        facts = (current.start_offset, current.num_records, current.token_ids)
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(cells.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def num_hopped(self) -> int:
        """Sessions that have left records behind."""
        partitions = self.processor.partitions.values()
        return sum(s.current.records_before > 0 for p in partitions for s in p.sessions.values())


def build_engine(dtype: str) -> tuple[build.Engine, Config]:
    config = make_config(dtype)
    return build.build_engine(config), config
