"""S3 and our side of S4: the real loop, from messages in memory to epochs in memory, with the 109M model under it."""

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import orjson
from memory_kafka import MemoryKafka, until_idle

from peers.ours import BLOCK_SIZE
from peers.subject import ANSWER, QUESTION, VOCAB, Ids, question, tokens
from streamproc.config import Config, Engine, Topics, Worker
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.runner import ModelRunner
from streamproc.messages import Ask, Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor
from streamproc.records import Record, Trade
from streamproc.state.epoch import Epoch, Message
from streamproc.state.partition import Recovery

RECORD = 16         # tokens
PREFIX = 16


@dataclass(frozen=True, slots=True)
class Stream:
    """S4's input: the same for us and for the peer."""

    sessions: int = 32
    queries: int = 8
    every: int = 4          # records of a session from one time that its questions are due to the next
    context: int = 1000     # tokens of a session at the start, in whole records that make every question due
    hops_at: int = 0        # tokens; 0: there is room for all

    @property
    def first_records(self) -> int:
        return (self.context - PREFIX) // RECORD // self.every * self.every

    def prefix(self) -> Ids:
        return tokens(0, PREFIX, salt=5)

    def record(self, session: int, number: int) -> Ids:
        return tokens(number * RECORD, RECORD, salt=100 + session)

    def tail(self, query: int) -> Ids:
        return question(500 + query)


class IdRenderer:
    """Ids of a stream for records and questions that only name them."""

    looks_back = False
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()
    max_id = VOCAB - 1
    fingerprint = "ids"

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.prefix_ids = stream.prefix()

    def record_ids(self, records: list[Record]) -> list[Ids]:
        return [self.stream.record(int(record.sym[1:]), int(record.ts_event_ns)) for record in records]

    def tail_ids(self, text: str) -> Ids:
        return self.stream.tail(int(text[1:]))

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@dataclass(frozen=True, slots=True)
class OurEngine:
    runner: Any
    renderer: IdRenderer
    fingerprint: str = "bench"

    def why_not(self, grammar: str) -> str | None:
        return "answers are free text here"


class Kafka(MemoryKafka):
    """Keeps what was committed, and when."""

    def __init__(self, topics: Topics) -> None:
        super().__init__(topics)
        self.asks = 0
        self.asking: deque[Message] = deque()
        self.answers: list[tuple[float, Any]] = []

    def add_ask(self, ask: Ask) -> None:
        """From any thread."""
        self.asking.append(Message(self.topics.asks, 0, self.asks, ask.session.encode(), ask.encode(), 0))
        self.asks += 1

    def poll(self, timeout_s: float = 0.0) -> list[Message]:
        asked = [self.asking.popleft() for _ in range(len(self.asking))]
        return asked + super().poll(timeout_s)

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        now = time.perf_counter()
        self.answers += [(now, message) for message in epoch.messages if message.topic == self.topics.answers]


class Control:
    """A control topic that is written while the loop runs."""

    def __init__(self, topics: Topics) -> None:
        self.topics, self.messages, self.sent = topics, [], 0

    def add(self, query: Query) -> None:
        self.messages.append(Message(self.topics.control, 0, self.sent, query.id.encode(), query.encode(), 0))
        self.sent += 1

    def poll(self) -> list[Message]:
        messages, self.messages = self.messages, []
        return messages


@dataclass
class Loop:
    """A worker whose sessions hold the stream's first records."""

    stream: Stream
    processor: StreamProcessor
    kafka: Kafka
    given: Counter[int] = field(default_factory=Counter)        # records, by session
    due: dict[str, int] = field(default_factory=dict)           # newest offset at which questions are due
    texts: dict[bytes, str] = field(default_factory=dict)       # the last answer to every question of every session
    first: dict[bytes, str] = field(default_factory=dict)       # the first one

    def give(self, session: int, count: int) -> None:
        for _ in range(count):
            self.kafka.add(Trade(f"s{session}", self.given[session], "1", "1"))
            self.given[session] += 1
        self.due[f"s{session}"] = self.kafka.num_sent - 1


def start(loaded: LoadedModel, stream: Stream, threads: int, more_tokens: int, step_tokens: int) -> Loop:
    """All sessions at their context, all queries registered; `more_tokens`: how far each may grow."""
    per_session = -(-(stream.context + more_tokens) // BLOCK_SIZE) + 1
    per_fork = -(-(QUESTION + ANSWER) // BLOCK_SIZE) + 2
    kv = KVCache(loaded.layout(BLOCK_SIZE), stream.sessions * (per_session + stream.queries * per_fork), loaded.device)
    context_tokens = stream.hops_at or 2 * per_session * BLOCK_SIZE
    config = Config(engine=Engine(device="cpu", context_tokens=context_tokens, step_tokens=step_tokens),
                    worker=Worker(slot="bench", commit_interval_ms=10))  # fmt: skip
    engine = OurEngine(ModelRunner(loaded, kv, threads), IdRenderer(stream))
    kafka, control = Kafka(config.topics), Control(config.topics)
    processor = StreamProcessor(config, engine, kafka, control, Clock())
    processor.connect(kafka)
    processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
    loop = Loop(stream, processor, kafka)
    for session in range(stream.sessions):
        loop.give(session, stream.first_records)
        until_idle(processor, kafka)
    for number in range(stream.queries):
        control.add(Query(f"q{number}", f"q{number}", every=stream.every, max_tokens=ANSWER))
    processor.step()
    return loop


def hits(loop: Loop, count: int) -> dict[str, float]:
    """Asks that a finished flash answer satisfies: milliseconds from source to sink, at rest and at work."""
    answered(loop, rounds=1)
    rest = sorted(hit_at_rest(loop, number) for number in range(count))
    busy = sorted(hits_at_work(loop, max(count // 5, 1)))
    return {"p50_ms": percentile(rest, 0.5), "p99_ms": percentile(rest, 0.99), "asks": count,
            "at_work_p50_ms": percentile(busy, 0.5), "at_work_p99_ms": percentile(busy, 0.99)}  # fmt: skip


def percentile(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]


def standing_ask(loop: Loop, number: int, session: int) -> Ask:
    """A standing question, which insists on the newest offset at which it was due."""
    return Ask(f"a{loop.kafka.asks}", f"s{session}", f"q{number % loop.stream.queries}", loop.due[f"s{session}"],
               max_tokens=ANSWER)  # fmt: skip


def hit_at_rest(loop: Loop, number: int) -> float:
    ask = standing_ask(loop, number, number % loop.stream.sessions)
    loop.kafka.answers.clear()
    started = time.perf_counter()
    loop.kafka.add_ask(ask)
    while not loop.kafka.answers:
        loop.processor.step()
    at, message = loop.kafka.answers[0]
    check_hit(message, ask)     # at rest: nothing else is answered
    return (at - started) * 1e3


def check_hit(message: Any, ask: Ask) -> None:
    answer = orjson.loads(message.value)
    assert answer["id"] == ask.id, answer
    assert answer["as_of"]["offset"] >= (ask.min_offset or 0), answer


def hits_at_work(loop: Loop, count: int) -> list[float]:
    """The same from another thread at any time, while other sessions take in records and answer questions."""
    asked: dict[str, tuple[float, Ask]] = {}

    def ask_now_and_then() -> None:
        for number in range(count):
            time.sleep(0.02 + 0.0137 * (number % 7))
            ask = standing_ask(loop, number, 0)
            asked[ask.id] = time.perf_counter(), ask
            loop.kafka.add_ask(ask)

    asker, found = threading.Thread(target=ask_now_and_then), []
    loop.kafka.answers.clear()
    asker.start()
    while len(found) < count:
        if loop.processor.workload.is_idle and loop.stream.sessions > 1:
            loop.give(1 + len(found) % (loop.stream.sessions - 1), loop.stream.every)
        loop.processor.step()
        for at, message in loop.kafka.answers:
            if begun := asked.get(message.key.decode()):
                check_hit(message, begun[1])
                found.append((at - begun[0]) * 1e3)
        loop.kafka.answers.clear()
    asker.join()
    until_idle(loop.processor, loop.kafka)
    loop.processor.commit()
    return found


def answered(loop: Loop, rounds: int) -> dict[str, float]:
    """Closed loop: a session's next records come once all its due answers are committed; `rounds` of all sessions.

    An answer is fresh if it has seen the newest offset at which its session's questions are due.
    """
    stream, kafka = loop.stream, loop.kafka
    missing = dict.fromkeys((f"s{i}" for i in range(stream.sessions)), 0)
    kafka.answers.clear()
    finished = num_answers = num_fresh = num_same = 0
    started = time.perf_counter()
    while finished < rounds * stream.sessions:
        for session, count in missing.items():
            if not count:
                loop.give(int(session[1:]), stream.every)
                missing[session] = stream.queries
        loop.processor.step()
        for _, message in kafka.answers:
            answer = orjson.loads(message.value)
            session = answer["session"]
            num_answers += 1
            num_fresh += answer["as_of"]["offset"] == loop.due[session]
            num_same += loop.texts.get(message.key) == answer["text"]
            loop.texts[message.key] = answer["text"]
            loop.first.setdefault(message.key, answer["text"])
            missing[session] -= 1
            finished += not missing[session]
        kafka.answers.clear()
    taken = time.perf_counter() - started
    until_idle(loop.processor, kafka)
    loop.processor.commit()
    return {"records_per_s": finished * stream.every / taken, "fresh": num_fresh / num_answers,
            "answers": num_answers, "seconds": taken, "answer_as_before": num_same / num_answers}  # fmt: skip
