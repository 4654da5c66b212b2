"""Replay: the same processor over a stretch of the past, on the records' own clock, into an output of its own.

Everything before `--from` is read silently from the log's start, because a generation's start depends on all records
before it. So questions that are triggered by records get the very bytes that the live run published.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamproc.config import Config
from streamproc.kafka.stretch import Stretch
from streamproc.messages import Query, decode_answer
from streamproc.ports import Clock, Engine, Sink
from streamproc.processor import StreamProcessor
from streamproc.state.epoch import Epoch, Message


class Questions:
    """The control topic of a replay: a fixed list."""

    def __init__(self, topic: str, queries: Sequence[Query]) -> None:
        self._messages = [
            Message(topic, 0, offset, query.id.encode(), query.encode(), 0) for offset, query in enumerate(queries)
        ]

    def poll(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


class FileSink:
    """Answers as lines of a file, exactly the bytes a live run publishes, ordered by partition, offset and query.

    The file appears whole, when the replay is done.
    """

    def __init__(self, path: Path, answers_topic: str) -> None:
        self.path = path
        self._topic = answers_topic
        self._values: list[bytes] = []

    def commit(self, epoch: Epoch, membership: Any) -> None:
        self._values += [m.value for m in epoch.messages if m.topic == self._topic and m.value is not None]

    def close(self) -> None:
        """Nothing is open before `publish`."""

    def publish(self) -> None:
        """Write the file: temporary name, fsync, rename."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.writelines(value + b"\n" for value in sorted(self._values, key=_place))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _place(value: bytes) -> tuple[int, int, str]:
    answer = decode_answer(value)
    assert answer.as_of is not None
    return answer.as_of.partition, answer.as_of.offset, answer.query_id or ""


class TopicSink:
    """Answers go to a topic of the replay's own; dead letters and heads belong to the live run and are left out."""

    def __init__(self, sink: Sink, answers_topic: str, out: str) -> None:
        self._sink = sink
        self._topic = answers_topic
        self._out = out

    def commit(self, epoch: Epoch, membership: Any) -> None:
        messages = tuple(
            replace(message, topic=self._out) for message in epoch.messages if message.topic == self._topic
        )
        if messages:
            self._sink.commit(Epoch(messages, ()), None)

    def close(self) -> None:
        self._sink.close()


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay has done."""

    records: int
    answers: int
    sessions: int


def replay(config: Config, engine: Engine, stretch: Stretch, sink: Sink, queries: Sequence[Query]) -> Replayed:
    """Run to the end of the stretch, and until every question that it triggers is answered."""
    clock = Clock(lambda: stretch.now_ms / 1e3, lambda: stretch.now_ms)
    processor = StreamProcessor(config, engine, sink, Questions(config.topics.control, queries), clock)
    processor.connect(stretch)
    processor.assigned(stretch.recoveries())
    while not (stretch.is_read and is_done(processor)):
        processor.step()
    processor.commit()
    sessions = {(number, key) for number, partition in processor.partitions.items() for key in partition.sessions}
    return Replayed(processor.counters.records, processor.counters.flash_answers, len(sessions))


def is_done(processor: StreamProcessor) -> bool:
    """Nothing is left to compute or to ask."""
    return processor.workload.is_idle and not any(partition.dirty for partition in processor.partitions.values())
