"""Replay: the same processor over a stretch of the past, on the records' own clock, into an output of its own.

Everything before `--from` is read silently from the log's start, because a generation's start depends on all records
before it. So questions that are triggered by records get the very bytes that the live run published.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from streamproc.config import Config
from streamproc.errors import Usage
from streamproc.messages import Query
from streamproc.ports import Clock, Engine, Source
from streamproc.processor import StreamProcessor
from streamproc.replay.sink import Output, ReplaySink
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery


class Bounded(Source, Protocol):
    """A source with an end; `streamproc.kafka.stretch.Stretch`, or a fake."""

    @property
    def now_ms(self) -> int: ...

    @property
    def num_records(self) -> int: ...

    @property
    def is_read(self) -> bool: ...

    def recoveries(self) -> dict[int, Recovery]: ...


class Questions:
    """The control topic of a replay: a fixed list."""

    def __init__(self, topic: str, queries: Sequence[Query]) -> None:
        self._messages = [
            Message(topic, 0, offset, query.id.encode(), query.encode(), 0) for offset, query in enumerate(queries)
        ]

    def poll(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay has done; `records` counts those of the stretch, not those before it."""

    records: int
    answers: int
    sessions: int
    dead: int


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay, with all that it needs. `warn` takes one line for people."""

    config: Config
    engine: Engine
    source: Bounded
    output: Output
    warn: Callable[[str], None]

    def run(self, queries: Sequence[Query]) -> Replayed:
        """Until every question of the stretch is answered and published. Raises Usage for one that cannot be."""
        sink = ReplaySink(self.config.topics, self.output, self.warn)
        clock = Clock(lambda: self.source.now_ms / 1e3, lambda: self.source.now_ms)
        control = Questions(self.config.topics.control, queries)
        processor = StreamProcessor(self.config, self.engine, sink, control, clock)
        processor.connect(self.source)
        check_queries(processor, queries)
        processor.assigned(self.source.recoveries())
        while not (self.source.is_read and is_idle(processor)):
            processor.step()
        processor.commit()
        self.output.publish()
        num_sessions = sum(len(partition.sessions) for partition in processor.partitions.values())
        return Replayed(self.source.num_records, sink.num_answers, num_sessions, sink.num_dead)


def check_triggers(queries: Sequence[Query]) -> None:
    """Raises Usage for the first question whose answers cannot be repeated."""
    for query in queries:
        if query.every is None:
            raise Usage(f"query {query.id}: trigger idle depends on idle time, a replay needs 'every N records'")


def check_queries(processor: StreamProcessor, queries: Sequence[Query]) -> None:
    """Raises Usage for the first question that would not be answered, or not repeatably."""
    check_triggers(queries)
    for query in queries:
        num_tail = len(processor.renderer.tail_ids(query.question))
        if reason := processor.intake.why_not(query, num_tail):
            raise Usage(f"query {query.id}: {reason}")


def is_idle(processor: StreamProcessor) -> bool:
    """Nothing is left to take in, to compute or to ask."""
    return processor.is_at_rest and not any(partition.dirty for partition in processor.partitions.values())
