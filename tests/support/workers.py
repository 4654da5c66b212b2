"""Workers on a real Kafka, in threads and in processes, and what they leave there."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from fakes import FakeEngine, FakeRenderer, FakeRunner
from oracle import Expected, expected_answers

from streamproc.config import Config, Engine, Topics, Worker, known_settings
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink, transactional_id
from streamproc.kafka.producing import AckedProducer, Position
from streamproc.kafka.properties import client_properties
from streamproc.kafka.source import Source
from streamproc.kafka.tailing import Message as TailMessage
from streamproc.kafka.tailing import Tail
from streamproc.keeper import make_keeper
from streamproc.messages import Answer, Ask, Query, decode_answer
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor
from streamproc.records import Record, encode_record
from streamproc.state.epoch import Message

CONTEXT, KEEP, BLOCK = 160, 80, 4  # a few records of the fake renderer: sessions hop often
PATIENCE_S = 40.0
COORDINATOR_S = 30.0
MOVING = (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)


def make_config(topics: Topics, bootstrap_servers: str, **engine: Any) -> Config:
    """Settings of a worker on topics of its own."""
    shape = Engine("random-tiny", context_tokens=CONTEXT, keep=KEEP / CONTEXT, step_tokens=256, block_size=BLOCK)
    worker = Worker(
        group=topics.records, slot="a", commit_interval_ms=20, max_question_tokens=120, max_answer_tokens=16
    )
    return Config(topics, replace(shape, **engine), worker=worker, kafka={"bootstrap.servers": bootstrap_servers})


def with_slot(config: Config, slot: str) -> Config:
    return replace(config, worker=replace(config.worker, slot=slot))


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition -> its value."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.02)
    return found


def fake_engine() -> FakeEngine:
    return FakeEngine(FakeRunner(2_000, BLOCK), FakeRenderer())


class ThreadWorker:
    """The processor on a real Kafka, in a thread of this process; runs from its making until `stop`."""

    def __init__(self, config: Config, engine: Any = None, instance_id: str | None = None) -> None:
        properties = client_properties(config)
        self.warnings: list[str] = []
        warn = self.warnings.append
        self.transactional_id = transactional_id(config)
        self._control = ControlTopic(config)
        self.sink = EpochSink(properties, self.transactional_id, warn)
        engine = engine or fake_engine()
        self.processor = StreamProcessor(config, engine, self.sink, self._control, Clock())
        keeper = make_keeper(config, engine, warn)
        self.processor.connect(Source(config, self.processor, warn, instance_id, engine.model), keeper)
        self._stopped = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"worker-{config.worker.slot}")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.processor.step()
                self.processor.check()
            self.processor.close()
        except BaseException as problem:
            self._problem = problem
        finally:
            self.processor.source.abandon()
            self._control.close()

    @property
    def owned(self) -> list[int]:
        return sorted(self.processor.partitions)

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Let it finish and leave the group; raises what stopped it before, if anything did."""
        self._stopped.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the worker does not stop"
        if self._problem is not None:
            raise self._problem

    def __enter__(self) -> "ThreadWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def create_topics(admin: AdminClient, *topics: NewTopic) -> None:
    """Make them, and wait until clients are told of them."""
    for future in admin.create_topics(list(topics)).values():
        future.result()
    names = {topic.topic for topic in topics}
    until(lambda: names <= admin.list_topics(timeout=10).topics.keys(), "the topics in the broker's metadata")


RUN = ("-m", "streamproc", "run", "--json", "--config")
RUN_FAKE = (str(Path(__file__).with_name("fake_worker.py")),)


def start_process(config: Config, folder: Path, what: Sequence[str] = RUN) -> subprocess.Popen[str]:
    """A worker process with these settings; returns once it has joined, its diagnostics go to `folder`."""
    file = folder / "streamproc.toml"
    file.write_text(as_toml(config))
    log = folder / f"worker-{time.monotonic_ns()}.log"
    with log.open("w") as err:
        command = [sys.executable, *what, str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    until(lambda: process.poll() is not None or "in group" in log.read_text(), "the worker's start", 90)
    assert process.poll() is None, log.read_text()
    return process


def as_toml(config: Config) -> str:
    """Every setting that is not its default."""
    tables: dict[str, list[str]] = {}
    for key, known in known_settings().items():
        section, _, name = key.partition(".")
        value = config.value(key)
        if value != known.default:
            tables.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    tables["kafka"] = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in config.kafka.items()]
    return "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in tables.items())


class Site:
    """One set of topics: what goes in, what has come out."""

    def __init__(self, config: Config, num_partitions: int) -> None:
        self.config, self.num_partitions = config, num_partitions
        self._properties = client_properties(config)
        self._producer = AckedProducer(self._properties)

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int = -1) -> Position:
        return self._producer.send_and_wait(topic, key, value, partition)

    def send_records(self, records: Iterable[Record]) -> None:
        for record in records:
            self._producer.send(self.config.topics.records, record.sym.encode(), encode_record(record))
        assert self._producer.flush(10) == 0

    def register(self, queries: Iterable[Query]) -> None:
        for query in queries:
            self.send(self.config.topics.control, query.id.encode(), query.encode())

    def ask(self, ask: Ask) -> Position:
        return self.send(self.config.topics.asks, ask.session.encode(), ask.encode())

    def read(self, topic: str) -> list[TailMessage]:
        """All committed messages of a topic."""
        tail = Tail(self._properties, topic, self.num_partitions)
        try:
            tail.start(tail.starts())
            return list(tail.read_to_end())
        finally:
            tail.close()

    def answers(self) -> list[Answer]:
        return [decode_answer(message.value or b"") for message in self.read(self.config.topics.answers)]

    def replies(self) -> dict[str, list[Answer]]:
        """Answers to asks, by ask."""
        found: dict[str, list[Answer]] = {}
        for answer in self.answers():
            if answer.kind == "ask":
                found.setdefault(answer.id, []).append(answer)
        return found

    def ends(self, topic: str) -> dict[int, int]:
        tail = Tail(self._properties, topic, self.num_partitions)
        try:
            return tail.ends()
        finally:
            tail.close()

    def committed(self, topic: str) -> dict[int, tuple[int, str]]:
        """Offsets and metadata that the group has committed, by partition; a coordinator may be on the move."""
        wanted = [TopicPartition(topic, number) for number in range(self.num_partitions)]
        deadline = time.monotonic() + COORDINATOR_S
        while True:
            consumer = Consumer({**self._properties, "group.id": self.config.worker.group})
            try:
                found = consumer.committed(wanted, COORDINATOR_S)
                return {each.partition: (each.offset, each.metadata or "") for each in found}
            except KafkaException as problem:
                if problem.args[0].code() not in MOVING or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            finally:
                consumer.close()

    def is_settled(self) -> bool:
        """Whether all records and asks are processed and committed."""
        return all(
            all(max(offset, 0) == ends[number] for number, (offset, _) in self.committed(topic).items())
            for topic in (self.config.topics.records, self.config.topics.asks)
            for ends in [self.ends(topic)]
        )

    def settle(self, patience_s: float = PATIENCE_S) -> None:
        until(self.is_settled, "all records and asks committed", patience_s)

    def expected(
        self, queries: Sequence[Query], is_good: Callable[[TailMessage], bool] = lambda message: True, **how: Any
    ) -> list[Expected]:
        """What the triggered queries must have answered, computed from the records topic alone."""
        engine = self.config.engine
        found: list[Expected] = []
        for number in range(self.num_partitions):
            messages = [
                Message("", number, m.offset, m.key, m.value, m.timestamp_ms)
                for m in self.read(self.config.topics.records)
                if m.partition == number and is_good(m)
            ]
            context, keep = engine.context_tokens, int(engine.context_tokens * engine.keep)
            renderer = how.get("renderer") or FakeRenderer()
            answer = {"answer": how["answer"]} if "answer" in how else {}
            found += expected_answers(renderer, messages, list(queries), context, keep, **answer)
        return in_order(found)

    def triggered(self, queries: Sequence[Query]) -> list[Expected]:
        """What these queries have answered; repeated answers are there as often as they were published."""
        wanted = {query.id for query in queries}
        found = [
            Expected(a.session, a.as_of.offset, a.as_of.from_offset, a.query_id or "", a.text or "")
            for a in self.answers()
            if a.query_id in wanted and a.as_of
        ]
        return in_order(found)


def in_order(found: Iterable[Expected]) -> list[Expected]:
    return sorted(found, key=lambda item: (item.session, item.offset, item.query_id))
